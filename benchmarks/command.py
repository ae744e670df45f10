"""The job `command` of benchmarks.peers: a whole run of train.py, compared with two scripts that do
the same with transformers' Trainer and peft (trainer_plain.py, trainer_careful.py).

Each side is a process of its own, from its start to its end: imports, data, scoring before tuning,
training, scoring after each epoch, the saved adapter, scoring after tuning. The sides run in turn
with the same seed; each pair has another seed. All use the same rows, and the bundled model by
default.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from neo_peft.corpora.sources import load_splits
from neo_peft.defaults import BUNDLED_MODEL, STUDY_METHODS
from neo_peft.runs.bootstrap import paired
from neo_peft.runs.predictions import PredictionKind, read_predictions
from neo_peft.tasks import Task, get_task

ROOT = Path(__file__).parents[1]
GOALS = {"careful": 2.5, "plain": 3.0}  # for the peer's seconds over ours
MEMORY_GOAL = 0.6  # for our bytes over the peer's
SAME_BEFORE = 0.99  # least share of rows with the same prediction before tuning, for the same job
ONLY_OURS = (
    "Only ours also scores two baselines (for ner, a linear head alone too), shows examples (for "
    "sentiment, by generating), and writes a plot and checkpoints that can be resumed."
)


@dataclass(frozen=True)
class Side:
    """What one run of a side took and did."""

    wall: float  # seconds from the start to the end of the process
    cpu: float  # seconds of the processor, user and system
    memory: int  # peak resident bytes
    work: dict[str, int]  # steps, tokens of all epochs, scored epochs
    predicted: dict[str, dict[str, list]]  # "before" and "after" tuning, for each scored split


def command(task: str, at: dict) -> list[dict]:
    """Compare the whole process of train.py with both scripts: wall, CPU and peak memory."""
    warm_up(at)
    sides: dict[str, list[Side]] = {"ours": [], "careful": [], "plain": []}
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(at["pairs"]):
            for name, runs in sides.items():
                runs.append(run_side(name, task, Path(folder, f"{name}-{pair}"), pair, at))
    ours = sides.pop("ours")
    return [line for name, runs in sides.items() for line in compared(task, name, ours, runs)]


def warm_up(at: dict) -> None:
    """Import what the sides import, so that no file is read from disk for the first side only."""
    for module in ("benchmarks.trainer_careful", "neo_peft.runs.training"):
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True, cwd=ROOT)


def run_side(name: str, task: str, folder: Path, seed: int, at: dict) -> Side:
    """Run a side in a new folder, and return what it took and did."""
    out, taken = folder / "run", folder / "taken.json"
    folder.mkdir()
    flags = ["--task", task, "--seed", str(seed), "--threads", "1", "--out", str(out)]
    flags += ["--model", at.get("model", BUNDLED_MODEL)]
    flags += ["--epochs", str(at["epochs"])] if at.get("epochs") else []
    start = ["-m", f"benchmarks.trainer_{name}"]
    if name == "ours":
        start, flags = ["train.py"], [*flags, "--method", STUDY_METHODS[get_task(task).is_tagging]]
    measured = [sys.executable, "-m", "benchmarks.process", str(taken)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    status = subprocess.run(
        [*measured, sys.executable, *start, *flags], cwd=ROOT, env=environment
    ).returncode
    if status:
        log = Path(f"{taken}.log").read_text(errors="replace")
        raise RuntimeError(f"{name} {task} ended with status {status}:\n{log[-2000:]}")
    read = our_work if name == "ours" else peers_work
    return Side(**json.loads(taken.read_text()), **read(out))


def our_work(folder: Path) -> dict:
    """Return the work and the predictions of a run of train.py."""
    lines, steps = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("metrics.jsonl", "timings.jsonl")
    )
    predicted = {
        when: {
            split: [row["predicted"] for row in read_predictions(folder, kind, split)]
            for split in ("validation", "test")
        }
        for when in ("before", "after")
        for kind in [PredictionKind(when)]
    }
    work = {
        "steps": len(steps),
        "tokens": sum(step["tokens"] for step in steps),
        "epochs_scored": sum("validation" in line for line in lines),
    }
    return {"work": work, "predicted": predicted}


def peers_work(folder: Path) -> dict:
    """Return the work and the predictions of a script."""
    results = json.loads((folder / "results.json").read_text())
    return {"work": results["work"], "predicted": results["predicted"]}


# ---- From the runs to lines of the table


def compared(name: str, peer: str, ours: list[Side], theirs: list[Side]) -> list[dict]:
    """Return the lines of a task and a peer: wall, CPU, memory."""
    task = get_task(name)
    same = agreement(task, ours, theirs)
    lines = []
    for measure, goal in (("wall", GOALS[peer]), ("cpu", GOALS[peer]), ("memory", MEMORY_GOAL)):
        a, b = ([getattr(side, measure) for side in sides] for sides in (ours, theirs))
        memory = measure == "memory"  # ours over theirs; of seconds it is theirs over ours
        ratios = [x / y if memory else y / x for x, y in zip(a, b, strict=True)]
        unit = "bytes" if memory else "seconds"
        lines.append(
            {
                "measure": f"{name} {measure}",
                "goal": goal,
                "at_most": memory,
                "ratio": median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                unit: median(a),
                f"peers_{unit}": median(b),
                "peer": peer,
                "agrees": same["agrees"],
            }
        )
    lines[0] |= same | {"note": note(task, peer, same)}
    return lines


def agreement(task: Task, ours: list[Side], theirs: list[Side]) -> dict:
    """Return whether both did the same job, and their scores.

    They did if they took the same steps on the same numbers of tokens and scored as many epochs,
    predicted the same before tuning, and their scores on test differ by no more than chance: the
    95 % interval of the difference contains zero.
    """
    same_work = all(a.work == b.work for a, b in zip(ours, theirs, strict=True))
    before = [
        pair
        for a, b in zip(ours, theirs)
        for split, predicted in a.predicted["before"].items()
        for pair in zip(predicted, b.predicted["before"][split], strict=True)
    ]
    share = sum(a == b for a, b in before) / len(before)
    tests = ([side.predicted["after"]["test"] for side in sides] for sides in (ours, theirs))
    metric = paired(task, load_splits(task, "sample").test, *tests)[task.metric]
    by_chance = metric["low"] <= 0 <= metric["high"]
    return {
        "agrees": same_work and share >= SAME_BEFORE and by_chance,
        "same_work": same_work,
        "work": ours[0].work,
        "peers_work": theirs[0].work,
        "same_before": share,
        "score": metric["a"],
        "peers_score": metric["b"],
        "difference": [metric[name] for name in ("difference", "low", "high")],
    }


def note(task: Task, peer: str, same: dict) -> str:
    """Return a sentence about the scores of both sides and their work."""
    difference, low, high = same["difference"]
    return (
        f"{task.name}: {task.metric} on test {same['score']:.3f}, {peer} "
        f"{same['peers_score']:.3f}: difference {difference:.3f} ({low:.3f} to {high:.3f}); "
        f"{same['same_before']:.1%} of the predictions before tuning are the same. {ONLY_OURS}"
    )
