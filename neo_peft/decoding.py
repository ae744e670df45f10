"""From a tuned model to predictions and scores.

Tagging: the best sequence of tags for a sentence (viterbi.py), or the head's most probable tag for
each word. Classification: a linear head's most probable class, or, with the language model head,
the label that is most probable by its first token. If labels share it, kernels/label_tree.py
compares their other tokens. Free generation is in runs/generation.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from neo_peft.encoding import Encoder, Examples, batches, collate
from neo_peft.errors import InputError
from neo_peft.gptneo import Past
from neo_peft.kernels.label_tree import Stored, forward_and_store, log_probabilities
from neo_peft.metrics import class_scores, entity_scores
from neo_peft.model import Batch, TunedModel
from neo_peft.progress import Progress, no_progress
from neo_peft.system import processes
from neo_peft.tasks import Task
from neo_peft.viterbi import best_sequences


@dataclass(frozen=True)
class Evaluation:
    """A model's predictions for encoded examples, in the order of the examples."""

    # Each example's label, or None if generated text matches no label. In a tagging task, a list
    # of tags for each sentence, with `O` for words that were cut (None in runs/texts.py).
    predicted: list
    loss: float | None = None  # mean over the known targets, in nats; None if not computed
    probabilities: list[list[float]] | None = None  # of all labels, or of each predicted tag
    generated: list[str] | None = None  # the generated texts; None without free generation
    cut: int = 0  # number of texts that were cut to the maximum length
    used: list | None = None  # how much of each text was used, None for all: see runs/texts.py


class Prediction(NamedTuple):
    """The prediction for one example."""

    predicted: str | list[str]  # its label, or its tags
    probabilities: list[float]  # of all labels, or of each predicted tag


class HiddenStates(NamedTuple):
    """The hidden states at the target positions of a batch of rows."""

    examples: Examples  # the examples that the batch is taken from
    chosen: Sequence[int]  # the indices of the batch's rows
    batch: Batch  # the packed batch; where long texts need several passes, the first one's
    hidden: Tensor  # (M, H)
    past: Past | None  # the keys and values before every text, or None
    stored: Stored | None = None  # keys and values of the batch, to compare tied labels with


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
    """Return predictions for encoded rows. `instruction`, if given, replaces the prompt.

    A batch has `batch_size` rows. If long texts have more examples, it takes several passes of that
    size, so that the memory does not depend on a text's length. Several processes share the
    batches, and each process returns all predictions.
    """
    model.eval()
    past, losses, targets = past_before_texts(model, encoder, instruction), [], []
    first_tokens = {tokens[0] for tokens in encoder.label_tokens.values()}
    has_tied_labels = model.head is None and len(first_tokens) < len(encoder.label_tokens)

    def predict_chosen(chosen: np.ndarray) -> list[Prediction]:
        indices = examples.of_rows(chosen)
        parts = np.split(indices, range(batch_size, len(indices), batch_size))
        passes = [collate(examples, part).to(model.device) for part in parts]
        if has_tied_labels:  # a text to classify is one example, so there is one pass
            hidden, stored = forward_and_store(model, passes[0], past)
        else:
            hidden, stored = torch.cat([model(batch, past) for batch in passes]), None
        if not hidden.isfinite().all():
            raise InputError("the hidden states are not finite: damaged or too large weights")
        if with_loss:
            all_targets = torch.cat([batch.targets for batch in passes])
            losses.append(float(model.loss_of(hidden, all_targets)))
            targets.append(sum(batch.labelled for batch in passes))
        states = HiddenStates(examples, chosen, passes[0], hidden, past, stored)
        return predict_batch(model, encoder, states)

    predictions = in_batches(predict_chosen, examples, batch_size, progress, "score")
    count, loss_sum = processes.total(sum(targets)), processes.total(sum(losses, 0.0))
    predicted = [prediction.predicted for prediction in predictions]
    probabilities = [prediction.probabilities for prediction in predictions]
    loss = loss_sum / count if count else None
    return Evaluation(predicted, loss, probabilities, cut=examples.cut)


def past_before_texts(model: TunedModel, encoder: Encoder, instruction: str) -> Past | None:
    """Return the keys and values of `instruction`, or of the prompt if it is empty, or None."""
    if not instruction:
        return model.prompt_past()
    return model.instruction_past(encoder.tokenize([instruction])[0])


