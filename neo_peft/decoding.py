"""From a tuned model to answers and scores.

A tag is the head's most probable class at its word, or a sentence's tags are chosen together
(viterbi.py). An answer is the most probable class of a head, where there is one, or the label whose
first token has the highest probability at the mark. (What the language model would say freely is
another question, which runs/generation.py answers.)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neo_peft import processes
from neo_peft.encoding import Encoder, Examples, batches, collate
from neo_peft.errors import InputError
from neo_peft.gptneo import Past
from neo_peft.metrics import class_scores, entity_scores
from neo_peft.model import Batch, TunedModel
from neo_peft.progress import Progress, no_progress
from neo_peft.tasks import Task
from neo_peft.viterbi import best_sequences


@dataclass(frozen=True)
class Evaluation:
    """What a model predicts for encoded examples, in their order."""

    # A label for each, None where generated text names none; or tags, `O` for words cut away.
    predicted: list
    loss: float | None = None  # nats per target, where it was asked for
    probabilities: list[list[float]] | None = None  # of all labels, or of each chosen tag
    generated: list[str] | None = None  # the text, where it was generated
    cut: int = 0  # texts that were shortened to what the model reads


class Answer(NamedTuple):
    """What is predicted for one example, as in `Evaluation`."""

    predicted: str | list[str]
    probabilities: list[float]


class States(NamedTuple):
    """The hidden states at which a batch of examples is read."""

    examples: Examples
    chosen: Sequence[int]  # those of the batch
    batch: Batch
    hidden: Tensor  # (M, H)
    prefix: Past | None  # behind which they were computed


@torch.inference_mode()
def evaluate(
    model: TunedModel,
    encoder: Encoder,
    examples: Examples,
    instruction: str = "",
    batch_size: int = 32,
    with_loss: bool = False,
    progress: Progress = no_progress,
) -> Evaluation:
    """Answer encoded examples. An `instruction` stands in front of each text, as a prompt would.

    Several processes share out the batches, and each returns the answers of all.
    """
    prefix, loss, targets = make_prefix(model, encoder, instruction), [], []

    def answer(chosen: np.ndarray) -> list[Answer]:
        batch = collate(examples, chosen).to(model.device)
        hidden = model(batch, prefix)
        if not hidden.isfinite().all():
            broken = "its weights are broken, or too large"
            raise InputError(f"the model computes numbers that are not finite: {broken}")
        if with_loss:
            loss.append(float(model.loss_of(hidden, batch.targets)))
            targets.append(batch.labelled)
        return predict_batch(model, encoder, States(examples, chosen, batch, hidden, prefix))

    answers = in_batches(answer, examples, batch_size, progress, "score")
    count, summed = processes.total(sum(targets)), processes.total(sum(loss, 0.0))
    predicted, probabilities = ([one[place] for one in answers] for place in (0, 1))
    return Evaluation(predicted, summed / count if count else None, probabilities, cut=examples.cut)


def make_prefix(model: TunedModel, encoder: Encoder, instruction: str) -> Past | None:
    """Return what stands in front of every text: the instruction if there is one, or the prompt."""
    model.eval()
    if not instruction:
        return model.prefix()
    return model.text_prefix(encoder.tokenize([instruction])[0])


def in_batches(
    answer: Callable, examples: Examples, size: int, progress: Progress, what: str
) -> list:
    """Answer all examples, batch by batch, and return the answers in their order. Texts of like
    lengths go together: attention is computed on a grid."""
    order = np.argsort(examples.lengths, kind="stable")
    steps = [chosen for chosen in batches(order, size) if len(chosen)]
    found = []
    for chosen in progress(steps, what, len(steps)):
        found += zip(chosen, answer(chosen), strict=True)
    by_index = dict(one for part in processes.gather(found) for one in part)
    return [by_index[index] for index in range(len(examples))]


def predict_batch(model: TunedModel, encoder: Encoder, states: States) -> list[Answer]:
    """Answer a batch: by the model's head, else by the labels' probabilities."""
    if model.head is None:
        return score_labels(model, encoder, states)
    return predict_by_head(model, encoder, states)


def predict_by_head(model: TunedModel, encoder: Encoder, states: States) -> list[Answer]:
    """Choose a head's most probable class, or the best sequence of them."""
    labels, counts = encoder.task.labels, states.batch.target_counts.tolist()
    # A head has a dtype of its own, fp32, so that nothing is cast here: scores in bf16 would tie.
    scores = model.head(states.hidden.float()).log_softmax(1)  # (M, K)
    best = best_sequences(scores, counts, labels) if encoder.viterbi else scores.argmax(1)
    probabilities = scores.exp()
    names = [labels[index] for index in best.tolist()]
    if not encoder.task.tags_words:
        return list(map(Answer, names, probabilities.tolist()))
    chosen, answers, first = probabilities.gather(1, best[:, None]).squeeze(1).tolist(), [], 0
    for example, count in zip(states.chosen, counts, strict=True):
        own, lost = slice(first, first + count), int(states.examples.words[example]) - count
        answers.append(Answer(names[own] + ["O"] * lost, chosen[own]))
        first += count
    return answers


