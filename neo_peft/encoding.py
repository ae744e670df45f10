"""From rows of data to token ids, and to batches; there is no padding token anywhere.

An example is token ids, the positions in them at which the model is read, and the target at each.
Texts are tokenised piece by piece (Task.texts), all distinct pieces in one call: the words of a
tagged sentence, or the template and the sentences of an answer task. A label that the task does not
have is refused; in files the readers of corpora/ refuse it before, with its line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, compress
from typing import TYPE_CHECKING

import numpy as np
import torch

from neo_peft import processes
from neo_peft.errors import InputError
from neo_peft.model import Batch
from neo_peft.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Array, Labels = np.ndarray, list[str | None]
NO_LABEL = -1  # the target where a row gives no label
GENERATED = 10  # the most tokens of free generation


@dataclass(frozen=True)
class Examples:
    """n encoded examples in flat arrays. Example i has the tokens ids[starts[i] : starts[i + 1]],
    and likewise its reads and targets."""

    ids: Array
    starts: Array  # (n + 1,)
    target_indices: Array  # the positions at which it is read, counted from its own first token
    targets: Array  # the class or token to predict at each of them
    target_starts: Array  # (n + 1,)
    words: Array | None = None  # words of each, those cut away included; None for answer tasks
    cut: int = 0  # how many examples were shortened

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each example."""
        return np.diff(self.starts)

    @cached_property
    def labelled(self) -> np.ndarray:
        """The number of labels that each example gives."""
        return np.diff(_bounds(self.targets != NO_LABEL)[self.target_starts])

    def digest(self) -> str:
        """Hash all that they hold."""
        arrays = (self.ids, self.starts, self.target_indices, self.targets, self.target_starts)
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


