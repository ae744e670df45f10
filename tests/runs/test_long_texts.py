"""Long texts are read whole where they are tagged, and cut where they are classified."""

import json
from functools import partial
from glob import glob
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import SMALL, computed_until_end, killed_when, result, resumed, start
from own_files import write_rows
from refusals import run
from windows_by_hand import scored_by_hand

from neo_peft import decoding
from neo_peft.corpora.sources import load_splits
from neo_peft.decoding import evaluate
from neo_peft.encoding import collate
from neo_peft.runs.adapter_set import AdapterSet
from neo_peft.runs.folder import recorded_settings
from neo_peft.runs.loading import load_untuned
from neo_peft.runs.tables import example_lines
from neo_peft.runs.texts import cut_note, evaluate_texts, length_notes
from neo_peft.settings import make_settings
from neo_peft.tasks import TASKS
from neo_peft.viterbi import best_sequences

WORDS = ["IL-2", "gene", "activates", "NF-kappaB", "in", "T", "cells", "immunoglobulin", "."]


def random_words(count: int) -> list[str]:
    return np.random.default_rng(count).choice(WORDS, count).tolist()


def changed_model(folder, **flags):
    """Return a tagging model whose trainable weights were changed at random."""
    tuned = load_untuned(
        make_settings(task="ner", model=str(folder), threads=1, **flags), with_method=True
    )
    with torch.no_grad():
        for parameter in tuned.model.trainable().values():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return tuned


@torch.inference_mode()
def scores_by_hand(tuned, words: list[str]) -> torch.Tensor:
    """Return the tags' log probabilities (words, K): each window is a text of its own."""
    encoder, found = tuned.encoder, []
    counts = [len(ids) for ids in encoder.tokenize([" " + word for word in words])]
    for (first, end), scored in scored_by_hand(
        counts, encoder.text_length, encoder.stride, encoder.echo
    ):
        alone = encoder([{"tokens": words[first:end]}])
        assert len(alone) == 1
        hidden = tuned.model(collate(alone, [0]), tuned.model.prompt_past())
        found.append(tuned.model.head(hidden).log_softmax(1)[[word - first for word in scored]])
    return torch.cat(found)


@pytest.mark.parametrize(
    "flags",
    [
        {"method": "lora", "tag_subtoken": "last"},
        {"method": "lora+prompt", "prompt_length": 17, "echo": True, "stride": 20},
        {"method": "prompt", "stride": 0, "tag_decoding": "greedy"},
    ],
)
def test_a_document_of_5000_words_is_tagged_as_its_windows_are(tiny_folder, flags):
    tuned = changed_model(tiny_folder, **flags)
    words = random_words(5000)
    scores = scores_by_hand(tuned, words)
    labels = TASKS["ner"].labels
    best = best_sequences(scores, [5000], labels) if tuned.encoder.viterbi else scores.argmax(1)
    found = evaluate_texts(tuned.model, tuned.encoder, [{"tokens": words}])
    assert found.predicted == [[labels[index] for index in best]] and found.used == [None]
    assert len(set(found.predicted[0])) > 2
    expected = scores.exp().gather(1, best[:, None]).flatten()
    torch.testing.assert_close(torch.tensor(found.probabilities[0]), expected, rtol=0, atol=1e-5)


def test_documents_and_sentences_in_one_batch_are_tagged_as_each_alone(tiny_folder, monkeypatch):
    """Also with passes of fewer examples than the windows of one document: a pass has no more
    examples than a batch has rows."""
    tuned = changed_model(tiny_folder, method="lora+prompt")
    rows = [{"tokens": random_words(count)} for count in (3, 700, 0, 60, 900, 41)]
    alone = [evaluate_texts(tuned.model, tuned.encoder, [row]) for row in rows]
    passes = []

    def watch(examples, chosen):
        passes.append(len(chosen))
        return collate(examples, chosen)

    monkeypatch.setattr(decoding, "collate", watch)
    for size in (2, 32):
        passes.clear()
        found = evaluate_texts(tuned.model, tuned.encoder, rows, size)
        assert found.predicted == [evaluation.predicted[0] for evaluation in alone]
        assert (
            max(passes) <= size and sum(passes) == tuned.encoder(rows).window_counts.sum() > 2 * 6
        )


def test_the_loss_of_long_texts_is_the_mean_over_their_words(tiny_folder):
    tuned = changed_model(tiny_folder, method="lora")
    words, labels = random_words(1000), TASKS["ner"].labels
    classes = np.random.default_rng(1).integers(len(labels), size=1000)
    examples = tuned.encoder([{"tokens": words, "tags": [labels[index] for index in classes]}])
    found = evaluate(tuned.model, tuned.encoder, examples, batch_size=3, with_loss=True)
    scores = scores_by_hand(tuned, words)
    expected = -scores[torch.arange(1000), torch.from_numpy(classes)].mean()
    assert found.loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("echo", [False, True])
