"""From rows of data to token ids and to packed batches, without padding tokens.

An example has token ids, target positions, and a target (class or token) for each of them. A row is
one example; only a long text to tag is several, its windows (long_texts/windows.py). A text is
tokenised in parts (`Task.texts`): the words of a sentence to tag, or the template's texts and the
sentences between them. Each distinct part of all rows is tokenised once, all in one call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch

from neo_peft.errors import InputError
from neo_peft.long_texts.truncation import shorten
from neo_peft.long_texts.windows import bounds, cut_at_end, indices_within, make_windows
from neo_peft.model import NO_LABEL, Batch
from neo_peft.system import processes
from neo_peft.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Array = np.ndarray
TEXTS_AT_ONCE = 1024  # for the tokenizer, whose results need more memory than the token ids


@dataclass(frozen=True)
class Examples:
    """n encoded examples in flat arrays. Example i has the tokens ids[starts[i] : starts[i + 1]];
    `target_starts` gives its target positions and targets in the same way."""

    ids: Array  # token ids of all examples
    starts: Array  # (n + 1,), index of each example's first token in `ids`, then len(ids)
    target_indices: Array  # target positions, counted from the example's own first token
    targets: Array  # the class or token to predict at each target position
    target_starts: Array  # (n + 1,), index of each example's first target, then len(targets)
    word_counts: Array | None = None  # (rows,), before cutting; None in classification
    cut: int = 0  # number of rows that were cut to the maximum length
    window_counts: Array | None = None  # (rows,), examples of each row; None: one for each

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def row_starts(self) -> np.ndarray:
        """The index of each row's first example, then len(self) (rows + 1,)."""
        counts = self.window_counts
        return np.arange(len(self.starts)) if counts is None else bounds(counts)

    def of_rows(self, rows: Iterable[int]) -> np.ndarray:
        """Return the indices of the examples of some rows, in their order."""
        return np.array([i for row in rows for i in range(*self.row_starts[row : row + 2])], int)

    @cached_property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each example (n,)."""
        return np.diff(self.starts)

    @cached_property
    def row_lengths(self) -> np.ndarray:
        """The number of tokens of each row, in all its examples (rows,)."""
        return np.diff(self.starts[self.row_starts])

    @cached_property
    def labelled(self) -> np.ndarray:
        """The number of known targets of each example (n,)."""
        return np.diff(bounds(self.targets != NO_LABEL)[self.target_starts])

    def digest(self) -> str:
        """Return a SHA-256 hash of all tokens, targets and windows."""
        arrays = (self.ids, self.starts, self.target_indices, self.targets, self.target_starts)
        arrays += () if self.window_counts is None else (self.window_counts,)
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


@dataclass(frozen=True)
class Encoder:
    """Encodes rows for one task and one kind of head."""

    task: Task  # the task of the rows
    tokenizer: PreTrainedTokenizerFast  # the base model's tokenizer
    end_token: int  # id of the end-of-text token
    with_head: bool  # targets are classes if True, else the tokens of the label text
    max_length: int  # maximum number of tokens of a text with its template, without label tokens
    vocab_size: int  # size of the model's vocabulary
    tag_last_subtoken: bool = False  # target position: a word's last sub-token, not its first
    source_text: bool = False  # use the template and the label texts of the original study
    viterbi: bool = False  # predict the best sequence of tags, not each word's best tag
    # Repeat each sentence, and predict its tags in the second copy. There a causal model has seen
    # the whole sentence (Springer et al. 2024, section 3). `max_length` includes both copies.
    echo: bool = False
    stride: int | None = None  # tokens that windows share; None: cut a long text to tag at its end
    truncate: str = "end"  # where a long text to classify is cut: "middle", "end" or "start"

    @cached_property
    def label_tokens(self) -> dict[str, list[int]]:
        """The token ids of each label text, with an end token at the end."""
        return tokenize_labels(self.tokenizer, self.task, self.source_text, self.end_token)

    @property
    def text_length(self) -> int:
        """The number of tokens that a text can have. With `echo` there are two copies."""
        return self.max_length // 2 if self.echo else self.max_length

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return tokenize(self.tokenizer, texts)

    def __call__(self, rows: Sequence[dict]) -> Examples:
        """Encode rows; the target of a row without a label is NO_LABEL."""
        index_of: dict[str, int] = {}  # index of each distinct part, in order of appearance
        parts, counts, labels = [], [], []
        for row in rows:
            texts = self.task.texts(row, self.source_text)
            parts += [index_of.setdefault(text, len(index_of)) for text in texts]
            counts.append(len(texts))
            labels += self.task.labels_of(row)
        tokens = self.tokenize(list(index_of))
        if [] in tokens:
            text = list(index_of)[tokens.index([])].removeprefix(" ")[:40]
            name = self.tokenizer.name_or_path
            raise InputError(f"{name}: the tokenizer has no token for {text!r}; remove it")
        # From here on numpy works on all rows at once. A part is an index into `tokens`.
        parts, row_starts = np.array(parts, dtype=np.int64), bounds(counts)
        encode = self._tagging_examples if self.task.is_tagging else self._classification_examples
        examples = encode(tokens, parts, row_starts, self._classes(labels))
        if len(examples.ids) and (token := int(examples.ids.max())) >= self.vocab_size:
            text, size = self.tokenizer.decode([token]), self.vocab_size
            raise InputError(f"{text!r} is token {token}; the model has {size} tokens: remove it")
        return examples

    def _tagging_examples(
        self, tokens: list[list[int]], parts: Array, row_starts: Array, classes: Array
    ) -> Examples:
        """Return examples with a target at each scored word's first or last sub-token, unless cut:
        in words of 2, 1 and 3 tokens, first ones are at 0, 2 and 3, last ones at 1, 2 and 5."""
        lengths, limit = _lengths(tokens)[parts], self.text_length
        if self.stride is None:
            windows = cut_at_end(lengths, row_starts, limit)
        else:
            windows = make_windows(lengths, row_starts, limit, self.stride, both_sides=self.echo)
            lengths = np.minimum(lengths, limit)
        # From here on arrays (W,) are of the words in all windows, some of them in two.
        offset = lengths[windows.words] - 1 if self.tag_last_subtoken else 0
        has_target = (offset < windows.lengths) & windows.scored
        word_starts, target_starts = bounds(windows.lengths), bounds(has_target)[windows.starts]
        starts = word_starts[windows.starts]
        in_front = np.repeat(starts[:-1], np.diff(windows.starts))
        target_indices = (word_starts[:-1] + offset - in_front)[has_target]
        targets = classes[windows.words[has_target]]
        ids = _concatenate(tokens, parts[windows.words], windows.lengths)
        if self.echo:  # targets move into the copy: by the text's length
            target_indices += np.repeat(np.diff(starts), np.diff(target_starts))
            ids, starts = _repeat_texts(ids, starts)
        positions, words = target_indices.astype(np.int32), np.diff(row_starts)
        flat = ids, starts, positions, targets, target_starts
        return Examples(*flat, word_counts=words, cut=windows.cut, window_counts=windows.of_row)

    def _classification_examples(
        self, tokens: list[list[int]], parts: Array, row_starts: Array, classes: Array
    ) -> Examples:
        """Return examples whose first target position is the text's last token. For the language
        model head, the label text is appended, and its tokens are target positions too."""
        row_lengths = np.diff(bounds(_lengths(tokens)[parts])[row_starts])
        too_long = np.flatnonzero(row_lengths > self.text_length)
        for row in too_long:
            row_slice = slice(row_starts[row], row_starts[row + 1])
            encoded = [tokens[part] for part in parts[row_slice]]
            parts[row_slice] = len(tokens) + np.arange(len(encoded))
            tokens += shorten(encoded, self.text_length, self.truncate)
        lengths = _lengths(tokens)[parts]
        ids, starts = _concatenate(tokens, parts, lengths), bounds(lengths)[row_starts]
        choices = [[index] for index in range(len(self.task.labels))]
        choices = choices if self.with_head else list(self.label_tokens.values())
        choices.append([NO_LABEL])  # NO_LABEL is -1, the index of this last entry
        counts = _lengths(choices)[classes]
        positions = np.repeat(np.diff(starts) - 1, counts) + indices_within(counts)
        positions = positions.astype(np.int32)
        # The last target, an end token or a class, is never an input.
        inputs = _concatenate(choices, classes, counts - 1)
        ids = np.insert(ids, np.repeat(starts[1:], counts - 1), inputs)
        starts, targets = starts + bounds(counts - 1), _concatenate(choices, classes, counts)
        return Examples(ids, starts, positions, targets, bounds(counts), cut=len(too_long))

    def _classes(self, labels: Iterable[str | None]) -> Array:
        classes = {label: index for index, label in enumerate(self.task.labels)} | {None: NO_LABEL}
        try:
            return np.fromiter(map(classes.__getitem__, labels), dtype=np.int32)
        except KeyError as error:
            raise InputError(
                f"unknown label {error.args[0]!r}; the labels of {self.task.name} are "
                f"{', '.join(self.task.labels)}"
            ) from None


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text, without special tokens."""
    # Calling the tokenizer itself is slower, since it also makes masks and offsets.
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # earlier calls can have set truncation and padding
    backend.no_padding()
    parts = (list(texts[i : i + TEXTS_AT_ONCE]) for i in range(0, len(texts), TEXTS_AT_ONCE))
    encode = partial(backend.encode_batch_fast, add_special_tokens=False)
    return [item.ids for part in parts for item in encode(part)]


