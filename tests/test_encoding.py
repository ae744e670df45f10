"""Encoding, compared with transformers' word alignment, the study's template and cases by hand."""

import dataclasses
import hashlib
import json
import random
import shutil

import numpy as np
import pytest

from neo_peft.corpora.sources import load_splits
from neo_peft.encoding import TEXTS_AT_ONCE, Encoder, batches, collate, tokenize
from neo_peft.errors import InputError
from neo_peft.formats.base_config import read_config
from neo_peft.formats.base_folder import BUNDLED
from neo_peft.formats.tokenizer import load_tokenizer
from neo_peft.model import NO_LABEL
from neo_peft.runs.loading import make_encoder
from neo_peft.settings import make_settings
from neo_peft.tasks import TASKS

END = 0  # neo-mini's end of text


@pytest.fixture(scope="module")
def mini():
    return load_tokenizer(BUNDLED["neo-mini"])


@pytest.fixture(scope="module")
def gpt2(data_folder, tmp_path_factory):
    """Return a folder with GPT-2's tokenizer: vocab.json and merges.txt, no tokenizer.json."""
    folder = tmp_path_factory.mktemp("gpt2")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(data_folder / "gpt2_tokenizer" / name, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt_neo"}))
    return folder


def encoder(tokenizer, task="ner", with_head=True, max_length=200, **settings):
    return Encoder(
        TASKS[task], tokenizer, END, with_head, max_length, vocab_size=60_000, **settings
    )


def example(examples, index):
    """Return the ids, target positions and targets of one example."""
    ids = examples.ids[examples.starts[index] : examples.starts[index + 1]]
    part = slice(examples.target_starts[index], examples.target_starts[index + 1])
    return ids.tolist(), examples.target_indices[part].tolist(), examples.targets[part].tolist()


@pytest.mark.parametrize("at_last", [False, True])
def test_real_sentences_are_encoded_as_word_ids_aligns_them(gpt2, data_folder, at_last):
    from transformers import GPT2TokenizerFast

    oracle = GPT2TokenizerFast(
        vocab=str(gpt2 / "vocab.json"), merges=str(gpt2 / "merges.txt"), add_prefix_space=True
    )
    rows = load_splits(TASKS["ner"], str(data_folder)).train[:500]
    examples = encoder(load_tokenizer(gpt2), max_length=1000, tag_last_subtoken=at_last)(rows)
    for index, row in enumerate(rows):
        aligned = oracle(row["tokens"], is_split_into_words=True)
        words = aligned.word_ids()
        first = [words.index(word) for word in range(len(row["tokens"]))]
        last = [len(words) - 1 - words[::-1].index(word) for word in range(len(row["tokens"]))]
        labels = [TASKS["ner"].labels.index(tag) for tag in row["tags"]]
        assert example(examples, index) == (
            aligned["input_ids"],
            last if at_last else first,
            labels,
        )


def test_examples_of_the_study_follow_its_template(gpt2, data_folder):
    tokenizer = load_tokenizer(gpt2)
    encode = tokenizer.encode
    rows = load_splits(TASKS["sentiment"], str(data_folder), "paper").train[:200]
    examples = encoder(tokenizer, "sentiment", with_head=False, source_text=True)(rows)
    for index, row in enumerate(rows):
        text, label = encode(f"sentence : {row['sentence']} Label : "), encode(row["label"])
        assert example(examples, index) == (
            text + label,
            list(range(len(text) - 1, len(text) + len(label))),
            [*label, END],
        )
    rows = load_splits(TASKS["similarity"], str(data_folder)).train[:200]
    examples = encoder(tokenizer, "similarity", with_head=False, source_text=True)(rows)
    for index, row in enumerate(rows):
        text = f'"Sentence1": {row["sentence1"]} "Sentence2": {row["sentence2"]} "Label":'
        assert example(examples, index)[0] == encode(text) + encode(row["label"])


def test_without_the_studys_template_the_space_belongs_to_the_label_text(mini):
    row = {"sentence": "Profit rose .", "label": "positive"}
    ids, indices, targets = example(encoder(mini, "sentiment", with_head=False)([row]), 0)
    assert ids == mini.encode("Sentence : Profit rose . Label : positive")
    assert targets == [*mini.encode(" positive"), END]
    assert indices[0] == len(mini.encode("Sentence : Profit rose . Label :")) - 1
    assert indices == list(range(indices[0], indices[0] + len(targets)))


def test_with_a_head_the_last_token_is_the_only_target_position(mini):
    row = {"sentence1": "It rained .", "sentence2": "Rain fell .", "label": "equivalent"}
    ids, indices, targets = example(encoder(mini, "similarity")([row]), 0)
    assert ids == mini.encode("Sentence1 : It rained . Sentence2 : Rain fell . Label :")
    assert (indices, targets) == ([len(ids) - 1], [1])


def test_a_row_without_a_label_has_the_target_no_label(mini):
    assert example(encoder(mini, "sentiment", with_head=False)([{"sentence": "Profit rose ."}]), 0)[
        2
    ] == [NO_LABEL]
    assert example(encoder(mini)([{"tokens": ["IL-2", "gene"]}]), 0)[2] == [NO_LABEL, NO_LABEL]


def test_a_long_sentence_is_cut_at_its_end_and_the_template_stays_whole(mini):
    words = [
        "profit",
        "fell",
        "and",
        "fell",
        "again",
        "until",
        "nothing",
        "was",
        "left",
        "of",
        "the",
        "company",
    ]
    row = {"sentence": " ".join(words), "label": "negative"}
    examples = encoder(mini, "sentiment", with_head=False, max_length=12)(
        [row, {**row, "sentence": "Up ."}]
    )
    ids, indices, targets = example(examples, 0)
    template = len(mini.encode("Sentence :")), len(mini.encode(" Label :"))
    data = mini.encode(" " + row["sentence"])[: 12 - sum(template)]
    assert ids[: indices[0] + 1] == mini.encode("Sentence :") + data + mini.encode(" Label :")
    assert targets == [*mini.encode(" negative"), END]
    assert examples.cut == 1


def test_an_echo_is_the_sentence_twice_with_targets_in_the_second_copy(mini):
    row = {"tokens": ["Immunoglobulin", "genes"], "tags": ["B-DNA", "I-DNA"]}
    once, twice = (example(encoder(mini, echo=echo)([row]), 0) for echo in (False, True))
    assert twice == (2 * once[0], [len(once[0]) + index for index in once[1]], once[2])


def test_with_echo_a_sentence_can_have_half_of_the_tokens(mini):
    config = read_config(BUNDLED["neo-mini"])
    flags = {"task": "ner", "method": "lora", "echo": True, "truncate": "end"}
    echo = make_encoder(TASKS["ner"], mini, config, make_settings(**flags), with_head=True)
    examples = echo([{"tokens": ["profit"] * 300, "tags": ["O"] * 300}])
    assert len(examples.ids) == echo.max_length == config.max_position_embeddings
    assert examples.cut == 1
    assert examples.target_indices.tolist() == list(range(128, 256))
    with pytest.raises(
        InputError, match="--max-length 1 does not fit: this model and prompt allow 2 to 256"
    ):
        make_encoder(
            TASKS["ner"], mini, config, make_settings(**flags, max_length=1), with_head=True
        )


def test_words_that_were_cut_have_no_target_position(mini):
    row = {"tokens": ["immunoglobulin", "genes", "rearrange"], "tags": ["B-DNA", "I-DNA", "O"]}
    lengths = [len(mini.encode(" " + word)) for word in row["tokens"]]
    assert lengths[1] > 0 and lengths[0] > 1
    cut_inside_the_first = example(encoder(mini, max_length=lengths[0] - 1)([row]), 0)
    assert cut_inside_the_first[1:] == ([0], [1])
    assert example(encoder(mini, max_length=lengths[0] - 1, tag_last_subtoken=True)([row]), 0)[
        1:
    ] == ([], [])
    assert example(encoder(mini, max_length=sum(lengths[:2]))([row]), 0)[1:] == (
        [0, lengths[0]],
        [1, 2],
    )


def plain_example(row, task, tokenizer, with_head, max_length, at_last, echo):
    """Encode one row by the definition: remove tokens one at a time, then find target positions."""
    is_tagging, labels = task == "ner", list(TASKS[task].labels)
    class_of = lambda label: NO_LABEL if label is None else labels.index(label)  # noqa: E731
    if is_tagging:
        pieces = [" " + word for word in row["tokens"]]
    elif task == "sentiment":
        pieces = ["Sentence :", " " + row["sentence"].strip(), " Label :"]
    else:
        first, second = (" " + row[name].strip() for name in ("sentence1", "sentence2"))
        pieces = ["Sentence1 :", first, " Sentence2 :", second, " Label :"]
    whole = [tokenizer.encode(piece, add_special_tokens=False) for piece in pieces]
    cut_pieces = [list(ids) for ids in whole]
    max_length = max_length // 2 if echo else max_length
    cut = sum(map(len, cut_pieces)) > max_length
    data = cut_pieces if is_tagging else cut_pieces[1::2]
    while sum(map(len, cut_pieces)) > max_length and any(data):
        longest = max(map(len, data))
        [ids for ids in data if ids and (is_tagging or len(ids) == longest)][-1].pop()
    ids, indices, targets = sum(cut_pieces, []) if echo else [], [], []
    for index, part in enumerate(cut_pieces):
        offset = len(whole[index]) - 1 if at_last else 0
        if is_tagging and offset < len(part):
            indices.append(len(ids) + offset)
            targets.append(class_of(row["tags"][index]) if "tags" in row else NO_LABEL)
        ids += part
    if not is_tagging:
        last, label = len(ids) - 1, row.get("label")
        targets = (
            [class_of(label)]
            if with_head or label is None
            else [*tokenizer.encode(" " + label), END]
        )
        indices = list(range(last, last + len(targets)))
        ids += targets[:-1]
    return ids, indices, targets, cut


def random_row(rng, task):
    """Draw a row of 0 to 12 words, many of several sub-tokens, with or without labels."""
    vocabulary = [
        "IL-2",
        "gene",
        "profit",
        "fell",
        "immunoglobulin",
        "κB",
        "NF-kappaB",
        "𝛼",
        "a",
        "",
        "(",
        "日本",
        "x" * 30,
    ]
    words = lambda: [rng.choice(vocabulary) for _ in range(rng.randrange(13))]  # noqa: E731
    names = TASKS[task].fields
    if task == "ner":
        row = {"tokens": words()}
        row["tags"] = [rng.choice([*TASKS["ner"].labels, None]) for _ in row["tokens"]]
    else:
        row = {name: rng.choice(["", " "]) + " ".join(words()) for name in names[:-1]}
        row["label"] = rng.choice([*TASKS[task].labels, None])
    if rng.random() < 0.2:
        del row[names[-1]]
    return row


@pytest.mark.parametrize("max_length", [14, 23, 46, 900])
@pytest.mark.parametrize(
    ("task", "with_head", "at_last", "echo"),
    [("ner", True, at_last, echo) for at_last in (False, True) for echo in (False, True)]
    + [
        (task, with_head, False, False)
        for task in ("sentiment", "similarity")
        for with_head in (True, False)
    ],
)
def test_random_rows_are_encoded_as_the_definition_encodes_each_row(
    mini, task, with_head, at_last, echo, max_length
):
    rng = random.Random(max_length)
    rows = [random_row(rng, task) for _ in range(60)]
    plain = [plain_example(row, task, mini, with_head, max_length, at_last, echo) for row in rows]
    assert (max_length < 900) == any(cut for *_, cut in plain)
    for count in (60, 1, 0):
        examples = encoder(mini, task, with_head, max_length, tag_last_subtoken=at_last, echo=echo)(
            rows[:count]
        )
        assert [example(examples, index) for index in range(count)] == [
            tuple(row) for *row, _ in plain[:count]
        ]
        assert examples.cut == sum(cut for *_, cut in plain[:count])
        ids, indices, targets = (
            np.array(sum((row[i] for row in plain[:count]), []), dtype=np.int32) for i in range(3)
        )
        starts, target_starts = (
            np.cumsum([0, *(len(row[i]) for row in plain[:count])]) for i in (0, 1)
        )
        flat = b"".join(array.tobytes() for array in (ids, starts, indices, targets, target_starts))
        assert examples.digest() == hashlib.sha256(flat).hexdigest()


@pytest.mark.parametrize("tag_last_subtoken", [False, True])
def test_spaces_around_a_word_are_no_part_of_it(mini, tag_last_subtoken):
    """A word's first and last sub-token would be a space, which has no information on the word."""
    words, tags = ["The", "IL-2", "gene", "."], ["O", "B-DNA", "I-DNA", "O"]
    spaced = [" The", "IL-2 ", "\tgene\n", "\xa0.  "]
    encode = encoder(mini, tag_last_subtoken=tag_last_subtoken)
    ids, indices, targets = example(encode([{"tokens": spaced, "tags": tags}]), 0)
    assert mini.decode(ids) == " The IL-2 gene ." and targets == [0, 1, 2, 0]
    at_words = mini.convert_ids_to_tokens([ids[index] for index in indices])
    assert at_words == (
        ["ĠThe", "2", "Ġgene", "Ġ."] if tag_last_subtoken else ["ĠThe", "ĠIL", "Ġgene", "Ġ."]
    )
    assert (ids, indices, targets) == example(encode([{"tokens": words, "tags": tags}]), 0)


def test_earlier_settings_of_the_tokenizer_have_no_effect(mini):
    words = ("immunoglobulin", "", "genes")
    expected = [mini.encode(word) for word in words]
    mini.backend_tokenizer.enable_truncation(1)
    mini.backend_tokenizer.enable_padding(length=9)
    assert encoder(mini).tokenize(words) == expected and len(expected[0]) > 1


def test_a_row_with_fewer_tags_than_words_is_refused(mini):
    with pytest.raises(ValueError, match="3 words, but 2 tags: 'IL-2 gene expression'"):
        encoder(mini)([{"tokens": ["IL-2", "gene", "expression"], "tags": ["B-DNA", "I-DNA"]}])


def test_the_maximum_length_is_the_positions_minus_the_longer_prefix_and_the_label(
    mini, tiny_folder
):
    config = read_config(tiny_folder)
    instruction = len(mini.encode(TASKS["sentiment"].instruction))

    def longest(task, prompt_length, **flags):
        settings = make_settings(task=task, method="prompt", prompt_length=prompt_length, **flags)
        return make_encoder(TASKS[task], mini, config, settings, task == "ner").max_length

    assert longest("sentiment", 3) == 128 - instruction - 10
    assert longest("sentiment", instruction + 5) == 128 - instruction - 5 - 10
    assert longest("ner", 7) == 121
    assert longest("ner", 7, max_length=40) == 40
    with pytest.raises(InputError, match="a prompt of 115 embeddings.* do not fit"):
        longest("sentiment", 115)
    with pytest.raises(
        InputError, match="--max-length 122 does not fit: this model and prompt allow 1 to 121"
    ):
        longest("ner", 7, max_length=122)


def test_a_label_of_another_task_is_refused(mini):
    with pytest.raises(
        InputError,
        match="unknown label 'bullish'; the labels of sentiment are negative, neutral, positive",
    ):
        encoder(mini, "sentiment", with_head=False)([{"sentence": "Up .", "label": "bullish"}])


def test_the_runs_settings_reach_the_encoder(mini, tiny_folder):
    config = read_config(tiny_folder)
    last = make_encoder(
        TASKS["ner"],
        mini,
        config,
        make_settings(task="ner", method="lora", tag_subtoken="last"),
        True,
    )
    assert last.tag_last_subtoken and not last.source_text and last.end_token == 0
    paper = make_encoder(
        TASKS["sentiment"], mini, config, make_settings(task="sentiment", preset="paper"), False
    )
    assert paper.source_text and not paper.tag_last_subtoken and paper.max_length == 64


def test_the_maximum_length_allows_for_a_label_longer_than_free_generation(mini, tiny_folder):
    label = "good news for all of those who had bought shares of the company early enough"
    task = dataclasses.replace(TASKS["sentiment"], labels=("bad", label))
    label_length = len(mini.encode(" " + label)) + 1
    assert label_length > 10
    settings = make_settings(task="sentiment", method="lora")
    instruction = len(mini.encode(task.instruction))
    assert (
        make_encoder(task, mini, read_config(tiny_folder), settings, False).max_length
        == 128 - instruction - label_length
    )


def test_a_batch_concatenates_its_examples(mini):
    rows = [
        {"tokens": ["a"], "tags": ["O"]},
        {"tokens": ["IL-2", "gene"], "tags": ["B-DNA", "I-DNA"]},
        {"tokens": ["cells"], "tags": ["B-cell_type"]},
    ]
    batch = collate(encoder(mini)(rows), [2, 1])
    cells, il2, gene = mini.encode(" cells"), mini.encode(" IL-2"), mini.encode(" gene")
    assert batch.ids.tolist() == cells + il2 + gene
    assert batch.lengths.tolist() == [len(cells), len(il2 + gene)]
    assert batch.target_indices.tolist() == [0, len(cells), len(cells + il2)]
    assert batch.targets.tolist() == [5, 1, 2]
    assert batch.target_counts.tolist() == [1, 2]


def test_the_last_batch_can_be_smaller():
    assert [part.tolist() for part in batches(np.array([4, 2, 0, 1, 3]), 2)] == [
        [4, 2],
        [0, 1],
        [3],
    ]


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(mini):
    small = Encoder(TASKS["ner"], mini, END, True, 100, vocab_size=100)
    with pytest.raises(InputError, match=r"'.+' is token \d+; the model has 100 tokens: remove it"):
        small([{"tokens": ["interleukin"]}])


def test_more_texts_than_the_tokenizer_gets_at_once_have_the_tokens_of_each_alone(mini):
    texts = [f" gene {number}" for number in range(2 * TEXTS_AT_ONCE + 1)]
    alone = [mini(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert tokenize(mini, texts) == alone and tokenize(mini, []) == []
