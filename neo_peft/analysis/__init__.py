"""Studies with many runs, comparisons of runs, and reports on runs.

plan.py            the plan of a study: the settings of all its runs
sweep.py           the swept flags, and the settings of each value
variants.py        what a study compares: values of flags, or recipes
choice.py          which value of a sweep is a recipe's, chosen by the first seed
study.py           run a study: all its runs, one after the other
measure.py         what a recipe's run costs after training: forgetting, and time to predict
finished.py        a finished run of a study, as the results see it
study_results.py   the results of a study, computed from its finished runs
study_lines.py     the lines of a study's tables: means, deviations and intervals
recipe_lines.py    what each recipe gives and costs
recipe_table.py    the tables of recipes, as text
study_page.py      the tables and plots of a study
study_report.py    the HTML page of a study of recipes or of two sweeps
pictures.py        the pictures of such a study, as SVG
pareto.py          scores against costs, and the recipes that no other one beats
heat_map.py        the scores of two sweeps as a grid
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
