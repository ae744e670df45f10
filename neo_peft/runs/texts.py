"""Predictions for new texts, and what was used of a text.

A text to classify that is longer than the model's input is cut. A long text to tag is read whole,
unless the run was trained with `--truncate end`. Then the words after the cut are not used, so they
have no prediction: None, which is not the tag `O`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from neo_peft.decoding import Evaluation, evaluate
from neo_peft.encoding import Encoder, Examples
from neo_peft.long_texts.truncation import kept_at_ends, shorten
from neo_peft.long_texts.windows import cut_at_end
from neo_peft.model import TunedModel
from neo_peft.progress import Progress, no_progress

Used = int | dict[str, int]  # number of words; or the number of characters of each field
PLACES = {"middle": "in the middle", "end": "at the end", "start": "at the start"}


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
    if not examples.cut or examples.window_counts is not None:
        return {}
    longest = np.flatnonzero(examples.lengths == examples.lengths.max())  # with all that were cut
    used = {index: used_part(encoder, rows[index]) for index in longest.tolist()}
    return {index: part for index, part in used.items() if part is not None}


def used_part(encoder: Encoder, row: dict) -> Used | None:
    """Return how much of a row the model gets, None for all of it. In a tagging task: the number of
    words that get a tag. Else: the number of characters of each field."""
    task, limit = encoder.task, encoder.text_length
    texts = task.texts(row, encoder.source_text)
    tokens = encoder.tokenizer(
        texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    full = tokens["input_ids"]
    lengths = np.array([len(part) for part in full])
    if lengths.sum() <= limit:
        return None
    if task.is_tagging:
        kept = cut_at_end(lengths, np.array([0, len(lengths)]), limit).lengths
        return int((kept == lengths if encoder.tag_last_subtoken else kept > 0).sum())
    sentences = shorten(full, limit, encoder.truncate)[1::2]
    return {
        field: used_characters(row[field], offsets, len(part), encoder.truncate)
        for field, part, offsets in zip(task.fields, sentences, tokens["offset_mapping"][1::2])
    }


def used_characters(text: str, offsets: list[tuple[int, int]], kept: int, place: str) -> int:
    """Return how many characters of a sentence belong to the tokens that were kept, of which there
    are `kept`. `offsets` are those of all tokens, in the text with one space in front."""
    if kept == len(offsets):
        return len(text)
    head, tail = kept_at_ends(kept, place)
    moved = len(text) - len(text.lstrip()) - 1
    count = moved + offsets[head - 1][1] if head else 0
    count += len(text) - moved - offsets[-tail][0] if tail else 0
    return min(max(0, count), len(text))


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
    places = " or ".join(sorted({cut_place(encoder) for encoder in encoders}))
    return f"{texts} cut to {' or '.join(map(str, lengths))} tokens, {places}"


def cut_place(encoder: Encoder) -> str:
    """Return where texts are cut."""
    if not encoder.task.is_tagging:
        return PLACES[encoder.truncate]
    return PLACES["end"] if encoder.stride is None else "inside a long word"


def text_notes(encoder: Encoder, parts: Iterable[Examples]) -> list[str]:
    """Return all notes on the texts of examples."""
    parts = list(parts)
    return special_notes(encoder, parts) + length_notes(encoder, parts)


def length_notes(encoder: Encoder, parts: Sequence[Examples]) -> list[str]:
    """Return notes on the texts that were read in windows, and on those that were cut."""
    notes = []
    windows = np.concatenate(
        [np.zeros(0, int), *(p.window_counts for p in parts if p.window_counts is not None)]
    )
    if len(several := windows[windows > 1]):
        notes.append(
            f"texts with more than {encoder.text_length} tokens: {len(several):,}; read whole, in "
            f"{several.sum():,} windows that share at least {encoder.stride} tokens"
        )
    if cut := sum(part.cut for part in parts):
        notes.append(cut_note(cut, [encoder]))
    return notes


def special_notes(encoder: Encoder, parts: Iterable[Examples]) -> list[str]:
    """Return a note if the tokenizer found a special token in a text, such as the end of text. For
    the model it is no text."""
    special, count, found = encoder.tokenizer.all_special_ids, 0, None
    for part in parts:
        positions = np.flatnonzero(np.isin(part.ids, special))
        if len(positions):
            row_starts = part.starts[part.row_starts]
            count += len(np.unique(np.searchsorted(row_starts, positions, side="right")))
            found = found or encoder.tokenizer.decode([int(part.ids[positions[0]])])
    if not count:
        return []
    return [
        f"{count:,} texts have a special token, such as {found}, which the model does not read as "
        "text; remove it from the data if that is not meant"
    ]
