"""The bar over a whole run shows when the run ends, also after it was resumed."""

import signal
from pathlib import Path

import pytest
from clock import Clock, right_within_a_quarter, seconds_left

from neo_peft import loop
from neo_peft.errors import Stopped
from neo_peft.model import TunedModel
from neo_peft.runs import training
from neo_peft.runs.from_flags import settings_to_resume
from neo_peft.runs.run_bar import FORM, RunBar
from neo_peft.settings import make_settings
from neo_peft.system.bars import show_progress


@pytest.fixture
def watched(monkeypatch):
    """Return a function that does a run, in which time passes only in the model: 1 second for each
    token and 5 for a batch, and in training 1.3 and 10 more. It returns what the run's bar showed
    as [(time, time left)], and the time of the end."""
    clock = Clock(monkeypatch)
    forward, take_step = TunedModel.forward, loop.take_step
    moments, bars = [], {}

    def look() -> None:
        if "run" in bars and (left := seconds_left(bars["run"])) is not None:
            moments.append((clock.now, left))

    def slow_forward(model, batch, past=None):
        if not model.training:
            look()
        clock.advance(5 + len(batch.ids))
        return forward(model, batch, past)

    def slow_step(model, optimizer, scaler, collated, labelled, clip):
        look()
        clock.advance(10 + 1.3 * sum(len(batch.ids) for batch in collated))
        return take_step(model, optimizer, scaler, collated, labelled, clip)

    def progress(items, what, *others):
        bars[what] = show_progress(items, what, *others)
        return bars[what]

    monkeypatch.setattr(TunedModel, "forward", slow_forward)
    monkeypatch.setattr(loop, "take_step", slow_step)

    def run(settings) -> tuple[list, float]:
        moments.clear()
        bars.clear()
        training.run(settings, lambda line: None, progress)
        return list(moments), clock.now

    return run


GIVEN = {"train_limit": 60, "eval_limit": 24, "batch_size": 4, "epochs": 3, "threads": 1}


@pytest.mark.parametrize(
    "given",
    [
        {"task": "ner", "method": "lora"},
        {"task": "similarity", "method": "lora", "readout": "head", "max_steps": 40},
        {"task": "sentiment", "method": "lora", "no_before": True},
    ],
)
def test_the_bar_of_the_run_shows_the_time_left_right_within_a_quarter(
    watched, tiny_folder, capsys, given
):
    moments, end = watched(make_settings(**(GIVEN | given), model=str(tiny_folder), out="run"))
    right_within_a_quarter(moments, end)
    assert "run: 100%" in capsys.readouterr().err.replace("run: 99%", "run: 100%")


def test_it_is_right_after_a_resume(watched, tiny_folder, monkeypatch, capsys):
    given = GIVEN | {"task": "ner", "method": "lora", "model": str(tiny_folder), "epochs": 4}
    _, expected = watched(make_settings(**given, out="finished"))
    real = training.Log.step

    def stopping(log, step) -> None:
        real(log, step)
        if step.step == 20:  # within the second of four epochs
            training.signals._received = signal.SIGTERM

    monkeypatch.setattr(training.Log, "step", stopping)
    with pytest.raises(Stopped):
        watched(make_settings(**given, out="run"))
    monkeypatch.setattr(training.Log, "step", real)
    capsys.readouterr()
    moments, end = watched(settings_to_resume(Path("run"), json=False))
    right_within_a_quarter(moments, end)
    shares = [int(line.split("%")[0]) for line in capsys.readouterr().err.split("run:")[1:]]
    assert 25 < min(share for share in shares if share) < 50


def test_a_rounding_error_does_not_exceed_the_total():
    run_bar = object.__new__(RunBar)
    run_bar.bar = show_progress((), "run", 0.3, None, FORM)
    plain = lambda items, *others: items  # noqa: E731
    assert list(run_bar.counting(plain, 0.1)("abc", "score", 3, [1, 1, 1])) == ["a", "b", "c"]
    assert 0.1 + 0.1 + 0.1 > run_bar.bar.total >= run_bar.bar.n > 0.29
    run_bar.close()
