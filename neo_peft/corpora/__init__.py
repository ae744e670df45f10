"""Data: one file for each corpus or file format.

sources.py     load the splits that `--data` names; the table of all corpora
splits.py      what a loader gets and returns, and how rows are divided into splits
folders.py     the files in a folder of your own rows
lines.py       read the lines of a file; the checks that all parsers share
jnlpba.py      JNLPBA: sentences with a tag for each word
phrasebank.py  the Financial PhraseBank: sentences and their sentiment
glue.py        GLUE's eight classification tasks, and MRPC's original files
sample.py      the bundled sample
own_rows.py    your own labelled data: read the rows of each split, and check their labels
own_files.py   where the rows of each split are; the table of file formats
json_rows.py   your own rows in JSON
delimited.py   your own rows in CSV and TSV
word_rows.py   a table with one word in each row, in CSV
tables.py      your own rows in parquet, in a folder of `save_to_disk`, or on the hub
columns.py     your own tagged words in columns, as in CoNLL's files
spans.py       your own tagged texts with spans of characters, as in doccano and spaCy
fields.py      which columns are the fields of a row
schemes.py     how tags mark entities: BIO, IOB1, BIOES, BILOU, IO
checks.py      checks of labels and tags that can be any text
words.py       split a text into words
new_text.py    new text without labels, for predict
new_files.py   files of new rows for predict: tables, and words in columns
"""
