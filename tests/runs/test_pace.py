"""The time of a run: measuring it changes nothing, and all that the run computes is counted."""

import numpy as np
import pytest
import torch
from trained import make_job

from neo_peft.commands.train import parse_flags
from neo_peft.model import TunedModel
from neo_peft.runs import checkpoints, pace, training
from neo_peft.runs.job import examples_to_show
from neo_peft.runs.pace import Line, Work
from neo_peft.settings import make_settings

pytestmark = pytest.mark.usefixtures("estimates")

METHODS = {
    "lora": {"dropout": 0.3},
    "prompt": {},
    "prefix": {},
    "full": {},
    "head": {},
    "lora+prompt": {"dropout": 0.3},
}


def snapshot(model):
    """Return copies of all that a measurement could change."""
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    return tensors | {"random state": torch.get_rng_state()}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("method", METHODS)
def test_measuring_changes_no_bit(tiny_folder, tmp_path, method, precision):
    flags = {"precision": precision, **METHODS[method]}
    job = make_job(tmp_path, tiny_folder, task="ner", method=method, batch_size=4, **flags)
    model = job.tuned.model
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.flatten()[0] = -0.0  # a step with rate 0 could change its sign
    before, was_training = snapshot(model), model.training
    assert (pace.time_of(job).total > 0).all()
    after = snapshot(model)
    assert before.keys() == after.keys() and model.training == was_training
    for name, value in before.items():
        assert (
            value.numpy().tobytes() == after[name].numpy().tobytes()
            if value.dtype != torch.bfloat16
            else torch.equal(value, after[name])
        )
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_has_the_same_bits_with_and_without_measuring(
    tiny_folder, tmp_path, monkeypatch, method
):
    def files(out):
        flags = f"--task ner --method {method} --model {tiny_folder} --epochs 2 --batch-size 3"
        flags += f" --train-limit 8 --eval-limit 6 --threads 1 --out {tmp_path / out}"
        flags += " --dropout 0.2" if method == "lora" else ""
        training.run(parse_flags(flags.split()), print_line=lambda line: None)
        names = "*.safetensors", "metrics.jsonl", "predictions/*"
        found = [path for name in names for path in (tmp_path / out).glob(name)]
        assert len(found) > 3
        return {path.name: path.read_bytes() for path in found}

    measured, original = [], pace.time_of
    monkeypatch.setattr(
        pace, "time_of", lambda *given: measured.append(1) or original(*given[:1], True)
    )
    with_measuring = files("with")
    assert measured
    monkeypatch.setattr(training, "describe_cost", lambda job: None)
    assert files("without") == with_measuring


def counted_tokens(monkeypatch):
    """Return lists that get the number of tokens of each training and scoring pass."""
    tokens, original = {True: [], False: []}, TunedModel.forward

    def forward(model, batch, prefix=None):
        tokens[model.training].append(len(batch.ids))
        return original(model, batch, prefix)

    monkeypatch.setattr(TunedModel, "forward", forward)
    return tokens


@pytest.mark.parametrize(
    "flags",
    [
        {"epochs": 3},
        {"epochs": 4, "gradient_accumulation": 2, "no_before": True},
        {"epochs": 2, "max_steps": 100, "batch_size": 3},
        {"epochs": 2, "eval_every": 5},
        {"epochs": 2, "eval_every": 4},
    ],
)
def test_the_counted_work_is_that_of_the_run(tiny_folder, tmp_path, monkeypatch, flags):
    """The run also predicts the three examples that it shows, twice."""
    flags = {"task": "ner", "batch_size": 2, "train_limit": 11, "eval_limit": 7} | flags
    job = make_job(tmp_path, tiny_folder, **flags)
    monkeypatch.setattr(training, "describe_cost", lambda job: None)
    tokens = counted_tokens(monkeypatch)
    settings = parse_flags(
        ["--method", "lora", "--model", str(tiny_folder), "--threads", "1"]
        + ["--out", str(tmp_path / "run")]
        + [
            part
            for name, value in flags.items()
            for part in (["--" + name.replace("_", "-")] + ([] if value is True else [str(value)]))
        ]
    )
    training.run(settings, print_line=lambda line: None)
    steps, work = pace.training_work(job)
    assert (work.batches, work.tokens) == (len(tokens[True]), sum(tokens[True]))
    rows = examples_to_show(job.task, job.rows["test"])
    shown = int(job.tuned.encoder(rows).lengths.sum()) * (1 if flags.get("no_before") else 2)
    assert pace.scoring_work(job, steps).tokens == sum(tokens[False]) - shown


def test_a_run_that_stops_within_an_epoch_is_counted_in_part(tiny_folder, tmp_path):
    job = make_job(tmp_path, tiny_folder, task="ner", epochs=3, max_steps=7, batch_size=2)
    steps, work = pace.training_work(job)  # five steps an epoch
    tokens = int(job.examples["train"].lengths.sum())
    assert steps == 7 and work.batches == 7 and work.tokens == tokens * 7 / 5


