"""From settings to a run folder: load, score the untuned base, train, score again, save. Or resume a
run that stopped.

`run` is the one way there; train.py calls it. The loop itself is in loop.py, what is saved on the
way in checkpoints.py.

A run writes its files in this order, each whole or not at all:

1. settings.json; until there is a metrics.jsonl, a run that ends by an error leaves nothing
2. predictions/before-*.jsonl
3. metrics.jsonl, timings.jsonl and checkpoints/, step after step
4. the adapter, predictions/after-*.jsonl, plot.png
5. run.json: from here on the run is finished
6. checkpoints/ are removed

A kill between any two leaves a run that `--resume` continues from its newest checkpoint, to the
same bits; before the first checkpoint it begins anew. After 5 there is only 6 left to do.
"""

import math
import shutil
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import torch

from neo_peft import loop, processes
from neo_peft.decoding import evaluate, score
from neo_peft.errors import InputError, Stopped
from neo_peft.formats import adapter
from neo_peft.progress import Progress, no_progress
from neo_peft.runs import checkpoints, loading, predictions, tables
from neo_peft.runs.baselines import majority_scores
from neo_peft.runs.checkpoints import Best, Checkpoint
from neo_peft.runs.folder import (
    METRICS,
    RUN,
    SETTINGS,
    flags_of,
    make_folder,
    read_record,
    refuse_run,
)
from neo_peft.runs.job import (
    Job,
    Output,
    PrintLine,
    Scores,
    Variant,
    prepare,
    score_variant,
    untuned_variant,
)
from neo_peft.runs.log import Log
from neo_peft.runs.record import write_results
from neo_peft.runs.summary import describe, epoch_line, headline, print_results, summary
from neo_peft.settings import Settings
from neo_peft.system import signals
from neo_peft.system.files import (
    clean,
    locked,
    read_tensors,
    remove_folder,
    sha256_of,
    write_checked_json,
)


def run(
    settings: Settings, print_line: PrintLine = print, progress: Progress = no_progress
) -> dict:
    """Do a whole run, or the rest of one, and return its summary, which `--json` prints. Raises
    InputError.

    Of several processes each computes its share, and the first alone speaks and writes.
    """
    started = time.monotonic()
    if processes.process_index:
        print_line, progress = (lambda line: None), no_progress
    if settings.resume:
        folder, made = Path(settings.resume), []
    else:
        folder, made = processes.on_first_process(lambda: make_folder(settings))
    with ExitStack() as stack:
        processes.on_first_process(lambda: stack.enter_context(locked(folder)))
        processes.on_first_process(lambda: open_folder(folder, settings))
        if (folder / RUN).exists():
            record = read_record(folder)
        else:
            try:
                record = train_and_score(settings, Output(folder, print_line, progress, started))
            except Stopped as stopped:
                stopped.advice = (
                    f"stopped; go on with it: python -m neo_peft train --resume {folder}"
                )
                raise
            except Exception:
                remove_unstarted(folder, made, settings)
                raise
        processes.on_first_process(lambda: drop_checkpoints(folder))
    print_results(print_line, record, folder)
    return summary(record, folder)


def open_folder(folder: Path, settings: Settings) -> None:
    """Write the settings into the folder of a new run; clear what a killed write has left in an old
    one's."""
    for part in (folder, folder / checkpoints.CHECKPOINTS, folder / predictions.PREDICTIONS):
        if part.exists():
            clean(part)
    if not settings.resume:
        refuse_run(folder)  # another may have begun one here since
        write_checked_json(folder / SETTINGS, flags_of(settings))


def remove_unstarted(folder: Path, made: list[Path], settings: Settings) -> None:
    """Leave nothing of a new run that failed before it trained."""
    if not (settings.resume or processes.process_index or (folder / METRICS).exists()):
        (folder / SETTINGS).unlink(missing_ok=True)
        shutil.rmtree(folder / predictions.PREDICTIONS, ignore_errors=True)
        with suppress(OSError):  # another run may stand in runs/ by now
            for path in made:
                path.rmdir()


