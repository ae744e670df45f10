"""Studies with many runs, comparisons of runs, and reports on runs.

plan.py            the plan of a study: the settings of all its runs
study.py           run a study: all its runs, one after the other
study_results.py   the results of a study, computed from its finished runs
study_page.py      the tables and plots of a study
compare.py         which of two runs or studies is better
report.py          the report: an HTML page on finished runs
mistakes.py        the mistakes of a tagger, by kind
browse.py          scores by label and wrong predictions, as HTML
markup.py          HTML elements in which all text is escaped
"""