def test_each_word_is_trained_on_once(tiny_folder, echo):
    tuned = changed_model(tiny_folder, method="lora", echo=echo)
    labels = TASKS["ner"].labels
    rows = [
        {"tokens": random_words(count), "tags": [labels[i % len(labels)] for i in range(count)]}
        for count in (500, 3, 800)
    ]
    examples = tuned.encoder(rows)
    assert examples.targets.tolist() == [labels.index(tag) for row in rows for tag in row["tags"]]
    assert len(examples) == examples.window_counts.sum() > 10 and examples.window_counts[1] == 1
    at_targets = np.repeat(examples.starts[:-1], np.diff(examples.target_starts))
    tokens = examples.ids[at_targets + examples.target_indices]
    firsts = [tuned.encoder.tokenize([" " + word])[0][0] for row in rows for word in row["tokens"]]
    assert tokens.tolist() == firsts
    assert examples.lengths.max() <= tuned.encoder.max_length


def test_the_digest_depends_on_the_windows(tiny_folder):
    rows = [{"tokens": random_words(300)}]
    digests = {
        changed_model(tiny_folder, method="lora", **flags).encoder(rows).digest()
        for flags in ({}, {"stride": 0}, {"stride": 30}, {"truncate": "end"})
    }
    assert len(digests) == 4
    tuned = changed_model(tiny_folder, method="lora", stride=0)
    joined, parts = tuned.encoder(rows), tuned.encoder(rows)
    object.__setattr__(
        parts, "window_counts", np.ones(len(parts), int)
    )  # the same examples as rows
    assert joined.digest() != parts.digest()


def test_a_run_with_windows_that_is_killed_and_resumed_has_the_same_result(
    drawn_curves, tiny_folder
):
    argv = ["--task", "ner", "--method", "lora+prompt", "--model", str(tiny_folder), *SMALL]
    argv += ["--max-length", "16", "--stride", "5", "--batch-size", "4", "--dropout", "0.1"]
    computed_until_end(start([*argv, "--out", "whole"]))
    expected = result(Path("whole"))
    steps = json.loads(Path("whole/run.json").read_text())["steps"]
    assert steps > 3 * 24 / 4  # a batch has windows, of which there are more than rows
    checkpoints_of_run = partial(glob, "run/checkpoints/step-*")
    assert killed_when(start([*argv, "--out", "run"]), checkpoints_of_run)
    resumed("run", expected, argv)


def test_limits_count_rows_and_the_windows_are_noted(tiny_folder, capfd):
    rows = [
        {"tokens": random_words(300 + 2 * i), "tags": ["O", "B-x"] * (150 + i)} for i in range(20)
    ]
    data = write_rows(Path("d"), train=rows, test=rows[:6])
    given = f"--task tagging --model {tiny_folder} --data {data} --threads 1 --train-limit 4"
    assert run(f"train --method lora {given} --eval-limit 2 --epochs 1 --out run") == 0
    out = capfd.readouterr().out
    record = json.loads(Path("run/run.json").read_text())
    assert record["rows"] == {"train": 4, "validation": 2, "test": 2}
    assert set(record["cut"].values()) == {0}
    assert "note    texts with more than 128 tokens: 8; read whole, in " in out
    assert "windows that share at least 16 tokens\n" in out and " cut to " not in out
    assert run("evaluate run --eval-limit 3 --stride 32") == 0
    out = capfd.readouterr().out
    assert "tokens: 3; read whole, in " in out and "share at least 32 tokens\n" in out
    assert run("evaluate run --eval-limit 3 --truncate end") == 0
    assert "note    3 texts were cut to 128 tokens, at the end\n" in capfd.readouterr().out
    assert run("evaluate run --truncate start") == run("evaluate run --stride 65") == 2
    error = capfd.readouterr().err
    assert "--truncate start belongs to classification tasks; a text to tag can only be" in error
    assert "--stride 65 does not fit: a window has 128 tokens" in error


def test_a_mixed_batch_of_runs_reads_long_texts_whole(tiny_folder):
    """Two runs in one batch, with passes of fewer examples than a document has windows."""
    train = [{"tokens": random_words(9 + i), "tags": ["B-x"] * (9 + i)} for i in range(10)]
    write_rows(Path("d"), train=train)
    given = f"--model {tiny_folder} --threads 1 --epochs 1 --no-before"
    assert run(f"train --task tagging --method lora --data d {given} --out tags") == 0
    assert run(f"train --task sentiment --method prompt --train-limit 9 {given} --out label") == 0
    runs = AdapterSet(["tags", "label"])
    rows = [{"tokens": random_words(count)} for count in (400, 5, 200)]
    labelled = [{"run": "label", "sentence": "Profit rose ."}] * 3
    found = runs.evaluate([{"run": "tags"} | row for row in rows] + labelled, batch_size=3)
    tuned = runs["tags"]
    alone = evaluate_texts(tuned.model, tuned.encoder, rows)
    assert found.predicted[:3] == alone.predicted and found.used == [None] * 6
    assert [len(tags) for tags in found.predicted[:3]] == [400, 5, 200]