def drop_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a finished run, which nothing reads any more."""
    if (folder / checkpoints.CHECKPOINTS).exists():
        remove_folder(folder / checkpoints.CHECKPOINTS)


def train_and_score(settings: Settings, output: Output) -> dict:
    """Load, score, train, score; return what run.json then holds."""
    checkpoint = (
        checkpoints.newest_checkpoint(output.folder, output.print_line) if settings.resume else None
    )
    threads = None
    if checkpoint:
        threads = checkpoint.record["computed"]["threads"]
        output = output._replace(begun=output.begun - checkpoint.record["seconds"])
    job = prepare(settings, output, threads)
    processes.require_same("base model", job.tuned.base.fingerprint)
    processes.require_same("set of examples", [part.digest() for part in job.examples.values()])
    describe(job)
    if checkpoint:
        require_same_run(checkpoint, job)
        scores, step = checkpoint.scores, checkpoint.record["step"]
        output.print_line(f"The run goes on after step {step}, from {checkpoint.folder}.")
    else:
        scores = score_untuned(job)
        loading.start_from_adapter(job.tuned)  # not before: the base that was scored is bare
    training = Training(job, scores, checkpoint)
    training.run()
    model, base = job.tuned.model, job.tuned.base
    best = training.best
    processes.on_first_process(
        lambda: checkpoints.load_weights(best.file, read_tensors(best.file), model)
    )
    processes.broadcast(model.trainable().values())
    processes.on_first_process(
        lambda: adapter.save_adapter(output.folder, model, job.settings, base.tokenizer)
    )
    output.print_line("")
    score_variant(job, Variant(model, job.tuned.encoder), "after", scores)
    return processes.on_first_process(
        lambda: write_results(job, scores, training.state, best.epoch)
    )


def score_untuned(job: Job) -> Scores:
    """Score the majority class, and the base before tuning."""
    majority = {
        name: majority_scores(job.task, job.splits.train, job.rows[name]) for name in job.scored
    }
    scores = {"scores": {"majority": majority}, "generated": {}}
    score_variant(job, untuned_variant(job), "before", scores)
    return scores


class Training:
    """The training of one run, with what is logged, kept and saved on the way."""

    def __init__(self, job: Job, scores: Scores, checkpoint: Checkpoint | None):
        self.job = job
        self.scores = scores  # before tuning, which each checkpoint holds
        self.state = loop.make_state(job.tuned.model, job.settings)
        self.best = Best()
        if checkpoint:
            checkpoints.restore(checkpoint, job.tuned.model, self.state)
            self.best = checkpoint.best
        self.log = Log(job.output.folder, checkpoint)

    def run(self) -> None:
        """Train to the end. A signal is obeyed between two steps, after a checkpoint."""
        job, state, settings = self.job, self.state, self.job.settings
        model, examples, progress = job.tuned.model, job.examples["train"], job.output.progress
        with closing(self.log), signals.delayed():
            try:
                # No name holds the generator: its progress bar goes before an error is printed.
                for event in loop.steps(model, examples, settings, state, progress):
                    ended = isinstance(event, loop.EpochEnd)
                    if ended:
                        self.score_epoch(event)
                        state.next_epoch()
                    else:
                        self.log.step(event)
                    stop = signals.received()
                    if stop or ended or state.step % settings.checkpoint_every == 0:
                        self.save()
                    if stop:
                        signals.stop_if_received()
            except (
                signals.SignalReceived
            ):  # in the middle of scoring, which a resumed run does again
                self.save()
                signals.stop_if_received()
            except InputError as error:  # numbers gone wrong
                there = checkpoints.list_checkpoints(job.output.folder / checkpoints.CHECKPOINTS)
                kept = f"; {there[-1]} is kept" if there else ""
                raise type(error)(f"{error}{kept}") from None

    def score_epoch(self, end: loop.EpochEnd) -> None:
        """Score validation, log the epoch, and keep its weights if they are the best so far."""
        job, model = self.job, self.job.tuned.model
        found = evaluate(
            model,
            job.tuned.encoder,
            job.examples["validation"],
            batch_size=job.settings.batch_size,
            with_loss=True,
            progress=signals.between_items(job.output.progress),
        )
        scores = score(job.task, job.rows["validation"], found.predicted)
        line = {
            "step": end.step,
            "epoch": end.epoch,
            "train_loss": end.loss,
            "validation_loss": found.loss,
        }
        if model.head is None:
            line["train_perplexity"] = perplexity(end.loss)
            line["validation_perplexity"] = perplexity(found.loss)
        line["validation"] = headline(job.task, scores)
        reached = scores[job.task.metric]
        if job.settings.keep == "last" or reached > self.best.score:
            copies = {name: one.detach().clone() for name, one in model.trainable().items()}
            self.best = Best(end.epoch, reached, copies)
        self.log.epoch(line)
        job.output.print_line(epoch_line(line, kept=self.best.epoch == end.epoch))

    def save(self) -> None:
        """Write a checkpoint of this step."""
        checkpoints.save(
            self.job,
            self.state,
            self.best,
            **self.scores,
            computed=computed(self.job),
            log=self.log.position(),
        )


def perplexity(loss: float) -> float:
    """Return exp(loss), loss in nats per answer token, the end token included; infinite where it
    overflows."""
    return math.exp(loss) if loss < 700 else math.inf


# ---- What a resumed run must have in common with its checkpoint


def computed(job: Job) -> dict:
    """Return what a resumed run must share to end in the same bits."""
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
    """Refuse to resume with another model, other examples, or otherwise than the run was begun."""
    for name, value in computed(job).items():
        if value != (begun := checkpoint.record["computed"].get(name)):
            shown = f" ({begun}, now {value})" if len(str(value)) < 20 else ""
            raise InputError(
                f"{checkpoint.folder} was begun with another {name}{shown}: a run goes on as it "
                "was begun"
            )
    if not is_scored(job, checkpoint.scores):
        raise InputError(f"{checkpoint.folder} holds no scores of this task before tuning")


def is_scored(job: Job, scores: Scores) -> bool:
    """Return whether the scores before tuning are there, and those finite that will be shown."""
    try:
        shown = [
            side[split][metric]
            for sides in scores.values()
            for side in sides.values()
            for split in job.scored
            for metric in tables.metrics_shown(job.task)
        ]
        return {"majority", "before"} <= scores["scores"].keys() and all(map(math.isfinite, shown))
    except (AttributeError, KeyError, TypeError, OverflowError):
        return False
