"""From settings to a run folder: load, score the bare base, train, score again, save. Or go on with
a run that stopped.

`run` is the one way there; train.py calls it. The loop itself is in loop.py, what is kept on the
way in checkpoints.py.
"""

import math
import shutil
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch

from neo_peft import loop, processes
from neo_peft.decoding import evaluate, majority_scores, perplexity, score
from neo_peft.errors import InputError, Stopped
from neo_peft.formats import adapter
from neo_peft.progress import Progress, no_progress
from neo_peft.runs import checkpoints, loading, predictions
from neo_peft.runs.checkpoints import Checkpoint
from neo_peft.runs.folder import (
    METRICS,
    RUN,
    SETTINGS,
    flags_of,
    make_folder,
    read_record,
    refuse_run,
    write_settings,
)
from neo_peft.runs.job import Job, Say, Scores, Side, bare_side, prepare, score_side, show_answers
from neo_peft.runs.log import Log
from neo_peft.runs.summary import conclude, describe, epoch_line, headline, summary, write_results
from neo_peft.settings import Settings
from neo_peft.system import signals as stopping
from neo_peft.system.files import clean, locked, remove_folder, sha256_of

# what is said of scores
SHOWN = {"accuracy", "f1", "precision", "recall", "span_f1", "macro_f1", "matthews"}


def run(settings: Settings, say: Say = print, progress: Progress = no_progress) -> dict:
    """Do a whole run, or the rest of one, and return its summary, which `--json` prints. Raises
    InputError.

    Of several processes each computes its share, and the first alone speaks and writes.
    """
    started = time.monotonic()
    if processes.process_index:
        say, progress = (lambda line: None), no_progress
    going_on = Path(settings.resume or ""), []
    folder, made = (
        going_on if settings.resume else processes.on_first_process(lambda: make_folder(settings))
    )
    with ExitStack() as held:
        processes.on_first_process(lambda: held.enter_context(locked(folder)))
        processes.on_first_process(lambda: begin(folder, settings))
        if (folder / RUN).exists():
            record = read_record(folder)
        else:
            try:
                record = do(settings, folder, started, say, progress)
            except Stopped as stopped:
                stopped.advice = f"stopped; go on with it: python train.py --resume {folder}"
                raise
            except Exception:
                abandon(folder, made, settings)
                raise
        processes.on_first_process(lambda: drop_checkpoints(folder))
    conclude(say, record, folder)
    return summary(record, folder)


def begin(folder: Path, settings: Settings) -> None:
    """Write the settings into the folder of a new run; clear what a write that was killed has left
    in an old one's."""
    for part in (folder, folder / checkpoints.FOLDER, folder / predictions.FOLDER):
        if part.exists():
            clean(part)
    if not settings.resume:
        refuse_run(folder)  # which another may have begun since
        write_settings(folder, settings)


def abandon(folder: Path, made: list[Path], settings: Settings) -> None:
    """Leave nothing of a new run that ended before it trained."""
    if not (settings.resume or processes.process_index or (folder / METRICS).exists()):
        (folder / SETTINGS).unlink(missing_ok=True)
        shutil.rmtree(folder / predictions.FOLDER, ignore_errors=True)
        with suppress(OSError):  # another run may stand in runs/ by now
            for path in made:
                path.rmdir()


