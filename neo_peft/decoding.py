"""From a tuned model to answers and scores.

A tag is the head's greatest class at its word, or a sentence's tags are chosen together
(viterbi.py). An answer is the greatest class of a head, where there is one, else it is decoded in
one of two ways. rank: the label whose first token has the highest probability at the mark.
generate: the model says up to 10 tokens, greedily, and the label that begins them is its answer;
where none does, the example is unanswered, which is wrong.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neo_peft import processes
from neo_peft.encoding import GENERATED, UNKNOWN, Encoder, Examples, batches, collate
from neo_peft.errors import InputError
from neo_peft.gptneo import Past
from neo_peft.metrics import class_scores, entity_scores
from neo_peft.model import Batch, TunedModel
from neo_peft.packing import Rows
from neo_peft.progress import Progress, no_progress
from neo_peft.tasks import Task
from neo_peft.viterbi import best_sequences


@dataclass(frozen=True)
class Evaluation:
    """Answers in the order of the rows: a label or None, or a list of tags; the loss per target, in
    nats; what was said, where text was generated, else the probabilities: of an answer those of all
    labels, of tags that of each."""

    predicted: list
    loss: float | None = None
    said: list[str] | None = None
    probabilities: list[list[float]] | None = None
    cut: int = 0  # texts that were shortened to what the model reads


@torch.inference_mode()
def evaluate(
    model: TunedModel,
    encoder: Encoder,
    examples: Examples,
    instruction: str = "",
    decode: str = "rank",
    batch_size: int = 32,
    with_loss: bool = False,
    progress: Progress = no_progress,
) -> Evaluation:
    """Answer encoded examples. A text that is given as `instruction` stands in front of each, as a
    prompt would.

    Several processes share out the batches, and each returns the answers of all.
    """
    model.eval()
    prefix = (
        model.text_prefix(encoder.tokenize([instruction])[0]) if instruction else model.prefix()
    )
    # Texts of like lengths together: attention alone is computed on a rectangle.
    order = np.argsort(np.diff(examples.starts), kind="stable")
    steps = [chosen for chosen in batches(order, batch_size) if len(chosen)]
    found, loss, targets = [], 0.0, 0
    for chosen in progress(steps, decode if decode == "generate" else "score", len(steps)):
        if decode == "generate":
            texts = generate(model, encoder, marked_texts(examples, chosen), prefix)
            answers = [(match_label(text, encoder.task), text) for text in texts]
        else:
            batch = collate(examples, chosen).to(model.device)
            hidden = model(batch, prefix)
            if not hidden.isfinite().all():
                raise InputError(
                    "the model computes numbers that are not finite: its weights are broken, or "
                    "too large"
                )
            answers = read_out(model, encoder, examples, chosen, batch, hidden, prefix)
            if with_loss:
                logits = model.logits(hidden).float()
                loss += float(
                    F.cross_entropy(logits, batch.targets, ignore_index=UNKNOWN, reduction="sum")
                )
                targets += int((batch.targets != UNKNOWN).sum())
        found += zip(chosen, answers, strict=True)
    loss, targets = processes.total(loss), processes.total(targets)
    predicted, extra = [None] * len(examples), [None] * len(examples)
    for index, (answer, more) in (one for part in processes.gather(found) for one in part):
        predicted[index], extra[index] = answer, more
    said, probabilities = (extra, None) if decode == "generate" else (None, extra)
    return Evaluation(
        predicted, loss / targets if targets else None, said, probabilities, examples.cut
    )


def marked_texts(examples: Examples, chosen: Sequence[int]) -> list[np.ndarray]:
    """Take the texts of answer examples up to their mark, without the answer."""
    texts = []
    for index in chosen:
        begin = examples.starts[index]
        texts.append(examples.ids[begin : begin + examples.reads[examples.read_starts[index]] + 1])
    return texts


def read_out(
    model: TunedModel,
    encoder: Encoder,
    examples: Examples,
    chosen: Sequence[int],
    batch: Batch,
    hidden: Tensor,
    prefix: Past | None,
) -> list[tuple]:
    """Answer the chosen examples, which are the batch, from the hidden states (M, H) that they are
    read at: by the model's head, else by rank. Return each one's answer and its probabilities."""
    if model.head is None:
        return rank(model, encoder, batch, hidden, marked_texts(examples, chosen), prefix)
    return read_head(model, encoder, batch, hidden)


def read_head(model: TunedModel, encoder: Encoder, batch: Batch, hidden: Tensor) -> list[tuple]:
    """Decide by a head's greatest class, or by the best sequence of them: for each example its
    label and the probability of every label, or its tags and the probability of each."""
    labels = encoder.task.labels
    # A head has a dtype of its own, fp32, so that nothing is cast here: scores in bf16 would tie.
    scores, counts = model.head(hidden.float()).log_softmax(1), batch.read_counts.tolist()
    best = best_sequences(scores, counts, labels) if encoder.viterbi else scores.argmax(1)
    probabilities = scores.exp()
    if not encoder.task.tags_words:
        return [
            (labels[index], row)
            for index, row in zip(best.tolist(), probabilities.tolist(), strict=True)
        ]
    words = zip(
        best.tolist(), probabilities.gather(1, best[:, None]).squeeze(1).tolist(), strict=True
    )
    sentences = [[next(words) for _ in range(count)] for count in counts]
    return [
        ([labels[index] for index, _ in words], [value for _, value in words])
        for words in sentences
    ]


def rank(
    model: TunedModel,
    encoder: Encoder,
    batch: Batch,
    hidden: Tensor,
    texts: list[np.ndarray],
    prefix: Past | None,
) -> list[tuple[str, list[float]]]:
    """Rank the labels of each text: by their first token, and those that share it by the sum over
    all of their tokens and the end token. Return the best label and the probability of every label
    among them."""
    labels = encoder.task.labels
    answers = [encoder.answers[label] for label in labels]
    first = sorted({answer[0] for answer in answers})
    marks = batch.read_counts.cumsum(0) - batch.read_counts  # each example's first read row
    wte = model.transformer.wte.weight
    scores = (
        hidden[marks.to(hidden.device)].float()
        @ wte[torch.tensor(first, device=hidden.device)].float().T
    )
    of_first = torch.tensor([first.index(answer[0]) for answer in answers], device=hidden.device)
    # of its first token's probability, in nats
    share = torch.zeros(len(texts), len(labels), device=hidden.device)
    for token in first:
        tied = [index for index, answer in enumerate(answers) if answer[0] == token]
        if len(tied) > 1:
            sums = [log_probabilities(model, texts, answers[index], prefix) for index in tied]
            share[:, tied] = torch.stack(sums, dim=1).log_softmax(1)
    probabilities = (scores.log_softmax(1)[:, of_first] + share).exp()
    best = share.masked_fill(of_first != scores.argmax(1, keepdim=True), -math.inf).argmax(1)
    return [
        (labels[index], row)
        for index, row in zip(best.tolist(), probabilities.tolist(), strict=True)
    ]


def log_probabilities(
    model: TunedModel, texts: list[np.ndarray], answer: list[int], prefix: Past | None
) -> Tensor:
    """Compute log p(answer | text) for each text, (B,), its end token included; in fp32."""
    starts = np.cumsum([0, *(len(text) + len(answer) - 1 for text in texts)])
    ids = np.concatenate([np.concatenate([text, answer[:-1]]) for text in texts])
    reads = np.concatenate(
        [start + len(text) - 1 + np.arange(len(answer)) for start, text in zip(starts, texts)]
    )
    batch = Batch(
        torch.from_numpy(ids.astype(np.int64)),
        torch.from_numpy(np.diff(starts)),
        torch.from_numpy(reads),
        torch.tensor(answer * len(texts)),
        torch.full((len(texts),), len(answer)),
    ).to(model.device)
    logits = F.linear(model(batch, prefix).float(), model.transformer.wte.weight.float())
    return -F.cross_entropy(logits, batch.targets, reduction="none").view(len(texts), -1).sum(1)


@torch.inference_mode()
def generate(
    model: TunedModel, encoder: Encoder, texts: list[np.ndarray], prefix: Past | None
) -> list[str]:
    """Continue each text greedily by up to 10 tokens, or to the end token, and return what was
    said.

    Every example keeps its keys and values; a token is computed once. Texts that have ended leave
    the batch.
    """
    trunk, start = model.transformer, prefix.length if prefix else 0
    lengths = torch.tensor([len(text) for text in texts])
    rows = Rows.of_texts(lengths, start, together=True).to(model.device)
    ids = torch.from_numpy(np.concatenate(texts).astype(np.int64)).to(model.device)
    said = [[] for _ in texts]
    going = torch.arange(len(texts), device=model.device)
    positions = start + lengths.to(model.device)  # of the next token
    with model.autocast():
        hidden, past = trunk.forward_and_keep(trunk.embed(ids), rows, prefix)
        past = prefix.expand(len(texts)).then(past) if prefix else past
        last = hidden[torch.cumsum(lengths, 0).to(model.device) - 1]
        for step in range(GENERATED):
            tokens = F.linear(last, trunk.wte.weight).argmax(1)
            for index, token in zip(going.tolist(), tokens.tolist(), strict=True):
                said[index].append(token)
            alive = (tokens != encoder.end).nonzero().squeeze(1)
            if step == GENERATED - 1 or not len(alive):
                break
            if len(alive) < len(tokens):
                past, tokens, positions, going = (
                    past.select(alive),
                    tokens[alive],
                    positions[alive],
                    going[alive],
                )
            last, new = trunk.forward_and_keep(
                trunk.embed(tokens), Rows.of_next_tokens(positions), past
            )
            past, positions = past.then(new), positions + 1
    return [
        encoder.tokenizer.decode([token for token in ids if token != encoder.end]) for ids in said
    ]


def match_label(text: str, task: Task) -> str | None:
    """Find the label whose words begin a text, the longest first: "not equivalent" before
    "equivalent", else None."""
    said = text.strip().lower()
    words = {task.answer(label).strip().lower(): label for label in task.labels}
    return next(
        (words[word] for word in sorted(words, key=len, reverse=True) if said.startswith(word)),
        None,
    )


def score(task: Task, rows: Sequence[dict], predicted: Sequence) -> dict:
    """Score answers against the rows' own labels: entity scores for tags, accuracy and F1 for
    answers."""
    gold = [row[task.fields[-1]] for row in rows]
    return (
        entity_scores(gold, predicted)
        if task.tags_words
        else class_scores(gold, predicted, task.labels)
    )


def majority_scores(task: Task, train_rows: Sequence[dict], rows: Sequence[dict]) -> dict:
    """Score the answer that needs no model: the commonest label of the training rows; O for every
    word."""
    if task.tags_words:
        return score(task, rows, [["O"] * len(row["tokens"]) for row in rows])
    labels = [row[task.fields[-1]] for row in train_rows]
    commonest = max(task.labels, key=labels.count)
    return score(task, rows, [commonest] * len(rows))


def predict(
    model: TunedModel, encoder: Encoder, rows: Sequence[dict], batch_size: int = 32
) -> list:
    """Answer raw rows, whose labels are not needed: a label for each, or a list of one tag for each
    word."""
    unlabelled = [{field: row[field] for field in encoder.task.fields[:-1]} for row in rows]
    predicted = evaluate(model, encoder, encoder(unlabelled), batch_size=batch_size).predicted
    return pad_tags(rows, predicted) if encoder.task.tags_words else predicted


def pad_tags(rows: Sequence[dict], predicted: Sequence[list[str]]) -> list[list[str]]:
    """Say O for the words that were lost to truncation."""
    return [
        tags + ["O"] * (len(row["tokens"]) - len(tags))
        for row, tags in zip(rows, predicted, strict=True)
    ]


def perplexity(loss: float | None) -> float | None:
    """Compute exp(loss), loss in nats per answer token, the end token included; infinite where it
    overflows."""
    if loss is None:
        return None
    return math.exp(loss) if loss < 700 else math.inf
