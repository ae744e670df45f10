"""Look inside a finished run: what its score consists of, and what its adapter is.

    parts of the score    baseline, head on the frozen base or the untuned model, the adapter
    switched off          the score without a layer, a direction or a position (ablations.py)
    changed weights       the singular values of each ΔW (spectra.py)
    prompt or prefix      nearest words, norms, attention (nearest.py, attention.py)
    a text                its labels' probabilities layer by layer (layer_readout.py)

The rows are those of the run's own predictions, so no data is loaded. The result is an object of
JSON; `look_page.py` shows it as a page.
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from neo_peft.analysis.ablations import Ablation, ablations
from neo_peft.analysis.attention import attention_to_prompt
from neo_peft.analysis.layer_readout import layer_probabilities
from neo_peft.analysis.nearest import nearest_first_keys, nearest_words
from neo_peft.analysis.spectra import WeightChange, compare_changes, describe, weight_changes
from neo_peft.corpora.splits import limit_rows
from neo_peft.decoding import evaluate
from neo_peft.encoding import Examples
from neo_peft.errors import InputError
from neo_peft.formats.base import Base
from neo_peft.model import TunedModel
from neo_peft.progress import Progress, no_progress
from neo_peft.runs.adapter_set import copy_sharing_matrices
from neo_peft.runs.baselines import baseline_name
from neo_peft.runs.bootstrap import MIN_DIFFERING, count_differing, intervals, paired
from neo_peft.runs.folder import RUN, read_finished_run, refuse_unfinished
from neo_peft.runs.job import examples_to_show
from neo_peft.runs.loading import LoadedModel, load, load_base_for, load_untuned, settings_in
from neo_peft.runs.predictions import PredictionKind, read_predictions, reported_split
from neo_peft.settings import Settings
from neo_peft.tasks import Task

# By default so many rows are scored that tokens · parameters of all passes is at most WORK: on
# neo-mini 220,000 tokens, which take seconds. But no fewer rows than LEAST_ROWS.
WORK, LEAST_ROWS = 1.2e12, 100
TEXTS_OF_ATTENTION = 50
RESAMPLES = 2000
AFTER = PredictionKind("after")


@dataclass(frozen=True)
class Subject:
    """A loaded run."""

    folder: Path  # its folder
    record: dict  # run.json
    task: Task  # with its labels
    tuned: LoadedModel  # the tuned model, with its encoder
    base: Base  # its base; the trunk is untuned
    changes: dict[str, WeightChange]  # of its linear layers
    parts: list[Ablation]  # of its adapter, which can be switched off
    split: str  # the split that is scored
    rows: list[dict]  # of the split, those that are scored
    examples: Examples  # the same rows, encoded

    @property
    def model(self) -> TunedModel:
        return self.tuned.model


def look(
    folder: Path,
    settings: Settings,
    rows: int | None = None,
    row: dict | None = None,
    against: list[Path] = (),
    progress: Progress = no_progress,
) -> dict:
    """Return what a finished run's score consists of and what its adapter is, as JSON.

    settings: those of the run, with the device and the threads.
    rows: number of rows that are scored, evenly spaced; by default as many as take some seconds.
    row: a row, with or without its label, whose probabilities are shown after each layer; by
        default one of the split.
    against: other runs; the directions of their weight changes are compared with this run's.

    Raises InputError if the run is not finished, has no adapter, or was changed.
    """
    subject = load_subject(folder, settings, rows)
    task, metric, all_rows = subject.task, subject.task.metric, subject.record["rows"]
    own = predict(subject)
    interval = intervals(task, subject.rows, [own])[metric]
    result = {
        "run": str(folder),
        "task": task.name,
        "method": subject.record["flags"]["method"],
        "model": subject.record["model"],
        "split": subject.split,
        "rows": len(subject.rows),
        "rows_in_split": all_rows[subject.split],
        "metric": metric,
        "score": {"value": difference(subject, own, own)["a"], "interval": interval},
        "parts": parts_of_score(subject, own),
        "switched_off": scores_without_parts(subject, own, progress),
        "changed_weights": [describe(*item) for item in subject.changes.items()],
        "agreement": [compared(subject, other) for other in against],
        "in_front": describe_prompt(subject),
        "text": read_layers(subject, row or examples_to_show(task, subject.rows)[0]),
    }
    return result | {"notes": [*subject.tuned.notes, *notes(subject, own)]}


# ---- Loading


def load_subject(folder: Path, settings: Settings, limit: int | None) -> Subject:
    """Load a run, its untuned base, and the rows that are scored."""
    record, task = read_record_of_run(folder)
    tuned, base = load_both(folder, settings)
    changes = weight_changes(tuned.model.transformer, base.trunk)
    parts = ablations(tuned.model, base.trunk, changes)
    if not parts:
        raise InputError(
            f"{folder} has no adapter to look into: it trained a head alone; name a run of another "
            "method"
        )
    split = reported_split(AFTER.scores(record))
    rows = read_predictions(folder, AFTER, split)
    rows = limit_rows(rows, limit or affordable_rows(tuned, rows, len(parts) + 1))
    examples = tuned.encoder(rows)
    return Subject(folder, record, task, tuned, base, changes, parts, split, rows, examples)


def affordable_rows(tuned: LoadedModel, rows: list[dict], passes: int) -> int:
    """Return the number of rows that are scored by default, in so many passes over them."""
    tokens_of_row = tuned.encoder(rows).lengths.sum() / len(rows)
    work_of_row = passes * tokens_of_row * tuned.total
    return max(LEAST_ROWS, int(WORK / work_of_row))


def read_record_of_run(folder: Path) -> tuple[dict, Task]:
    """Return a run's record and task. Raise InputError for a folder without a finished run."""
    if not folder.is_dir():
        raise InputError(f"there is no run folder {folder}")
    refuse_unfinished(folder)
    if not (folder / RUN).exists():
        runs_inside = sorted(folder.glob(f"*/{RUN}"))
        advice = f"; name a run inside it, such as {runs_inside[0].parent}" if runs_inside else ""
        raise InputError(
            f"{folder} has no {RUN}: only a finished run of train.py can be looked into{advice}"
        )
    record, task = read_finished_run(folder)
    for name in ("rows", "scores", "model"):
        if name not in record:
            raise InputError(f"{folder / RUN} has no {name}: train the run again")
    return record, task


