"""Look inside a finished run: what its score consists of, and what its adapter is.

    parts of the score    the steps from the baseline to the run, and the score without a layer,
                          a direction or a position (score_parts.py, ablations.py)
    changed weights       the singular values of each ΔW (spectra.py)
    prompt or prefix      nearest words, norms, attention (in_front.py)
    a text                its labels' probabilities layer by layer (layer_readout.py)

The rows are those of the run's own predictions, so no data is loaded. The result is an object of
JSON; `page.py` shows it as a page.
"""

from pathlib import Path

from neo_peft.decoding import evaluate
from neo_peft.errors import InputError
from neo_peft.look.in_front import describe_prompt
from neo_peft.look.layer_readout import layer_probabilities
from neo_peft.look.score_parts import difference, parts_of_score, predict, scores_without_parts
from neo_peft.look.spectra import compare_changes, describe, weight_changes
from neo_peft.look.subject import Subject, load_both, load_subject, read_record_of_run
from neo_peft.model import TunedModel
from neo_peft.progress import Progress, no_progress
from neo_peft.runs.bootstrap import intervals
from neo_peft.runs.job import examples_to_show
from neo_peft.runs.loading import settings_in
from neo_peft.settings import Settings
from neo_peft.tasks import Task

SAME_START = (
    "{} has the same seed, so LoRA's A may have started from the same numbers: then the input "
    "directions agree from the start; compare runs with different seeds to see what both learned"
)


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
    agreement = [compared(subject, other) for other in against]
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
        "agreement": agreement,
        "in_front": describe_prompt(subject),
        "text": read_layers(subject, row or examples_to_show(task, subject.rows)[0]),
    }
    shared_starts = [SAME_START.format(other["run"]) for other in agreement if other["same_seed"]]
    return result | {"notes": [*subject.tuned.notes, *notes(subject, own), *shared_starts]}


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
    layers = compare_changes(names, subject.changes, changes)
    same_start = record["seed"] == subject.record["seed"]
    return {"run": names[1], "same_seed": same_start, "layers": layers}


# ---- One text


def read_layers(subject: Subject, row: dict) -> dict:
    """Return a text's probabilities after each layer, of the untuned base and of the tuned model.
    Both are read with the run's own head."""
    task, encoder, model = subject.task, subject.tuned.encoder, subject.model
    fields = task.fields[:-1]
    untuned = TunedModel(subject.base.trunk, compute_dtype=model.compute_dtype).eval()
    instruction = task.instruction if model.head is None else ""
    past = untuned.instruction_past(encoder.tokenize([instruction])[0]) if instruction else None
    after = layer_probabilities(model, model.head, encoder, row, model.prompt_past())
    before = layer_probabilities(untuned, model.head, encoder, row, past)
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
