"""Predictions for new texts, and what was used of a text.

A text that is longer than the model's input is cut. The words after the cut are not used, so they
have no prediction: None, which is not the tag `O`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from neo_peft.decoding import Evaluation, evaluate
from neo_peft.encoding import Encoder, Examples, shorten
from neo_peft.model import TunedModel
from neo_peft.progress import Progress, no_progress

Used = int | dict[str, int]  # number of words; or the number of characters of each field


def encode_texts(encoder: Encoder, rows: Sequence[dict]) -> Examples:
    """Encode rows without their labels."""
    fields = encoder.task.fields[:-1]
    return encoder([{field: row[field] for field in fields} for row in rows])


def evaluate_texts(
    model: TunedModel,
    encoder: Encoder,
    rows: Sequence[dict],
    batch_size: int = 32,
    progress: Progress = no_progress,
) -> Evaluation:
    """Return the predictions for rows, whose labels are not used, with `Evaluation.used`."""
    examples = encode_texts(encoder, rows)
    evaluation = evaluate(model, encoder, examples, batch_size=batch_size, progress=progress)
    return with_cuts(evaluation, cut_texts(encoder, rows, examples))


def predict(
    model: TunedModel, encoder: Encoder, rows: Sequence[dict], batch_size: int = 32
) -> list:
    """Return the label, or the tags, predicted for each row. Labels in the rows are not used. The
    tag of a word after the cut of a long text is None."""
    return evaluate_texts(model, encoder, rows, batch_size).predicted


def cut_texts(encoder: Encoder, rows: Sequence[dict], examples: Examples) -> dict[int, Used]:
    """Return how much of each text was used that was cut, by the index of its row. `examples` are
    the rows as `encode_texts` returns them."""
    if not examples.cut:
        return {}
    longest = np.flatnonzero(examples.lengths == examples.lengths.max())  # with all that were cut
    used = {index: used_part(encoder, rows[index]) for index in longest.tolist()}
    return {index: part for index, part in used.items() if part is not None}


def used_part(encoder: Encoder, row: dict) -> Used | None:
    """Return how much of a row the model gets, None for all of it. In a tagging task: the number of
    words that get a tag. Else: the number of characters of each field."""
    task = encoder.task
    texts = task.texts(row, encoder.source_text)
    tokens = encoder.tokenizer(
        texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    full = tokens["input_ids"]
    is_data = [task.is_tagging or index % 2 == 1 for index in range(len(texts))]
    parts = shorten(full, is_data, encoder.text_length)
    if parts == full:
        return None
    if task.is_tagging:
        if encoder.tag_last_subtoken:
            return sum(part == whole for part, whole in zip(parts, full, strict=True))
        return sum(map(bool, parts))
    used = {}
    for field, part, whole, offsets in zip(
        task.fields, parts[1::2], full[1::2], tokens["offset_mapping"][1::2], strict=False
    ):
        before = len(row[field]) - len(row[field].lstrip()) - 1  # the text starts with one space
        end = offsets[len(part) - 1][1] if part else 0
        used[field] = len(row[field]) if part == whole else max(0, before + end)
    return used


def with_cuts(evaluation: Evaluation, cuts: dict[int, Used]) -> Evaluation:
    """Return predictions with `used`. The tags of words that were not used become None."""
    predicted = list(evaluation.predicted)
    for index, used in cuts.items():
        if isinstance(used, int):
            tags = predicted[index]
            predicted[index] = tags[:used] + [None] * (len(tags) - used)
    used = [cuts.get(index) for index in range(len(predicted))]
    return replace(evaluation, predicted=predicted, used=used)


def cut_note(count: int, encoders: Sequence[Encoder]) -> str:
    """Return the note on `count` texts that were cut."""
    lengths = sorted({encoder.text_length for encoder in encoders})
    texts = "1 text was" if count == 1 else f"{count:,} texts were"
    return f"{texts} cut to {' or '.join(map(str, lengths))} tokens"


def special_notes(encoder: Encoder, parts: Iterable[Examples]) -> list[str]:
    """Return a note if the tokenizer found a special token in a text, such as the end of text. For
    the model it is no text."""
    special, count, found = encoder.tokenizer.all_special_ids, 0, None
    for part in parts:
        positions = np.flatnonzero(np.isin(part.ids, special))
        if len(positions):
            count += len(np.unique(np.searchsorted(part.starts, positions, side="right")))
            found = found or encoder.tokenizer.decode([int(part.ids[positions[0]])])
    if not count:
        return []
    return [
        f"{count:,} texts have a special token, such as {found}, which the model does not read as "
        "text; remove it from the data if that is not meant"
    ]
