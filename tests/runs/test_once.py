"""Nothing is computed twice: not by a resumed run, not by the runs of a study, and not after the
last epoch. What is computed once has the same bits as what would have been computed again."""

import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
from base_files import change_tensors
from killing import end, result, resumed, start
from trained import make_job

import evaluate
import train
from neo_peft.commands import study
from neo_peft.formats.base import load_base
from neo_peft.runs import before, head_alone, job, loading, shared, training
from neo_peft.settings import make_settings
from neo_peft.studies import study as studies
from neo_peft.system.exit_status import exit_status

SMALL = ["--threads", "1", "--train-limit", "20", "--eval-limit", "10"]


@pytest.fixture
def small(tiny_folder):
    """Return flags that make each run small."""
    return ["--model", str(tiny_folder), *SMALL]


@pytest.fixture
def calls(monkeypatch):
    """Return the number of calls of each function that computes something for a run."""
    counts = Counter()

    def count(module, name, kind=None):
        real = getattr(module, name)

        def counted(*args, **named):
            counts[kind(*args) if kind else name] += 1
            return real(*args, **named)

        monkeypatch.setattr(module, name, counted)

    def kind_of(model, encoder, examples, *others) -> str:
        when = "examples to show" if len(examples) == 3 else "split"
        untuned = model.prompt is None and not model.head_dropout
        return f"{when} {'before' if untuned else 'after'}"

    count(job, "evaluate", kind_of)
    count(job, "evaluate_generated", lambda *args: f"{kind_of(*args)}, generated")
    count(training, "evaluate", lambda *args: "epoch")
    count(before, "predict_baseline")
    count(head_alone, "train_and_predict")
    monkeypatch.setattr(loading, "load_base", load_base)
    count(loading, "load_base")
    return counts


# ---- The epochs' scores


@pytest.mark.parametrize("keep", ["best", "last"])
def test_validation_is_not_scored_again_after_the_last_epoch(small, calls, capsys, keep):
    given = ["--task", "ner", "--method", "lora", "--epochs", "3", "--keep", keep, *small]
    train.main([*given, "--out", "run"])
    assert calls["epoch"] == 3
    assert calls["split after"] == 1  # test
    capsys.readouterr()
    record = json.loads(Path("run/run.json").read_text())
    for split in ("validation", "test"):  # evaluate.py loads the run and scores it
        evaluate.main(["run", "--split", split, "--json"])
        scores = json.loads(capsys.readouterr().out)["scores"]
        assert record["scores"]["after"][split].items() >= scores.items()
        again = Path("run/predictions.jsonl").read_text()
        assert again == Path(f"run/predictions/after-{split}.jsonl").read_text()


# ---- A run that is killed


def test_a_killed_run_does_not_score_the_untuned_base_again(small, tmp_path):
    given = ["--task", "sentiment", "--method", "lora", "--epochs", "1", "--generate", *small]
    assert end(start([*given, "--out", "finished"])) == 0, Path("stderr").read_text()
    expected = result(Path("finished"))

    def kill_at(module, name: str, call: int):
        """Kill the process before this call of a function."""

        def patch() -> None:
            real, left = getattr(module, name), [call]

            def counted(*args, **named):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **named)

            setattr(module, name, counted)

        return patch

    def counting() -> None:
        for name in ("evaluate", "evaluate_generated"):
            real = getattr(job, name)

            def counted(*args, real=real, name=name, **named):
                with open("calls", "a") as file:
                    file.write(f"{name}\n")
                return real(*args, **named)

            setattr(job, name, counted)

    # Before tuning, evaluate_generated predicts the examples that are printed, validation and test;
    # evaluate predicts validation and test. After tuning it predicts test only.
    for module, name, call, left in (
        (job, "evaluate", 2, {"evaluate": 1, "evaluate_generated": 2}),
        (job, "evaluate_generated", 3, {"evaluate": 0, "evaluate_generated": 1}),
        (training, "Training", 1, {"evaluate": 0, "evaluate_generated": 0}),
    ):
        killed = end(start([*given, "--out", "run"], kill_at(module, name, call)))
        assert killed == -signal.SIGKILL
        Path("calls").write_text("")
        assert end(start(["--resume", "run"], counting)) == 0, Path("stderr").read_text()
        after = {"evaluate": 1, "evaluate_generated": 3}
        assert Counter(Path("calls").read_text().split()) == {
            name: left[name] + after[name] for name in left
        }
        assert result(Path("run")) == expected
        shutil.rmtree("run")


