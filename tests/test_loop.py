"""The training loop: overfitting, gradient accumulation, frozen weights, schedule, checks."""

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from corpus_files import CORPORA
from repeats import first_quick, pairs
from steps import train
from torch.amp import GradScaler

from neo_peft import loop
from neo_peft.corpora.sources import load_splits
from neo_peft.corpora.splits import limit_rows
from neo_peft.decoding import evaluate, score
from neo_peft.encoding import collate
from neo_peft.errors import InputError
from neo_peft.runs import training
from neo_peft.runs.folder import make_folder
from neo_peft.runs.loading import load, load_untuned
from neo_peft.settings import make_settings
from neo_peft.tasks import TASKS

METHODS = ("lora", "prompt", "prefix", "full", "head", "lora+prompt")
RATES = {"lora": 2e-2, "prompt": 2e-1, "prefix": 5e-2, "full": 5e-3, "head": 3e-2}
RATES["lora+prompt"] = 2e-2


def sixteen(task):
    """Return 16 short rows of the sample: sentences with entities, or each label in turn."""
    rows = load_splits(TASKS[task], "sample").train
    if task == "ner":
        return sorted(
            (row for row in rows if set(row["tags"]) != {"O"}), key=lambda row: len(row["tokens"])
        )[:16]
    by_label = [[row for row in rows if row["label"] == label] for label in TASKS[task].labels]
    short = [sorted(part, key=lambda row: sum(map(len, row.values())))[:8] for part in by_label]
    return [row for one_of_each in zip(*short, strict=True) for row in one_of_each][:16]


def start(folder, task, method, precision="fp32", **flags):
    settings = make_settings(
        task=task, method=method, model=str(folder), head_dropout=0, precision=precision, **flags
    )
    return load_untuned(settings, with_method=True), settings


@pytest.mark.parametrize(("method", "task"), first_quick(product(METHODS, CORPORA)))
def test_a_tiny_model_learns_sixteen_examples_by_heart(tiny_folder, task, method):
    flags = {"rank": 16, "alpha": 32, "target_modules": "all-linear"} if "lora" in method else {}
    flags |= {"prompt_length": 20, "prompt_init": "vocab"} if "prompt" in method else {}
    tuned, settings = start(
        tiny_folder,
        task,
        method,
        epochs=200,
        batch_size=16,
        learning_rate=RATES[method],
        weight_decay=0,
        **flags,
    )
    rows = sixteen(task)
    examples = tuned.encoder(rows)
    losses = [step.loss for step in train(tuned.model, examples, settings)]
    result = evaluate(tuned.model, tuned.encoder, examples)
    scores = score(TASKS[task], rows, result.predicted)
    # A linear head on a frozen trunk cannot learn all, but its loss is below the labels' entropy.
    if method == "head":
        counts = np.unique(examples.targets, return_counts=True)[1] / len(examples.targets)
        assert losses[-1] < -(counts * np.log(counts)).sum()
    else:
        assert scores[TASKS[task].metric] == 1.0


@pytest.mark.parametrize(
    ("task", "method"), [("ner", "lora"), ("sentiment", "prompt"), ("similarity", "full")]
)
def test_a_step_with_four_batches_of_two_equals_a_step_with_one_batch_of_eight(
    tiny_folder, task, method
):
    """The batches have different numbers of targets, so the mean of their means would differ."""
    rows, trained = sixteen(task)[:8], []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        tuned, settings = start(
            tiny_folder,
            task,
            method,
            batch_size=batch_size,
            gradient_accumulation=accumulation,
            epochs=3,
        )
        steps = train(tuned.model, tuned.encoder(rows), settings)
        trained.append((steps, tuned.model.trainable()))
    (one_batch, a), (four_batches, b) = trained
    assert [step.step for step in one_batch] == [step.step for step in four_batches] == [1, 2, 3]
    for left, right in zip(one_batch, four_batches, strict=True):
        assert left.loss == pytest.approx(right.loss, rel=1e-5)
        assert left.gradient_norm == pytest.approx(right.gradient_norm, rel=1e-4)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)