def load_both(folder: Path, settings: Settings) -> tuple[LoadedModel, Base]:
    """Return the tuned model and the untuned base. They share their frozen matrices."""
    base = load_base_for(settings)
    trunk = copy.deepcopy if settings.trains_base else copy_sharing_matrices
    return load(folder, settings, replace(base, trunk=trunk(base.trunk))), base


# ---- What the score consists of


def predict(subject: Subject) -> list:
    """Return the model's predictions as it is now."""
    size = subject.tuned.settings.batch_size
    evaluation = evaluate(subject.model, subject.tuned.encoder, subject.examples, batch_size=size)
    return evaluation.predicted


def difference(subject: Subject, a: list, b: list) -> dict:
    """Return the paired comparison of two predictions by the task's metric."""
    found = paired(subject.task, subject.rows, [a], [b], RESAMPLES)[subject.task.metric]
    return found | {"rows_that_differ": count_differing([a], [b])}


def parts_of_score(subject: Subject, own: list) -> list[dict]:
    """Return the steps from the baseline to the run: each with its score, and what it adds to the
    step before."""
    kinds = [when for when in ("baseline", "head_alone") if when in subject.record["scores"]]
    if "head_alone" not in kinds and "before" in subject.record["scores"]:
        kinds.append("before")
    names = {"head_alone": "a head on the frozen base", "before": "the untuned model"}
    names["baseline"] = baseline_name(subject.task)
    predicted = {names[when]: recorded(subject, when) for when in kinds}
    predicted["with the adapter"] = own
    steps, before = [], None
    for name, predictions in predicted.items():
        step = difference(subject, before if before is not None else predictions, predictions)
        interval = intervals(subject.task, subject.rows, [predictions])[subject.task.metric]
        steps.append({"name": name, "score": step["b"], "interval": interval})
        steps[-1]["added"] = None if before is None else added(step)
        before = predictions
    return steps


