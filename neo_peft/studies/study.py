"""Run a study: all runs of its plan, one after the other, then its results. Read `plan.py` first.

A study can be stopped or killed at any time. `--resume` reads the plan again, keeps the finished
runs, resumes the unfinished one, and computes the results from the records of all runs. The runs of
recipes are measured before that (`measure.py`).

The base is loaded once, and predictions without tuning are computed once for all runs that would
get the same ones (see `Shared`).
"""

import shutil
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from neo_peft.errors import DivergedError, InputError, Stopped
from neo_peft.progress import Progress, no_progress
from neo_peft.runs import training
from neo_peft.runs.folder import (
    RUN,
    SETTINGS,
    NewFolder,
    flags_of,
    next_free,
    read_finished_run,
    recorded_settings,
)
from neo_peft.runs.from_flags import settings_to_resume
from neo_peft.runs.job import PrintLine
from neo_peft.runs.shared import SHARED, Shared
from neo_peft.runs.tables import metric_name
from neo_peft.studies.choice import is_compared, is_done, number_of_runs
from neo_peft.studies.measure import measure
from neo_peft.studies.plan import PLAN, RESULTS
from neo_peft.studies.study_page import write_page
from neo_peft.studies.study_results import collect, first_scores
from neo_peft.studies.variants import RECIPE
from neo_peft.system.files import (
    clean,
    locked,
    make_folders,
    refuse_used,
    remove_folder,
    write_checked_json,
)
from neo_peft.system.hardware import find_device, restart_peak_memory

FORM = "{l_bar}{bar}| {n_fmt}/{total_fmt} runs [{elapsed}<{remaining}{postfix}]"


class RefusedError(InputError):
    """A planned run is impossible; for example, its prompt does not fit into the model."""


def run_study(
    folder: Path, plan: dict, print_line: PrintLine = print, progress: Progress = no_progress
) -> tuple[str, list[str]]:
    """Do all runs of a study that are not finished, and write the results into its folder.

    Return the tables as text, and a line for each run that was refused. A run that diverges counts
    as a result, for example of a large learning rate. Raises InputError if the first run is
    refused, since the reason probably holds for the others too.
    """
    shared = Shared(folder / SHARED)
    with locked(folder):
        clean(folder)
        if shared.folder.exists():
            clean(shared.folder)
        try:
            failed, refused = do_runs(folder, plan, print_line, progress, shared)
            if plan["swept"] == RECIPE:
                measure_runs(folder, plan, failed, progress, shared)
            results = collect(folder, plan, failed)
            write_checked_json(folder / RESULTS, results)
            if shared.folder.exists():
                remove_folder(shared.folder)
            return write_page(folder, results), refused
        except Stopped as stopped:
            stopped.advice = f"stopped; resume it: python -m neo_peft study --resume {folder}"
            raise


def do_runs(
    folder: Path, plan: dict, print_line: PrintLine, progress: Progress, shared: Shared
) -> tuple[dict[str, str], list[str]]:
    """Do all runs of a plan. Return the reason of each run without a result, by its name, and a
    line for each run that was refused."""
    import matplotlib.figure  # noqa: F401  # else it is in the peak memory of later runs only

    failed, refused, number, count = {}, [], 0, number_of_runs(plan)
    with closing(progress((), "study", count, None, FORM)) as bar:
        for run in plan["runs"]:
            # once the first seed's runs are done, their scores choose the runs of the other seeds
            scores = first_scores(folder, plan, failed) if run["seed"] else {}
            if not is_done(plan, run, scores):
                continue
            number += 1
            was_finished = (folder / run["name"] / RUN).exists()
            try:
                outcome = run_planned(folder, run, progress, shared)
            except DivergedError as error:
                failed[run["name"]], outcome = "diverged", f"diverged: {error}"
            except RefusedError as error:
                if number == 1:
                    raise InputError(f"{run['name']}: {error}") from None
                failed[run["name"]], outcome = "refused", f"refused: {error}"
                refused.append(f"{run['name']}: {error}")
            print_line(f"{number}/{count}  {run['name']}: {outcome}")
            if was_finished and not bar.disable:
                bar.jump(number)  # the time left is that of the runs from here on
            else:
                bar.update(1)
    return failed, refused


def measure_runs(
    folder: Path, plan: dict, failed: dict[str, str], progress: Progress, shared: Shared
) -> None:
    """Measure the costs of all compared runs that were not measured yet."""
    scores = first_scores(folder, plan, failed)
    compared = [
        folder / run["name"]
        for run in plan["runs"]
        if run["name"] not in failed and is_compared(plan, run, scores)
    ]
    for run in progress(compared, "measure", len(compared)):
        measure(run, shared)


def make_study_folder(plan: dict, out: str | None) -> NewFolder:
    """Make the folder of a new study, and write the plan into it."""
    if out:
        folder = Path(out)
        if (folder / PLAN).exists():
            raise InputError(
                f"--out {out} already has a study; resume it with --resume {out}, or name another "
                "folder"
            )
        refuse_used(folder, "--out ")
        new = NewFolder(folder, make_folders(folder))
    else:
        new = next_free(Path("studies") / f"{plan['task'].replace('/', '-')}-{plan['method']}")
    write_checked_json(new.path / PLAN, plan)
    return new


def remove_unstarted_study(folder: Path, made: list[Path], plan: dict) -> None:
    """Remove a new study whose first run was refused before it trained."""
    first = folder / plan["runs"][0]["name"]
    if first.exists():
        return
    for path in (folder / PLAN, folder / f"{first.name}.log"):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / SHARED, ignore_errors=True)
    with suppress(OSError):  # a folder may have other files by now
        for path in made:
            path.rmdir()


def run_planned(folder: Path, run: dict[str, Any], progress: Progress, shared: Shared) -> str:
    """Do or resume one run of the plan; return its validation score and its time as a line of text.

    The run has its own folder in the study's folder. Its output is written to a log next to it.
    """
    path = folder / run["name"]
    settings = recorded_settings(folder / PLAN, run["flags"] | {"out": str(path)})
    if (path / SETTINGS).exists():
        resumed = settings_to_resume(path, json=False)
        if flags_of(resumed) != flags_of(settings):
            raise InputError(
                f"{path} was started with other settings than those in {folder / PLAN}; it is not "
                "a run of this study"
            )
        settings = resumed
    elif path.exists():
        clean(path)  # temporary files of a run that was killed before it wrote its settings
    if (path / RUN).exists():
        training.drop_checkpoints(path)  # left by a run that was killed at its very end
    else:
        with open(folder / f"{run['name']}.log", "a", encoding="utf-8") as log:
            try:
                restart_peak_memory(torch.device(find_device(settings.device)))
                print_line = partial(print, file=log, flush=True)
                training.run(settings, print_line, progress, shared)
            except DivergedError:
                raise
            except InputError as error:
                raise RefusedError(f"{error}") from None
    record, task = read_finished_run(path)
    score = record["scores"]["after"]["validation"][task.metric]
    return (
        f"validation {metric_name(task, task.metric)} {score:.3f}, {record['seconds']:.0f} seconds"
    )