def test_the_loss_of_a_step_is_the_sum_divided_by_the_number_of_targets(tiny_folder):
    tuned, settings = start(tiny_folder, "ner", "lora")
    examples = tuned.encoder(sixteen("ner"))
    step_batches = [collate(examples, [0, 1]), collate(examples, [2])]
    sums = [tuned.model.loss(batch, None).item() for batch in step_batches]
    targets = [len(batch.targets) for batch in step_batches]
    assert targets[0] != targets[1]
    optimizer, scaler = loop.make_optimizer(tuned.model, settings), GradScaler("cpu", enabled=False)
    loss, _ = loop.take_step(
        tuned.model, optimizer, scaler, step_batches, sum(targets), clip_norm=0
    )
    assert loss == pytest.approx(sum(sums) / sum(targets), rel=1e-6)
    assert loss != pytest.approx((sums[0] / targets[0] + sums[1] / targets[1]) / 2, rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_training_changes_only_the_adapter(tiny_folder, method):
    flags = {"bias": "all"} if "lora" in method else {}
    tuned, settings = start(tiny_folder, "similarity", method, max_steps=2, batch_size=4, **flags)
    before = {name: tensor.detach().clone() for name, tensor in tuned.model.named_parameters()}
    trainable = set(tuned.model.trainable())
    loop.fit(tuned.model, tuned.encoder(sixteen("similarity")), settings)
    changed = {
        name
        for name, tensor in tuned.model.named_parameters()
        if not torch.equal(tensor, before[name])
    }
    assert changed == trainable


def test_the_gradient_is_clipped_to_the_given_norm(tiny_folder):
    results = {}  # clip_norm: length of the change, norm before clipping
    for clip_norm in (0, 1e-3):
        tuned, settings = start(tiny_folder, "sentiment", "prompt")
        optimizer = torch.optim.SGD(tuned.model.trainable().values(), lr=1.0)
        before = tuned.model.prompt.embeddings.detach().clone()
        batch = collate(tuned.encoder(sixteen("sentiment")), range(4))
        scaler = GradScaler("cpu", enabled=False)
        _, norm = loop.take_step(tuned.model, optimizer, scaler, [batch], batch.labelled, clip_norm)
        results[clip_norm] = (tuned.model.prompt.embeddings.detach() - before).norm().item(), norm
    assert results[0][0] == pytest.approx(results[0][1], rel=1e-4)
    assert results[1e-3][0] == pytest.approx(1e-3, rel=1e-3)
    assert results[1e-3][1] == results[0][1] > 1e-3


def test_matrices_have_weight_decay_and_biases_and_norms_do_not(tiny_folder):
    tuned, settings = start(tiny_folder, "ner", "full", weight_decay=0.25)
    groups = loop.make_optimizer(tuned.model, settings).param_groups
    decay = {
        id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]
    }
    for name, parameter in tuned.model.trainable().items():
        matrix = name.endswith("weight") and ".ln_" not in name
        assert decay[id(parameter)] == (0.25 if matrix else 0), name


def test_the_learning_rate_follows_transformers_linear_schedule():
    from transformers import get_linear_schedule_with_warmup

    settings = make_settings(task="ner", method="lora", learning_rate=0.3, warmup_ratio=0.2)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedule = get_linear_schedule_with_warmup(optimizer, num_warmup_steps=3, num_training_steps=12)
    for step in range(12):
        assert loop.learning_rate_at(step, 12, settings) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    source = make_settings(task="ner", preset="paper")
    assert loop.learning_rate_at(500, 10_390, source) == pytest.approx(1e-3 * (1 - 500 / 10_390))


def test_the_order_of_examples_depends_on_seed_and_epoch_only():
    orders = [loop.epoch_order(50, seed, epoch) for seed, epoch in ((3, 1), (3, 1), (3, 2), (4, 1))]
    assert np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2]) and not np.array_equal(orders[0], orders[3])
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_max_steps_can_end_training_inside_an_epoch(tiny_folder):
    tuned, settings = start(tiny_folder, "sentiment", "head", max_steps=5, batch_size=4, epochs=9)
    epochs = []
    examples = tuned.encoder(sixteen("sentiment"))
    taken = train(
        tuned.model,
        examples,
        settings,
        after_epoch=lambda end: epochs.append((end.epoch, end.step)),
    )
    assert len(taken) == 5 and [end[:2] for end in epochs] == [(1, 4), (2, 5)]
    assert [step.learning_rate for step in taken] == pytest.approx(
        [1e-2 * (1 - step / 5) for step in range(5)]
    )


