"""Properties that hold for unusual text, tags and batches, which a user's file can contain."""

import copy
import dataclasses
import json
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from seqeval_oracle import assert_scores_like_seqeval, seqeval_entities

from neo_peft.corpora.json_rows import parse_row
from neo_peft.corpora.lines import is_text, read_lines
from neo_peft.corpora.new_text import split_words
from neo_peft.corpora.sample import parse_tagged
from neo_peft.corpora.sources import load_splits
from neo_peft.encoding import Encoder, collate
from neo_peft.errors import InputError
from neo_peft.formats.base_folder import BUNDLED
from neo_peft.formats.tokenizer import load_tokenizer
from neo_peft.methods import build_model
from neo_peft.metrics import class_scores, entities, entity_scores
from neo_peft.settings import make_settings
from neo_peft.tasks import TASKS

END, VOCABULARY = 0, 8192
MINI = load_tokenizer(BUNDLED["neo-mini"])

few_examples = settings(
    derandomize=True,
    deadline=None,
    max_examples=100,
    database=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.data_too_large,
    ],
)

# Unusual texts: empty, spaces of all kinds, zero-width and combining characters, right-to-left,
# NUL, line ends, characters above U+FFFF, half of a surrogate pair, very long words.
ODD = [
    "",
    " ",
    "\t",
    "\x00",
    "\r",
    "\n",
    "\r\n",
    "\x85",
    "\u2028",
    "\u00a0",
    "\u200b",
    "\u200d",
    "\ufeff",
    "\u0301",
    "é",
    "e\u0301",
    "\u05d0",
    "\u202e",
    "𝛼",
    "👩\u200d🔬",
    "\ud800",
    "\udfff",
    "a" * 3000,
    "ab" * 700,
    "@",
    '"',
    "[",
    "|",
]
pieces = st.one_of(
    st.sampled_from(ODD), st.text(max_size=8), st.sampled_from(["IL-2", "gene", "rose", "(", "κB"])
)
odd_texts = st.lists(pieces, max_size=6).map("".join)
writable = odd_texts.filter(lambda text: not any("\ud800" <= char <= "\udfff" for char in text))
words = st.lists(writable, max_size=12)


def make_encoder(
    task: str, with_head: bool, max_length: int, tag_last_subtoken: bool = False
) -> Encoder:
    return Encoder(TASKS[task], MINI, END, with_head, max_length, VOCABULARY, tag_last_subtoken)


def parts_of(examples, index: int) -> tuple[list[int], list[int], list[int]]:
    """Return the token ids, the target positions and the targets of an example."""
    ids = examples.ids[examples.starts[index] : examples.starts[index + 1]]
    part = slice(examples.target_starts[index], examples.target_starts[index + 1])
    return ids.tolist(), examples.target_indices[part].tolist(), examples.targets[part].tolist()


def tokenizer_ids(text: str) -> list[int]:
    """Return the token ids that the tokenizer itself makes of a text."""
    return MINI(text, add_special_tokens=False, verbose=False)["input_ids"]


# ---- The encoder


@few_examples
@given(sentences=st.lists(words, max_size=5), max_length=st.integers(1, 400), at_last=st.booleans())
def test_each_word_has_the_tokens_that_the_tokenizer_makes_of_it_alone(
    sentences, max_length, at_last
):
    rng = random.Random(max_length)
    rows = [
        {"tokens": tokens, "tags": [rng.choice(TASKS["ner"].labels) for _ in tokens]}
        for tokens in sentences
    ]
    examples = make_encoder("ner", True, max_length, at_last)(rows)
    assert len(examples) == len(rows) and examples.starts[-1] == len(examples.ids)
    cut = 0
    for index, row in enumerate(rows):
        word_ids = [tokenizer_ids(" " + word.strip()) for word in row["tokens"]]
        all_ids = sum(word_ids, [])
        ends = np.cumsum([0, *map(len, word_ids)])
        positions = ends[1:] - 1 if at_last else ends[:-1]
        ids, indices, targets = parts_of(examples, index)
        assert ids == all_ids[:max_length]
        assert indices == [position for position in positions.tolist() if position < max_length]
        assert targets == [TASKS["ner"].labels.index(tag) for tag in row["tags"][: len(indices)]]
        cut += len(all_ids) > max_length
    assert examples.cut == cut


