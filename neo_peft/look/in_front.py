"""What a trained prompt or prefix has become: its nearest words, its norms, and its attention."""

from dataclasses import replace

from torch import Tensor

from neo_peft.corpora.splits import limit_rows
from neo_peft.look.attention import attention_to_prompt
from neo_peft.look.nearest import nearest_first_keys, nearest_words
from neo_peft.look.subject import Subject
from neo_peft.model import TunedModel
from neo_peft.runs.adapter_set import copy_sharing_matrices
from neo_peft.runs.loading import load_untuned

TEXTS_OF_ATTENTION = 50


def describe_prompt(subject: Subject) -> dict | None:
    """Return what a prompt or prefix has become: words, norms, attention. None without one."""
    if subject.model.prompt is None:
        return None
    initial, tokenizer = initial_model(subject), subject.base.tokenizer
    models = [subject.model] if initial is None else [subject.model, initial]
    if subject.model.prompt.embeddings is not None:
        wte = subject.model.transformer.wte.weight.float()
        vectors = [model.prompt.embeddings.detach() for model in models]
        words = [nearest_words(part, wte, tokenizer) for part in vectors]
        norms = [{"embeddings": part.norm(dim=1).tolist()} for part in vectors]
        typical = {"embeddings": float(wte.norm(dim=1).mean())}
    else:
        keys = [first_keys(model) for model in models]
        with subject.model.autocast():
            words = nearest_first_keys(keys, subject.model.transformer, tokenizer)
        norms, typical = [past_norms(model) for model in models], {}
    chosen = limit_rows(list(range(len(subject.examples))), TEXTS_OF_ATTENTION)
    attention = attention_to_prompt(subject.model, subject.examples, chosen)
    return {
        "positions": len(subject.model.prompt),
        "compared_with": "words of wte" if typical else "keys of words in the first layer",
        "words": {"before": words[1] if initial else None, "after": words[0]},
        "norms": {"before": norms[1] if initial else None, "after": norms[0]},
        "typical_norms": typical,
        "attention": attention.tolist(),
        "attention_texts": len(chosen),
    }


def initial_model(subject: Subject) -> TunedModel | None:
    """Return the model with the prompt as it was before training. None if the run started from
    another adapter."""
    settings = subject.tuned.settings
    if settings.adapter:
        return None
    base = replace(subject.base, trunk=copy_sharing_matrices(subject.base.trunk))
    return load_untuned(settings, with_method=True, base=base).model


def first_keys(model: TunedModel) -> Tensor:
    """Return a prefix's keys (P, H) in the first layer."""
    return model.prompt_past().keys[0][0].transpose(0, 1).flatten(1).detach()


def past_norms(model: TunedModel) -> dict:
    """Return the norms of a prefix's keys and values, (layers, P) each, over all heads."""
    past = model.prompt_past()
    return {
        name: [tensor[0].float().norm(dim=(0, 2)).tolist() for tensor in tensors]
        for name, tensors in (("keys", past.keys), ("values", past.values))
    }
