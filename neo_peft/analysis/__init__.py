"""Several runs, and pages: studies, comparisons, reports.

plan.py            the plan of a study: the settings of all its runs
study.py           the runs of a study, one after the other
study_results.py   the results of a study, from its finished runs
study_page.py      the tables and plots of a study
compare.py         which of two runs or studies is better
report.py          the page on finished runs
mistakes.py        the mistakes of a tagger, by kind
browse.py          scores by label and wrong predictions, as HTML
markup.py          HTML in which all text is escaped
"""
