"""Made-up finished studies."""

import random
from pathlib import Path

import numpy as np

from neo_peft.corpora.sources import load_splits
from neo_peft.corpora.splits import limit_rows
from neo_peft.decoding import Evaluation
from neo_peft.metrics import class_scores
from neo_peft.runs.baselines import majority_scores
from neo_peft.runs.folder import write_record
from neo_peft.runs.predictions import PredictionKind, write_predictions
from neo_peft.settings import make_settings
from neo_peft.system.files import sha256
from neo_peft.tasks import get_task

BEFORE, AFTER = PredictionKind("before"), PredictionKind("after")
RIGHT = {
    BEFORE: 0.2,
    AFTER: 0.6,
    PredictionKind("before", generated=True): 0.0,
    PredictionKind("after", generated=True): 0.5,
}


def answers_to(
    run: dict, answers: PredictionKind, split: str, rows: list[dict], labels: tuple
) -> list:
    """Return made-up predictions of a run.

    More of them are right after more epochs. Generated text may name no label. Predictions before
    tuning depend on the seed and the batch size, as they would depend on a swept model.
    """
    tuned = answers.when == "after"
    changes = run["name"] if tuned else (run["seed"], run["flags"]["batch_size"])
    rng = random.Random(f"{changes} {answers.title} {split}")
    right = RIGHT[answers] + (0.01 * run["flags"]["epochs"] if tuned else 0)
    wrong = [None] if answers.generated else labels
    return [row["label"] if rng.random() < right else rng.choice(wrong) for row in rows]


def make_up(folder: Path, plan: dict) -> dict[tuple, np.ndarray]:
    """Write the run folders of a plan for sentiment as training leaves them.

    Return which predictions are right, by value, kind of answers and split: (seeds, rows).
    """
    right: dict[tuple, list] = {}
    for run in plan["runs"]:
        settings = make_settings(**run["flags"])
        task, path = get_task(settings.task), folder / run["name"]
        splits = load_splits(task, settings.data)
        record = {
            "scores": {when: {} for when in ("majority", "before", "after")},
            "generated": {when: {} for when in ("before", "after")},
        }
        path.mkdir(parents=True)
        for split in list(splits.named())[1:]:
            rows = limit_rows(splits.named()[split], settings.eval_limit)
            majority = majority_scores(task, splits.train, rows)
            record["scores"]["majority"][split] = majority
            for answers in RIGHT:
                predicted = answers_to(run, answers, split, rows, task.labels)
                write_predictions(path, answers, split, rows, Evaluation(predicted))
                gold = [row["label"] for row in rows]
                answers.scores(record)[split] = class_scores(gold, predicted, task.labels)
                hits = [answer == row["label"] for answer, row in zip(predicted, rows, strict=True)]
                right.setdefault((run["value"], answers, split), []).append(hits)
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
