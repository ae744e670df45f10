"""A study: every run of its plan, one after the other, and what they come to together. `plan.py`
comes first.

A study may be stopped or killed at any time. `--resume` reads the plan again, keeps the runs that
are finished, goes on with the one that is not, and writes the results anew: they are what the runs'
own records hold.
"""

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from neo_peft.analysis.plan import PLAN, RESULTS, STUDIES
from neo_peft.analysis.study_page import write_page
from neo_peft.analysis.study_results import collect
from neo_peft.errors import DivergedError, InputError, Stopped
from neo_peft.progress import Progress, no_progress
from neo_peft.runs import training
from neo_peft.runs.folder import RUN, SETTINGS, flags_of, next_free, read_record, recorded_settings
from neo_peft.runs.from_flags import settings_to_resume
from neo_peft.runs.job import Say
from neo_peft.system.files import clean, locked, make_folders, refuse_used, write_sealed
from neo_peft.tasks import get_task


class RefusedError(InputError):
    """A run that cannot be done as it is planned, such as one whose prompt does not fit into the
    model."""


def run_study(
    folder: Path, plan: dict, say: Say = print, progress: Progress = no_progress
) -> tuple[str, list[str]]:
    """Do all runs of a study that are not done, write its results into its folder, and return its
    tables as text, with a line for each run that was refused. Those that have diverged are a
    result, as of a rate that is too large.

    Raises InputError where the first run is refused: nothing is there yet, and what refuses it may
    refuse them all.
    """
    failed, refused, count = {}, [], len(plan["runs"])
    with locked(folder):
        clean(folder)
        try:
            for number, run in enumerate(progress(plan["runs"], "study", count), start=1):
                try:
                    reached = in_a_line(do_run(folder, run, progress))
                except DivergedError as error:
                    failed[run["name"]], reached = "diverged", f"diverged: {error}"
                except RefusedError as error:
                    if number == 1:
                        raise InputError(f"{run['name']}: {error}") from None
                    failed[run["name"]], reached = "refused", f"refused: {error}"
                    refused.append(f"{run['name']}: {error}")
                say(f"{number}/{count}  {run['name']}: {reached}")
            results = collect(folder, plan, failed)
            write_sealed(folder / RESULTS, results)
            return write_page(folder, results), refused
        except Stopped as stopped:
            stopped.advice = f"stopped; go on with it: python -m neo_peft study --resume {folder}"
            raise


def begin(plan: dict, out: str | None) -> tuple[Path, list[Path]]:
    """Make the folder of a new study, and write its plan; return it, and all folders that were made
    for it."""
    if out:
        folder = Path(out)
        if (folder / PLAN).exists():
            raise InputError(
                f"--out {out} holds a study; --resume {out} goes on with it, another folder begins "
                "anew"
            )
        refuse_used(folder, "--out ")
        made = make_folders(folder)
    else:
        folder, made = next_free(STUDIES / f"{plan['task'].replace('/', '-')}-{plan['method']}")
    write_sealed(folder / PLAN, plan)
    return folder, made


def abandon(folder: Path, made: list[Path], plan: dict) -> None:
    """Leave nothing of a new study whose first run was refused before it trained."""
    if any((folder / run["name"]).exists() for run in plan["runs"]):
        return
    for path in (folder / PLAN, *(folder / f"{run['name']}.log" for run in plan["runs"])):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # something else may stand there by now
        for path in made:
            path.rmdir()


def do_run(folder: Path, run: dict[str, Any], progress: Progress) -> dict:
    """Do one run of the plan, or the rest of it, into a folder of its own, with what it says beside
    it; return its record."""
    path = folder / run["name"]
    settings = recorded_settings(folder / PLAN, run["flags"] | {"out": str(path)})
    if (path / SETTINGS).exists():
        begun = settings_to_resume(path, json=False)
        if flags_of(begun) != flags_of(settings):
            raise InputError(
                f"{path} was begun with other settings than {folder / PLAN} has; it is not the "
                "study's"
            )
        settings = begun
    elif path.exists():
        clean(path)  # of a write that was killed: the folder was all that there was
    if (path / RUN).exists():
        training.drop_checkpoints(path)  # which a run that is killed at its very end leaves
    else:
        with open(folder / f"{run['name']}.log", "a", encoding="utf-8") as log:
            try:
                training.run(settings, partial(print, file=log, flush=True), progress)
            except DivergedError:
                raise
            except InputError as error:
                raise RefusedError(f"{error}") from None
    return read_record(path)


def in_a_line(record: dict) -> str:
    """Say what a run has reached on validation, by which values are chosen."""
    metric = get_task(record["task"]).metric
    return (
        f"validation {metric} {record['scores']['after']['validation'][metric]:.3f}, "
        f"{record['seconds']:.0f} seconds"
    )
