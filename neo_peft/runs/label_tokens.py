"""Check that the tokens of the label texts can be told apart, before a model is trained on them.

The language model predicts a label by the tokens of its text and an end token (see
`decoding.score_labels`). A tokenizer can make the same tokens of two texts, for example an unknown
token of each word that it does not have, or no tokens at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from neo_peft.encoding import tokenize_labels
from neo_peft.errors import InputError
from neo_peft.settings import Settings, task_of

if TYPE_CHECKING:
    from neo_peft.formats.base import Base


def check_label_tokens(base: Base, settings: Settings, with_head: bool) -> str | None:
    """Raise InputError for label texts that the model cannot be trained to predict.

    with_head: a linear head predicts the labels. It can learn them even from the same tokens. Then
    a note is returned, because the untuned model predicts label texts.
    """
    task, config = task_of(settings), base.trunk.config
    tokens = tokenize_labels(
        base.tokenizer, task, settings.source_text, end_token=config.eos_token_id
    )
    advice = "give each label another text with --label-words, of words in the vocabulary"
    for label, ids in tokens.items():
        problem = None
        if len(ids) == 1:  # the end token
            problem = f"the tokenizer of {settings.model} has no tokens for it"
        elif max(ids) >= config.vocab_size:
            problem = f"it has the token id {max(ids)}, but the model has {config.vocab_size}"
        if problem:
            text = task.label_text(label, settings.source_text)
            raise InputError(f"the label {label} has the text {text!r}: {problem}; {advice}")
    if not (pair := first_prefix(tokens)):
        return None
    first, second = (tokens[label][:-1] for label in pair)
    problem = f"the tokenizer of {settings.model} makes of the labels {pair[0]} and {pair[1]} "
    if first == second:
        problem += f"the same tokens, {' '.join(base.tokenizer.convert_ids_to_tokens(first))}"
    else:
        problem += "tokens that differ only after an end token"
    if with_head:
        return f"{problem}: the untuned model cannot tell them apart; a trained head can"
    raise InputError(
        f"{problem}: the model can never tell them apart; {advice}, or train with --readout head"
    )


def first_prefix(tokens: dict[str, list[int]]) -> tuple[str, str] | None:
    """Return two labels of which the second one's tokens begin with those of the first, or None.

    With the end token this means: the second one is never more probable than the first one. " not"
    and " not equivalent" are no such labels, since the end token follows " not".
    """
    # In this order the tokens that begin with others come directly after one of those.
    ordered = sorted(tokens, key=tokens.get)
    for first, second in zip(ordered, ordered[1:]):
        if tokens[second][: len(tokens[first])] == tokens[first]:
            return first, second
    return None