@dataclass(frozen=True)
class Encoder:
    """Encodes rows for one task and one kind of head."""

    task: Task
    tokenizer: PreTrainedTokenizerFast
    end: int  # the end token
    with_head: bool  # targets are classes; without a head the answer's tokens and the end token
    max_length: int  # the most tokens of a text, its template included; a longer text is cut
    vocab_size: int  # the tokens that the model knows
    tag_last_subtoken: bool = False  # read a word at its last sub-token in place of its first
    source_text: bool = False  # word a row as the source does
    viterbi: bool = False  # choose a sentence's tags together, in place of each word's best
    # Give a tagged sentence twice, and read the second copy, where a causal model has seen all of
    # it (Springer et al. 2024, section 3). `max_length` holds both copies.
    echo: bool = False

    @cached_property
    def answers(self) -> dict[str, list[int]]:
        """The tokens that say each label, an end token behind them."""
        return answer_tokens(self.tokenizer, self.task, self.source_text, self.end)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return tokenize(self.tokenizer, texts)

    def __call__(self, rows: Sequence[dict]) -> Examples:
        """Encode rows. One without a label has the target NO_LABEL, and is read at its mark."""
        numbers: dict[str, int] = {}  # of the distinct texts, in the order in which they come
        pieces, counts, labels = [], [], []
        for row in rows:
            texts = self.task.texts(row, self.source_text)
            pieces += [numbers.setdefault(text, len(numbers)) for text in texts]
            counts.append(len(texts))
            labels += self.task.labels_of(row)
        tokens = self.tokenize(list(numbers))
        if self.task.tags_words and [] in tokens:
            word = list(numbers)[tokens.index([])].removeprefix(" ")
            raise InputError(
                f"{self.tokenizer.name_or_path}: the tokenizer makes no token of the word {word!r}"
            )
        # From here on a piece is the number of its text, and all rows are computed at once.
        pieces, firsts = np.array(pieces, dtype=np.int64), _bounds(counts)  # each row's first piece
        whole = _lengths(tokens)[pieces]
        kept, most = whole.copy(), self.max_length // 2 if self.echo else self.max_length
        too_long = np.flatnonzero(np.diff(_bounds(whole)[firsts]) > most)
        for row in too_long:
            part = slice(firsts[row], firsts[row + 1])
            # Every word is data, or what the template stands around.
            is_data = [self.task.tags_words or index % 2 == 1 for index in range(counts[row])]
            kept[part] = _lengths(shorten([tokens[piece] for piece in pieces[part]], is_data, most))
        ids = _take(tokens, pieces, kept)
        if self.task.tags_words:
            examples = self._tagged(ids, labels, whole, kept, firsts)
        else:
            examples = self._answered(ids, labels, _bounds(kept)[firsts])
        if len(ids) and examples.ids.max() >= self.vocab_size:
            raise InputError(
                f"the tokenizer says token {examples.ids.max()}, but the model knows "
                f"{self.vocab_size}: they do not fit"
            )
        return replace(examples, cut=len(too_long))

    def _tagged(
        self, ids: Array, labels: Labels, whole: Array, kept: Array, firsts: Array
    ) -> Examples:
        """Read each word at its first or last sub-token, unless that was cut away. Words have
        `whole` tokens, of which `kept` are left; `firsts` is each row's first word."""
        offset = whole - 1 if self.tag_last_subtoken else np.zeros_like(whole)
        is_read = offset < kept
        begins = _bounds(kept)
        starts, target_starts = begins[firsts], _bounds(is_read)[firsts]
        target_indices = (begins[:-1] + offset - np.repeat(starts[:-1], np.diff(firsts)))[is_read]
        targets = self._classes(compress(labels, is_read.tolist()))
        if self.echo:
            target_indices += np.repeat(np.diff(starts), np.diff(target_starts))
            ids, starts = _twice(ids, starts)
        words = np.diff(firsts)
        return Examples(ids, starts, target_indices.astype(np.int32), targets, target_starts, words)

    def _answered(self, ids: Array, labels: Labels, starts: Array) -> Examples:
        """Read at the text's last token, the mark; for the language model at the answer's too."""
        classes = [[index] for index in range(len(self.task.labels))]
        targets = classes if self.with_head else list(self.answers.values())
        targets.append([NO_LABEL])  # at the index NO_LABEL, which is -1
        classes = self._classes(labels)
        counts = _lengths(targets)[classes]
        target_indices = np.repeat(np.diff(starts) - 1, counts) + _within(counts)
        # The last target, an end token or a class, is predicted and never an input.
        ids = np.insert(ids, np.repeat(starts[1:], counts - 1), _take(targets, classes, counts - 1))
        starts, targets = starts + _bounds(counts - 1), _take(targets, classes, counts)
        return Examples(ids, starts, target_indices.astype(np.int32), targets, _bounds(counts))

    def _classes(self, labels: Iterable[str | None]) -> Array:
        known = {label: index for index, label in enumerate(self.task.labels)} | {None: NO_LABEL}
        try:
            return np.fromiter(map(known.__getitem__, labels), dtype=np.int32)
        except KeyError as error:
            raise InputError(
                f"unknown label {error.args[0]!r}; those of {self.task.name} are "
                f"{', '.join(self.task.labels)}"
            ) from None


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Tokenise texts, each on its own, without special tokens."""
    # The tokenizer's own call is slower: it makes masks and offsets that nobody reads.
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # a call of someone else's stays set
    backend.no_padding()
    return [found.ids for found in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def answer_tokens(
    tokenizer: PreTrainedTokenizerFast, task: Task, source_text: bool, end: int
) -> dict[str, list[int]]:
    """Return the tokens that say each label, an end token behind them; {} for a tagging task."""
    if task.tags_words:
        return {}
    words = [task.answer(label, source_text) for label in task.labels]
    return {label: [*ids, end] for label, ids in zip(task.labels, tokenize(tokenizer, words))}


def shorten(encoded: list[list[int]], is_data: list[bool], max_length: int) -> list[list[int]]:
    """Cut data pieces at their ends until all fit in `max_length`: a text's last words first, of a
    pair the longer sentence first. Return `encoded` itself where nothing is to be cut."""
    surplus = sum(map(len, encoded)) - max_length
    if surplus <= 0:
        return encoded
    data = [index for index, is_one in enumerate(is_data) if is_one]
    lengths = {index: len(encoded[index]) for index in data}
    if len(data) == len(encoded):  # a tagged sentence: its words go from the end
        for index in reversed(data):
            lengths[index] -= (lost := min(surplus, lengths[index]))
            surplus -= lost
    else:
        for _ in range(min(surplus, sum(lengths.values()))):
            lengths[max(data, key=lambda index: (lengths[index], index))] -= 1
    return [ids[: lengths.get(index, len(ids))] for index, ids in enumerate(encoded)]


def collate(examples: Examples, chosen: Sequence[int] | Array) -> Batch:
    """Pack the chosen examples one behind the other."""
    ids, target_indices, targets, lengths, counts = [], [], [], [], []
    for index in chosen:
        own = slice(*examples.starts[index : index + 2])
        read = slice(*examples.target_starts[index : index + 2])
        ids.append(examples.ids[own])
        target_indices.append(examples.target_indices[read] + sum(lengths))
        targets.append(examples.targets[read])
        lengths.append(own.stop - own.start)
        counts.append(read.stop - read.start)

    def tensor(parts: list[Array]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    sizes, counts = torch.tensor(lengths), torch.tensor(counts)
    return Batch(tensor(ids), sizes, tensor(target_indices), tensor(targets), counts)


def batches(order: Array, batch_size: int) -> Iterator[Array]:
    """Cut an order of examples into batches; the last one may be smaller. Of W processes each takes
    every W-th example of a W times larger batch, of the last one perhaps none."""
    size = batch_size * processes.world
    for begin in range(0, len(order), size):
        yield order[begin : begin + size][processes.process_index :: processes.world]


def _take(lists: list[list[int]], chosen: Array, counts: Array) -> Array:
    """Lay the first counts[i] values of lists[chosen[i]] one behind the other."""
    flat = np.fromiter(chain.from_iterable(lists), dtype=np.int32)
    begins = _bounds(_lengths(lists))[:-1]
    return flat[_within(counts) + np.repeat(begins[chosen], counts)]


def _twice(ids: Array, starts: Array) -> tuple[Array, Array]:
    """Put each text behind itself; return the new ids and starts."""
    counts, begins = np.diff(starts).repeat(2), starts[:-1].repeat(2)
    return ids[_within(counts) + np.repeat(begins, counts)], 2 * starts


def _within(counts: Array) -> Array:
    """Count 0 … counts[i] - 1 for each i."""
    bounds = _bounds(counts)
    return np.arange(bounds[-1]) - np.repeat(bounds[:-1], counts)


def _lengths(lists: list[list[int]]) -> Array:
    return np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))


def _bounds(counts: Sequence[int] | Array) -> Array:
    """Return where each part begins, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
