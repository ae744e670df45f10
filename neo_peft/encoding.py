"""From raw rows to batches: encode examples as flat arrays of token ids, and collate some of them
into a batch.

An example is token ids, the rows of them at which the model is read, and what it should say there.
Texts are tokenised piece by piece (Task.texts), all distinct pieces in one call: the words of a
tagged sentence, or the template and the sentences of an answer task. There is no padding token
anywhere.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, compress
from typing import Any

import numpy as np
import torch

from neo_peft import processes
from neo_peft.errors import InputError
from neo_peft.gptneo import Config
from neo_peft.model import Batch
from neo_peft.settings import Settings
from neo_peft.tasks import Task

UNKNOWN = -1  # the target of a row whose label is not given
GENERATED = 10  # tokens that free generation may say


@dataclass(frozen=True)
class Examples:
    """n encoded examples in flat arrays: example i has the ids[starts[i] : starts[i + 1]], and
    likewise its reads (counted from its own first token) and their targets. `cut` counts the
    examples that were shortened."""

    ids: np.ndarray
    starts: np.ndarray
    reads: np.ndarray
    targets: np.ndarray
    read_starts: np.ndarray
    cut: int = 0

    def __len__(self) -> int:
        return len(self.starts) - 1

    def digest(self) -> str:
        """Hash all that they hold."""
        arrays = (self.ids, self.starts, self.reads, self.targets, self.read_starts)
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


@dataclass
class Encoder:
    """Encodes rows for one task and one readout.

    `with_head`: each read row's target is a class, else the tokens of the label's words and an end
    token. `max_length`: the most tokens of a text, its template included; longer text is cut at its
    end, never the mark. `echo`: give a tagged sentence twice, and read the second copy, where a
    causal model has seen all of it (Springer et al. 2024, section 3); `max_length` then holds both.
    `read_last`: read a word at its last sub-token in place of its first. `viterbi`: choose a
    sentence's tags together, in place of each word's best.
    """

    task: Task
    tokenizer: Any
    end: int
    with_head: bool
    max_length: int
    vocab_size: int
    read_last: bool = False
    source_text: bool = False
    viterbi: bool = False
    echo: bool = False
    answers: dict[str, list[int]] = field(init=False)

    def __post_init__(self):
        words = [self.task.answer(label, self.source_text) for label in self.task.labels]
        tokens = (
            dict(zip(self.task.labels, self.tokenize(words), strict=True))
            if not self.task.tags_words
            else {}
        )
        self.answers = {label: [*ids, self.end] for label, ids in tokens.items()}

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise texts, each on its own, without special tokens."""
        # Its own call gives the same ids more slowly: for each text it makes masks and offsets that
        # nobody reads.
        tokenizer = self.tokenizer.backend_tokenizer
        tokenizer.no_truncation()  # a call of someone else's stays set
        tokenizer.no_padding()
        return [
            encoding.ids
            for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    def __call__(self, rows: Sequence[dict]) -> Examples:
        """Encode rows; one without a label gets UNKNOWN as its target, and is read at its mark
        alone."""
        # of the distinct texts, in the order in which they come
        numbers = defaultdict(lambda: len(numbers))
        pieces, counts, labels = [], [], []
        for row in rows:
            texts = self.task.texts(row, self.source_text)
            pieces += [numbers[text] for text in texts]
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
        ids, starts = _take(tokens, pieces, kept), _bounds(kept)[firsts]
        if self.task.tags_words:
            reads, targets, read_starts = self._words(labels, whole, kept, firsts)
            if self.echo:
                reads += np.repeat(np.diff(starts), np.diff(read_starts)).astype(np.int32)
                ids, starts = _twice(ids, starts)
        else:
            ids, starts, reads, targets, read_starts = self._answers(labels, ids, starts)
        if len(ids) and ids.max() >= self.vocab_size:
            raise InputError(
                f"the tokenizer says token {ids.max()}, but the model knows {self.vocab_size}: "
                "they do not fit"
            )
        return Examples(ids, starts, reads, targets, read_starts, len(too_long))

    def _words(
        self, labels: list[str | None], whole: np.ndarray, kept: np.ndarray, firsts: np.ndarray
    ):
        """Read each word at its first or last sub-token; a word that was cut away there is not
        read."""
        offset = whole - 1 if self.read_last else np.zeros_like(whole)
        is_read = offset < kept
        begins = _bounds(kept)
        reads = begins[:-1] + offset - np.repeat(begins[firsts[:-1]], np.diff(firsts))
        targets = self._classes(compress(labels, is_read.tolist()))
        return reads[is_read].astype(np.int32), targets, _bounds(is_read)[firsts]

    def _answers(self, labels: list[str | None], texts: np.ndarray, starts: np.ndarray):
        """Read at the mark, the last token of the text, and for the language model at the answer's
        tokens too."""
        classes = self._classes(labels)
        said = (
            [[index] for index in range(len(self.task.labels))]
            if self.with_head
            else list(self.answers.values())
        )
        said.append([UNKNOWN])  # what the class UNKNOWN, which is -1, stands for
        counts = _lengths(said)[classes]
        reads = np.repeat(np.diff(starts) - 1, counts) + _within(counts)
        # The end token, or the class, is said, never read: the last row that is read is the token
        # before it.
        ids = np.insert(texts, np.repeat(starts[1:], counts - 1), _take(said, classes, counts - 1))
        return (
            ids,
            starts + _bounds(counts - 1),
            reads.astype(np.int32),
            _take(said, classes, counts),
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


def make_encoder(
    task: Task,
    tokenizer: Any,
    config: Config,
    settings: Settings,
    with_head: bool,
    prompt_length: int = 0,
) -> Encoder:
    """Make the encoder of a run. `--max-length` defaults to what fits behind the prompt or the
    instruction, the longer of the two, so that the scores before and after tuning see the same
    text."""
    source_text = settings.source_text
    encoder = Encoder(
        task,
        tokenizer,
        config.eos_token_id,
        with_head,
        0,
        config.vocab_size,
        settings.read == "last",
        source_text,
        settings.tag_decoding == "viterbi",
        settings.echo,
    )
    room = config.max_position_embeddings - prompt_length
    needed = 2 if settings.echo else 1
    if not task.tags_words:
        instruction, *template = encoder.tokenize(
            [task.instruction, *task.said_template(source_text)]
        )
        answer = max(GENERATED, *map(len, encoder.answers.values()))
        room = config.max_position_embeddings - max(prompt_length, len(instruction)) - answer
        needed = sum(map(len, template)) + 1
    if room < needed:
        raise InputError(
            f"what stands in front (a prompt of {prompt_length} rows, an instruction), the "
            "template and the longest "
            f"answer do not fit into the model's {config.max_position_embeddings} positions; take "
            "a shorter prompt, "
            "or shorter label words"
        )
    encoder.max_length = settings.max_length or room
    if not needed <= encoder.max_length <= room:
        raise InputError(
            f"--max-length {encoder.max_length} does not fit: this model and prompt allow {needed} "
            f"to {room}"
        )
    return encoder


def collate(examples: Examples, chosen: Sequence[int] | np.ndarray) -> Batch:
    """Lay some examples one behind the other: ids (N,), and the rows that are read (M,) counted
    over the batch."""
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
    tensor = lambda parts: torch.from_numpy(np.concatenate(parts).astype(np.int64))  # noqa: E731
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