def test_kept_predictions_that_were_damaged_are_computed_again(small, tmp_path):
    given = ["--task", "ner", "--method", "lora", "--epochs", "1", *small]
    assert end(start([*given, "--out", "finished"])) == 0, Path("stderr").read_text()

    def killed() -> None:
        training.Training = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

    assert end(start([*given, "--out", "run"], killed)) == -signal.SIGKILL
    kept = list(Path("run/checkpoints/shared").iterdir())
    assert len(kept) == 4  # the examples that are printed, validation, test; the baseline
    for number, path in enumerate(kept):
        content = path.read_text()
        path.write_text(content.replace("O", "B", 1) if number % 2 else content[:-9])
    resumed("run", result(Path("finished")))


def test_a_run_that_fails_before_it_trains_leaves_no_files(small, tmp_path, capsys, monkeypatch):
    def refuse(*_):
        raise training.InputError("refused")

    monkeypatch.setattr(training, "Training", refuse)
    given = ["--task", "ner", "--method", "lora", *small]
    assert exit_status(lambda: train.main([*given, "--out", "run"])) == 2
    assert not list(Path().iterdir())


# ---- A study


def equal_to_single_runs(folder: str, *names: str) -> None:
    """Assert that runs of a study have the files that each has if it is trained by itself."""
    plan = json.loads(Path(folder, "study.json").read_text())
    for flags in [run["flags"] for run in plan["runs"] if run["name"] in names]:
        training.run(make_settings(**flags, out="alone"), lambda line: None)
        [name] = [run["name"] for run in plan["runs"] if run["flags"] == flags]
        assert result(Path("alone")) == result(Path(folder, name))
        shutil.rmtree("alone")


def test_a_study_of_classification_computes_once_what_does_not_depend_on_the_run(small, calls):
    argv = ["--task", "sentiment", "--epochs", "1", "2", "--seeds", "2", "--batch-size", "5"]
    study.main([*argv, *small, "--out", "study"])
    assert calls.pop("epoch") == 6
    assert calls == {
        "load_base": 1,
        "predict_baseline": 1,
        "split before": 2,  # validation and test
        "split before, generated": 2,
        "examples to show before, generated": 1,
        # four runs; validation is that of the kept epoch
        "split after": 4,
        "split after, generated": 8,
        "examples to show after, generated": 4,
    }
    assert not Path("study/shared").exists()
    equal_to_single_runs("study", "epochs-1-seed-0", "epochs-2-seed-1")


def test_a_study_of_tags_scores_the_untuned_base_once_for_each_seed(small, calls):
    argv = ["--task", "ner", "--epochs", "1", "--seeds", "2", "--sweep", "rank=2,4"]
    study.main([*argv, "--head-baseline", *small, "--out", "study"])
    assert calls.pop("epoch") == 4
    assert calls == {
        "load_base": 1,
        "predict_baseline": 1,
        "train_and_predict": 2,  # a seed each: it decides the head and the order of the rows
        "split before": 4,
        "examples to show before": 2,
        "split after": 4,
        "examples to show after": 4,
    }
    equal_to_single_runs("study", "rank-2-seed-0", "rank-4-seed-1")


def test_runs_that_change_the_base_do_not_share_it(small, calls):
    """Trained biases and a fully tuned base are those of one run only."""
    argv = ["--task", "ner", "--epochs", "1", "--seeds", "2", "--learning-rate", "0.01"]
    study.main([*argv, "--method", "full", *small, "--out", "study"])
    assert calls["load_base"] == 2
    equal_to_single_runs("study", "epochs-1-seed-1")
    study.main([*argv, "--sweep", "bias=all,none", *small, "--out", "biases"])
    assert calls["load_base"] == 2 + 1 + 1  # one for the run by itself, and one for the study
    equal_to_single_runs("biases", "bias-none-seed-0", "bias-none-seed-1", "bias-all-seed-1")


