"""What the tests against transformers and peft share: the same texts as our rows and as their
rectangle."""

import torch
from torch.nn.utils.rnn import pad_sequence

from neo_peft.model import Batch

LENGTHS = (17, 5, 26)  # uneven, and two of them longer than the tiny model's window of 11


def random_texts(lengths=LENGTHS, seed=11, vocab_size=8192):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, vocab_size, (length,), generator=generator) for length in lengths]


def batch_of(texts, indices=None, targets=None):
    """Lay texts out as our batch. All rows are read, unless `reads` says which."""
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
    """Lay texts out as a rectangle (B, T), padded on the right."""
    return pad_sequence(texts, batch_first=True, padding_value=value)


def real_rows(rectangle, texts):
    """Take the rows of the real tokens out of (B, T, C), in our order."""
    return torch.cat([row[: len(text)] for row, text in zip(rectangle, texts, strict=True)])


def all_logits(model, batch):
    return model.logits(model(batch))


def backward(logits):
    """Give every logit its own weight: no error can cancel in the gradients."""
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(12))
    (logits * weights).sum().backward()


def assert_close(ours, theirs, tolerance=1e-5):
    """Equal within a tolerance of the largest entry; all zero is no evidence."""
    assert ours.shape == theirs.shape
    assert theirs.abs().max() > 0
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def bits(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved(before, model):
    """Name the parameters of which any bit has changed."""
    return {
        name
        for name, parameter in model.named_parameters()
        if not torch.equal(parameter, before[name])
    }