def test_a_word_with_more_tokens_than_a_window_has_a_tag_and_a_note(tiny_folder):
    tuned = changed_model(tiny_folder, method="lora", tag_subtoken="last")
    rows = [{"tokens": ["IL-2", "ab" * 900, "gene"]}]
    examples = tuned.encoder(rows)
    assert len(examples) == 3 and examples.cut == 1
    found = evaluate_texts(tuned.model, tuned.encoder, rows)
    assert len(found.probabilities[0]) == 3 and found.used == [None]
    notes = length_notes(tuned.encoder, [examples])
    assert notes[1] == "1 text was cut to 128 tokens, inside a long word"


def test_of_a_long_example_the_start_is_printed():
    row = {"tokens": ["a", "b"] * 60, "tags": ["O", "B-DNA"] * 60}
    gold, predicted, blank = example_lines(TASKS["ner"], [row], [["O"] * 120], None)
    assert gold == "gold       " + "a [DNA b] " * 50 + "…" and blank == ""
    assert predicted == "predicted  " + "a b " * 50 + "…"
    row = {"sentence": "rose " * 200, "label": "positive"}
    text, _ = example_lines(TASKS["sentiment"], [row], ["positive"], None)
    assert text == "rose " * 120 + " …"


# ---- Texts to classify


@pytest.mark.parametrize("place", [None, "middle", "end", "start"])
def test_a_long_sentence_loses_its_middle_unless_a_flag_names_another_place(tiny_folder, place):
    settings = make_settings(
        task="sentiment", method="lora", model=str(tiny_folder), truncate=place, max_length=20
    )
    tuned = load_untuned(settings, with_method=True)
    encoder = tuned.encoder
    sentence = " ".join(random_words(200))
    examples = encoder([{"sentence": sentence}])
    start, ids, end = encoder.tokenize(["Sentence :", " " + sentence, " Label :"])
    room = 20 - len(start + end)
    half = -(-room // 2)
    kept = {"end": ids[:room], "start": ids[-room:]}
    kept = kept.get(place, ids[:half] + ids[half - room :])
    assert examples.ids.tolist() == start + kept + end
    names = {None: "in the middle", "middle": "in the middle"}
    expected = names.get(place, f"at the {place}")
    assert length_notes(encoder, [examples]) == [f"1 text was cut to 20 tokens, {expected}"]
    assert cut_note(2, [encoder]) == f"2 texts were cut to 20 tokens, {expected}"
    used = evaluate_texts(tuned.model, encoder, [{"sentence": f"  {sentence} "}]).used[0]
    decoded = encoder.tokenizer.decode(kept)
    assert used["sentence"] == pytest.approx(len(decoded), abs=3)


def test_of_a_pair_each_sentence_loses_its_own_middle(tiny_folder):
    settings = make_settings(
        task="similarity", method="lora", model=str(tiny_folder), max_length=40
    )
    encoder = load_untuned(settings, with_method=True).encoder
    one, two = (" ".join(random_words(count)) for count in (200, 150))
    examples = encoder([{"sentence1": one, "sentence2": two}])
    parts = ["Sentence1 :", " " + one, " Sentence2 :", " " + two, " Label :"]
    first, one, second, two, last = encoder.tokenize(parts)
    room = 40 - len(first + second + last)
    kept = [
        ids[: -(-count // 2)] + ids[len(ids) - count // 2 :]
        for ids, count in ((one, -(-room // 2)), (two, room // 2))
    ]
    assert examples.ids.tolist() == first + kept[0] + second + kept[1] + last


# ---- Settings


@pytest.mark.parametrize("task", ["ner", "sentiment", "similarity"])
def test_the_studys_recipe_cuts_texts_at_their_end(task):
    assert make_settings(task=task, preset="paper").truncate == "end"
    assert make_settings(task=task, preset="best", model="x").truncate is None


def test_a_run_from_before_there_were_windows_still_cuts(tmp_path):
    flags = {"task": "ner", "method": "lora"}
    assert recorded_settings(tmp_path, flags).truncate == "end"
    assert recorded_settings(tmp_path, flags | {"truncate": None}).truncate is None


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            "--task ner --max-length 40 --stride 21",
            "--stride 21 does not fit: a window has 40 tokens, and at most half of them, 20, can",
        ),
        ("--task ner --echo --max-length 40 --stride 11", "a window has 20 tokens"),
        (
            "--task ner --truncate middle",
            "--truncate middle belongs to classification tasks; a text to tag can only be cut at "
            "its end",
        ),
        (
            "--task ner --truncate end --stride 3",
            "--stride is for windows; with --truncate end a text is cut",
        ),
        ("--task sentiment --stride 3", "--stride belongs to tagging tasks, such as ner"),
        ("--task ner --stride -1", "--stride -1 is not a whole number of at least 0"),
        ("--task ner --truncate left", "--truncate 'left' is none of middle, end, start"),
    ],
)
def test_flags_that_do_not_fit_are_refused(tiny_folder, capfd, flags, message):
    assert run(f"train {flags} --method lora --model {tiny_folder}") == 2
    assert message in capfd.readouterr().err


def test_splits_of_the_sample_have_no_long_texts(base):
    """So the sample's records stay what they were."""
    encoder = load_untuned(make_settings(task="ner", method="lora")).encoder
    for rows in load_splits(TASKS["ner"], "sample").named().values():
        assert length_notes(encoder, [encoder(rows)]) == []
