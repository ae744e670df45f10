"""Words in columns: the layouts of CoNLL's files, and bad lines."""

import pytest

from neo_peft.corpora.sources import load_splits
from neo_peft.errors import InputError
from neo_peft.tasks import TASKS

LIKE_CONLL_2003 = """-DOCSTART- -X- -X- O

EU NNP I-NP I-ORG
# NN I-NP I-MISC

-DOCSTART- -X- -X- O
 \t
Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER
"""
LIKE_GERMEVAL = """#\thttp://example.org\t[2009-10-17]
1\tSchartau\tB-PER\tO
2\t1951\tO\tB-OTH

#\thttp://example.org\t[2009-10-18]
1\tIn\tO\tO
2\tBonn\tB-LOC\tO
"""


def load(folder, text: str | bytes, name="train.conll", **more):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    (folder / "dev.conll").write_text("id word ner tag\n1 a B-PER B-PER\n2 b B-LOC B-LOC\n")
    splits = load_splits(TASKS["tagging"], str(folder), labels=LABELS, **more)
    return [(row["tokens"], row["tags"]) for row in splits.train], splits


LABELS = ("PER", "LOC", "ORG", "MISC", "OTH")


def test_documents_comments_and_lines_of_blanks_are_no_words(tmp_path):
    rows, splits = load(tmp_path, LIKE_CONLL_2003)
    assert rows == [
        (["EU", "#"], ["B-ORG", "B-MISC"]),
        (["Peter", "Blackburn"], ["B-PER", "I-PER"]),
    ]
    assert splits.read[0].endswith(
        "tokens from column 1, tags from column 4 (MISC, ORG, PER; tags in IOB1, converted to BIO)"
    )
    assert splits.notes[0] == "train.conll: 2 -DOCSTART- lines are not sentences; left out"


def test_numbers_of_words_are_no_tokens_and_the_tag_can_be_chosen(tmp_path):
    rows, splits = load(tmp_path, LIKE_GERMEVAL, columns=("tags=3",))
    assert rows == [(["Schartau", "1951"], ["B-PER", "O"]), (["In", "Bonn"], ["O", "B-LOC"])]
    assert splits.notes[0] == "train.conll: 2 lines that start with # are comments; left out"
    rows, _ = load(tmp_path, LIKE_GERMEVAL)
    assert rows[0] == (["Schartau", "1951"], ["O", "B-OTH"])


def test_numbers_that_do_not_count_the_words_are_tokens(tmp_path):
    rows, _ = load(tmp_path, "1 x O\n5 y B-PER\n")
    assert rows == [(["1", "5"], ["O", "B-PER"])]


def test_a_first_line_with_the_names_of_the_columns_is_no_word(tmp_path):
    rows, splits = load(tmp_path, "id word pos ner\n1 Bonn N B-LOC\n", columns=("tokens=word",))
    assert rows == [(["Bonn"], ["B-LOC"])]
    assert "train.conll: its first line has the names of the columns" in splits.notes


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_the_mark_are_no_part_of_a_word(tmp_path, end, mark):
    text = mark + "Bonn B-LOC\nis O\n\nEU B-ORG\n".replace("\n", end)
    rows, _ = load(tmp_path, text)
    assert rows == [(["Bonn", "is"], ["B-LOC", "O"]), (["EU"], ["B-ORG"])]


def test_latin_1_is_read_and_noted(tmp_path):
    rows, splits = load(tmp_path, "Köln B-LOC\n".encode("latin-1"))
    assert rows == [(["Köln"], ["B-LOC"])]
    assert splits.notes[0] == "train.conll: not utf-8, so it was read as Latin-1"


BAD = {
    "a O\nb\n": "line 2: 1 columns in 'b'; expected 2, as in the first one, separated by tabs or "
    "spaces",
    "a\nb\n": "line 1: 1 columns in 'a'; expected a token and its tag, separated by tabs or spaces",
    "a O\nb x O\n": "line 2: 3 columns in 'b x O'; expected 2, as in the first one",
    "a\tO\n\tO\n": "line 2: a token or sentence is '', empty or not valid text",
    "a\tO\nb\t\n": "line 2: tag 1 is ''; expected 'O', 'B-type' or 'I-type'",
    "a O\nb -100\n": "line 2: tag 1 is -100, which marks a word without a tag",
    "a O\n\nb B-RARE\n": "line 3: unknown label 'B-RARE'; expected one of O, B-PER",
    "": ": the file has no rows; add rows",
    "\n \n# a\n": ": the file has no rows; add rows",
    "a O\n\0 O\n": "line 2: a NUL byte, so it is not a line of text; save the file as utf-8 text",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_line_is_refused_at_its_number(tmp_path, text):
    with pytest.raises(InputError) as refused:
        load(tmp_path, text)
    place = str(tmp_path / "train.conll")
    assert str(refused.value).startswith(f"{place}{', ' * (BAD[text][0] != ':')}{BAD[text]}")


def test_a_column_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(InputError) as refused:
        load(tmp_path, "EU NNP B-ORG\n", columns=("tags=5",))
    assert str(refused.value).startswith(
        f"{tmp_path / 'train.conll'}, line 1: --columns names '5' for the tags, and there is no "
        "such column; the columns are 1, 2, 3; its first line is 'EU NNP B-ORG'; expected "
    )
