"""The report on runs, an HTML page, and the parts that other pages share.

report.py    the report: an HTML page on finished runs
mistakes.py  the mistakes of a tagger, by kind
browse.py    scores by label and wrong predictions, as HTML
markup.py    HTML elements in which all text is escaped
"""