def added(step: dict) -> dict:
    """Return a paired difference, without the two scores."""
    names = ("difference", "low", "high", "p", "rows_that_differ")
    return {name: step[name] for name in names} | {"certain": is_certain(step)}


def is_certain(step: dict) -> bool:
    """Return whether the interval excludes zero, and enough rows differ."""
    excludes_zero = step["low"] > 0 or step["high"] < 0
    return excludes_zero and step["rows_that_differ"] >= MIN_DIFFERING


def recorded(subject: Subject, when: str) -> list:
    """Return the run's own predictions of a kind, for the rows that are scored."""
    rows = read_predictions(subject.folder, PredictionKind(when), subject.split)
    return [row["predicted"] for row in limit_rows(rows, len(subject.rows))]


def scores_without_parts(subject: Subject, own: list, progress: Progress) -> list[dict]:
    """Return the score with each part switched off, and its difference from the run's own."""
    found = []
    for part in progress(subject.parts, "switch off", len(subject.parts)):
        with part.switched_off():
            predicted = predict(subject)
        step = difference(subject, own, predicted)
        found.append({"group": part.group, "name": part.name, "score": step["b"]} | added(step))
    return found


# ---- What the adapter is


def compared(subject: Subject, folder: Path) -> dict:
    """Return how far the directions of another run's weight changes agree with this run's."""
    names = str(subject.folder), str(folder)
    if not subject.changes:
        raise InputError(
            f"{subject.folder} changed no linear layer, so it has no directions to compare: leave "
            "out --against"
        )
    record, _ = read_record_of_run(folder)
    if record["base"]["fingerprint"] != subject.record["base"]["fingerprint"]:
        raise InputError(
            f"{names[0]} and {names[1]} have different bases: compare runs on one base"
        )
    tuned, base = load_both(folder, settings_in(folder))
    changes = weight_changes(tuned.model.transformer, base.trunk)
    return {"run": names[1], "layers": compare_changes(names, subject.changes, changes)}


def describe_prompt(subject: Subject) -> dict | None:
    """Return what a prompt or prefix has become: words, norms, attention. None without one."""
    if subject.model.prompt is None:
        return None
    initial, tokenizer = initial_model(subject), subject.base.tokenizer
    models = [subject.model] if initial is None else [subject.model, initial]
    if subject.model.prompt.embeddings is not None:
        wte = subject.model.transformer.wte.weight.float()
        vectors = [model.prompt.embeddings.detach() for model in models]
        words = [nearest_words(part, wte, tokenizer) for part in vectors]
        norms = [{"embeddings": part.norm(dim=1).tolist()} for part in vectors]
        typical = {"embeddings": float(wte.norm(dim=1).mean())}
    else:
        keys = [first_keys(model) for model in models]
        with subject.model.autocast():
            words = nearest_first_keys(keys, subject.model.transformer, tokenizer)
        norms, typical = [past_norms(model) for model in models], {}
    chosen = limit_rows(list(range(len(subject.examples))), TEXTS_OF_ATTENTION)
    attention = attention_to_prompt(subject.model, subject.examples, chosen)
    return {
        "positions": len(subject.model.prompt),
        "compared_with": "words of wte" if typical else "keys of words in the first layer",
        "words": {"before": words[1] if initial else None, "after": words[0]},
        "norms": {"before": norms[1] if initial else None, "after": norms[0]},
        "typical_norms": typical,
        "attention": attention.tolist(),
        "attention_texts": len(chosen),
    }


