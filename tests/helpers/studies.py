"""Made-up finished studies."""

import random
from pathlib import Path

import numpy as np

from neo_peft.corpora.sources import load_splits
from neo_peft.corpora.splits import limit_rows
from neo_peft.metrics import class_scores
from neo_peft.runs.baselines import majority_scores
from neo_peft.runs.folder import write_record
from neo_peft.runs.predictions import write_predictions
from neo_peft.settings import make_settings
from neo_peft.system.files import sha256
from neo_peft.tasks import get_task

RIGHT = {"before": 0.2, "after": 0.6, "before, generate": 0.0, "after, generate": 0.5}


def answers_to(run: dict, when: str, split: str, rows: list[dict], labels: tuple) -> list:
    """Return made-up predictions of a run.

    More of them are right after more epochs. Generated text may name no label. Predictions before
    tuning depend on the seed and the batch size, as they would depend on a swept model.
    """
    changes = run["name"] if when.startswith("after") else (run["seed"], run["flags"]["batch_size"])
    rng = random.Random(f"{changes} {when} {split}")
    right = RIGHT[when] + (0.01 * run["flags"]["epochs"] if when.startswith("after") else 0)
    wrong = [None] if "generate" in when else labels
    return [row["label"] if rng.random() < right else rng.choice(wrong) for row in rows]


def make_up(folder: Path, plan: dict) -> dict[tuple, np.ndarray]:
    """Write the run folders of a plan for sentiment as training leaves them.

    Return which predictions are right, by value, kind and split: (seeds, rows).
    """
    right: dict[tuple, list] = {}
    for run in plan["runs"]:
        settings = make_settings(**run["flags"])
        task, path = get_task(settings.task), folder / run["name"]
        splits, scores = (
            load_splits(task, settings.data),
            {when: {} for when in ("majority", *RIGHT)},
        )
        path.mkdir(parents=True)
        for split in list(splits.named())[1:]:
            rows = limit_rows(splits.named()[split], settings.eval_limit)
            scores["majority"][split] = majority_scores(task, splits.train, rows)
            for when in RIGHT:
                predicted = answers_to(run, when, split, rows, task.labels)
                write_predictions(path, when, split, rows, predicted, None)
                scores[when][split] = class_scores(
                    [row["label"] for row in rows], predicted, task.labels
                )
                hits = [answer == row["label"] for answer, row in zip(predicted, rows, strict=True)]
                right.setdefault((run["value"], when, split), []).append(hits)
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
                "scores": scores,
                "kept_epoch": settings.epochs,
                "versions": {"python": "3"},
                "commit": None,
                "device": "cpu",
                "seconds": 10.04,
            },
        )
    return {key: np.array(hits) for key, hits in right.items() if len({*map(len, hits)}) == 1}


def named_lines(results: dict, split: str) -> dict[str, dict]:
    """Return the lines of a split by their names."""
    return {line["name"]: line for line in results["protocols"]["single"]["lines"][split]}
