"""One run: its settings, its folder, training, scores, and how it is loaded again.

from_flags.py    from the flags that were given to the settings of a run
folder.py        where runs stand, and what a run's files say
training.py      from settings to a run folder, or on with one that stopped
job.py           all that a run needs, loaded; the untuned base and the tuned model, scored
checkpoints.py   what an unfinished run continues from, to the same bits
log.py           losses and scores of each step and epoch, and when each step was done
generation.py    answers by free generation
predictions.py   what a run answered, row by row
record.py        run.json: the recipe of a run, and what it came to
summary.py       what a run prints
tables.py        printed tables
curves.py        learning curves
bootstrap.py     confidence intervals, and two runs compared
baselines.py     scores without a language model
loading.py       from a run's folder, or settings, to a model that answers
export.py        a run as an adapter for peft or a model for transformers, with a card
adapter_set.py   several runs on one base, and mixed batches in one pass
"""
