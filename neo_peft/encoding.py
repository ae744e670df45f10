"""From rows of data to token ids, and to batches.

An example is token ids, the positions in them at which the model is read, and the target at each.
Texts are tokenised piece by piece (Task.texts), all distinct pieces in one call: the words of a
tagged sentence, or the template and the sentences of an answer task. There is no padding token
anywhere.
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

UNKNOWN = -1  # the target where a row's label is not given
GENERATED = 10  # the most tokens of free generation


@dataclass(frozen=True)
class Examples:
    """n encoded examples in flat arrays.

    ids, starts: the tokens of example i are ids[starts[i] : starts[i + 1]].
    reads, read_starts: likewise the positions at which it is read, counted from its own first
        token.
    targets: the class or token to predict at each of them.
    words: how many words each has, those that were cut away included; None for answer tasks.
    cut: how many examples were shortened.
    """

    ids: np.ndarray
    starts: np.ndarray
    reads: np.ndarray
    targets: np.ndarray
    read_starts: np.ndarray
    words: np.ndarray | None = None
    cut: int = 0

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each example."""
        return np.diff(self.starts)

    @cached_property
    def labelled(self) -> np.ndarray:
        """The number of known targets of each example."""
        return np.diff(_bounds(self.targets != UNKNOWN)[self.read_starts])

    def digest(self) -> str:
        """Hash all that they hold."""
        arrays = (self.ids, self.starts, self.reads, self.targets, self.read_starts)
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


@dataclass(frozen=True)
class Encoder:
    """Encodes rows for one task and one kind of head.

    end: the end token.
    with_head: the target is a class; without it the tokens of the label's words and an end token.
    max_length: the most tokens of a text, its template included; a longer text is cut.
    vocab_size: the tokens that the model knows.
    read_last: read a word at its last sub-token in place of its first.
    source_text: word a row as the source does.
    viterbi: choose the tags of a sentence together, in place of each word's best.
    echo: give a tagged sentence twice, and read the second copy, where a causal model has seen all
        of it (Springer et al. 2024, section 3). Both copies together have at most `max_length`
        tokens.
    """

    task: Task
    tokenizer: PreTrainedTokenizerFast
    end: int
    with_head: bool
    max_length: int
    vocab_size: int
    read_last: bool = False
    source_text: bool = False
    viterbi: bool = False
    echo: bool = False

    @cached_property
    def answers(self) -> dict[str, list[int]]:
        """The tokens that say each label, an end token behind them."""
        return answer_tokens(self.tokenizer, self.task, self.source_text, self.end)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return tokenize(self.tokenizer, texts)

    def __call__(self, rows: Sequence[dict]) -> Examples:
        """Encode rows. One without a label has the target UNKNOWN, and is read at its mark."""
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
            is_data = [piece.is_data for piece in self.task.pieces(rows[row], self.source_text)]
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
        self,
        ids: np.ndarray,
        labels: list[str | None],
        whole: np.ndarray,
        kept: np.ndarray,
        firsts: np.ndarray,
    ) -> Examples:
        """Read each word at its first or last sub-token. One that was cut away there is not read.

        Words have `whole` tokens, of which `kept` are left; `firsts` is each row's first word.
        """
        offset = whole - 1 if self.read_last else np.zeros_like(whole)
        is_read = offset < kept
        begins = _bounds(kept)
        starts, read_starts = begins[firsts], _bounds(is_read)[firsts]
        reads = (begins[:-1] + offset - np.repeat(starts[:-1], np.diff(firsts)))[is_read]
        targets = self._classes(compress(labels, is_read.tolist()))
        if self.echo:
            reads += np.repeat(np.diff(starts), np.diff(read_starts))
            ids, starts = _twice(ids, starts)
        words = np.diff(firsts)
        return Examples(ids, starts, reads.astype(np.int32), targets, read_starts, words)

    def _answered(self, ids: np.ndarray, labels: list[str | None], starts: np.ndarray) -> Examples:
        """Read at the mark, the last token of the text, and for the language model at the answer's
        tokens too."""
        names = self.task.labels
        targets = [[index] for index in range(len(names))]
        if not self.with_head:
            targets = [self.answers[name] for name in names]
        targets.append([UNKNOWN])  # at the index UNKNOWN, which is -1
        classes = self._classes(labels)
        counts = _lengths(targets)[classes]
        reads = np.repeat(np.diff(starts) - 1, counts) + _within(counts)
        # The last target, an end token or a class, is predicted and never an input.
        ids = np.insert(ids, np.repeat(starts[1:], counts - 1), _take(targets, classes, counts - 1))
        return Examples(
            ids,
            starts + _bounds(counts - 1),
            reads.astype(np.int32),
            _take(targets, classes, counts),
            _bounds(counts),
        )

    def _classes(self, labels: Iterable[str | None]) -> np.ndarray:
        known = {label: index for index, label in enumerate(self.task.labels)} | {None: UNKNOWN}
        try:
            return np.fromiter(map(known.__getitem__, labels), dtype=np.int32)
        except KeyError as error:
            raise InputError(
                f"unknown label {error.args[0]!r}; those of {self.task.name} are "
                f"{', '.join(self.task.labels)}"
            ) from None


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Tokenise texts, each on its own, without special tokens."""
    # Its own call gives the same ids more slowly: for each text it makes masks and offsets that
    # nobody reads.
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


def collate(examples: Examples, chosen: Sequence[int] | np.ndarray) -> Batch:
    """Pack the chosen examples one behind the other."""
    ids, reads, targets, lengths, counts, first = [], [], [], [], [], 0
    for index in chosen:
        begin, end = examples.starts[index], examples.starts[index + 1]
        read_begin, read_end = examples.read_starts[index], examples.read_starts[index + 1]
        ids.append(examples.ids[begin:end])
        reads.append(examples.reads[read_begin:read_end] + first)
        targets.append(examples.targets[read_begin:read_end])
        lengths.append(end - begin)
        counts.append(read_end - read_begin)
        first += end - begin

    def tensor(parts: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    return Batch(
        tensor(ids), torch.tensor(lengths), tensor(reads), tensor(targets), torch.tensor(counts)
    )


def batches(order: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Cut an order of examples into batches; the last one may be smaller.

    Of W processes each takes every W-th example of a W times larger batch; of the last one it may
    get none.
    """
    size = batch_size * processes.world
    for begin in range(0, len(order), size):
        yield order[begin : begin + size][processes.process_index :: processes.world]


def _take(lists: list[list[int]], chosen: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Lay the first counts[i] values of lists[chosen[i]] one behind the other."""
    flat = np.fromiter(chain.from_iterable(lists), dtype=np.int32)
    begins = _bounds(_lengths(lists))[:-1]
    where = _within(counts)
    where += np.repeat(begins[chosen], counts)
    return flat[where]


def _twice(ids: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put each text behind itself; return the new ids and starts."""
    counts, begins = np.diff(starts).repeat(2), starts[:-1].repeat(2)
    return ids[_within(counts) + np.repeat(begins, counts)], 2 * starts


def _within(counts: np.ndarray) -> np.ndarray:
    """Count 0 … counts[i] - 1 for each i."""
    bounds = _bounds(counts)
    within = np.arange(bounds[-1])
    within -= np.repeat(bounds[:-1], counts)
    return within


def _lengths(lists: list[list[int]]) -> np.ndarray:
    return np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))


def _bounds(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Say where each part begins, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
