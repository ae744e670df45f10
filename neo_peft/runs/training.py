"""Do a whole run: load, score the untuned base, train, save, score again. Or resume a stopped run.

`run` does all of this; train.py calls it. The training loop is in loop.py, saving and restoring a
checkpoint in checkpoints.py.

A run writes its files in this order. Each file appears complete; only metrics.jsonl and
timings.jsonl grow line by line.

1. settings.json
2. predictions/: before-*.jsonl, majority-*, baseline-*, head_alone-*; and checkpoints/shared/, with
   which a resumed run need not compute them again
3. metrics.jsonl, timings.jsonl and checkpoints/, while it trains
4. the adapter, predictions/after-*.jsonl, plot.png
5. run.json: now the run is finished
6. checkpoints/ is removed

A new run that fails before step 3 removes its files. A run that is killed after step 1 can be
resumed: `--resume` continues from the newest checkpoint, or from the start if there is none. Its
result is identical, bit for bit, to that of a run that was never stopped. After step 5, `--resume`
only does step 6.
"""

import math
import shutil
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path

from neo_peft import loop
from neo_peft.decoding import evaluate, score
from neo_peft.errors import InputError, Stopped
from neo_peft.formats import adapter
from neo_peft.progress import Progress, no_progress
from neo_peft.runs import checkpoints, loading, predictions, selection, tables
from neo_peft.runs.before import score_before
from neo_peft.runs.checkpoints import Checkpoint
from neo_peft.runs.curves import read_metrics, risen_loss, train_losses
from neo_peft.runs.estimate import describe_cost
from neo_peft.runs.folder import (
    CHECKPOINTS,
    METRICS,
    RUN,
    SETTINGS,
    flags_of,
    make_folder,
    read_record,
    refuse_run,
)
from neo_peft.runs.job import Job, Output, PrintLine, ScoredModel, Scores, prepare, score_model
from neo_peft.runs.log import Log
from neo_peft.runs.record import write_results
from neo_peft.runs.run_bar import RunBar
from neo_peft.runs.selection import Kept
from neo_peft.runs.shared import SHARED, Shared, base_conditions, computing_conditions
from neo_peft.runs.summary import (
    describe,
    headline,
    patience_line,
    print_results,
    scoring_line,
    summary,
)
from neo_peft.settings import Settings
from neo_peft.system import processes, signals
from neo_peft.system.bars import above_bars
from neo_peft.system.files import (
    clean,
    locked,
    read_tensors,
    remove_folder,
    sha256_of,
    write_checked_json,
)
from neo_peft.system.torchrun import require_same


def run(
    settings: Settings,
    print_line: PrintLine = print,
    progress: Progress = no_progress,
    shared: Shared | None = None,
) -> dict:
    """Do a run, or the rest of a stopped one, and return its summary (see `summary`).

    shared: what the runs of a study share.

    Several processes share the computation; only the first one prints and writes files. Raises
    InputError for bad settings or files, Stopped after a signal.
    """
    start_time = time.monotonic()
    if processes.process_index:
        print_line, progress = (lambda line: None), no_progress
    if settings.resume:
        folder, new_folders = Path(settings.resume), []
    else:
        folder, new_folders = processes.on_first_process(lambda: make_folder(settings))
    with ExitStack() as stack:
        processes.on_first_process(lambda: stack.enter_context(locked(folder)))
        processes.on_first_process(lambda: open_folder(folder, settings))
        if (folder / RUN).exists():
            record = read_record(folder)
        else:
            try:
                output = Output(folder, print_line, progress, start_time)
                record = train_and_score(settings, output, shared)
            except Stopped as stopped:
                stopped.advice = f"stopped; resume it: python -m neo_peft train --resume {folder}"
                raise
            except Exception:
                remove_unstarted(folder, new_folders, settings)
                raise
        processes.on_first_process(lambda: drop_checkpoints(folder))
    print_results(print_line, record, folder)
    return summary(record, folder)


def open_folder(folder: Path, settings: Settings) -> None:
    """Write the settings of a new run into its folder. Remove temporary files that a killed process
    left there."""
    inside = CHECKPOINTS, f"{CHECKPOINTS}/{SHARED}", predictions.PREDICTIONS
    for part in (folder, *(folder / name for name in inside)):
        if part.exists():
            clean(part)
    if not settings.resume:
        refuse_run(folder)  # another process can have started a run here in the meantime
        write_checked_json(folder / SETTINGS, flags_of(settings))


