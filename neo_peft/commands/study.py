"""Run a task with several seeds and numbers of epochs, sweep flags, or compare methods or recipes:
python -m neo_peft study --task sentiment

The study's folder gets table.md, results.json, plots, and a folder for each run.
`studies/plan.py` makes the list of runs.
"""

import argparse
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from neo_peft.commands.flags import OneLineParser, add_settings, add_text, argument
from neo_peft.commands.loading_line import LoadingLine
from neo_peft.commands.recipes import read_recipes
from neo_peft.errors import InputError
from neo_peft.formats.base_folder import with_size
from neo_peft.methods import METHODS
from neo_peft.settings import whole
from neo_peft.studies.choice import number_of_runs
from neo_peft.studies.plan import make_plan, read_plan
from neo_peft.studies.sweep import read_sweep
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
        description="Run a task with several seeds and numbers of epochs, sweep flags, or compare "
        "methods or recipes, and write tables of the scores.",
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
    names = ("seeds", "epochs", "methods", "recipes", "sweep", "models", "out", "resume")
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
    group.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        metavar="METHOD",
        help=f"compare these methods in one table with their costs: {', '.join(METHODS)}",
    )
    add_text(
        group,
        "--recipes",
        "FILE",
        "compare the recipes in a file in one table with their costs; a line is NAME: train.py's "
        "flags",
    )
    add_text(
        group,
        "--sweep",
        "NAME=VALUE,VALUE",
        "train once for each value of a flag, such as learning_rate=0.01,0.03,0.1 or rslora=off,on "
        "(3x is three times the value that the flag has otherwise); twice: for each combination. "
        "With --methods or --recipes, the first seed chooses the value of each on validation, and "
        "the other seeds run only this one",
        action="append",
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
    recipes = compared_recipes(study_flags, train_flags)
    sweeps = list(map(read_sweep, study_flags.get("sweep", [])))
    if "models" in study_flags:
        if recipes:
            raise InputError(
                "--models cannot be compared together with --methods or --recipes; leave it out"
            )
        if sweeps:
            raise InputError("--sweep and --models are two sweeps; give only one of them")
        sweeps = [("model", study_flags["models"])]
    if len(sweeps) > (most := 1 if recipes else 2):
        raise InputError(
            f"--sweep is given {len(sweeps)} times; {'recipes have' if recipes else 'a study has'} "
            f"at most {most}"
        )
    if (sweeps or recipes) and len(study_flags.get("epochs", [])) > 1:
        numbers, kind = " ".join(map(str, study_flags["epochs"])), "a sweep"
        kind = "a comparison" if recipes else kind
        raise InputError(f"--epochs {numbers}: {kind} has one number of epochs; give only one")
    if "epochs" in study_flags and any(swept == "epochs" for swept, _ in sweeps):
        raise InputError("--epochs is the swept flag; do not give it as well")
    return make_plan(
        train_flags,
        study_flags.get("seeds", 3),
        study_flags.get("epochs"),
        sweeps[0] if sweeps else None,
        shlex.join(["python", "-m", "neo_peft", "study", *argv]),
        second=sweeps[1] if len(sweeps) > 1 else None,
        recipes=recipes,
    )


def compared_recipes(
    study_flags: dict[str, Any], train_flags: dict[str, Any]
) -> dict[str, dict[str, Any]] | None:
    """Return the recipes of --recipes or --methods, or None."""
    given = [name for name in ("recipes", "methods") if name in study_flags]
    if not given:
        return None
    if len(given) == 2:
        raise InputError("--recipes and --methods are two comparisons; give only one of them")
    if "recipes" in study_flags:
        return read_recipes(Path(study_flags["recipes"]))
    methods = study_flags["methods"]
    if "method" in train_flags:
        raise InputError("--methods names the methods; leave out --method")
    if repeated := [name for name in methods if methods.count(name) > 1]:
        raise InputError(f"--methods {repeated[0]} is given twice; name each method once")
    return {name: {"method": name} for name in methods}


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
            from neo_peft.studies import study  # after the flags, since torch takes seconds

        folder, made = (
            (Path(study_flags["resume"]), [])
            if "resume" in study_flags
            else study.make_study_folder(plan, study_flags.get("out"))
        )
        count = number_of_runs(plan)
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
