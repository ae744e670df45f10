"""The row that the encoder refuses is found, and named by its split and its number."""

import pytest

from neo_peft.encoding import Encoder
from neo_peft.errors import InputError
from neo_peft.formats.base_folder import BUNDLED
from neo_peft.formats.tokenizer import load_tokenizer
from neo_peft.runs.refused_rows import encode_split, first_refused
from neo_peft.tasks import TASKS


def encoder(tokenizer, task: str) -> Encoder:
    return Encoder(TASKS[task], tokenizer, 0, True, max_length=100, vocab_size=8192)


@pytest.fixture
def dropping():
    """Return a tokenizer that removes zero-width spaces."""
    from tokenizers import Regex, normalizers

    tokenizer = load_tokenizer(BUNDLED["neo-mini"])
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex(" ?\u200b"), "")
    return tokenizer


@pytest.mark.parametrize("refused", [[0], [12], [5], [3, 4, 11], [8, 12], list(range(13))])
def test_the_first_refused_row_is_found(refused):
    calls = []

    def encode(rows):
        calls.append(len(rows))
        if set(rows) & set(refused):
            raise InputError("refused")

    assert first_refused(encode, range(13)) == refused[0]
    assert len(calls) <= 4


def test_a_refused_row_is_named_by_its_number_in_the_split(dropping):
    """Also where only some rows of the split are used, and where it is equal to another row."""
    split = [{"tokens": ["IL-2", "gene", str(i)], "tags": ["O"] * 3} for i in range(40)]
    split[23]["tokens"][1] = "\u200b"
    encode = encoder(dropping, "ner")
    why = rf"{dropping.name_or_path}: the tokenizer has no token for '\u200b'; remove it"
    for rows in (split, split[3::4], split[20:24]):
        with pytest.raises(InputError) as refused:
            encode_split(encode, rows, "train", split)
        assert str(refused.value) == rf"train, row 24, 'IL-2 \u200b 23': {why}"
    assert len(encode_split(encode, split[:23], "train", split)) == 23


def test_a_sentence_without_tokens_is_refused(dropping):
    """The model would get the template alone, and its answer would be that of any such text."""
    encode = encoder(dropping, "sentiment")
    encode([{"sentence": "\u200bUp ."}])
    with pytest.raises(InputError, match=r"the tokenizer has no token for '\\u200b'; remove it"):
        encode([{"sentence": "\u200b"}])
