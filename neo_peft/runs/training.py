"""From settings to a run folder: load, score the bare base, train, score again, save. Or resume a
run that stopped.

`run` is the one way there; train.py calls it. The loop itself is in loop.py, what is saved on the
way in checkpoints.py.

A run writes its files in this order, each whole or not at all:

1. settings.json; until there is a metrics.jsonl, a run that fails leaves nothing
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
from contextlib import ExitStack, suppress
from pathlib import Path

import torch

from neo_peft import loop, processes
from neo_peft.decoding import evaluate, score
from neo_peft.errors import InputError, Stopped
from neo_peft.formats import adapter
from neo_peft.progress import Progress, no_progress
from neo_peft.runs import checkpoints, loading, predictions
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
    write_settings,
)
from neo_peft.runs.job import (
    Job,
    Output,
    Say,
    Scores,
    Side,
    bare_side,
    prepare,
    score_side,
    show_answers,
)
from neo_peft.runs.log import Log
from neo_peft.runs.record import write_results
from neo_peft.runs.summary import conclude, describe, epoch_line, headline, summary
from neo_peft.settings import Settings
from neo_peft.system import signals
from neo_peft.system.files import clean, locked, remove_folder, sha256_of

# The scores that are shown.
SHOWN = {"accuracy", "f1", "precision", "recall", "span_f1", "macro_f1", "matthews"}


def run(settings: Settings, say: Say = print, progress: Progress = no_progress) -> dict:
    """Do a whole run, or the rest of one, and return its summary, which `--json` prints. Raises
    InputError.

    Of several processes each computes its share, and the first alone speaks and writes.
    """
    started = time.monotonic()
    if processes.process_index:
        say, progress = (lambda line: None), no_progress
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
                record = train_and_score(settings, Output(folder, say, progress, started))
            except Stopped as stopped:
                stopped.advice = f"stopped; go on with it: python train.py --resume {folder}"
                raise
            except Exception:
                remove_unstarted(folder, made, settings)
                raise
        processes.on_first_process(lambda: drop_checkpoints(folder))
    conclude(say, record, folder)
    return summary(record, folder)


def open_folder(folder: Path, settings: Settings) -> None:
    """Write the settings into the folder of a new run; clear what a killed write has left in an old
    one's."""
    for part in (folder, folder / checkpoints.FOLDER, folder / predictions.FOLDER):
        if part.exists():
            clean(part)
    if not settings.resume:
        refuse_run(folder)  # another may have begun one here since
        write_settings(folder, settings)


def remove_unstarted(folder: Path, made: list[Path], settings: Settings) -> None:
    """Leave nothing of a new run that failed before it trained."""
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


def train_and_score(settings: Settings, output: Output) -> dict:
    """Load, score, train, score; return what run.json then holds."""
    checkpoint = checkpoints.newest(output.folder, output.say) if settings.resume else None
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
        output.say(f"The run goes on after step {step}, from {checkpoint.folder}.")
    else:
        scores = score_untuned(job)
        loading.start_from_adapter(job.tuned)  # not before: the base that was scored is bare
    training = Training(job, scores, checkpoint)
    training.run()
    model, base = job.tuned.model, job.tuned.base
    processes.on_first_process(lambda: checkpoints.put_best(training.best.file, model))
    processes.copy_first(model.trainable().values())
    processes.on_first_process(
        lambda: adapter.save_adapter(output.folder, model, job.settings, base.tokenizer)
    )
    output.say("")
    tuned = Side(model, job.tuned.encoder)
    show_answers(job, tuned, "After tuning")
    score_side(job, tuned, "after", scores)
    return processes.on_first_process(
        lambda: write_results(job, scores, training.state, training.best.epoch)
    )


def score_untuned(job: Job) -> Scores:
    """Score the majority class, and the base before tuning."""
    base, scores = bare_side(job), Scores()
    show_answers(job, base, "Before tuning")
    scores.labels["majority"] = {
        name: majority_scores(job.task, job.splits.train, job.rows[name]) for name in job.scored
    }
    score_side(job, base, "before", scores)
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
        with self.log, signals.held():
            try:
                for event in loop.steps(model, examples, settings, state, progress):
                    if isinstance(event, loop.EpochEnd):
                        self.score_epoch(event)
                        state.next_epoch()
                    else:
                        self.log.step(event)
                    stop = signals.come()
                    if stop or state.done == 0 or state.step % settings.checkpoint_every == 0:
                        self.save()
                    if stop:
                        signals.obey()
            except signals.Between:  # in the middle of scoring, which a resumed run does again
                self.save()
                signals.obey()
            except InputError as error:  # numbers gone wrong
                there = checkpoints.numbered(job.output.folder / checkpoints.FOLDER)
                raise type(error)(
                    f"{error}; {there[-1]} is kept" if there else str(error)
                ) from None

    def score_epoch(self, end: loop.EpochEnd) -> None:
        """Score validation, log the epoch, and keep its weights if they are the best so far."""
        job, model, settings = self.job, self.job.tuned.model, self.job.settings
        found = evaluate(
            model,
            job.tuned.encoder,
            job.examples["validation"],
            batch_size=settings.batch_size,
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
        if settings.keep == "last" or reached > self.best.score:
            self.best = Best.of(end.epoch, reached, model)
        self.log.epoch(line)
        job.output.say(epoch_line(line, kept=self.best.epoch == end.epoch))

    def save(self) -> None:
        """Write a checkpoint of this step."""
        output = self.job.output
        checkpoints.save(
            output.folder,
            self.job.tuned.model,
            self.state,
            self.best,
            scores=self.scores.labels,
            generated=self.scores.generated,
            computed=computed(self.job),
            log=self.log.position(),
            seconds=output.seconds(),
        )


def perplexity(loss: float | None) -> float | None:
    """Return exp(loss), loss in nats per answer token, the end token included; infinite where it
    overflows."""
    if loss is None:
        return None
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
    scores = checkpoint.scores
    sides = [*scores.labels.values(), *scores.generated.values()]
    if not {"majority", "before"} <= scores.labels.keys() or not all(
        is_scored(job, of_side) for of_side in sides
    ):
        raise InputError(f"{checkpoint.folder} holds no scores of this task before tuning")


def is_scored(job: Job, splits: object) -> bool:
    """Return whether a value is scores of each split, in which the numbers that are shown are
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