def test_each_epoch_trains_with_dropout_even_after_an_evaluation(tiny_folder):
    tuned, settings = start(tiny_folder, "ner", "lora", epochs=3, batch_size=8, dropout=0.3)
    modes = []
    train(
        tuned.model,
        tuned.encoder(sixteen("ner")),
        settings,
        lambda step: modes.append(tuned.model.training),
        lambda end: tuned.model.eval(),
    )
    assert modes == [True] * 6


def test_dropout_depends_on_the_seed_and_not_on_earlier_random_numbers(tiny_folder):
    losses = []
    for before in (1, 2):
        tuned, settings = start(tiny_folder, "ner", "lora", epochs=2, batch_size=8, dropout=0.3)
        torch.manual_seed(before)
        taken = train(tuned.model, tuned.encoder(sixteen("ner")), settings)
        losses.append([step.loss for step in taken])
    assert losses[0] == losses[1]


def test_the_loss_of_an_epoch_is_the_mean_over_its_targets(tiny_folder):
    tuned, settings = start(tiny_folder, "ner", "lora", epochs=1, batch_size=3)
    examples, means = tuned.encoder(sixteen("ner")[:7]), []
    taken = train(tuned.model, examples, settings, after_epoch=lambda end: means.append(end.loss))
    losses = [step.loss for step in taken]
    order = loop.epoch_order(7, settings.seed, 1)
    words = [
        sum(int(np.diff(examples.target_starts)[i]) for i in order[first : first + 3])
        for first in (0, 3, 6)
    ]
    assert means[0] == pytest.approx(sum(a * b for a, b in zip(losses, words)) / sum(words))
    assert means[0] != pytest.approx(sum(losses) / 3, rel=1e-4)


def test_a_gradient_that_is_not_finite_stops_an_fp32_run(tiny_folder):
    tuned, settings = start(tiny_folder, "sentiment", "prompt", epochs=1, batch_size=16)
    tuned.model.prompt.embeddings.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(
        InputError, match=r"the norm of the gradient is (inf|nan) at step 1 \(epoch 1\)"
    ):
        loop.fit(tuned.model, tuned.encoder(sixteen("sentiment")), settings)


def test_nothing_to_train_on_is_refused(tiny_folder):
    tuned, settings = start(tiny_folder, "sentiment", "prompt")
    with pytest.raises(InputError, match="there is no example to train on"):
        loop.fit(tuned.model, tuned.encoder([]), settings)


def test_of_equal_epochs_the_first_is_kept(tiny_folder, tmp_path):
    settings = make_settings(
        task="sentiment",
        method="head",
        model=str(tiny_folder),
        epochs=3,
        learning_rate=1e-12,
        train_limit=16,
        eval_limit=12,
        out="run",
    )
    training.run(settings, print_line=lambda line: None)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["kept_epoch"] == 1


@pytest.mark.parametrize(
    ("method", "precision"), pairs(["lora", "prompt", "full"], ["fp16", "bf16"])
)
def test_half_precision_trains_on_a_cpu(tiny_folder, method, precision):
    tuned, settings = start(
        tiny_folder,
        "sentiment",
        method,
        precision,
        epochs=25,
        batch_size=16,
        learning_rate=RATES[method],
    )
    taken = train(tuned.model, tuned.encoder(sixteen("sentiment")), settings)
    assert taken[-1].loss < 0.8 * taken[0].loss
    assert all(parameter.dtype == torch.float32 for parameter in tuned.model.trainable().values())


def test_in_fp16_the_gradient_is_scaled_and_unscaled(tiny_folder):
    """Without a loss scale small gradients become 0 in fp16; with one the norm is that of fp32."""
    norms = {}
    for precision in ("fp32", "fp16"):
        tuned, settings = start(tiny_folder, "sentiment", "prompt", precision)
        scaler = GradScaler("cpu", init_scale=256.0, enabled=precision == "fp16")
        batch = collate(tuned.encoder(sixteen("sentiment")), range(8))
        optimizer = loop.make_optimizer(tuned.model, settings)
        result = loop.take_step(
            tuned.model, optimizer, scaler, [batch], batch.labelled, clip_norm=0
        )
        norms[precision] = result.norm
    assert norms["fp16"] == pytest.approx(norms["fp32"], rel=0.05)


