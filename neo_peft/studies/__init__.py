"""A study: many runs, of values of a flag or of recipes, and what they show.

plan.py           the plan of a study: the settings of all its runs
sweep.py          the swept flags, and the settings of each value
variants.py       what a study compares: values of flags, or recipes
choice.py         which value of a sweep is a recipe's, chosen by the first seed
study.py          run a study: all its runs, one after the other
measure.py        what a recipe's run costs after training: forgetting, and time to predict
forgetting.py     how well a model still predicts free text
finished.py       a finished run of a study, as the results see it
study_results.py  the results of a study, computed from its finished runs
study_lines.py    the lines of a study's tables: means, deviations and intervals
recipe_lines.py   what each recipe gives and costs
recipe_table.py   the tables of recipes, as text
original.py       the figures of the original study, next to those of a study with its recipe
study_page.py     the tables and plots of a study
study_report.py   the HTML page of a study of recipes or of two sweeps
pictures.py       the pictures of such a study, as SVG
pareto.py         scores against costs, and the recipes that no other one beats
heat_map.py       the scores of two sweeps as a grid
compare.py        which of two runs or studies is better
"""
