"""lessons/whole.py gives the same examples, logits, losses, gradients and scores as the package."""

import importlib.util
import operator
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from seqeval.metrics import f1_score
from tokenizers import Tokenizer

from neo_peft import loop
from neo_peft.corpora.sources import load_splits
from neo_peft.decoding import evaluate
from neo_peft.encoding import collate
from neo_peft.metrics import entities
from neo_peft.progress import no_progress
from neo_peft.runs import loading
from neo_peft.settings import make_settings
from neo_peft.tasks import get_task

SCRIPT = Path(__file__).parents[2] / "lessons" / "whole.py"
ROWS = 320  # twenty steps of sixteen


@pytest.fixture(scope="module")
def whole():
    spec = importlib.util.spec_from_file_location("whole", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pair(whole, folder: Path, task: str, method: str):
    """Return the package's model, encoder and settings, and the file's model with equal weights."""
    given = {"prompt_length": 20, "warmup_ratio": 0.1} if method == "prompt" else {}
    given |= {"head_dropout": 0.0, "tag_decoding": "greedy"} if task == "ner" else {}
    settings = make_settings(
        task=task, method=method, model=str(folder),
        epochs=1, learning_rate=0.003, threads=1, **given
    )  # fmt: skip
    tuned = loading.load_untuned(settings, with_method=True)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def tokenize(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    prompt = (tokenize(whole.INSTRUCTIONS[task]) * 20)[:20] if method == "prompt" else None
    classes = len(whole.TAGS) if task == "ner" else None
    model = whole.Model(whole.load_trunk(folder), classes, prompt)
    if method == "lora":
        whole.add_lora(model.trunk)
    ours, theirs = dict(model.named_parameters()), tuned.model.trainable()
    trained = {name for name, parameter in ours.items() if parameter.requires_grad}
    assert trained == {here(name) for name in theirs}
    for name, parameter in theirs.items():
        if name == "prompt.embeddings":
            assert torch.equal(ours["prompt"], parameter)
        if "lora_B" in name:
            assert not ours[here(name)].any() and not parameter.any()
        ours[here(name)].data.copy_(parameter)
    rows = whole.read(task, "train")[:ROWS]
    examples = [whole.encode(task, row, tokenize, 0) for row in rows]
    label_tokens = None if classes else [tokenize(" " + label)[0] for label in whole.LABELS]
    return tuned, model, examples, label_tokens


def here(name: str) -> str:
    """Return the file's name of one of the package's parameters."""
    for theirs, ours in {
        "transformer.": "trunk.", "classifier.": "head.", "prompt.embeddings": "prompt",
        "lora_A": "A", "lora_B": "B",
    }.items():  # fmt: skip
        name = name.replace(theirs, ours)
    return name


def assert_equal(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Assert that tensors are equal to `tolerance` of the largest element (or of 1)."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * max(1.0, float(theirs.detach().abs().max()))


CASES = [(task, method) for task in ("ner", "sentiment") for method in ("lora", "prompt")]
CASES.append(("ner", "head"))


@pytest.mark.parametrize(("task", "method"), CASES)
def test_twenty_steps_have_the_packages_losses_gradients_and_predictions(
    whole, tiny_folder, monkeypatch, task, method
):
    tuned, model, examples, label_tokens = pair(whole, tiny_folder, task, method)
    rows = load_splits(tuned.encoder.task, "sample").train[:ROWS]
    encoded = tuned.encoder(rows)
    for index, (ids, indices, targets) in enumerate(examples):
        first, last = encoded.target_starts[index : index + 2]
        assert encoded.ids[slice(*encoded.starts[index : index + 2])].tolist() == ids
        assert encoded.target_indices[first:last].tolist() == indices
        assert encoded.targets[first:last].tolist() == targets

    # logits, loss and gradients of a batch
    batch = collate(encoded, range(16))
    logits = tuned.model.logits(tuned.model(batch))
    ids, texts, indices, targets = whole.collate(examples[:16])
    assert len({len(ids) for ids, _, _ in examples[:16]}) > 3  # so that there is padding
    assert max(map(len, ids)) > tuned.base.trunk.config.window_size
    assert torch.equal(targets, batch.targets)
    assert_equal(model(ids, texts, indices), logits)
    (tuned.model.loss(batch) / len(targets)).backward()
    torch.nn.functional.cross_entropy(model(ids, texts, indices), targets).backward()
    ours = dict(model.named_parameters())
    for name, parameter in tuned.model.trainable().items():
        assert_equal(ours[here(name)].grad, parameter.grad)
    tuned.model.zero_grad()

    # twenty steps, in the package's order
    def order(count, epoch):
        return loop.epoch_order(count, tuned.settings.seed, epoch).tolist()

    monkeypatch.setattr(whole, "epoch_order", order)
    warmup = tuned.settings.warmup_ratio
    ours = list(whole.train(model, examples, 1, tuned.settings.learning_rate, warmup))
    state = loop.make_state(tuned.model, tuned.settings)
    steps = loop.steps(tuned.model, encoded, tuned.settings, state, no_progress)
    theirs = [event.loss for event in islice(steps, 20)]
    assert len(ours) == len(theirs) == 20 and theirs[-1] < theirs[0]
    assert ours == pytest.approx(theirs, abs=1e-5, rel=1e-5)
    # the logits and gradients after these steps, where LoRA's B is not zero; rounding has added up
    logits = tuned.model.eval().logits(tuned.model(batch))
    assert_equal(model(ids, texts, indices), logits, 1e-4)
    (tuned.model.loss(batch) / len(targets)).backward()
    model.zero_grad()
    torch.nn.functional.cross_entropy(model(ids, texts, indices), targets).backward()
    trained = dict(model.named_parameters())
    for name, parameter in tuned.model.trainable().items():
        assert parameter.grad.any()
        assert_equal(trained[here(name)].grad, parameter.grad, 1e-4)
    predicted = evaluate(tuned.model, tuned.encoder, encoded).predicted
    found = whole.predict(model, examples, label_tokens)
    assert sum(map(operator.ne, found, predicted)) == 0
    assert len(found) == len(predicted) and len(set(map(str, predicted))) > 1


def test_the_scores_are_those_of_seqeval_and_of_the_package(whole):
    generator = torch.Generator().manual_seed(5)

    def random_tags():
        drawn = torch.randint(len(whole.TAGS), (60, 9), generator=generator)
        return [[whole.TAGS[i] for i in row] for row in drawn.tolist()]

    for _ in range(5):
        gold, predicted = random_tags(), random_tags()
        for sentence, mixed in zip(predicted, gold, strict=True):
            sentence[:5] = mixed[:5]
        assert whole.score(gold, predicted) == f"F1 {f1_score(gold, predicted):.3f}"
        assert [whole.entities(tags) for tags in gold] == [set(entities(tags)) for tags in gold]
    assert whole.score([["O"]], [["O"]]) == "F1 0.000"
    assert whole.score(["positive", "neutral"], ["positive", "negative"]) == "accuracy 0.500"


def test_it_reads_the_rows_that_the_package_reads(whole):
    for task in ("ner", "sentiment"):
        splits = load_splits(get_task(task), "sample")
        for split in ("train", "test"):
            rows = [tuple(row.values()) for row in getattr(splits, split)]
            assert [tuple(row) for row in whole.read(task, split)] == rows


def test_it_imports_nothing_of_the_package_and_has_at_most_300_lines():
    source = SCRIPT.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 300
    modules = {line.split()[1].split(".")[0] for line in source.splitlines()
               if line.startswith(("import ", "from "))}  # fmt: skip
    assert "neo_peft" not in modules
    assert modules - set(sys.stdlib_module_names) == {"torch", "safetensors", "tokenizers"}


def test_the_head_alone_is_only_for_tags(whole, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["whole.py", "sentiment", "head"])
    with pytest.raises(SystemExit):
        whole.main()
    assert "sentiment has no linear head" in capsys.readouterr().err


@pytest.mark.slow
def test_its_command_learns(tmp_path):
    # not those of sentiment: they take up to a minute and a half, and their parts are tested above
    command = [sys.executable, str(SCRIPT), "ner", "lora"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    before, after = (
        float(re.search(rf"^{when}: \w+ ([\d.]+) on test$", output, re.M)[1])
        for when in ("before", "after")
    )
    assert after > before + 0.3, output
