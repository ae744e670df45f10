"""Tag schemes: BIO, IOB1, BIOES, BILOU and IO are recognised and converted to the same BIO tags."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neo_peft.corpora.schemes import find_scheme, to_bio, wrong_tags
from neo_peft.corpora.sources import load_splits
from neo_peft.errors import InputError
from neo_peft.tasks import TASKS

# one sentence by hand: two neighbours of one type, a long entity, one of another type after it
BY_HAND = {
    "BIO": "O B-x B-x I-x I-x B-y O B-y I-y",
    "IOB1": "O I-x B-x I-x I-x I-y O I-y I-y",
    "BIOES": "O S-x B-x I-x E-x S-y O B-y E-y",
    "BILOU": "O U-x B-x I-x L-x U-y O B-y L-y",
}


@pytest.mark.parametrize("scheme", BY_HAND)
def test_a_scheme_is_found_and_converted(scheme):
    tags = BY_HAND[scheme].split()
    assert find_scheme([["O"], tags]) == scheme
    assert not list(wrong_tags([tags], scheme))
    assert to_bio(tags, scheme) == BY_HAND["BIO"].split()


def test_bare_types_of_neighbours_are_one_entity():
    tags = ["O", "x", "x", "y", "O", "cell_type"]
    assert find_scheme([tags]) == "IO"
    assert to_bio(tags, "IO") == ["O", "B-x", "I-x", "B-y", "O", "B-cell_type"]


def entities(tags: list[str]) -> list[tuple[int, int, str]]:
    """Return (start, end, type) of each entity of BIO tags, by a plain loop."""
    found = []
    for index, tag in enumerate(tags):
        if tag[0] == "B":
            found.append((index, index + 1, tag[2:]))
        elif tag[0] == "I":
            found[-1] = (found[-1][0], index + 1, tag[2:])
    return found


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.sampled_from("xy")), max_size=6))
def test_entities_written_in_each_scheme_come_back(spans):
    expected, tags, last = [], {scheme: [] for scheme in BY_HAND}, ""
    for gap, length, kind in spans:
        start = len(tags["BIO"]) + gap
        expected.append((start, start + length, kind))
        follows = gap == 0 and last == kind
        inside, mark = ["I"] * (length - 1), {"BIO": "B", "IOB1": "B" if follows else "I"}
        for scheme, written in tags.items():
            marks = [mark.get(scheme, "B"), *inside]
            if scheme in ("BIOES", "BILOU"):
                marks[-1] = {"BIOES": "ES", "BILOU": "LU"}[scheme][length == 1]
            written += ["O"] * gap + [f"{mark}-{kind}" for mark in marks]
        last = kind
    for scheme, written in tags.items():
        assert entities(to_bio(written, scheme)) == expected


def refusal(path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        load_splits(TASKS["tagging"], str(path))
    return str(refused.value)


GOOD = {
    "BIO": "a B-x\nb I-x\nc O\nd B-y\n\n",
    "IOB1": "a I-x\nb I-x\nc O\nd I-y\n\n",
    "BIOES": "a B-x\nb E-x\nc O\nd S-y\n\n",
    "BILOU": "a B-x\nb L-x\nc O\nd U-y\n\n",
    "IO": "a x\nb x\nc O\nd y\n\n",
}
MIXED = {
    ("BIO", "c O\nd I-x\n"): "line 22: tag 2 is 'I-x', but no entity of that type comes before it; "
    "the first word of an entity has B-x",
    ("BIO", "c S-x\n"): "line 21: tag 1 is 'S-x'; expected 'O', 'B-type' or 'I-type'",
    ("IOB1", "c B-x\n"): "line 21: tag 1 is 'B-x', but no entity of that type comes before it; in "
    "IOB1 it is I-x; the other tags of the file are IOB1",
    ("BIOES", "c I-x\n"): "line 21: tag 1 is 'I-x' after 'O', which is not allowed; the other tags "
    "of the file are BIOES",
    ("BIOES", "c O\nd B-x\n"): "line 22: tag 2 is 'B-x', and the sentence ends in its entity; the "
    "other tags of the file are BIOES",
    ("BILOU", "c E-x\n"): "line 21: tag 1 is 'E-x'; expected 'O', 'B-type', 'I-type', 'L-type' or "
    "'U-type'; the other tags of the file are BILOU",
    ("IO", "c B-x\n"): "line 21: tag 1 is 'B-x'; expected 'O' or a type; the other tags of the "
    "file are IO",
}


@pytest.mark.parametrize("scheme, last", MIXED)
def test_a_mixed_file_is_refused_at_its_line(tmp_path, scheme, last):
    path = tmp_path / "train.conll"
    assert refusal(path, GOOD[scheme] * 4 + last) == f"{path}, {MIXED[scheme, last]}"


@pytest.mark.parametrize("scheme", GOOD)
def test_the_scheme_of_a_file_is_named(tmp_path, scheme):
    path = tmp_path / "own.conll"
    path.write_text("".join(GOOD[scheme].replace("c", f"c{i}") for i in range(20)))
    converted = "" if scheme == "BIO" else ", converted to BIO"
    line = f"own.conll: 20 rows; tokens from column 1, tags from column 2 (x, y; tags in {scheme}"
    splits = load_splits(TASKS["tagging"], str(path))
    assert splits.train[0]["tags"] == ["B-x", "I-x", "O", "B-y"]
    assert splits.read == (f"{line}{converted})",)