def test_the_counted_bytes_are_those_of_all_checkpoints_and_of_the_result(
    tiny_folder, tmp_path, monkeypatch
):
    """Steps 3, 6 and 9 are saved by `--checkpoint-every`, and each of two scored epochs (5, 10)."""
    flags = {"task": "ner", "method": "lora", "batch_size": 2, "epochs": 2, "checkpoint_every": 3}
    flags |= {"train_limit": 10, "eval_limit": 7, "learning_rate": 0.01, "threads": 1}
    job = make_job(tmp_path, tiny_folder, **flags)
    written, original = [], checkpoints.write_tensors

    def write(path, tensors, *rest):
        large = [t.nbytes for name, t in tensors.items() if t.dim() and "random" not in name]
        written.append((path.name, sum(large)))
        original(path, tensors, *rest)

    monkeypatch.setattr(checkpoints, "write_tensors", write)
    settings = make_settings(**flags, model=str(tiny_folder), out=str(tmp_path / "run"))
    training.run(settings, print_line=lambda line: None)
    saved = [size for name, size in written if name == checkpoints.TENSORS]
    weights = sum(p.nbytes for p in job.tuned.model.trainable().values())
    assert saved == [3 * weights] * (3 + 2)
    # the best weights can be written after each scoring; the adapter is the result
    assert pace.saved_bytes(job, 10) == sum(saved) + 2 * weights + weights


def test_the_line_goes_through_both_measured_batches():
    line = Line.through([(10, np.array([3.0, 6.0])), (30, np.array([7.0, 14.0]))])
    assert line.of(Work(2, 100)).tolist() == [2 * 1 + 0.2 * 100, 2 * 2 + 0.4 * 100]


@pytest.mark.parametrize(
    "measured",
    [
        [(10, np.array([3.0, 3.0]))],
        [(10, np.array([3.0, 3.0])), (10, np.array([3.0, 3.0]))],
        [(10, np.array([9.0, 9.0])), (50, np.array([9.0, 9.0]))],
        [(10, np.array([1.0, 1.0])), (50, np.array([17.0, 17.0]))],
    ],
)
def test_seconds_that_no_line_explains_are_proportional_to_the_tokens(measured):
    line = Line.through(measured)
    rate = 0.3
    assert line.fixed.tolist() == [0, 0] and line.for_token.tolist() == pytest.approx([rate] * 2)


def test_the_time_is_that_of_all_batches_at_the_measured_speed(tiny_folder, tmp_path, monkeypatch):
    """A training batch takes 1 + 0.01 N seconds, a scored one 0.5 + 0.001 N, AdamW 0.25."""
    job = make_job(tmp_path, tiny_folder, task="ner", batch_size=2, epochs=3)

    def train(measured, batch):
        tokens = pace.all_tokens(job, batch)
        return tokens, np.full(2, 1 + 0.01 * tokens)

    def score(measured, rows):
        tokens = int(job.examples["validation"].row_lengths[rows].sum())
        return tokens, np.full(2, 0.5 + 0.001 * tokens)

    monkeypatch.setattr(pace.Measured, "train", train)
    monkeypatch.setattr(pace.Measured, "score", score)
    monkeypatch.setattr(pace, "optimizer_seconds", lambda model, clip_norm: np.full(2, 0.25))
    time = pace.time_of(job)
    tokens = {name: int(part.lengths.sum()) for name, part in job.examples.items()}
    assert time.steps == 15
    assert time.training[0] == pytest.approx(15 * 1.25 + 0.01 * 3 * tokens["train"])
    # before: both splits; each epoch: validation; after: test
    passes = 4 * tokens["validation"] + 2 * tokens["test"]
    assert time.scoring[1] == pytest.approx(0.5 * 6 * 5 + 0.001 * passes)


def test_adamw_is_measured_on_a_part_of_a_large_model(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pace, "COPIED", 1000)
    monkeypatch.setattr(pace, "seconds_of", lambda call, device: call() or np.ones(2))
    model = make_job(tmp_path, tiny_folder, task="ner", method="full").tuned.model
    count = sum(parameter.numel() for parameter in model.parameters())
    assert pace.optimizer_seconds(model, 1.0).tolist() == pytest.approx([count / 1000] * 2)


def test_the_examples_that_a_language_model_generates_are_counted(
    tiny_folder, tmp_path, monkeypatch
):
    """Ten tokens before tuning; afterwards the longest label, with the end token."""
    monkeypatch.setattr(pace.Measured, "generate", lambda measured: np.full(2, 1000.0))
    job = make_job(tmp_path, tiny_folder, task="similarity", method="prompt", max_steps=1)
    longest = max(map(len, job.tuned.encoder.label_tokens.values()))
    assert pace.time_of(job).scoring[0] // 1000 == 10 + longest
    job = make_job(tmp_path, tiny_folder, task="similarity", method="head", max_steps=1)
    assert pace.time_of(job).scoring[0] < 1000
