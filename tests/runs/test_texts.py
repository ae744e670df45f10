"""How much of a text was used, and which texts have special tokens."""

from dataclasses import replace

import numpy as np
import pytest
from own_files import write_rows
from refusals import run

from neo_peft.encoding import Encoder
from neo_peft.formats.base_folder import BUNDLED
from neo_peft.formats.tokenizer import load_tokenizer
from neo_peft.runs.texts import (
    cut_note,
    cut_texts,
    encode_texts,
    evaluate_texts,
    special_notes,
    used_part,
)
from neo_peft.tasks import TASKS

END, VOCABULARY = 0, 8192


@pytest.fixture(scope="module")
def mini():
    return load_tokenizer(BUNDLED["neo-mini"])


def encoder(tokenizer, task: str, max_length: int, **changed) -> Encoder:
    plain = Encoder(TASKS[task], tokenizer, END, True, max_length, VOCABULARY)
    return replace(plain, **changed)


@pytest.mark.parametrize("tag_last_subtoken", [False, True])
@pytest.mark.parametrize("echo", [False, True])
def test_the_words_that_were_used_are_those_with_a_target(mini, tag_last_subtoken, echo):
    """For each maximum length. A word that was cut inside counts if its first sub-token is its
    target position."""
    tokens = ["Immunoglobulin", "genes", "NF-kappaB", "binds", "p65"]
    counts = [len(mini(" " + word)["input_ids"]) for word in tokens]
    assert min(counts) == 1 and max(counts) > 2
    flags = {"tag_last_subtoken": tag_last_subtoken, "echo": echo}
    for length in range(1, sum(counts) + 2):
        encode = encoder(mini, "ner", length * (2 if echo else 1), **flags)
        rows = [{"tokens": tokens}, {"tokens": tokens[1:2]}]
        examples = encode_texts(encode, rows)
        ends = np.cumsum(counts)
        fitting = ends <= length if tag_last_subtoken else ends - counts < length
        expected = {} if length >= sum(counts) else {0: int(fitting.sum())}
        assert cut_texts(encode, rows, examples) == expected
        assert len(expected) == examples.cut
        if expected:
            assert examples.target_starts.tolist()[1] == expected[0]


@pytest.mark.parametrize("room", [1, 2, 5, 9, 14, 60])
def test_the_characters_that_were_used_are_the_text_of_the_tokens_that_fit(mini, room):
    """Worked with transformers' tokens of each sentence: the longer sentence is cut first."""
    row = {
        "sentence1": "  Profit rose sharply in Oulu , the firm said .  ",
        "sentence2": "It fell .",
    }
    template = sum(
        len(mini(part)["input_ids"]) for part in ("Sentence1 :", " Sentence2 :", " Label :")
    )
    ids = [mini(" " + text.strip())["input_ids"] for text in row.values()]
    left = [len(part) for part in ids]
    while sum(left) > room:
        left[int(left[1] >= left[0])] -= 1
    used = used_part(encoder(mini, "similarity", template + room), row)
    if room == 60:
        assert used is None
        return
    for (field, text), part, count in zip(row.items(), ids, left, strict=True):
        expected = mini.decode(part[:count]).strip() if count < len(part) else text.strip()
        assert text[: used[field]].strip() == expected
    assert used["sentence2"] <= len(row["sentence2"])


def test_a_character_of_several_tokens_is_cut_without_an_error(mini):
    """Its characters are those that have at least one token in the text."""
    row = {"sentence": "🔬🔬🔬"}
    [ids] = mini([" 🔬"])["input_ids"]
    template = sum(len(mini(part)["input_ids"]) for part in ("Sentence :", " Label :"))
    assert len(ids) > 2
    for room, characters in ((1, 0), (len(ids) - 1, 1), (len(ids), 1), (len(ids) + 1, 2)):
        used = used_part(encoder(mini, "sentiment", template + room), row)["sentence"]
        assert used == characters


def test_only_the_rows_that_were_cut_have_a_part(mini):
    """A row with exactly the maximum length was not cut."""
    rows = [{"tokens": ["gene"] * count} for count in (3, 7, 4, 4, 9)]
    encode = encoder(mini, "ner", 4 * len(mini(" gene")["input_ids"]))
    assert cut_texts(encode, rows, encode_texts(encode, rows)) == {1: 4, 4: 4}


def test_the_note_has_the_length_of_one_copy_of_an_echo(mini):
    plain, echo = encoder(mini, "ner", 128), encoder(mini, "ner", 128, echo=True)
    assert cut_note(1, [plain]) == "1 text was cut to 128 tokens, at the end"
    assert cut_note(1200, [plain]) == "1,200 texts were cut to 128 tokens, at the end"
    assert cut_note(2, [plain, echo, plain]) == "2 texts were cut to 64 or 128 tokens, at the end"


def test_texts_with_a_special_token_are_counted_once_each(mini):
    texts = ["up <|endoftext|> down <|endoftext|>", "<|endoftext|>", "up", "< |endoftext| >"]
    ids = [mini(text)["input_ids"] for text in texts]
    assert [0 in part for part in ids] == [True, True, False, False]  # 0 is the end of text
    encode = replace(encoder(mini, "sentiment", 128), with_head=False)
    rows = [{"sentence": text, "label": "neutral"} for text in texts]
    [note] = special_notes(encode, [encode(rows), encode(rows[2:]), encode(rows[1:])])
    assert note.startswith("3 texts have a special token, such as <|endoftext|>, which the model ")
    assert special_notes(encode, [encode(rows[2:]), encode([])]) == []


def test_training_and_evaluation_note_a_special_token(tiny_folder, tmp_path, capfd):
    rows = [{"sentence": f"s {i}", "label": "ab"[i % 2]} for i in range(20)]
    rows[3]["sentence"] += " <|endoftext|>"
    data = write_rows(tmp_path / "data", train=rows, test=rows[:5])
    given = f"--task classification --model {tiny_folder} --data {data} --threads 1"
    assert run(f"train --method lora {given} --epochs 1 --out run") == 0
    assert "note    2 texts have a special token, such as <|endo" in capfd.readouterr().out
    assert run("evaluate run") == 0
    assert "note    1 texts have a special token, such as <|endo" in capfd.readouterr().out


def test_the_tags_of_used_words_do_not_depend_on_the_words_that_were_cut(tiny_folder):
    """Except with an echo, where a shorter text is a different text."""
    from neo_peft.runs.loading import load_untuned
    from neo_peft.settings import make_settings

    tuned = load_untuned(
        make_settings(task="ner", method="lora", model=str(tiny_folder), truncate="end"),
        with_method=True,
    )
    rows = [{"tokens": [f"IL-{n}", "gene"] * 40} for n in range(3)]
    evaluation = evaluate_texts(tuned.model, tuned.encoder, [*rows, {"tokens": ["IL-2"]}], 2)
    assert evaluation.cut == 3 and evaluation.used[3] is None
    for row, tags, used in zip(rows, evaluation.predicted, evaluation.used, strict=False):
        [alone] = evaluate_texts(
            tuned.model, tuned.encoder, [{"tokens": row["tokens"][:used]}]
        ).predicted
        assert tags == alone + [None] * (80 - used) and None not in alone
