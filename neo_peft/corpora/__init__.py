"""Data: one file for each corpus or file format.

sources.py     from --data to the rows of each split: the table of all corpora
splits.py      what is asked for, the splits of a data set, and how rows are divided among them
lines.py       the lines of a file, and the checks that all parsers share
jnlpba.py      JNLPBA: sentences with a tag for each word
phrasebank.py  the Financial PhraseBank: sentences and their sentiment
glue.py        GLUE's eight classification tasks, and MRPC's original files
sample.py      the bundled sample
own.py         a user's own labelled rows: JSON lines
new_text.py    new text without labels, for predict
"""
