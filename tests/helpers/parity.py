"""The same random texts as packed and as padded batches, to compare with transformers and peft."""

import torch
from torch.nn.utils.rnn import pad_sequence

from neo_peft.model import Batch

LENGTHS = (17, 5, 26)  # all different; two are longer than the tiny model's window of 11


def random_texts(lengths=LENGTHS, seed=11, vocab_size=8192):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, vocab_size, (length,), generator=generator) for length in lengths]


def batch_of(texts, indices=None, targets=None):
    """Return the packed batch of texts. Without `indices` all tokens are target positions."""
    lengths = torch.tensor([len(text) for text in texts])
    indices = torch.arange(int(lengths.sum())) if indices is None else indices
    targets = torch.full((len(indices),), -1) if targets is None else targets
    ends = lengths.cumsum(0)
    counts = torch.tensor(
        [
            int(((indices >= end - length) & (indices < end)).sum())
            for length, end in zip(lengths, ends)
        ]
    )
    return Batch(torch.cat(texts), lengths, indices, targets, counts)


def padded(texts, value=0):
    """Return the texts as one tensor (B, T), padded on the right."""
    return pad_sequence(texts, batch_first=True, padding_value=value)


def real_rows(padded_batch, texts):
    """Return the entries (N, C) of all tokens from (B, T, C), without padding."""
    return torch.cat([row[: len(text)] for row, text in zip(padded_batch, texts, strict=True)])


def all_logits(model, batch):
    return model.logits(model(batch))


def backward(logits):
    """Backpropagate the logits' sum with random weights, so that errors do not cancel."""
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(12))
    (logits * weights).sum().backward()


def assert_close(ours, theirs, tolerance=1e-5):
    """Assert that tensors are equal within tolerance × the largest entry, which must not be 0."""
    assert ours.shape == theirs.shape
    assert theirs.abs().max() > 0
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def bits(model):
    """Return copies of all parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved(before, model):
    """Return the names of the parameters that have changed since `bits`."""
    return {
        name
        for name, parameter in model.named_parameters()
        if not torch.equal(parameter, before[name])
    }
