"""Write finished runs with made-up predictions."""

import json

from neo_peft.decoding import Evaluation, score
from neo_peft.runs.folder import flags_of, write_record
from neo_peft.runs.predictions import PredictionKind, write_predictions
from neo_peft.settings import make_settings, task_of
from neo_peft.system.files import sha256

BEFORE, AFTER = PredictionKind("before"), PredictionKind("after")

LABELS = ("O", "B-drug", "I-drug", "B-gene", "I-gene")

TAGGED = [
    {"tokens": words.split(), "tags": tags.split()}
    for words, tags in (
        ("Take aspirin daily", "O B-drug O"),
        ("The p53 gene sleeps", "O B-gene I-gene O"),
        ("acetyl salicylic acid", "B-drug I-drug I-drug"),
    )
]

# One hit, one wrong type, one wrong type and boundary: precision and recall are 1/3, and 2/3 if the
# type is ignored. The F1 of drug is 1/2, that of gene 0.
PREDICTED_TAGS = [tags.split() for tags in ("O B-drug O", "O B-drug I-drug O", "O B-gene I-gene")]

LABELLED = [
    {"sentence": text, "label": label}
    for text, label in [
        ("up", "good"),
        ("down", "bad"),
        ("flat", "so-so"),
        ("rise", "good"),
        ("fall", "bad"),
    ]
]

PREDICTED_LABELS = ["good", "good", "bad", "good", None]

STEPS = [
    {"step": n, "epoch": 1 + (n > 2), "loss": 1 / n, "learning_rate": 0.1, "gradient_norm": 1}
    for n in (1, 2, 3, 4)
]

EPOCHS = [
    {
        "step": 2 * n,
        "epoch": n,
        "train_loss": 1.0,
        "validation_loss": 1.0,
        "validation": {"f1": 0.1 * n},
    }
    for n in (1, 2)
]

# 100 tokens in 1 s, a gap for scoring, 300 tokens in 1 s: 200 tokens per second.
TIMES = [
    {"step": n, "seconds": seconds, "tokens": tokens}
    for n, seconds, tokens in ((1, 1, 9), (2, 2, 100), (3, 12, 9), (4, 13, 300))
]


# as in run.json: 0.3 against 0.2
VERDICT = {
    "split": "test",
    "metric": "f1",
    "rows": 80,
    "compared_with": "majority",
    "score": 0.3,
    "other_score": 0.2,
    "low": 0.05,
    "high": 0.15,
    "p": 0.01,
    "differing": 20,
    "only_label": None,
    "head_missing": False,
}


def make_run(
    folder,
    task,
    rows,
    predictions,
    labels,
    changes=(),
    metrics=(*STEPS, *EPOCHS),
    times=TIMES,
    **flags,
):
    """Write the folder of a finished run and return it.

    `predictions` is {prediction kind: {split: predictions}}. `changes` replace entries of run.json;
    the value "left out" removes an entry.
    """
    folder.mkdir(parents=True)
    settings = make_settings(task=task, method="lora", labels=labels, **flags)
    task = task_of(settings)
    splits = predictions[BEFORE]
    majority = {name: score(task, rows, splits[name]) for name in splits}
    scores, generated = {"majority": majority}, {}
    for kind, splits in predictions.items():
        section = generated if kind.generated else scores
        section[kind.when] = {name: score(task, rows, splits[name]) for name in splits}
        for name, predicted in splits.items():
            write_predictions(folder, kind, name, rows, Evaluation(predicted))
    for name, lines in (("metrics.jsonl", metrics), ("timings.jsonl", times)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "adapter_model.safetensors").write_bytes(bytes(1_500_000))
    files = {
        str(path.relative_to(folder)): sha256(path) for path in folder.rglob("*") if path.is_file()
    }
    record = {
        "task": task.name,
        "labels": list(labels),
        "flags": flags_of(settings),
        "model": "neo-mini",
        "data": "own-rows",
        "protocol": "single",
        "base": {"fingerprint": "f1e2d3", "parameters": 5_000_000},
        "files": files,
        "seed": 3,
        "threads": 2,
        "processes": 1,
        "device": "cpu",
        "precision": "fp32",
        "versions": {"torch": "2.9"},
        "commit": None,
        "finished": "2030-01-02T03:04:05+00:00",
        "trainable": 1_000,
        "total": 5_001_000,
        "rows": {"train": 7} | {name: len(rows) for name in predictions[AFTER]},
        "kept_epoch": 2,
        "scores": scores,
        "generated": generated,
        "verdict": VERDICT,
        "warnings": ["the loss rose"],
        "assumed": ["rank"],
        "seconds": 61.4,
        "memory": {"peak_bytes": 450_000_000},
    }
    write_record(
        folder,
        {name: value for name, value in (record | dict(changes)).items() if value != "left out"},
    )
    return folder


def tagger(folder, **more):
    """Write the run of a tagging task."""
    no_entities = [["O"] * len(row["tokens"]) for row in TAGGED]
    splits = {
        BEFORE: {"validation": no_entities, "test": no_entities},
        AFTER: {"validation": PREDICTED_TAGS, "test": PREDICTED_TAGS},
    }
    return make_run(folder, "tagging", TAGGED, splits, LABELS, **more)


def answerer(folder, **more):
    """Write the run of a classification task, with scored labels and with generated text."""
    splits = {
        BEFORE: {"test": PREDICTED_LABELS, "validation": PREDICTED_LABELS},
        PredictionKind("before", generated=True): {"test": [None] * 5, "validation": [None] * 5},
        AFTER: {"test": PREDICTED_LABELS, "validation": PREDICTED_LABELS},
        PredictionKind("after", generated=True): {
            "test": PREDICTED_LABELS,
            "validation": PREDICTED_LABELS,
        },
    }
    return make_run(folder, "classification", LABELLED, splits, ("bad", "so-so", "good"), **more)


# Text that is harmful in a page unless it is escaped.
EVIL = (
    "</title></style></textarea><evil onload=\"x\" style='y'>&lt; $body ${title} \u2028\u202e\x00"
)
