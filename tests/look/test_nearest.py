"""The nearest words of a prompt and of a prefix, compared with a loop, and with transformers."""

import numpy as np
import torch

from neo_peft.look import nearest
from neo_peft.look.nearest import nearest_first_keys, nearest_words


def best_by_hand(vector, rows, tokenizer):
    """Return the three rows with the largest cosine, as texts, and the cosines."""
    rows, vector = rows.double().numpy(), vector.double().numpy()
    cosines = [float(row @ vector / np.linalg.norm(row) / np.linalg.norm(vector)) for row in rows]
    best = sorted(range(len(rows)), key=lambda index: -cosines[index])[:3]
    return [(tokenizer.decode([index]), cosines[index]) for index in best]


def assert_same(found, expected):
    assert [word for word, _ in found] == [word for word, _ in expected]
    np.testing.assert_allclose([c for _, c in found], [c for _, c in expected], atol=1e-6)


def test_the_words_of_an_embedding_have_the_largest_cosines(base, monkeypatch):
    monkeypatch.setattr(nearest, "TOKENS_AT_ONCE", 1000)  # the vocabulary in parts
    wte = base.trunk.wte.weight.detach()
    vectors = torch.stack([torch.randn(24), 3 * wte[777], wte[5] + wte[6]])
    found = nearest_words(vectors, wte, base.tokenizer)
    for words, vector in zip(found, vectors, strict=True):
        assert_same(words, best_by_hand(vector, wte, base.tokenizer))
    assert found[1][0][0] == base.tokenizer.decode([777])


@torch.no_grad()
def test_the_keys_of_words_are_those_of_transformers_at_the_same_position(
    base, oracle, monkeypatch
):
    monkeypatch.setattr(nearest, "TOKENS_AT_ONCE", 3000)
    block, trunk = oracle.transformer.h[0], oracle.transformer
    one, two = torch.randn(3, 24), torch.randn(3, 24)
    found = nearest_first_keys([one, two], base.trunk, base.tokenizer)
    assert [len(words) for words in found] == [3, 3]
    for position in range(3):
        x = trunk.wte.weight + trunk.wpe.weight[position]
        keys = block.attn.attention.k_proj(block.ln_1(x))
        for words, prefix in zip(found, (one, two), strict=True):
            assert_same(words[position], best_by_hand(prefix[position], keys, base.tokenizer))


@torch.no_grad()
def test_a_prefix_from_words_is_nearest_to_them(base):
    ids = [11, 222, 3333]
    keys = base.trunk.past_of(base.trunk.embed(torch.tensor(ids))).keys[0][0]
    (found,) = nearest_first_keys([keys.transpose(0, 1).flatten(1)], base.trunk, base.tokenizer)
    for words, token in zip(found, ids, strict=True):
        assert words[0][0] == base.tokenizer.decode([token]) and words[0][1] > 1 - 1e-5