def test_a_loss_that_is_not_finite_stops_the_run_with_the_step_in_the_message(tiny_folder):
    tuned, settings = start(tiny_folder, "sentiment", "prompt", epochs=3, batch_size=16)

    def poison(step):
        if step.step == 2:
            with torch.no_grad():
                tuned.model.prompt.embeddings.fill_(math.nan)

    with pytest.raises(
        InputError, match=r"the loss is nan at step 3 \(epoch 3\): try a smaller --learning-rate"
    ):
        train(tuned.model, tuned.encoder(sixteen("sentiment")), settings, poison)


@pytest.mark.parametrize(
    ("task", "method"),
    [("ner", "lora"), ("sentiment", "prompt"), ("similarity", "lora+prompt"), ("ner", "full")],
)
def test_a_saved_and_loaded_run_scores_the_same(tiny_folder, tmp_path, task, method):
    settings = make_settings(
        task=task,
        method=method,
        model=str(tiny_folder),
        epochs=2,
        train_limit=24,
        eval_limit=20,
        out="run",
    )
    summary = training.run(settings, print_line=lambda line: None)
    tuned = load("run")
    for split in ("validation", "test"):
        rows = limit_rows(getattr(load_splits(TASKS[task], "sample"), split), 20)
        predicted = evaluate(tuned.model, tuned.encoder, tuned.encoder(rows)).predicted
        assert score(TASKS[task], rows, predicted) == summary["after"][split]


def test_the_best_epoch_is_kept_by_default_and_the_last_one_with_keep_last(tiny_folder, tmp_path):
    """The learning rate is too high: it makes later epochs worse."""
    kept_epochs = {}
    for keep in ("best", "last"):
        settings = make_settings(
            task="sentiment",
            method="head",
            model=str(tiny_folder),
            epochs=4,
            learning_rate=3.0,
            train_limit=32,
            eval_limit=40,
            keep=keep,
            out=str(tmp_path / keep),
        )
        training.run(settings, print_line=lambda line: None)
        lines = [
            json.loads(line)
            for line in (tmp_path / keep / "metrics.jsonl").read_text().splitlines()
        ]
        accuracies = [line["validation"]["accuracy"] for line in lines if "validation" in line]
        record = json.loads((tmp_path / keep / "run.json").read_text())
        kept_epochs[keep] = record["kept_epoch"]
        assert (
            record["scores"]["after"]["validation"]["accuracy"]
            == accuracies[record["kept_epoch"] - 1]
        )
    assert kept_epochs["last"] == 4
    assert accuracies[kept_epochs["best"] - 1] == max(accuracies)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bits(tiny_folder, method):
    dropout = {"dropout": 0.2} if "lora" in method else {}
    for name in ("a", "b"):
        settings = make_settings(
            task="ner",
            method=method,
            model=str(tiny_folder),
            epochs=2,
            train_limit=20,
            eval_limit=10,
            head_dropout=0.1,
            out=name,
            **dropout,
        )
        training.run(settings, print_line=lambda line: None)
    with_times = {Path("run.json"), Path("timings.jsonl")}
    a, b = (
        {path.relative_to(name): path for path in Path(name).rglob("*") if path.is_file()}
        for name in ("a", "b")
    )
    assert a.keys() == b.keys() and Path("metrics.jsonl") in a
    for name in a.keys() - with_times:
        assert a[name].read_bytes() == b[name].read_bytes(), name
    scores = [json.loads(Path(name, "run.json").read_text())["scores"] for name in ("a", "b")]
    assert scores[0] == scores[1]


def test_a_run_that_ends_before_training_removes_only_its_own_files(tmp_path):
    settings = make_settings(task="ner", method="lora", data="sample")
    first, second = make_folder(settings), make_folder(settings)
    for folder, _ in (first, second):
        training.open_folder(folder, settings)
    training.remove_unstarted(*first, settings)
    assert sorted(map(str, Path().rglob("*"))) == [
        "runs",
        "runs/ner-lora-2",
        "runs/ner-lora-2/settings.json",
    ]
    training.remove_unstarted(*second, settings)
    assert not list(Path("runs").iterdir())
