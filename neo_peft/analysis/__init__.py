"""Studies with many runs, comparisons of runs, and reports on runs.

plan.py            the plan of a study: the settings of all its runs
study.py           run a study: all its runs, one after the other
study_results.py   the results of a study, computed from its finished runs
study_page.py      the tables and plots of a study
compare.py         which of two runs or studies is better
report.py          the report: an HTML page on finished runs
mistakes.py        the mistakes of a tagger, by kind
browse.py          scores by label and wrong predictions, as HTML
look.py            look inside a run: what its score consists of, and what its adapter is
look_subject.py    the run, its untuned base, and the rows that are scored
score_parts.py     the steps that lead to a run's score, and the score without each part
ablations.py       a run's model with one part of its adapter switched off
spectra.py         the singular values of each weight change, and directions that two runs share
in_front.py        what a trained prompt or prefix has become
attention.py       the attention that each head pays to a prompt's positions
nearest.py         the words that a prompt's positions are most similar to
layer_readout.py   what the model would predict after each layer
look_text.py       what a look found, as text
look_page.py       what a look found, as an HTML page
markup.py          HTML elements in which all text is escaped
"""