@few_examples
@given(
    sentences=st.lists(words, max_size=5),
    max_length=st.integers(2, 60),
    share=st.floats(0, 0.5),
    flags=st.tuples(st.booleans(), st.booleans()),
)
def test_in_windows_each_word_has_one_target(sentences, max_length, share, flags):
    at_last, echo = flags
    rng = random.Random(max_length)
    rows = [
        {"tokens": tokens, "tags": [rng.choice(TASKS["ner"].labels) for _ in tokens]}
        for tokens in sentences
    ]
    length = max_length // 2 if echo else max_length
    encoder = make_encoder("ner", True, max_length, at_last)
    encoder = dataclasses.replace(encoder, echo=echo, stride=int(share * length))
    examples = encoder(rows)
    tags = [TASKS["ner"].labels.index(tag) for row in rows for tag in row["tags"]]
    assert examples.targets.tolist() == tags
    assert examples.row_starts[-1] == len(examples) and len(examples.window_counts) == len(rows)
    assert len(examples) == 0 or examples.lengths.max() <= max_length
    ends = examples.target_starts[examples.row_starts]
    assert np.diff(ends).tolist() == [len(tokens) for tokens in sentences]
    at_targets = np.repeat(examples.starts[:-1], np.diff(examples.target_starts))
    found = examples.ids[at_targets + examples.target_indices].tolist()
    ids = [tokenizer_ids(" " + word.strip())[:length] for row in rows for word in row["tokens"]]
    assert found == [word[-1 if at_last else 0] for word in ids]


@few_examples
@given(
    texts=st.lists(st.tuples(writable, writable), max_size=4),
    room=st.integers(1, 60),
    with_head=st.booleans(),
)
def test_cutting_keeps_the_whole_template(texts, room, with_head):
    first, second, end_of_template = (
        tokenizer_ids(text) for text in ("Sentence1 :", " Sentence2 :", " Label :")
    )
    max_length = len(first + second + end_of_template) + room
    rows = [{"sentence1": one, "sentence2": two, "label": "equivalent"} for one, two in texts]
    examples = make_encoder("similarity", with_head, max_length)(rows)
    for index, pair in enumerate(texts):
        one, two = (tokenizer_ids(" " + text.strip()) for text in pair)
        ids, indices, targets = parts_of(examples, index)
        text = ids[: indices[0] + 1]
        assert len(text) == min(max_length, len(first + one + second + two + end_of_template))
        assert text[: len(first)] == first and text[-len(end_of_template) :] == end_of_template
        # Between them are the beginnings of both sentences. The longer one was cut first.
        lengths = [
            (a, len(text) - len(first + second + end_of_template) - a) for a in range(len(one) + 1)
        ]
        fitting = [
            (a, b)
            for a, b in lengths
            if 0 <= b <= len(two) and text == first + one[:a] + second + two[:b] + end_of_template
        ]
        assert any(
            (a == len(one) or a >= b - 1) and (b == len(two) or b >= a - 1) for a, b in fitting
        )
        label_targets = [1] if with_head else [*tokenizer_ids(" equivalent"), END]
        assert targets == label_targets and indices == list(
            range(indices[0], indices[0] + len(label_targets))
        )
        assert ids[indices[0] + 1 :] == ([] if with_head else label_targets[:-1])


def test_a_sentence_of_ten_thousand_words_and_a_word_of_a_hundred_thousand_letters_are_cut():
    tokens = [f"IL-{n}" for n in range(10_000)]
    encoder = make_encoder("ner", True, 500)
    rows = [
        {"tokens": tokens, "tags": ["O"] * len(tokens)},
        {"tokens": ["ab" * 50_000, "gene"], "tags": ["O", "O"]},
    ]
    examples = encoder(rows)
    assert np.diff(examples.starts).tolist() == [500, 500] and examples.cut == 2
    assert (
        parts_of(examples, 0)[0]
        == sum((tokenizer_ids(" " + word.strip()) for word in tokens[:500]), [])[:500]
    )
    assert parts_of(examples, 1)[1] == [0]  # the second word is cut


@pytest.mark.parametrize("tag_last_subtoken", [False, True])
def test_a_word_without_tokens_is_refused(tag_last_subtoken):
    """It would have no target position, and the tags of all later words would be shifted."""
    from tokenizers import Regex, normalizers

    dropping = load_tokenizer(BUNDLED["neo-mini"])
    dropping.backend_tokenizer.normalizer = normalizers.Replace(Regex(" ?\u200b"), "")
    encoder = Encoder(TASKS["ner"], dropping, END, True, 100, VOCABULARY, tag_last_subtoken)
    assert encoder([{"tokens": ["IL-2\u200b", "gene"]}]).target_indices[0] < 4
    with pytest.raises(
        InputError, match=r"neo-mini: the tokenizer has no token for '\\u200b'; remove it"
    ):
        encoder([{"tokens": ["IL-2", "\u200b", "gene"]}])


# ---- Batches


