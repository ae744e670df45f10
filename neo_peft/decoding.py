"""From a tuned model to answers and scores.

A tag is the head's greatest class at its word. An answer is decoded in one of two ways. rank: the label whose
first token has the highest probability at the mark. generate: the model says up to 10 tokens, greedily, and the
label that begins them is its answer; where none does, the example is unanswered, which is wrong.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neo_peft.data import GENERATED, UNKNOWN, Encoder, Examples, batches, collate
from neo_peft.gptneo import Past
from neo_peft.metrics import class_scores, entity_scores
from neo_peft.model import Batch, TunedModel
from neo_peft.progress import Progress, no_progress
from neo_peft.rows import Rows
from neo_peft.tasks import Task

DECODERS = ("rank", "generate")


@dataclass(frozen=True)
class Evaluation:
    """Answers in the order of the rows: a label or None, or a list of tags; the loss per target, in nats; what
    was said, where text was generated."""

    predicted: list
    loss: float | None = None
    said: list[str] | None = None


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
    """Answer encoded examples. A text that is given as `instruction` stands in front of each, as a prompt would."""
    model.eval()
    prefix = model.text_prefix(encoder.tokenize([instruction])[0]) if instruction else model.prefix()
    # Texts of like lengths together: attention alone is computed on a rectangle.
    order = np.argsort(np.diff(examples.starts), kind="stable")
    steps = list(batches(order, batch_size))
    predicted, said, loss, targets = [None] * len(examples), [""] * len(examples), 0.0, 0
    for chosen in progress(steps, decode if decode == "generate" else "score", len(steps)):
        batch = collate(examples, chosen).to(model.device)
        if decode == "generate":
            texts = generate(model, encoder, marked_texts(examples, chosen), prefix)
            answers = [match_label(text, encoder.task.labels) for text in texts]
            for index, text in zip(chosen, texts, strict=True):
                said[index] = text
        else:
            hidden = model(batch, prefix)
            answers = _classes(model, encoder, batch, hidden, prefix, lambda: marked_texts(examples, chosen))  # noqa: B023
            if with_loss:
                logits = model.logits(hidden).float()
                loss += float(F.cross_entropy(logits, batch.targets, ignore_index=UNKNOWN, reduction="sum"))
                targets += int((batch.targets != UNKNOWN).sum())
        for index, answer in zip(chosen, answers, strict=True):
            predicted[index] = answer
    return Evaluation(predicted, loss / targets if targets else None, said if decode == "generate" else None)


def marked_texts(examples: Examples, chosen: Sequence[int]) -> list[np.ndarray]:
    """Take the texts of answer examples up to their mark, without the answer."""
    texts = []
    for index in chosen:
        begin = examples.starts[index]
        texts.append(examples.ids[begin : begin + examples.reads[examples.read_starts[index]] + 1])
    return texts


def _classes(
    model: TunedModel,
    encoder: Encoder,
    batch: Batch,
    hidden: Tensor,
    prefix: Past | None,
    texts: Callable[[], list[np.ndarray]],
) -> list:
    """Decide by the greatest score, in fp32: logits in bf16 would tie. `texts` are made where labels tie."""
    labels = encoder.task.labels
    counts = batch.read_counts.tolist()
    if model.head is not None:
        # A head has a dtype of its own, fp32, so that nothing is cast here.
        best = [labels[index] for index in model.head(hidden.float()).argmax(1).tolist()]
        if not encoder.task.tags_words:
            return best
        tags = iter(best)
        return [[next(tags) for _ in range(count)] for count in counts]
    marks = torch.tensor(np.cumsum([0, *counts[:-1]]), device=hidden.device)  # each example's first read row
    answers = [encoder.answers[label] for label in labels]
    first = sorted({answer[0] for answer in answers})
    scores = hidden[marks].float() @ model.transformer.wte.weight[torch.tensor(first, device=hidden.device)].float().T
    best_first = [first[index] for index in scores.argmax(1).tolist()]
    chosen = [[label for label, ids in zip(labels, answers, strict=True) if ids[0] == token] for token in best_first]
    return _break_ties(model, encoder, chosen, prefix, texts)


def _break_ties(
    model: TunedModel,
    encoder: Encoder,
    candidates: list[list[str]],
    prefix: Past | None,
    texts: Callable[[], list[np.ndarray]],
) -> list[str]:
    """Labels that share their first token are ranked by the sum over all of their tokens and the end token."""
    best = [labels[0] for labels in candidates]
    open_ = [index for index, labels in enumerate(candidates) if len(labels) > 1]
    if not open_:
        return best
    sums, texts = {}, texts()
    for label in {label for index in open_ for label in candidates[index]}:
        tied = [index for index in open_ if label in candidates[index]]
        scores = log_probabilities(model, [texts[index] for index in tied], encoder.answers[label], prefix)
        sums.update({(index, label): score for index, score in zip(tied, scores.tolist(), strict=True)})
    for index in open_:
        best[index] = max(candidates[index], key=lambda label: sums[index, label])
    return best


def log_probabilities(model: TunedModel, texts: list[np.ndarray], answer: list[int], prefix: Past | None) -> Tensor:
    """Compute log p(answer | text) for each text, (B,), its end token included; in fp32."""
    starts = np.cumsum([0, *(len(text) + len(answer) - 1 for text in texts)])
    ids = np.concatenate([np.concatenate([text, answer[:-1]]) for text in texts])
    reads = np.concatenate([start + len(text) - 1 + np.arange(len(answer)) for start, text in zip(starts, texts)])
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
def generate(model: TunedModel, encoder: Encoder, texts: list[np.ndarray], prefix: Past | None) -> list[str]:
    """Continue each text greedily by up to 10 tokens, or to the end token, and return what was said.

    Every example keeps its keys and values; a token is computed once. Texts that have ended leave the batch.
    """
    trunk, start = model.transformer, prefix.length if prefix else 0
    lengths = torch.tensor([len(text) for text in texts])
    rows = Rows.of_texts(lengths, start).to(model.device)
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
                past, tokens, positions, going = past.select(alive), tokens[alive], positions[alive], going[alive]
            last, new = trunk.forward_and_keep(trunk.embed(tokens), Rows.of_next_tokens(positions), past)
            past, positions = past.then(new), positions + 1
    return [encoder.tokenizer.decode([token for token in ids if token != encoder.end]) for ids in said]


def match_label(text: str, labels: Sequence[str]) -> str | None:
    """Find the label that begins a text, the longest first: "not equivalent" before "equivalent". None: no label."""
    said = text.strip().lower()
    return next((label for label in sorted(labels, key=len, reverse=True) if said.startswith(label.lower())), None)


def score(task: Task, rows: Sequence[dict], predicted: Sequence) -> dict:
    """Score answers against the rows' own labels: entity scores for tags, accuracy and F1 for answers."""
    gold = [row[task.fields[-1]] for row in rows]
    return entity_scores(gold, predicted) if task.tags_words else class_scores(gold, predicted, task.labels)


