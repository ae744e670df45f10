"""Measure what a finished run of a comparison costs after its training: what the model has
forgotten, and the time of predicting.

The measures are kept in the study's folder, in RUN.measured.json, so that a resumed study does not
measure again.
"""

import statistics
import time
from dataclasses import replace
from pathlib import Path

from neo_peft.corpora.splits import limit_rows
from neo_peft.decoding import evaluate
from neo_peft.model import TunedModel
from neo_peft.runs.folder import read_record
from neo_peft.runs.loading import LoadedModel, load, load_base_for, load_untuned, settings_in
from neo_peft.runs.predictions import PredictionKind, read_predictions, reported_split
from neo_peft.runs.shared import Shared, base_conditions, computing_conditions
from neo_peft.studies.forgetting import bits_of_free_text, window_length
from neo_peft.system.files import read_checked_json, write_checked_json

ROWS, REPEATS = 100, 5  # rows that are predicted, and how often


def measured_file(run: Path) -> Path:
    return run.with_name(f"{run.name}.measured.json")


def read_measured(run: Path) -> dict:
    """Return the measures of a run: "forgetting" and "inference"; {} if it was not measured."""
    path = measured_file(run)
    return read_checked_json(path) if path.exists() else {}


def measure(run: Path, shared: Shared) -> dict:
    """Measure a finished run, unless it was measured already, and return its measures.

    "forgetting" has the bits per byte of free text, "before" and "after". "inference" has the CPU
    "time" of predicting, compared with the untuned base under the same head.
    """
    if not measured_file(run).exists():
        settings = settings_in(run)
        tuned = load(run, settings)
        base = load_untuned(settings, base=load_base_for(settings))
        measures = {
            "forgetting": forgetting(tuned, base, shared),
            "inference": {"time": relative_time(run, tuned, base)},
        }
        write_checked_json(measured_file(run), measures)
    return read_measured(run)


def forgetting(tuned: LoadedModel, base: LoadedModel, shared: Shared) -> dict[str, float]:
    """Return the bits per byte of free text before and after tuning. Those of a base are computed
    once for all runs."""
    length = window_length(tuned)
    depends_on = {
        "kind": "free text",
        **base_conditions(base),
        **computing_conditions(base),
        "window": length,
    }
    before = shared.once(depends_on, lambda: bits_of_free_text(base, length))
    return {"before": before, "after": bits_of_free_text(tuned, length)}


def relative_time(run: Path, tuned: LoadedModel, base: LoadedModel) -> float:
    """Return the CPU time of the tuned model over that of the base, on the same rows.

    The base has the tuned model's head, and sees each text once. Both predict in turns; the result
    is the median of the ratios.
    """
    model, split = tuned.model, reported_split(read_record(run)["rows"])
    rows = limit_rows(read_predictions(run, PredictionKind("after"), split), ROWS)
    plain = TunedModel(
        base.model.transformer, model.head_kind, model.head, compute_dtype=model.compute_dtype
    )
    sides = [(model, tuned.encoder), (plain, replace(tuned.encoder, echo=False))]
    encoded = [(model, encoder, encoder(rows)) for model, encoder in sides]
    ratios = []
    for _ in range(REPEATS + 1):
        seconds = []
        for model, encoder, examples in encoded:
            start = time.process_time()
            evaluate(model, encoder, examples, batch_size=tuned.settings.batch_size)
            seconds.append(time.process_time() - start)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios[1:])  # the first turn warms up