@pytest.fixture(scope="module")
def tuned(tiny_folder):
    """The tiny model with a prompt that is longer than the model's window of 11."""
    from neo_peft.runs.loading import load_untuned

    run_settings = make_settings(
        task="ner", method="lora+prompt", model=str(tiny_folder), prompt_length=17, truncate="end"
    )
    return load_untuned(run_settings, with_method=True)


@few_examples
@given(
    sentences=st.lists(st.lists(writable, min_size=1, max_size=6), min_size=1, max_size=5),
    prefixed=st.booleans(),
)
def test_a_batch_has_the_hidden_states_of_each_text_alone(tuned, sentences, prefixed):
    examples = tuned.encoder(
        [{"tokens": tokens, "tags": ["O"] * len(tokens)} for tokens in sentences]
    )
    assert np.diff(examples.starts).max() <= tuned.encoder.max_length == 128 - 17
    model = tuned.model
    with torch.no_grad():
        # the prefix can be computed before, or together with the batch
        prefix = model.prompt_past() if prefixed else None
        together = model(collate(examples, range(len(sentences))), prefix)
        alone = torch.cat([model(collate(examples, [index])) for index in range(len(sentences))])
    assert together.shape == alone.shape == (examples.target_starts[-1], 24)
    assert together.isfinite().all()
    torch.testing.assert_close(
        together, alone, rtol=0, atol=1e-5 * max(1, alone.abs().max().item())
    )


def test_a_prompt_that_leaves_no_room_is_refused(base):
    from neo_peft.runs.loading import make_encoder as make

    run_settings = make_settings(task="ner", method="prompt", model="neo-mini", prompt_length=128)
    with pytest.raises(InputError, match="do not fit into the 128 positions of the model"):
        make(TASKS["ner"], MINI, base.trunk.config, run_settings, with_head=True)
    fits = make_settings(task="ner", method="prompt", model="neo-mini", prompt_length=127)
    encoder = make(TASKS["ner"], MINI, base.trunk.config, fits, with_head=True)
    examples = encoder([{"tokens": ["immunoglobulin", "gene"]}])
    assert encoder.max_length == 1 and np.diff(examples.starts).tolist() == [1, 1]
    model = build_model(copy.deepcopy(base.trunk), MINI, TASKS["ner"], fits)
    with torch.no_grad():
        assert model(collate(examples, [0])).isfinite().all()


# ---- Readers


@few_examples
@given(sentences=st.lists(st.lists(odd_texts, min_size=1, max_size=5), min_size=4, max_size=6))
def test_own_tags_are_read_as_they_were_written_or_refused_at_their_line(tmp_path, sentences):
    rows = [{"tokens": tokens, "tags": ["B-x"] + ["O"] * (len(tokens) - 1)} for tokens in sentences]
    for ascii_only in (True, False):
        lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
        (tmp_path / "train.jsonl").write_bytes("\r\n".join(lines).encode("utf-8", "surrogatepass"))
        bad_lines = [
            n for n, row in enumerate(rows, start=1) if not all(map(is_text, row["tokens"]))
        ]
        try:
            splits = load_splits(TASKS["tagging"], str(tmp_path))
        except InputError as error:
            # Bytes that are not UTF-8 are refused before any row is checked.
            assert bad_lines and f"train.jsonl, line {bad_lines[0] if ascii_only else ''}" in str(
                error
            )
            continue
        assert not bad_lines
        loaded = splits.train + splits.validation
        assert sorted(map(str, loaded)) == sorted(map(str, rows))
        json.dumps(loaded, ensure_ascii=False).encode()  # the loaded rows can be written