def test_a_study_of_models_loads_each_and_scores_each(small, calls, tiny_folder):
    shutil.copytree(tiny_folder, "other")
    change_tensors(Path("other"), lambda tensors: tensors["transformer.wte.weight"].mul_(-1))
    argv = ["--task", "sentiment", "--epochs", "1", "--seeds", "1", *small[2:], "--out", "study"]
    study.main([*argv, "--models", "other", str(tiny_folder)])
    assert calls["load_base"] == 2 and calls["split before"] == 4
    assert calls["predict_baseline"] == 1
    equal_to_single_runs("study", "model-model-seed-0")


def test_what_another_batch_size_or_other_rows_give_is_not_shared(small, calls):
    argv = ["--task", "ner", "--epochs", "1", "--seeds", "1"]
    study.main([*argv, "--sweep", "batch_size=3,5", *small, "--out", "sizes"])
    assert calls["split before"] == 4 and calls["predict_baseline"] == 1
    study.main([*argv, "--sweep", "train_limit=15,20", *small[:-4], *small[-2:], "--out", "rows"])
    assert calls["split before"] == 4 + 2  # other training rows change the baseline only
    assert calls["predict_baseline"] == 1 + 2
    assert studies.SHARED not in {path.name for path in Path("rows").iterdir()}


def test_a_study_of_precisions_loads_the_base_in_each(small, calls):
    argv = ["--task", "sentiment", "--epochs", "1", "--seeds", "1", *small, "--out", "study"]
    study.main([*argv, "--sweep", "precision=fp32,bf16"])
    assert calls["load_base"] == 2 and calls["split before"] == 4
    equal_to_single_runs("study", "precision-fp32-seed-0", "precision-bf16-seed-0")


@pytest.mark.parametrize("sweep", ["method=lora,full", "method=full,lora"])
def test_a_base_that_is_trained_is_scored_for_itself(small, calls, sweep):
    """Weights that are trained are multiplied in another way."""
    argv = ["--task", "ner", "--epochs", "1", "--seeds", "1", "--sweep", sweep]
    study.main([*argv, *small, "--out", "study"])
    assert calls["split before"] == 4


def test_what_was_computed_in_another_way_is_not_shared(calls, monkeypatch, tiny_folder):
    """Two threads sum in another order, and so may another version of the package."""
    kept = shared.Shared(Path("kept"))
    given = {"task": "ner", "method": "lora", "model": str(tiny_folder), "epochs": 1}
    for version, threads, count in ((7, 1, 2), (7, 1, 2), (8, 1, 4), (8, 2, 6), (8, 2, 6)):
        monkeypatch.setattr(shared, "COMPUTATION", version)
        settings = make_settings(**given, threads=threads, train_limit=20, eval_limit=10)
        training.run(settings, lambda line: None, shared=kept)
        assert calls["split before"] == count


@pytest.mark.parametrize(("readout", "is_same"), [("head", False), ("words", True)])
def test_rows_are_encoded_once_unless_the_untuned_base_has_another_head(
    tiny_folder, readout, is_same
):
    prepared = make_job(Path("run"), tiny_folder, task="sentiment", readout=readout)
    untuned = job.untuned_base(prepared)
    found = job.encode(prepared, untuned, "test")
    assert (found is prepared.examples["test"]) == is_same
    # The targets are the tokens of the labels, and not their indices.
    words = [prepared.task.label_text(row["label"]) for row in prepared.rows["test"]]
    ids = [untuned.encoder.tokenize([word])[0] + [untuned.encoder.end_token] for word in words]
    assert found.targets.tolist() == sum(ids, [])


def test_a_study_that_was_killed_keeps_what_it_has_computed(small, calls):
    argv = ["--task", "ner", "--epochs", "1", "--seeds", "2", *small, "--out", "study"]

    def killed() -> None:
        real = training.Training

        def second_is_killed(job, *others):
            if job.settings.seed == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(job, *others)

        training.Training = second_is_killed

    assert end(start(argv, killed, study.main)) == -signal.SIGKILL
    study.main(["--resume", "study"])
    assert calls == {"load_base": 1, "epoch": 1, "split after": 1, "examples to show after": 1}
