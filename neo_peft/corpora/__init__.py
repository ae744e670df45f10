"""Data: one file for each corpus or file format.

sources.py     load the splits that `--data` names; the table of all corpora
splits.py      what a loader gets and returns, and how rows are divided into splits
folders.py     the files in a folder of your own rows
lines.py       read the lines of a file; the checks that all parsers share
jnlpba.py      JNLPBA: sentences with a tag for each word
phrasebank.py  the Financial PhraseBank: sentences and their sentiment
glue.py        GLUE's eight classification tasks, and MRPC's original files
sample.py      the bundled sample
own_rows.py    your own labelled data: JSON lines
new_text.py    new text without labels, for predict
"""