def majority_scores(task: Task, train_rows: Sequence[dict], rows: Sequence[dict]) -> dict:
    """Score the answer that needs no model: the commonest label of the training rows; O for every word."""
    if task.tags_words:
        return score(task, rows, [["O"] * len(row["tokens"]) for row in rows])
    labels = [row[task.fields[-1]] for row in train_rows]
    commonest = max(task.labels, key=labels.count)
    return score(task, rows, [commonest] * len(rows))


def predict(model: TunedModel, encoder: Encoder, rows: Sequence[dict], batch_size: int = 32) -> list:
    """Answer raw rows, whose labels are not needed: a label for each, or a list of one tag for each word."""
    unlabelled = [{field: row[field] for field in encoder.task.fields[:-1]} for row in rows]
    predicted = evaluate(model, encoder, encoder(unlabelled), batch_size=batch_size).predicted
    return pad_tags(rows, predicted) if encoder.task.tags_words else predicted


def pad_tags(rows: Sequence[dict], predicted: Sequence[list[str]]) -> list[list[str]]:
    """Say O for the words that were lost to truncation."""
    return [tags + ["O"] * (len(row["tokens"]) - len(tags)) for row, tags in zip(rows, predicted, strict=True)]


def perplexity(loss: float | None) -> float | None:
    """Compute exp(loss), loss in nats per answer token, the end token included; infinite where it overflows."""
    if loss is None:
        return None
    return math.exp(loss) if loss < 700 else math.inf