def drop_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a finished run, which nothing reads any more."""
    if (folder / checkpoints.FOLDER).exists():
        remove_folder(folder / checkpoints.FOLDER)


def do(settings: Settings, folder: Path, started: float, say: Say, progress: Progress) -> dict:
    """Load, score, train, score; return what run.json then holds."""
    checkpoint = checkpoints.newest(folder, say) if settings.resume else None
    # What a run goes on with is its own: neither what `auto` means today, nor the adapter that it
    # began from.
    job = prepare(
        settings,
        progress,
        checkpoint and {"threads": checkpoint.record["computed"]["threads"], "adapter": None},
    )
    processes.require_same("base model", job.tuned.base.fingerprint)
    processes.require_same("set of examples", [part.digest() for part in job.examples.values()])
    describe(say, job)
    if checkpoint:
        require_same_run(checkpoint, job)
        scores, before = checkpoint.record["scores"], checkpoint.record["seconds"]
        say(f"The run goes on after step {checkpoint.record['step']}, from {checkpoint.folder}.")
    else:
        base, before = bare_side(job), 0.0
        show_answers(say, job, base, "Before tuning")
        scores = {
            "majority": {
                name: majority_scores(job.task, job.splits.train, job.rows[name])
                for name in job.scored
            }
        }
        scores |= score_side(job, base, "before", folder, progress)
        loading.begin(job.tuned)  # not before: the base that was scored is bare
    clock = lambda: round(before + time.monotonic() - started, 1)  # noqa: E731
    state, kept, best = train(job, folder, checkpoint, scores, clock, say, progress)
    processes.on_first_process(lambda: checkpoints.put_best(best, job.tuned.model))
    processes.copy_first(job.tuned.model.trainable().values())
    processes.on_first_process(
        lambda: adapter.save_adapter(
            folder, job.tuned.model, job.settings, job.tuned.base.tokenizer
        )
    )
    say("")
    tuned = Side(job.tuned.model, job.tuned.encoder)
    show_answers(say, job, tuned, "After tuning")
    scores |= score_side(job, tuned, "after", folder, progress)
    return processes.on_first_process(
        lambda: write_results(job, folder, scores, state, kept["epoch"], clock())
    )


def computed(job: Job) -> dict:
    """Name what a run must go on with to end in the same bits."""
    return {
        "settings": sha256_of(flags_of(job.settings)),
        "base model": job.tuned.base.fingerprint,
        "examples": [part.digest() for part in job.examples.values()],
        "device": job.tuned.model.device.type,
        "precision": job.tuned.precision,
        "threads": torch.get_num_threads(),
        "processes": processes.world,
    }


def require_same_run(checkpoint: Checkpoint, job: Job) -> None:
    """Refuse to go on with another model, other examples, or otherwise than the run was begun."""
    for name, value in computed(job).items():
        if value != (begun := checkpoint.record["computed"].get(name)):
            shown = f" ({begun}, now {value})" if len(str(value)) < 20 else ""
            raise InputError(
                f"{checkpoint.folder} was begun with another {name}{shown}: a run goes on as it "
                "was begun"
            )
    scores = checkpoint.record["scores"]
    if not {"majority", "before"} <= scores.keys() or not all(
        is_scored(job, of_kind) for of_kind in scores.values()
    ):
        raise InputError(f"{checkpoint.folder} holds no scores of this task before tuning")


def is_scored(job: Job, splits: Any) -> bool:
    """Say whether a value is scores of each split, in which the numbers that are shown are
    finite."""
    if not isinstance(splits, dict) or splits.keys() != set(job.scored):
        return False
    for scores in splits.values():
        if not isinstance(scores, dict) or not {job.task.metric, "accuracy"} <= scores.keys():
            return False
        numbers = [scores[name] for name in SHOWN & scores.keys()]
        if not all(type(value) in (int, float) and math.isfinite(value) for value in numbers):
            return False
    return True


def train(
    job: Job,
    folder: Path,
    checkpoint: Checkpoint | None,
    scores: dict[str, Scores],
    clock,
    say: Say,
    progress: Progress,
):
    """Train from the start, or from a checkpoint on; return the state at the end, which epoch is
    kept, and the file of its weights. A signal is obeyed between two steps, after a checkpoint."""
    model, settings = job.tuned.model, job.settings
    state, kept, best = loop.make_state(model, settings), {"epoch": 0, "score": -1.0}, None
    if checkpoint:
        checkpoints.restore(checkpoint, model, state)
        kept, best = checkpoint.record["kept"], checkpoint.best
    with Log(folder, checkpoint) as log, stopping.held():

        def save() -> None:
            nonlocal best
            best = checkpoints.save(
                folder,
                model,
                state,
                best,
                kept=kept,
                scores=scores,
                computed=computed(job),
                log=log.position(),
                seconds=clock(),
            )

        def after_epoch(epoch: int, step: int, train_loss: float) -> None:
            nonlocal best
            found = evaluate(
                model,
                job.tuned.encoder,
                job.examples["validation"],
                batch_size=settings.batch_size,
                with_loss=True,
                progress=stopping.between_items(progress),
            )
            scores = score(job.task, job.rows["validation"], found.predicted)
            line = {
                "step": step,
                "epoch": epoch,
                "train_loss": train_loss,
                "validation_loss": found.loss,
            }
            if model.head is None:
                line |= {
                    "train_perplexity": perplexity(train_loss),
                    "validation_perplexity": perplexity(found.loss),
                }
            line["validation"] = headline(job.task, scores)
            if settings.keep == "last" or scores[job.task.metric] > kept["score"]:
                kept.update(epoch=epoch, score=scores[job.task.metric])
                best = model.trainable()  # written by the checkpoint that follows at once
            log.epoch(line)
            say(epoch_line(line, kept=kept["epoch"] == epoch))

        def between() -> None:
            if state.done == 0 or state.step % settings.checkpoint_every == 0 or stopping.come():
                save()
            stopping.obey()

        try:
            loop.fit(
                model,
                job.examples["train"],
                settings,
                log.step,
                after_epoch,
                progress,
                state,
                between,
            )
        except stopping.Between:  # in the middle of scoring, which the next process does again
            save()
            stopping.obey()
        except InputError as error:  # numbers gone wrong
            there = checkpoints.numbered(folder / checkpoints.FOLDER)
            raise type(error)(f"{error}; {there[-1]} is kept" if there else str(error)) from None
    return state, kept, best
