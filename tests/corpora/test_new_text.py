"""New text: its words and their positions, and JSON lines that are not rows."""

import pytest

from neo_peft.commands.new_rows import spans
from neo_peft.corpora.new_text import parse_example, split_words
from neo_peft.corpora.sources import load_splits
from neo_peft.tasks import TASKS


@pytest.mark.parametrize(
    "text, words",
    [
        ("The IL-2 gene (in T cells).", "The IL-2 gene ( in T cells ) ."),
        ('He said: "no", then left!?', 'He said : " no " , then left ! ?'),
        ("NF(kappa)B, e.g. p65; 1,000 (0.5)", "NF(kappa)B , e.g. p65 ; 1,000 ( 0.5 )"),
        ("already spaced , text ( here ) .", "already spaced , text ( here ) ."),
        ("5' and 3'-ends of α-globin.", "5' and 3'-ends of α-globin ."),
        ("...", ". . ."),
    ],
)
def test_punctuation_marks_are_words(text, words):
    starts_and_words = split_words(text)
    assert [word for _, word in starts_and_words] == (words.split() if text != "..." else ["..."])
    assert all(text[start : start + len(word)] == word for start, word in starts_and_words)


def test_splitting_the_text_of_the_sample_gives_its_words():
    splits = load_splits(TASKS["ner"], "sample")
    for row in splits.train + splits.validation + splits.test:
        text = " ".join(row["tokens"])
        assert [word for _, word in split_words(text)] == row["tokens"]
        written = text.replace(" .", ".").replace(" ,", ",").replace("( ", "(").replace(" )", ")")
        assert [word for _, word in split_words(written)] == row["tokens"]


@pytest.mark.parametrize(
    "line",
    [
        "nope",
        "[1]",
        "{}",
        '{"tokens": []}',
        '{"tokens": "IL-2"}',
        '{"tokens": [1]}',
        '{"tokens": [" "]}',
        "[" * 9999,
    ],
)
def test_a_json_line_that_is_not_a_row_is_refused(line):
    with pytest.raises(ValueError, match="expected a JSON object with 'tokens'|not JSON"):
        parse_example(line.encode(), TASKS["ner"], as_json=True)


@pytest.mark.parametrize(
    "task, line",
    [
        ("ner", '{"tokens": ["IL-2", "binds"]}'),
        ("sentiment", '\ufeff {"label": "positive", "sentence": "Profit rose ."}  '),
        ("similarity", '{"sentence2": "a"}'),
    ],
)
def test_a_json_row_is_not_read_as_a_text(task, line):
    with pytest.raises(ValueError, match="is a JSON row, not a text; add --jsonl"):
        parse_example(line.encode(), TASKS[task], as_json=False)


@pytest.mark.parametrize("line", ["{a", '{"a": 1}', '{"sentence": 1, "sentence": 2}', "[1]", "{}"])
def test_other_text_in_brackets_is_a_text(line):
    row = parse_example(line.encode(), TASKS["sentiment"], as_json=False)
    assert row == {"sentence": line}


@pytest.mark.parametrize("before", ["", "   ", "\ufeff", "\ufeff "])
def test_the_text_of_a_span_is_that_of_the_line_as_it_was_given(before):
    """Worked by hand: the words are NF-kappa B ( p65 ) binds."""
    given = f"{before}NF-kappa B (p65) binds  "
    row = parse_example(f"{given}\r\n".encode(), TASKS["ner"], as_json=False)
    assert row["tokens"] == ["NF-kappa", "B", "(", "p65", ")", "binds"] and row["text"] == given
    [span] = spans(row, ["B-protein", *["I-protein"] * 4, "O"], [1.0] * 6, row["starts"])
    assert span["text"] == given[span["start"] : span["end"]] == "NF-kappa B (p65)"
    assert (span["start"], span["first"], span["last"]) == (len(before), 0, 4)