def tokenize_labels(
    tokenizer: PreTrainedTokenizerFast, task: Task, source_text: bool, end_token: int
) -> dict[str, list[int]]:
    """Return the token ids of each label text and an end token; {} for a tagging task."""
    if task.is_tagging:
        return {}
    texts = [task.label_text(label, source_text) for label in task.labels]
    return {label: [*ids, end_token] for label, ids in zip(task.labels, tokenize(tokenizer, texts))}


def collate(examples: Examples, chosen: Sequence[int] | Array) -> Batch:
    """Return the packed batch of the examples with the indices `chosen`."""
    ids, target_indices, targets, lengths, counts = [], [], [], [], []
    for index in chosen:
        token_slice = slice(*examples.starts[index : index + 2])
        target_slice = slice(*examples.target_starts[index : index + 2])
        ids.append(examples.ids[token_slice])
        target_indices.append(examples.target_indices[target_slice] + sum(lengths))
        targets.append(examples.targets[target_slice])
        lengths.append(token_slice.stop - token_slice.start)
        counts.append(target_slice.stop - target_slice.start)

    def tensor(arrays: list[Array]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(arrays).astype(np.int64))

    sizes, counts = torch.tensor(lengths), torch.tensor(counts)
    return Batch(tensor(ids), sizes, tensor(target_indices), tensor(targets), counts)


def batches(order: Array, batch_size: int) -> Iterator[Array]:
    """Yield this process's batches of example indices; the last one can be smaller.

    W processes share batches of W · batch_size examples: each process takes every W-th example. The
    last batch of a process can be empty.
    """
    size = batch_size * processes.world
    for start in range(0, len(order), size):
        yield order[start : start + size][processes.process_index :: processes.world]


def _concatenate(lists: list[list[int]], chosen: Array, counts: Array) -> Array:
    """Return the concatenation of lists[chosen[i]][:counts[i]] for all i."""
    flat = np.fromiter(chain.from_iterable(lists), dtype=np.int32)
    starts = bounds(_lengths(lists))[:-1]
    return flat[indices_within(counts) + np.repeat(starts[chosen], counts)]


def _repeat_texts(ids: Array, starts: Array) -> tuple[Array, Array]:
    """Return ids and starts in which each text is followed by its copy."""
    counts, old_starts = np.diff(starts).repeat(2), starts[:-1].repeat(2)
    return ids[indices_within(counts) + np.repeat(old_starts, counts)], 2 * starts


def _lengths(lists: list[list[int]]) -> Array:
    return np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