@few_examples
@given(
    row=st.dictionaries(
        st.sampled_from(["tokens", "tags", "sentence", "label", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | odd_texts,
            lambda inner: st.lists(inner, max_size=3),
        ),
    ),
    name=st.sampled_from(["tagging", "classification"]),
)
def test_any_json_object_is_a_row_or_a_value_error(row, name):
    try:
        parsed = parse_row(TASKS[name], json.dumps(row))
    except ValueError as error:
        assert str(error)
        return
    if name == "tagging":
        assert len(parsed["tokens"]) == len(parsed["tags"]) and all(
            map(is_text, parsed["tokens"] + parsed["tags"])
        )
    else:
        assert is_text(parsed["sentence"]) and is_text(parsed["label"])
    json.dumps(parsed, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "tag", ["B-", "I-", "B", "b-x", "B_x", "", "O ", " O", "B-\ud800", 0, None, ["O"], "O\nO"]
)
def test_a_wrong_tag_is_refused_and_spaces_around_a_tag_are_removed(tmp_path, tag):
    good = {"tokens": ["a", "b"], "tags": ["B-x", "I-x"]}
    rows = [good, {"tokens": ["a", "b"], "tags": [tag, "O"]}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "dev.jsonl").write_text(json.dumps(good))
    if isinstance(tag, str) and tag.strip() == "O":
        splits = load_splits(TASKS["tagging"], str(tmp_path))
        assert splits.train[1]["tags"] == ["O", "O"]
        return
    with pytest.raises(InputError, match="train.jsonl, line 2: tag 1 is "):
        load_splits(TASKS["tagging"], str(tmp_path))


@few_examples
@given(
    lines=st.lists(writable.map(lambda text: text.replace("\n", "").rstrip("\r")), max_size=8),
    crlf=st.booleans(),
)
def test_lines_are_split_only_at_line_feeds_and_numbered(tmp_path, lines, crlf):
    (tmp_path / "file").write_bytes(("\r\n" if crlf else "\n").join(lines).encode())
    read = list(read_lines(tmp_path / "file"))
    if lines and lines[0].startswith("\ufeff"):
        lines = [lines[0].removeprefix("\ufeff"), *lines[1:]]
    assert read == [
        (n, line if line.strip(" ") else "") for n, line in enumerate(lines or [""], start=1)
    ]


@few_examples
@given(text=odd_texts)
def test_split_words_have_their_positions_in_the_text(text):
    starts_and_words = split_words(text)
    assert all(word and text[start : start + len(word)] == word for start, word in starts_and_words)
    assert "".join(word for _, word in starts_and_words) == "".join(text.split())


@few_examples
@given(line=st.lists(pieces, max_size=6).map(" ".join))
def test_a_marked_line_gives_words_and_tags_or_a_value_error(line):
    try:
        row = parse_tagged(line, TASKS["ner"].labels)
    except ValueError:
        return
    assert len(row["tokens"]) == len(row["tags"]) and entities(
        row["tags"], strict=True
    ) == entities(row["tags"])
    assert all(map(is_text, row["tokens"]))


# ---- Metrics

# No type starts with a hyphen: seqeval's strict mode removes the hyphens, and gives "B--" the type
# "_".
kinds = st.sampled_from(["A", "B", "A-B", "B-A", "é", "x y", "\u200b", "\x00", "I"])
tags = st.one_of(st.just("O"), st.tuples(st.sampled_from("BI"), kinds).map("-".join))


@few_examples
@given(
    corpus=st.lists(st.lists(st.tuples(tags, tags), max_size=8), min_size=1, max_size=6),
    strict=st.booleans(),
)
def test_scores_are_those_of_seqeval_for_any_names_of_types(corpus, strict):
    gold, predicted = (
        [[pair[side] for pair in sentence] for sentence in corpus] for side in (0, 1)
    )
    for sentence in gold + predicted:
        assert entities(sentence, strict) == seqeval_entities(sentence, strict)
    scores = entity_scores(gold, predicted, strict)
    assert entity_scores(predicted, gold, strict)["f1"] == pytest.approx(scores["f1"])
    assert (scores["precision"], scores["recall"]) == (
        entity_scores(predicted, gold, strict)["recall"],
        entity_scores(predicted, gold, strict)["precision"],
    )
    # Without any entity seqeval has no value. Ours is 0; test_metrics.py tests it.
    assume(any(entities(sentence, strict) for sentence in gold + predicted))
    assert_scores_like_seqeval(gold, predicted, strict)


@few_examples
@given(sentence=st.lists(st.one_of(tags, odd_texts, st.integers(), st.none()), max_size=6))
def test_a_value_that_is_not_a_tag_is_a_value_error(sentence):
    all_tags = all(
        isinstance(tag, str) and (tag == "O" or tag[:2] in ("B-", "I-") and len(tag) > 2)
        for tag in sentence
    )
    if all_tags:
        assert sum(last - first + 1 for _, first, last in entities(sentence)) == sum(
            tag != "O" for tag in sentence
        )
    else:
        with pytest.raises(ValueError, match="is not a BIO tag"):
            entities(sentence)


@few_examples
@given(
    pairs=st.lists(
        st.tuples(st.integers(0, 2), st.one_of(st.none(), st.integers(0, 2))), max_size=30
    )
)
def test_class_scores_are_counts_of_the_pairs(pairs):
    labels = ("\u200b", "", "a, b")
    scores = class_scores(
        [labels[a] for a, _ in pairs], [None if b is None else labels[b] for _, b in pairs], labels
    )
    assert scores["hits"] == sum(a == b for a, b in pairs) and scores["unanswered"] == sum(
        b is None for _, b in pairs
    )
    assert sum(map(sum, scores["confusion"])) == scores["total"] == len(pairs)
    assert all(math.isfinite(value) for value in (scores["accuracy"], scores["macro_f1"]))
