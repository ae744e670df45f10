"""Several runs, and pages: studies, comparisons, reports.

plan.py            what a study runs
study.py           runs it
study_results.py   from its finished runs to its results
study_page.py      its tables and plots
compare.py         which of two runs or studies is better
report.py          the page on finished runs
mistakes.py        what a tagger gets wrong, entity by entity
browse.py          scores by label and wrong answers, as HTML
markup.py          HTML in which every text is escaped
"""
