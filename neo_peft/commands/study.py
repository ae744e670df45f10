"""Run a task with several seeds and numbers of epochs, or sweep a flag: python -m neo_peft study
--task sentiment

The study's folder gets table.md, results.json, a plot, and a folder for each run.
`analysis/plan.py` makes the list of runs.
"""

import argparse
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from neo_peft.analysis.plan import make_plan, read_plan, read_sweep
from neo_peft.commands.flags import OneLineParser, add_settings, add_text, argument
from neo_peft.commands.loading_line import LoadingLine
from neo_peft.errors import InputError
from neo_peft.formats.base_folder import with_size
from neo_peft.settings import whole
from neo_peft.system import signals as stopping
from neo_peft.system.bars import show_progress

# flags of train.py that a study does not have, or that have another meaning in it
LEFT_OUT = ("epochs", "seed", "out", "resume", "json")
# what the help of train.py's other flags has as their default, where a study has another one
DEFAULTS = {
    "method": " (default: lora for tagging, prompt for classification)",
    "keep": " (default: best for tagging, last for classification)",
    "generate": " (always on in a study with the language model head)",
    "protocol": " (default: both)",
}


def parse_flags(argv: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the flags of the study that are given, and those of train.py."""
    parser = OneLineParser(
        prog="python -m neo_peft study",
        argument_default=argparse.SUPPRESS,
        description="Run a task with several seeds and numbers of epochs, or sweep one flag, and "
        "write tables of the scores.",
    )
    add_study_flags(parser.add_argument_group("study"))
    for name in ("--seed", "--json"):
        parser.add_argument(name, nargs="?", help=argparse.SUPPRESS)
    add_settings(parser, LEFT_OUT, DEFAULTS)
    train_flags = vars(parser.parse_args(argv))
    if "seed" in train_flags:
        raise InputError("--seed: a study has several seeds; --seeds N uses 0 to N - 1")
    if "json" in train_flags:
        raise InputError("--json: leave it out; a study writes results.json into its folder")
    names = ("seeds", "epochs", "sweep", "models", "out", "resume")
    study_flags = {name: train_flags.pop(name) for name in names if name in train_flags}
    return study_flags, train_flags


def add_study_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags that train.py does not have, or that have another meaning there."""
    group.add_argument(
        "--seeds",
        metavar="N",
        type=argument(whole(1, 1000)),
        help="use the seeds 0 to N - 1 (default: 3)",
    )
    group.add_argument(
        "--epochs",
        metavar="N",
        nargs="+",
        type=argument(whole(1)),
        help="numbers of epochs, a run for each; a tagging task takes one number, and its run is "
        "scored after each epoch (default: 1 5 10; similarity: 1 5 10 20; tagging: 10; a sweep "
        "uses the largest)",
    )
    add_text(
        group,
        "--sweep",
        "NAME=VALUE,VALUE",
        "train once for each value of a flag, such as learning_rate=0.01,0.03,0.1 or rslora=off,on",
    )
    add_text(group, "--models", "MODEL", "train once for each of these models", nargs="+")
    add_text(
        group, "--out", "DIR", "the study's folder (default: studies/TASK-METHOD, then -2, -3)"
    )
    add_text(group, "--resume", "DIR", "resume the study in this folder")


def plan_from_flags(
    study_flags: dict[str, Any], train_flags: dict[str, Any], argv: Sequence[str]
) -> dict:
    """Return the plan of a new study."""
    if "sweep" in study_flags and "models" in study_flags:
        raise InputError("--sweep and --models are two sweeps; give only one of them")
    sweep = read_sweep(study_flags["sweep"]) if "sweep" in study_flags else None
    if "models" in study_flags:
        sweep = "model", study_flags["models"]
    if sweep and len(study_flags.get("epochs", [])) > 1:
        numbers = " ".join(map(str, study_flags["epochs"]))
        raise InputError(f"--epochs {numbers}: a sweep has one number of epochs; give only one")
    if sweep and sweep[0] == "epochs" and "epochs" in study_flags:
        raise InputError("--epochs is the swept flag; do not give it as well")
    command = shlex.join(["python", "-m", "neo_peft", "study", *argv])
    return make_plan(
        train_flags, study_flags.get("seeds", 3), study_flags.get("epochs"), sweep, command
    )


def plan_to_resume(
    study_flags: dict[str, Any], train_flags: dict[str, Any], argv: Sequence[str]
) -> dict:
    """Return the plan of the study to resume. All other flags must be those it was started with."""
    folder = Path(study_flags["resume"])
    plan = read_plan(folder)
    if "out" in study_flags and Path(study_flags["out"]).resolve() != folder.resolve():
        raise InputError(
            f"--out {study_flags['out']}: --resume {folder} continues in that folder; leave out "
            "--out"
        )
    others = train_flags or study_flags.keys() - {"resume", "out"}
    if others and (
        train_flags.get("task") != plan["task"]
        or plan_from_flags(study_flags, train_flags, argv)["runs"] != plan["runs"]
    ):
        raise InputError(
            f"--resume {folder} was started with other flags; give only --resume, or start a new "
            "study"
        )
    return plan


class StudyBars:
    """Shows the bars of a study. The first one is its own: it names what is being loaded, until the
    first bar of a run, which has then loaded its base."""

    def __init__(self, loading: LoadingLine):
        self.loading, self.own = loading, None

    def __call__(self, items: Iterable, what: str, *others: Any) -> tqdm:
        self.loading.remove()
        bar = show_progress(items, what, *others)
        if self.own is None:
            self.own = bar
            bar.set_postfix_str(self.loading.text)
        elif self.own.postfix:
            self.own.set_postfix_str("")
        return bar


def main(argv: Sequence[str]) -> None:
    """Run a study, or resume one, and print its tables."""
    study_flags, train_flags = parse_flags(argv)
    plan = (
        plan_to_resume(study_flags, train_flags, argv)
        if "resume" in study_flags
        else plan_from_flags(study_flags, train_flags, argv)
    )
    with LoadingLine(with_size(plan["model"])) as loading:
        with stopping.delayed():  # an interrupted import can raise any error
            from neo_peft.analysis import study  # after the flags, since torch takes seconds

        folder, made = (
            (Path(study_flags["resume"]), [])
            if "resume" in study_flags
            else study.make_study_folder(plan, study_flags.get("out"))
        )
        count = len(plan["runs"])
        tqdm.write(f"{count} run{'s' if count > 1 else ''}; runs and their logs are in {folder}")
        try:
            text, refused = study.run_study(folder, plan, tqdm.write, StudyBars(loading))
        except Exception:
            if "resume" not in study_flags:
                study.remove_unstarted_study(folder, made, plan)
            raise
    tqdm.write(f"\n{text}\nTables, plots and runs are in {folder}.")
    if refused:
        raise InputError(
            f"{len(refused)} of {count} runs were refused and are not in the tables. The first is "
            f"{refused[0]}; try them again: python -m neo_peft study --resume {folder}"
        )