def in_batches(
    predict_chosen: Callable, examples: Examples, size: int, progress: Progress, title: str
) -> list:
    """Call `predict_chosen(indices)` for batches of rows; return all results in the order of the
    rows. Similar lengths share a batch: fewer grids, or less padding. The longest come first, so
    that memory peaks at the start."""
    lengths = examples.row_lengths
    order = np.argsort(lengths, kind="stable")
    index_batches = [chosen for chosen in batches(order, size) if len(chosen)][::-1]
    tokens, pairs = [int(lengths[chosen].sum()) for chosen in index_batches], []
    for chosen in progress(index_batches, title, sum(tokens), tokens):
        pairs += zip(chosen, predict_chosen(chosen), strict=True)
    by_index = dict(pair for part in processes.gather(pairs) for pair in part)
    return [by_index[index] for index in range(len(lengths))]


def predict_batch(model: TunedModel, encoder: Encoder, states: HiddenStates) -> list[Prediction]:
    """Return predictions for a batch, by the linear head or the language model head."""
    if model.head is None:
        return score_labels(model, encoder, states)
    return predict_by_head(model, encoder, states)


def predict_by_head(model: TunedModel, encoder: Encoder, states: HiddenStates) -> list[Prediction]:
    """Return predictions of a linear head: the most probable classes, or the best tag sequences."""
    labels, examples = encoder.task.labels, states.examples
    row_targets = examples.target_starts[examples.row_starts]  # the windows of a row are one text
    counts = np.diff(row_targets)[states.chosen].tolist()
    # The head is fp32. In bf16 different scores could become equal.
    scores = model.head(states.hidden.float()).log_softmax(1)  # (M, K)
    best = best_sequences(scores, counts, labels) if encoder.viterbi else scores.argmax(1)
    probabilities = scores.exp()
    names = [labels[index] for index in best.tolist()]
    if not encoder.task.is_tagging:
        return list(map(Prediction, names, probabilities.tolist()))
    tag_probabilities = probabilities.gather(1, best[:, None]).flatten().tolist()
    predictions, start = [], 0
    for row, count in zip(states.chosen, counts, strict=True):
        end, cut_words = start + count, int(examples.word_counts[row]) - count
        tags = names[start:end] + ["O"] * cut_words
        predictions.append(Prediction(tags, tag_probabilities[start:end]))
        start = end
    return predictions


def score_labels(model: TunedModel, encoder: Encoder, states: HiddenStates) -> list[Prediction]:
    """Predict the most probable label, by its first token after the text. Labels with the same
    first token share its probability, in proportion to that of their other tokens."""
    labels, hidden, batch = encoder.task.labels, states.hidden, states.batch
    label_tokens = [encoder.label_tokens[label] for label in labels]
    first_tokens = sorted({tokens[0] for tokens in label_tokens})
    first_targets = batch.target_counts.cumsum(0) - batch.target_counts  # rows of `hidden` (B,)
    wte = model.transformer.wte.weight
    embeddings = wte[torch.tensor(first_tokens, device=hidden.device)].float()
    scores = hidden[first_targets.to(hidden.device)].float() @ embeddings.T  # (B, first tokens)
    columns = [first_tokens.index(tokens[0]) for tokens in label_tokens]  # column of each label
    columns = torch.tensor(columns, device=hidden.device)
    # The log of each label's share of the probability of its first token (B, K).
    log_share = torch.zeros(len(first_targets), len(labels), device=hidden.device)
    by_column = [[] for _ in first_tokens]
    for index, column in enumerate(columns.tolist()):
        by_column[column].append(index)
    if groups := [group for group in by_column if len(group) > 1]:
        tied = [index for group in groups for index in group]
        tokens = [label_tokens[index] for index in tied]
        log_share[:, tied] = log_probabilities(model, states, tokens)
        for group in groups:
            log_share[:, group] = log_share[:, group].log_softmax(1)
    best = (scores[:, columns] + log_share).argmax(1)
    probabilities = (scores.log_softmax(1)[:, columns] + log_share).exp().tolist()  # (B, K)
    return [Prediction(labels[index], row) for index, row in zip(best.tolist(), probabilities)]


def score(task: Task, rows: Sequence[dict], predicted: Sequence, strict: bool = False) -> dict:
    """Return the entity scores (`strict`: see `entities`) or the class scores of predictions."""
    gold = [row[task.fields[-1]] for row in rows]
    if task.is_tagging:
        return entity_scores(gold, predicted, strict)
    return class_scores(gold, predicted, task.labels)