def score_labels(model: TunedModel, encoder: Encoder, states: States) -> list[Answer]:
    """Choose the label whose first token has the highest probability at the mark; of labels that
    share it, by the sum over all of their tokens and the end token."""
    labels, hidden, batch = encoder.task.labels, states.hidden, states.batch
    answers = [encoder.answers[label] for label in labels]
    first = sorted({answer[0] for answer in answers})
    marks = batch.target_counts.cumsum(0) - batch.target_counts  # where each example is first read
    wte = model.transformer.wte.weight
    rows = wte[torch.tensor(first, device=hidden.device)].float()
    scores = hidden[marks.to(hidden.device)].float() @ rows.T  # (B, first tokens)
    of_first = torch.tensor([first.index(answer[0]) for answer in answers], device=hidden.device)
    # A label's share of its first token's probability, in nats.
    share = torch.zeros(len(marks), len(labels), device=hidden.device)
    for token in first:
        tied = [index for index, answer in enumerate(answers) if answer[0] == token]
        if len(tied) > 1:
            texts = texts_without_answer(states.examples, states.chosen)
            sums = [log_probabilities(model, texts, answers[one], states.prefix) for one in tied]
            share[:, tied] = torch.stack(sums, dim=1).log_softmax(1)
    probabilities = (scores.log_softmax(1)[:, of_first] + share).exp()
    best = share.masked_fill(of_first != scores.argmax(1, keepdim=True), -math.inf).argmax(1)
    return [Answer(labels[index], row) for index, row in zip(best.tolist(), probabilities.tolist())]


def texts_without_answer(examples: Examples, chosen: Sequence[int]) -> list[np.ndarray]:
    """Return the tokens of answer examples up to their mark, without the answer."""
    texts = []
    for index in chosen:
        begin = examples.starts[index]
        texts.append(
            examples.ids[begin : begin + examples.target_indices[examples.target_starts[index]] + 1]
        )
    return texts


def log_probabilities(
    model: TunedModel, texts: list[np.ndarray], answer: list[int], prefix: Past | None
) -> Tensor:
    """Return log p(answer | text) for each text, (B,), its end token included; in fp32."""
    starts = np.cumsum([0, *(len(text) + len(answer) - 1 for text in texts)])
    ids = np.concatenate([np.concatenate([text, answer[:-1]]) for text in texts])
    target_indices = np.concatenate(
        [start + len(text) - 1 + np.arange(len(answer)) for start, text in zip(starts, texts)]
    )
    batch = Batch(
        torch.from_numpy(ids.astype(np.int64)),
        torch.from_numpy(np.diff(starts)),
        torch.from_numpy(target_indices),
        torch.tensor(answer * len(texts)),
        torch.full((len(texts),), len(answer)),
    ).to(model.device)
    logits = F.linear(model(batch, prefix).float(), model.transformer.wte.weight.float())
    return -F.cross_entropy(logits, batch.targets, reduction="none").view(len(texts), -1).sum(1)


def score(task: Task, rows: Sequence[dict], predicted: Sequence) -> dict:
    """Score predictions against the rows' own labels: entities of tags, or accuracy and F1."""
    gold = [row[task.fields[-1]] for row in rows]
    if task.tags_words:
        return entity_scores(gold, predicted)
    return class_scores(gold, predicted, task.labels)


def predict(
    model: TunedModel, encoder: Encoder, rows: Sequence[dict], batch_size: int = 32
) -> list:
    """Answer raw rows, with labels or without: by a label each, or by a tag for each word."""
    unlabelled = [{field: row[field] for field in encoder.task.fields[:-1]} for row in rows]
    return evaluate(model, encoder, encoder(unlabelled), batch_size=batch_size).predicted
