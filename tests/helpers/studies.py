"""Write finished studies with made-up predictions."""

import functools
import json
import random
from pathlib import Path

import numpy as np

from neo_peft.corpora.sources import load_splits
from neo_peft.corpora.splits import limit_rows
from neo_peft.decoding import Evaluation
from neo_peft.metrics import class_scores
from neo_peft.runs.baselines import predict_baseline, predict_majority
from neo_peft.runs.folder import write_record
from neo_peft.runs.predictions import PredictionKind, write_predictions
from neo_peft.settings import make_settings
from neo_peft.system.files import sha256
from neo_peft.tasks import get_task

MAJORITY, BASELINE = PredictionKind("majority"), PredictionKind("baseline")
BEFORE, AFTER = PredictionKind("before"), PredictionKind("after")
# The probability of a right prediction, before the effect of epochs.
ACCURACY = {
    BEFORE: 0.2,
    AFTER: 0.6,
    PredictionKind("before", generated=True): 0.0,
    PredictionKind("after", generated=True): 0.5,
}


def make_predictions(
    run: dict, kind: PredictionKind, split: str, rows: list[dict], labels: tuple
) -> list:
    """Return made-up predictions of a run.

    With more epochs more of them are right. Generated text matches the right label or none. Before
    tuning, predictions depend on the seed and the batch size, like those of another base model.
    """
    tuned = kind.when == "after"
    seed = run["name"] if tuned else (run["seed"], run["flags"]["batch_size"])
    rng = random.Random(f"{seed} {kind.title} {split}")
    right = ACCURACY[kind] + (0.01 * run["flags"]["epochs"] if tuned else 0)
    wrong = [None] if kind.generated else labels
    return [row["label"] if rng.random() < right else rng.choice(wrong) for row in rows]


@functools.cache
def baseline_of(task: str, *splits: str) -> list:
    """Return the baseline's predictions. `splits` are rows as JSON: many studies have the same."""
    return predict_baseline(get_task(task), *map(json.loads, splits))


def make_up(folder: Path, plan: dict) -> dict[tuple, np.ndarray]:
    """Write the run folders of a plan for sentiment, with the files that training writes.

    Return which predictions are right: {(value, kind, split): booleans (seeds, rows)}.
    """
    right: dict[tuple, list] = {}
    for run in plan["runs"]:
        settings = make_settings(**run["flags"])
        task, path = get_task(settings.task), folder / run["name"]
        splits = load_splits(task, settings.data)
        record = {
            "scores": {when: {} for when in ("majority", "baseline", "before", "after")},
            "generated": {when: {} for when in ("before", "after")},
        }
        path.mkdir(parents=True)
        for split in list(splits.named())[1:]:
            rows = limit_rows(splits.named()[split], settings.eval_limit)
            train = limit_rows(splits.train, settings.train_limit)
            untuned = {
                MAJORITY: predict_majority(task, train, rows),
                BASELINE: baseline_of(
                    task.name, *map(json.dumps, (train, splits.validation, rows))
                ),
            }
            made_up = {
                kind: make_predictions(run, kind, split, rows, task.labels) for kind in ACCURACY
            }
            for kind, predicted in (untuned | made_up).items():
                write_predictions(path, kind, split, rows, Evaluation(predicted))
                gold = [row["label"] for row in rows]
                kind.scores(record)[split] = class_scores(gold, predicted, task.labels)
                hits = [
                    label == gold_label for label, gold_label in zip(predicted, gold, strict=True)
                ]
                right.setdefault((run["value"], kind, split), []).append(hits)
        files = {str(file.relative_to(path)): sha256(file) for file in path.rglob("*.jsonl")}
        write_record(
            path,
            {
                "task": task.name,
                "labels": list(task.labels),
                "flags": run["flags"],
                "base": {},
                "files": files,
                "protocol": "single",
                "rows": {name: len(rows) for name, rows in splits.named().items()},
                **record,
                "verdict": {"head_missing": False},
                "kept_epoch": settings.epochs,
                "versions": {"python": "3"},
                "commit": None,
                "device": "cpu",
                "seconds": 10.04,
            },
        )
    return {key: np.array(hits) for key, hits in right.items() if len({*map(len, hits)}) == 1}


def named_lines(results: dict, split: str) -> dict[str, dict]:
    """Return the result lines of a split by their names."""
    return {line["name"]: line for line in results["protocols"]["single"]["lines"][split]}