def initial_model(subject: Subject) -> TunedModel | None:
    """Return the model with the prompt as it was before training. None if the run started from
    another adapter."""
    settings = subject.tuned.settings
    if settings.adapter:
        return None
    base = replace(subject.base, trunk=copy_sharing_matrices(subject.base.trunk))
    return load_untuned(settings, with_method=True, base=base).model


def first_keys(model: TunedModel) -> Tensor:
    """Return a prefix's keys (P, H) in the first layer."""
    return model.prefix().keys[0][0].transpose(0, 1).flatten(1).detach()


def past_norms(model: TunedModel) -> dict:
    """Return the norms of a prefix's keys and values, (layers, P) each, over all heads."""
    past = model.prefix()
    return {
        name: [tensor[0].float().norm(dim=(0, 2)).tolist() for tensor in tensors]
        for name, tensors in (("keys", past.keys), ("values", past.values))
    }


# ---- One text


def read_layers(subject: Subject, row: dict) -> dict:
    """Return a text's probabilities after each layer, of the untuned base and of the tuned model.
    Both are read with the run's own head."""
    task, encoder, model = subject.task, subject.tuned.encoder, subject.model
    fields = task.fields[:-1]
    untuned = TunedModel(subject.base.trunk, compute_dtype=model.compute_dtype).eval()
    instruction = task.instruction if model.head is None else ""
    prefix = untuned.text_prefix(encoder.tokenize([instruction])[0]) if instruction else None
    after = layer_probabilities(model, model.head, encoder, row, model.prefix())
    before = layer_probabilities(untuned, model.head, encoder, row, prefix)
    only = {field: row[field] for field in fields}
    (predicted,) = evaluate(model, encoder, encoder([only])).predicted
    shown = {"text": only, "gold": row.get(task.fields[-1]), "predicted": predicted}
    targets = targets_of(task, shown, after.shape[1])
    return shown | {
        "instruction_before": instruction,
        "targets": [
            {
                "word": word,
                "label": label,
                "before": before[:, index, task.labels.index(label)].tolist(),
                "after": after[:, index, task.labels.index(label)].tolist(),
            }
            for index, word, label in targets
        ],
    }


def targets_of(task: Task, shown: dict, count: int) -> list[tuple[int, str | None, str]]:
    """Return what is shown of a text: the index of a target position, its word, and a label.

    In a classification task all labels at the one position; in a tagging task the predicted tag of
    each word whose predicted or gold tag is not O, and its gold tag where that is another one.
    """
    if not task.is_tagging:
        return [(0, None, label) for label in task.labels]
    words, predicted = shown["text"]["tokens"], shown["predicted"]
    gold, found = shown["gold"] or predicted, []
    for index, (word, *tags) in enumerate(zip(words, predicted, gold, strict=True)):
        if index < count and set(tags) != {"O"}:
            found += [(index, word, tag) for tag in dict.fromkeys(tags)]
    return found


def notes(subject: Subject, own: list) -> list[str]:
    """Return what a reader has to know about the numbers."""
    found, count = [], len(subject.rows)
    if count < (total := subject.record["rows"][subject.split]):
        found.append(f"{count:,} of the {total:,} rows of {subject.split} are scored; see --rows")
    differing = sum(a != row["predicted"] for a, row in zip(own, subject.rows, strict=True))
    if differing:
        found.append(
            f"{differing:,} of the {count:,} rows are predicted differently than in the run, which "
            "was scored on other hardware or in another precision"
        )
    if subject.model.head is not None and "head_alone" not in subject.record["scores"]:
        found.append("a head on the frozen base was not scored; train with --head-baseline")
    if subject.tuned.settings.adapter:
        found.append("the run started from another adapter, so its start is not shown")
    return found