def remove_unstarted(folder: Path, new_folders: list[Path], settings: Settings) -> None:
    """Remove a new run that failed before it trained. `new_folders` are the folders made for it."""
    if not (settings.resume or processes.process_index or (folder / METRICS).exists()):
        (folder / SETTINGS).unlink(missing_ok=True)
        for name in (predictions.PREDICTIONS, CHECKPOINTS):
            shutil.rmtree(folder / name, ignore_errors=True)
        with suppress(OSError):  # runs/ can have another run by now
            for path in new_folders:
                path.rmdir()


def drop_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a finished run, and what a killed removal of them has left."""
    clean(folder, CHECKPOINTS)
    if (folder / CHECKPOINTS).exists():
        remove_folder(folder / CHECKPOINTS)


def train_and_score(settings: Settings, output: Output, shared: Shared | None = None) -> dict:
    """Load, score, train and score again. Return the content of run.json."""
    checkpoint = (
        checkpoints.newest_checkpoint(output.folder, output.print_line) if settings.resume else None
    )
    threads = None
    if checkpoint:
        threads = checkpoint.record["computed"]["threads"]
        output = output._replace(start_time=output.start_time - checkpoint.record["seconds"])
    job = prepare(settings, output, threads, shared)
    require_same("base model", sha256_of(job.tuned.base.record()))
    require_same("set of examples", [part.digest() for part in job.examples.values()])
    describe(job)
    describe_cost(job)
    with closing(RunBar(job)) as run_bar:
        output = output._replace(print_line=above_bars(output.print_line), run_bar=run_bar)
        return do_job(replace(job, output=output), checkpoint)


def do_job(job: Job, checkpoint: Checkpoint | None) -> dict:
    """Score, train and score again, or do what a checkpoint has not done. Return the content of
    run.json."""
    output, run_bar = job.output, job.output.run_bar
    if checkpoint:
        require_same_run(checkpoint, job)
        scores, step = checkpoint.scores, checkpoint.record["step"]
        output.print_line(f"Resuming after step {step}, from {checkpoint.folder}.")
    else:
        scores = score_before(job)
        # after the scores, which are of the untuned base
        for note in loading.start_from_adapter(job.tuned):
            output.print_line(f"note    {note}")
    training = Training(job, scores, checkpoint)
    run_bar.reach_training(training.state.step, training.kept.scored_step)
    training.run()
    model, base = job.tuned.model, job.tuned.base
    kept = training.kept
    known = {"validation": kept.predicted} if kept.predicted else {}
    run_bar.reach_end(bool(known))
    processes.on_first_process(
        lambda: checkpoints.load_weights(kept.file, read_tensors(kept.file), model)
    )
    processes.broadcast(model.trainable().values())
    processes.on_first_process(
        lambda: adapter.save_adapter(output.folder, model, job.settings, base.tokenizer)
    )
    output.print_line("")
    score_model(job, ScoredModel(model, job.tuned.encoder), "after", scores, known)
    return processes.on_first_process(lambda: write_results(job, scores, training.state, kept))


class Training:
    """The training of one run, with its log, its kept weights and its checkpoints."""

    def __init__(self, job: Job, scores: Scores, checkpoint: Checkpoint | None):
        self.job = job
        self.scores = scores  # before tuning; each checkpoint has them
        self.state = loop.make_state(job.tuned.model, job.settings)
        self.kept = Kept()
        if checkpoint:
            checkpoints.restore(checkpoint, job.tuned.model, self.state)
            self.kept = checkpoint.kept
        self.log = Log(job.output.folder, checkpoint)
        metrics, self.losses = job.output.folder / METRICS, []
        if checkpoint:  # only the first process has the file
            self.losses = processes.on_first_process(lambda: train_losses(read_metrics(metrics)))

    def run(self) -> None:
        """Train to the end. After a signal, save a checkpoint at the end of the step, then stop."""
        job, state, settings = self.job, self.state, self.job.settings
        model, examples = job.tuned.model, job.examples["train"]
        progress = job.output.counting(job.output.run_bar.training_cost)
        with closing(self.log), signals.delayed():
            try:
                # The generator is not stored in a variable, so that an error closes it at once, and
                # with it its progress bar, before the error is printed.
                for event in selection.steps(model, examples, settings, state, self.kept, progress):
                    is_scoring = isinstance(event, selection.Scoring)
                    if is_scoring:
                        self.score_validation(event)
                    else:
                        self.log.step(event)
                        self.losses = self.losses or [event.loss]
                    stop = signals.received()
                    if stop or is_scoring or state.step % settings.checkpoint_every == 0:
                        self.save()
                    if stop:
                        signals.stop_if_received()
            except signals.SignalReceived:  # in a scoring, which is done again when resumed
                self.save()
                signals.stop_if_received()
            except InputError as error:  # a loss or gradient that is not finite
                saved = checkpoints.list_checkpoints(job.output.folder / CHECKPOINTS)
                last_good = f"; the last good checkpoint is {saved[-1]}" if saved else ""
                raise type(error)(f"{error}{last_good}") from None

    def score_validation(self, event: selection.Scoring) -> None:
        """Score validation, log the scores, and keep the weights if they are the best so far."""
        job, model = self.job, self.job.tuned.model
        evaluation = evaluate(
            model,
            job.tuned.encoder,
            job.examples["validation"],
            batch_size=job.settings.batch_size,
            with_loss=True,
            progress=signals.between_items(job.output.counting()),
        )
        scores = score(job.task, job.rows["validation"], evaluation.predicted)
        line = {
            "step": event.step,
            "epoch": event.epoch,
            "train_loss": event.loss,
            "validation_loss": evaluation.loss,
        }
        if job.task.is_tagging:
            line["validation_accuracy"] = scores["accuracy"]
        if model.head is None and not job.settings.class_weights:
            line["train_perplexity"] = perplexity(event.loss)
            line["validation_perplexity"] = perplexity(evaluation.loss)
        line["validation"] = headline(job.task, job.settings, scores)
        value = selection.epoch_score(job.task, job.settings, scores, evaluation.loss)
        if is_kept := self.kept.add(event, value, job.settings.keep):
            self.kept.weights = {name: p.detach().clone() for name, p in model.trainable().items()}
            self.kept.predicted = evaluation.predicted
        self.log.scoring(line)
        print_line = job.output.print_line
        print_line(scoring_line(job.task, job.settings, line, is_kept))
        if job.settings.eval_every is None:  # else the loss can be that of a few steps
            was_noted = risen_loss(self.losses)
            self.losses.append(event.loss)
            if (warning := risen_loss(self.losses)) and not was_noted:
                print_line(f"note    {warning}")
        total_steps = selection.total_steps(job.examples["train"], job.settings)
        if self.kept.is_final(job.settings) and event.step < total_steps:
            print_line(patience_line(job.settings, self.kept, total_steps))

    def save(self) -> None:
        """Write a checkpoint of this step."""
        checkpoints.save(
            self.job,
            self.state,
            self.kept,
            **self.scores,
            computed=conditions(self.job),
            log=self.log.position(),
        )


def perplexity(loss: float) -> float | None:
    """Return exp(loss), None where it overflows. The loss is in nats per label token, with the end
    token."""
    return math.exp(loss) if loss < 700 else None


# ---- A checkpoint must belong to the run

SHOWN = {"version of torch"}  # long values that an error names; others are hashes


def conditions(job: Job) -> dict:
    """Return all that must stay the same for a resumed run to give identical bits."""
    return {
        "settings": sha256_of(flags_of(job.settings)),
        **base_conditions(job.tuned),
        "examples": [part.digest() for part in job.examples.values()],
        **computing_conditions(job.tuned),
    }


def require_same_run(checkpoint: Checkpoint, job: Job) -> None:
    """Raise InputError where the run's conditions changed, or its scores before tuning are
    missing."""
    computed = checkpoint.record["computed"]
    for name, value in conditions(job).items():
        if value != (recorded := computed.get(name)):
            values = f" ({recorded}, now {value})" if name in SHOWN or len(str(value)) < 20 else ""
            raise InputError(
                f"the {name} changed since {checkpoint.folder} was written{values}: a run can only "
                f"be resumed with the same {name}"
            )
    if not has_untuned_scores(job, checkpoint.scores):
        raise InputError(f"{checkpoint.folder} has no scores before tuning for this task")


def has_untuned_scores(job: Job, scores: Scores) -> bool:
    """Return whether the scores before tuning are complete, and all printed ones finite."""
    try:
        shown = [
            split_scores[split][metric]
            for kind_scores in scores.values()
            for split_scores in kind_scores.values()
            for split in job.scored_splits
            for metric in tables.metrics_shown(job.task)
        ]
        needed = {"majority", "baseline", *(["before"] if not job.settings.no_before else [])}
        return needed <= scores["scores"].keys() and all(map(math.isfinite, shown))
    except (AttributeError, KeyError, TypeError, OverflowError):
        return False
