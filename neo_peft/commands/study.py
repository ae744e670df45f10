"""Repeat a task's experiment over seeds and epochs, or a sweep: python -m neo_peft study --task
sentiment

The study's folder gets table.md, results.json, a plot, and a folder for each run.
`analysis/plan.py` decides what is run.
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neo_peft.analysis.plan import make_plan, read_plan, read_sweep
from neo_peft.commands.flags import OneLineParser, add_settings, add_text, argument
from neo_peft.errors import InputError
from neo_peft.settings import whole
from neo_peft.system import signals as stopping

# flags of train.py that mean something else here, or nothing
OF_THE_STUDY = ("epochs", "seed", "out", "resume", "json")


def parse_flags(argv: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the study's own flags, and those of train.py that are given."""
    parser = OneLineParser(
        prog="python -m neo_peft study",
        argument_default=argparse.SUPPRESS,
        description="Repeat a task's experiment over seeds and epochs, or sweep one flag, and lay "
        "the scores out.",
    )
    add_study_flags(parser.add_argument_group("study"))
    for name in ("--seed", "--json"):
        parser.add_argument(name, nargs="?", help=argparse.SUPPRESS)
    add_settings(parser, without=OF_THE_STUDY)
    given = vars(parser.parse_args(argv))
    if "seed" in given:
        raise InputError("--seed: a study runs several; --seeds N runs those from 0 to N - 1")
    if "json" in given:
        raise InputError("--json: a study leaves results.json in its folder; leave it out")
    names = ("seeds", "epochs", "sweep", "models", "out", "resume")
    return {name: given.pop(name) for name in names if name in given}, given


def add_study_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags that train.py does not have, or has with another meaning."""
    group.add_argument(
        "--seeds", metavar="N", type=argument(whole(1, 1000)), help="seeds 0 to N - 1 (default: 3)"
    )
    group.add_argument(
        "--epochs",
        metavar="N",
        nargs="+",
        type=argument(whole(1)),
        help="numbers of epochs, each its own run; a tagging task has one run, scored after each "
        "epoch (default: sentiment 1 5 10, similarity 1 5 10 20, tagging 10; in a sweep the "
        "largest)",
    )
    add_text(
        group,
        "--sweep",
        "NAME=VALUE,VALUE",
        "repeat it for each value of a flag, as learning_rate=0.01,0.03,0.1 or rslora=off,on",
    )
    add_text(group, "--models", "MODEL", "repeat it for each model", nargs="+")
    add_text(group, "--out", "DIR", "the study's folder (default: studies/TASK-METHOD, …)")
    add_text(group, "--resume", "DIR", "go on with the study in this folder")


def plan_from_flags(own: dict[str, Any], given: dict[str, Any], argv: Sequence[str]) -> dict:
    """Return the plan that the flags ask for."""
    if "sweep" in own and "models" in own:
        raise InputError("--sweep and --models are two sweeps; name one of them")
    sweep = read_sweep(own["sweep"]) if "sweep" in own else None
    if "models" in own:
        sweep = "model", own["models"]
    if sweep and len(own.get("epochs", [])) > 1:
        raise InputError(
            f"--epochs {' '.join(map(str, own['epochs']))}: a sweep has one number of epochs; give "
            "one"
        )
    if sweep and sweep[0] == "epochs" and "epochs" in own:
        raise InputError("--epochs is what the sweep is over; leave it out")
    command = shlex.join(["python", "-m", "neo_peft", "study", *argv])
    return make_plan(given, own.get("seeds", 3), own.get("epochs"), sweep, command)


def plan_to_resume(own: dict[str, Any], given: dict[str, Any], argv: Sequence[str]) -> dict:
    """Return the plan of the study to resume. Other flags must be the same as when it began."""
    folder = Path(own["resume"])
    plan = read_plan(folder)
    if "out" in own and Path(own["out"]).resolve() != folder.resolve():
        raise InputError(f"--out {own['out']}: --resume {folder} goes on there; leave --out away")
    others = given or own.keys() - {"resume", "out"}
    if others and (
        given.get("task") != plan["task"]
        or plan_from_flags(own, given, argv)["runs"] != plan["runs"]
    ):
        raise InputError(
            f"--resume {folder} was begun with other flags; leave them out, or begin anew"
        )
    return plan


def main(argv: Sequence[str]) -> None:
    """Run a study, or resume one, and print its tables."""
    own, given = parse_flags(argv)
    plan = (
        plan_to_resume(own, given, argv) if "resume" in own else plan_from_flags(own, given, argv)
    )
    with stopping.delayed():  # an import that is interrupted may say anything
        from tqdm import tqdm

        from neo_peft.analysis import study  # after the flags: torch takes seconds to import
        from neo_peft.progress import show_progress

    folder, made = (
        (Path(own["resume"]), [])
        if "resume" in own
        else study.make_study_folder(plan, own.get("out"))
    )
    count = len(plan["runs"])
    tqdm.write(f"{count} run{'s' if count > 1 else ''}, each with its log beside it in {folder}")
    try:
        text, refused = study.run_study(folder, plan, tqdm.write, show_progress)
    except Exception:
        if "resume" not in own:
            study.remove_unstarted_study(folder, made, plan)
        raise
    tqdm.write(f"\n{text}\nAll of it is in {folder}.")
    if refused:
        raise InputError(
            f"{len(refused)} of {count} runs were refused, and are not in the tables, the first of "
            f"them {refused[0]}; python -m neo_peft study --resume {folder} tries them again"
        )
