"""One run: its settings, its folder, training, scores, and how it is loaded again.

from_flags.py    make the settings of a run from the flags
folder.py        the folders of runs, and the files that a run writes there
training.py      a whole run, from its settings to its scores; resume a stopped run
job.py           load what a run needs; score the untuned base and the tuned model
before.py        score what a tuned model has to beat, before training
shared.py        what runs of a study share: the loaded base, and predictions without tuning
activations.py   the bytes that autograd keeps in a training step
cost.py          the memory and the disk that a run needs, before it starts
pace.py          the time that a run takes, from a few measured batches
estimate.py      the lines on the cost of a run; what helps if memory does not suffice
too_large.py     refuse a base that this machine can never have in memory
run_bar.py       the bar over a whole run, which shows when it ends
checkpoints.py   save and restore an unfinished run, so that it ends with identical bits
selection.py     when validation is scored, and which weights are kept
class_weights.py  the weights of labels in the training loss
log.py           losses and scores of each step and epoch; the time of each step
generation.py    predictions by free generation
predictions.py   the predictions of a run, row by row
record.py        run.json: the settings, versions, scores and warnings of a run
summary.py       what a run prints
tables.py        printed tables
curves.py        learning curves
bootstrap.py     confidence intervals, and the comparison of two runs
baselines.py     baselines without a language model
head_alone.py    the baseline of a linear head without the method
verdict.py       what tuning adds to the best baseline
label_tokens.py  check that the tokens of the labels can be told apart
texts.py         predictions for new texts; what was used of a long one
refused_rows.py  rows that the encoder refuses
origin.py        check that an adapter belongs to its model
loading.py       load a model from the folder of a run, or from settings
export.py        a run as an adapter for peft or a model for transformers, with its tokenizer
card.py          the model card of an export: how to load it, its scores, the hub's metadata
adapter_set.py   several runs on one base; batches that mix their adapters
"""
