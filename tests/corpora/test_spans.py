"""Texts with spans, as doccano, spaCy and others write them."""

import json

import pytest

from neo_peft.corpora.new_text import parse_example
from neo_peft.corpora.sources import load_splits
from neo_peft.errors import InputError
from neo_peft.tasks import TASKS

TEXT = "The IL-2 gene (in T cells)."
TOKENS = ["The", "IL-2", "gene", "(", "in", "T", "cells", ")", "."]
TAGS = ["O", "B-DNA", "I-DNA", "O", "O", "B-cell", "I-cell", "O", "O"]
SPANS = [[4, 13, "DNA"], [18, 25, "cell"]]
DICTS = [{"start": start, "end": end, "label": kind} for start, end, kind in SPANS]
DOCCANO = [{"id": 3, "label": k, "start_offset": s, "end_offset": e} for s, e, k in SPANS]
FORMS = {
    "doccano's lists": {"id": 1, "text": TEXT, "label": SPANS, "Comments": []},
    "doccano's objects": {"text": TEXT, "entities": DOCCANO, "relations": []},
    "spaCy's pairs": [TEXT, {"entities": SPANS}],
    "spans of objects": {"text": TEXT, "spans": DICTS, "meta": {}},
    "in another order": {"text": TEXT, "entities": SPANS[::-1]},
    "with blanks around": {"text": TEXT, "entities": [[3, 14, "DNA"], SPANS[1]]},
}


def load(folder, rows: list, suffix="jsonl"):
    texts = map(json.dumps, rows)
    text = "\n".join(texts) if suffix == "jsonl" else json.dumps(rows, indent=2)
    (folder / f"train.{suffix}").write_text(text)
    (folder / "dev.jsonl").write_text('{"tokens": ["a", "b"], "tags": ["B-DNA", "B-cell"]}')
    return load_splits(TASKS["tagging"], str(folder), labels=("DNA", "cell"))


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
@pytest.mark.parametrize("form", FORMS)
def test_spans_become_tags_of_the_words_that_predict_has(tmp_path, form, suffix):
    splits = load(tmp_path, [FORMS[form]], suffix)
    assert splits.train == [{"tokens": TOKENS, "tags": TAGS}]
    assert parse_example(TEXT.encode(), TASKS["ner"], False)["tokens"] == TOKENS
    assert len(splits.notes) == 0


def test_a_span_that_cuts_a_word_is_widened_and_noted(tmp_path):
    row = {"text": TEXT, "spans": [[7, 11, "DNA"], [18, 25, "cell"]]}
    splits = load(tmp_path, [row])
    assert splits.train[0] == {"tokens": TOKENS, "tags": TAGS}
    path = tmp_path / "train.jsonl"
    assert splits.notes == (
        f"{path}: spans that cut a word, widened to whole words: 1, such as line 1: DNA '2 ge' is "
        "now 'IL-2 gene'",
    )


def test_of_two_spans_in_a_word_the_first_one_is_kept_and_noted(tmp_path):
    row = {"text": "US-China talks", "spans": [[0, 2, "DNA"], [3, 8, "cell"]]}
    splits = load(tmp_path, [row])
    assert splits.train[0] == {"tokens": ["US-China", "talks"], "tags": ["B-DNA", "O"]}
    assert splits.notes[1].endswith(
        "spans in a word that already has a span, left out: 1, such as line 1: cell 'China' in the "
        "word 'US-China'"
    )


def test_the_fields_can_be_named(tmp_path):
    row = {"body": TEXT, "marks": SPANS, "text": "other"}
    (tmp_path / "own.jsonl").write_text("\n".join(json.dumps(row) for _ in range(1)))
    with pytest.raises(InputError, match="too few rows"):
        load_splits(
            TASKS["tagging"], str(tmp_path / "own.jsonl"), columns=("text=body", "spans=marks")
        )
    with pytest.raises(
        InputError, match="no column is the spans; the columns are body, marks, text"
    ):
        load_splits(TASKS["tagging"], str(tmp_path / "own.jsonl"))


BAD = {
    '{"text": "a b", "spans": [[0, 9, "x"]]}': "the span [0, 9, 'x'] has no characters of the "
    "text, which has 3",
    '{"text": "a b", "spans": [[1, 2, "x"]]}': "the span [1, 2, 'x'] has no characters of the text",
    '{"text": "a b", "spans": [[1, 1, "x"]]}': "the span [1, 1, 'x'] has no characters of the text",
    '{"text": "a b", "spans": [[-3, 1, "x"]]}': "the span [-3, 1, 'x'] has no characters",
    '{"text": "a b", "spans": [[0, 1]]}': "'[0, 1]'; expected a span such as [0, 4, \"drug\"] or",
    '{"text": "a b", "spans": [[0, 1.5, "x"]]}': "expected a span such as",
    '{"text": "a b", "spans": [[0, 1, 7]]}': "expected a span such as",
    '{"text": "a b", "spans": ["x"]}': "'x'; expected a span such as",
    '{"text": "a b", "spans": {"start": 1}}': "expected a JSON object with a text in 'text' and a",
    '{"text": 3, "spans": []}': "expected a JSON object with a text in 'text' and a list of spans",
    '{"text": " ", "spans": []}': "'text' is ' ', empty or not valid text; correct or remove it",
    '{"text": "abc d", "spans": [[0, 3, "x"], [2, 5, "y"]]}': "the span 'c d' overlaps the one "
    "before it; a word has one tag",
    '{"text": "abc d"}': "expected a JSON object with a text in 'text' and a list of spans in",
    '["a", 3]': "expected a JSON object with a text",
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_row_is_refused_at_its_line(tmp_path, line):
    path = tmp_path / "own.jsonl"
    path.write_text('{"text": "a b", "spans": [[0, 1, "x"]]}\n' + line)
    with pytest.raises(InputError) as refused:
        load_splits(TASKS["tagging"], str(path))
    assert str(refused.value).startswith(f"{path}, line 2: ") and BAD[line] in str(refused.value)
