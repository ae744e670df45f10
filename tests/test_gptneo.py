"""The trunk, compared with transformers' GPTNeoForCausalLM: logits, and gradients of embeddings,
prefix and weights.

Our trunk gets packed batches. transformers gets one text at a time, without padding, with the
prefix in front of it.
"""

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from neo_peft.formats.base import load_base
from neo_peft.formats.base_folder import BUNDLED
from neo_peft.gptneo import NOWHERE, GPTNeo, Past, causal_mask
from neo_peft.packing import Packing
from neo_peft.runs.generation import forward_and_keep, next_hidden, with_room

WINDOW = 11  # the tiny model's
# Lengths: one token; below, at, just above and far above the window.
BATCHES = [(3, 1, 11), (5, 12, 1), (30, 1, 17, 12, 2), (40,)]
WORDS = [
    "Profit rose",
    "x",
    "Expression of the human interleukin-2 gene in activated T lymphocytes requires NF-kappa B and "
    "calcineurin.",
    "The company said that net sales fell to EUR 12.4 million from EUR 15.1 million a year "
    "earlier. " * 4,
]


# ---- Our model and transformers'


@dataclass
class Pair:
    """Our trunk and transformers' model, loaded from the same folder."""

    ours: GPTNeo
    theirs: GPTNeoForCausalLM


def load_pair(folder: Path) -> Pair:
    return Pair(
        load_base(str(folder)).trunk,
        GPTNeoForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(),
    )


@pytest.fixture(scope="module")
def pair(tiny_folder) -> Pair:
    return load_pair(tiny_folder)


def save(model, folder: Path, tokenizer: Path, shard: str = "5GB") -> Path:
    model.save_pretrained(folder, max_shard_size=shard)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder)
    return folder


def texts_of(*lengths: int, size: int = 24) -> list[Tensor]:
    return [torch.randn(length, size) for length in lengths]


def our_logits(trunk: GPTNeo, texts: list[Tensor], prefix: Tensor | None = None) -> Tensor:
    past = None if prefix is None else trunk.past_of(prefix)
    lengths = torch.tensor([len(text) for text in texts])
    packing = Packing.of_texts(lengths, past.length if past else 0)
    return F.linear(trunk(torch.cat(texts), packing, past), trunk.wte.weight)


def their_logits(
    model: GPTNeoForCausalLM, texts: list[Tensor], prefix: Tensor | None = None
) -> Tensor:
    start = 0 if prefix is None else len(prefix)
    whole = texts if prefix is None else [torch.cat([prefix, text]) for text in texts]
    return torch.cat([model(inputs_embeds=text[None]).logits[0, start:] for text in whole])


def with_gradients(logits, model: nn.Module, texts: list[Tensor], prefix: Tensor | None):
    """Return logits, and the gradients of embeddings and weights by name, of the logits' sum with
    random weights."""
    model = copy.deepcopy(model).requires_grad_()
    leaves = {f"text {index}": text.clone().requires_grad_() for index, text in enumerate(texts)}
    inputs = list(leaves.values())
    if prefix is not None:
        leaves["prefix"] = prefix.clone().requires_grad_()
    out = logits(model, inputs, leaves.get("prefix"))
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    leaves |= getattr(model, "transformer", model).named_parameters()
    return out.detach(), {name: leaf.grad for name, leaf in leaves.items()}


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """Assert that tensors are equal within tolerance × max(1, largest) and not all zero."""
    largest = theirs.abs().max().item()
    assert ours.shape == theirs.shape and largest > 0
    assert (ours - theirs).abs().max().item() <= tolerance * max(1.0, largest)


def assert_parity(pair: Pair, texts: list[Tensor], prefix: Tensor | None = None) -> None:
    logits, gradients = with_gradients(our_logits, pair.ours, texts, prefix)
    expected, expected_gradients = with_gradients(their_logits, pair.theirs, texts, prefix)
    assert_close(logits, expected)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        # In the backward pass of four layers fp32 rounding alone changes either side by up to 2e-5.
        assert_close(gradient, expected_gradients[name], 1e-4)


# ---- Texts alone


@pytest.mark.parametrize("lengths", BATCHES)
def test_logits_and_gradients_are_transformers_on_uneven_texts(pair, lengths):
    assert_parity(pair, texts_of(*lengths))


@pytest.mark.parametrize("form", ["shards", "without transformer.", "bf16", "fp16"])
def test_every_form_of_weights_that_save_pretrained_writes_gives_the_same_logits(
    tiny_folder, tmp_path, form
):
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(form, torch.float32)
    model = GPTNeoForCausalLM.from_pretrained(tiny_folder, dtype=dtype)
    model = model.transformer if form == "without transformer." else model
    folder = save(model, tmp_path / "saved", tiny_folder, "20KB" if form == "shards" else "5GB")
    assert (len(list(folder.glob("*.safetensors"))) > 2) == (form == "shards")
    assert_parity(load_pair(folder), texts_of(15, 1, 4))


def test_layers_window_epsilon_and_inner_size_come_from_the_config(tiny_folder, tmp_path):
    torch.manual_seed(3)
    config = GPTNeoConfig(
        vocab_size=50,
        hidden_size=12,
        num_layers=3,
        num_heads=2,
        max_position_embeddings=20,
        window_size=3,
        attention_types=[[["local"], 2], [["global"], 1]],
        intermediate_size=None,
        layer_norm_epsilon=0.3,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=7,
    )
    both = load_pair(save(GPTNeoForCausalLM(config), tmp_path / "other", tiny_folder))
    assert_parity(both, texts_of(9, 1, 20, size=12), None)
    assert_parity(both, texts_of(2, 5, size=12), texts_of(4, size=12)[0])
    assert both.ours.config.eos_token_id == 7 and both.ours.config.initializer_range == 0.3


def test_neo_mini_has_the_logits_of_transformers_on_real_texts():
    base = load_base("neo-mini")
    theirs = GPTNeoForCausalLM.from_pretrained(BUNDLED["neo-mini"], dtype=torch.float32).eval()
    ids = [torch.tensor(base.tokenizer.encode(text)) for text in WORDS]
    assert len(ids[1]) == 1 and len(ids[3]) > base.trunk.config.window_size
    embedded = [base.trunk.embed(text) for text in ids]
    with torch.no_grad():  # from ids, to compare the embedding too
        expected = torch.cat([theirs(input_ids=text[None]).logits[0] for text in ids])
        assert_close(our_logits(base.trunk, embedded), expected)
    assert_parity(Pair(base.trunk, theirs), embedded)


def test_only_the_wanted_tokens_are_returned_in_the_given_order(pair):
    texts, wanted = texts_of(5, 14, 2), torch.tensor([20, 4, 4, 11])
    packing = Packing.of_texts(torch.tensor([5, 14, 2]))
    hidden = pair.ours(torch.cat(texts), packing, wanted=wanted)
    assert_close(F.linear(hidden, pair.ours.wte.weight), their_logits(pair.theirs, texts)[wanted])


def no_window(trunk: GPTNeo) -> None:
    shift_window(trunk, 1000)


def shift_window(trunk: GPTNeo, by: int) -> None:
    for block in trunk.h:
        block.window_size = block.window_size and block.window_size + by


def divided_scores(trunk: GPTNeo) -> None:
    for block in trunk.h:
        block.attn.attention.q_proj.weight.data /= (24 / 3) ** 0.5


@pytest.mark.parametrize("prefix_length", [0, 4])
@pytest.mark.parametrize(
    "mistake",
    [
        divided_scores,
        no_window,
        lambda trunk: shift_window(trunk, 1),
        lambda trunk: shift_window(trunk, -1),
    ],
)
def test_the_comparison_detects_a_wrong_scale_and_a_wrong_window(pair, mistake, prefix_length):
    wrong = copy.deepcopy(pair.ours)
    mistake(wrong)
    texts, prefix = texts_of(3, 25), texts_of(prefix_length)[0] if prefix_length else None
    with torch.no_grad(), pytest.raises(AssertionError):
        assert_close(
            our_logits(wrong, texts, prefix), their_logits(pair.theirs, texts, prefix), 1e-3
        )


# ---- A shared prefix


@pytest.mark.parametrize(
    ("prefix_length", "lengths"),
    [
        (3, (5, 1, 7)),
        (1, (2, 12, 4)),
        (7, (9, 4, 1)),
        (10, (1, 2)),
        (11, (1, 3)),
        (17, (2, 30, 1)),
        (25, (4,)),
    ],
)
def test_a_shared_prefix_equals_the_prefix_in_front_of_each_text(pair, prefix_length, lengths):
    assert_parity(pair, texts_of(*lengths), texts_of(prefix_length)[0])


def test_the_causal_mask_worked_by_hand():
    keys = torch.tensor([[0, 1, 2, 3, NOWHERE]])
    queries = torch.tensor([[1, 3], [4, 0]])
    assert causal_mask(queries, keys, None).int().tolist() == [
        [[[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]],
        [[[1, 1, 1, 1, 0], [1, 0, 0, 0, 0]]],
    ]
    # A window of 2: the query itself and one token before it.
    assert causal_mask(queries, keys, 2).int().tolist() == [
        [[[1, 1, 0, 0, 0], [0, 0, 1, 1, 0]]],
        [[[0, 0, 0, 1, 0], [1, 0, 0, 0, 0]]],
    ]


# ---- Token by token

STEPS = 16  # more tokens than the window
FIRST = [4, 1, 13]  # number of tokens of each text in the first call


def hidden_states_by_steps(
    trunk: GPTNeo, texts: list[Tensor], prefix: Tensor | None, drop_at: int | None = None
) -> list[Tensor]:
    """Return the hidden states of each text: FIRST tokens in one call, then STEPS single tokens.

    From the step `drop_at` on only texts 2 and 0 continue, in this order.
    """
    start = 0 if prefix is None else len(prefix)
    before = None if prefix is None else trunk.past_of(prefix)
    heads = torch.cat([text[:first] for text, first in zip(texts, FIRST)])
    hidden, past = forward_and_keep(
        trunk, heads, Packing.of_texts(torch.tensor(FIRST), start, together=True), before
    )
    states = [[part] for part in hidden.split(FIRST)]
    past = (
        past if before is None else before.select(torch.zeros(len(texts), dtype=int)).concat(past)
    )
    active, slot, past = [0, 1, 2], past.length, with_room(past, STEPS)
    for step in range(STEPS):
        if step == drop_at:
            active, past = [2, 0], past.select(torch.tensor([2, 0]))
        x = torch.stack([texts[i][FIRST[i] + step] for i in active])
        positions = torch.tensor([start + FIRST[text] + step for text in active])
        hidden = next_hidden(trunk, x, positions, past, slot + step)
        for text, state in zip(active, hidden):
            states[text].append(state[None])
    assert past.length == start + max(FIRST) + STEPS
    return [torch.cat(parts) for parts in states]


@pytest.mark.parametrize("drop_at", [None, 5])
@pytest.mark.parametrize("prefix_length", [0, 4, 17])
def test_token_by_token_gives_the_logits_of_one_call(pair, prefix_length, drop_at):
    texts = texts_of(*(first + STEPS for first in FIRST))
    prefix = texts_of(prefix_length)[0] if prefix_length else None
    with torch.no_grad():
        states = hidden_states_by_steps(pair.ours, texts, prefix, drop_at)
        assert [len(hidden) for hidden in states] == [
            20,
            17 if drop_at is None else 1 + drop_at,
            29,
        ]
        for text, hidden in zip(texts, states):
            ours = F.linear(hidden, pair.ours.wte.weight)
            assert_close(ours, their_logits(pair.theirs, [text], prefix)[: len(ours)])


def test_the_keys_of_padding_have_no_position():
    # Keys of padding are between a short text and its next token, which must not attend to them.
    both = Past((), (), torch.tensor([[0, 1, NOWHERE]])).select(torch.tensor([0, 0]))
    longer = both.concat(Past((), (), torch.tensor([[2], [3]])))
    assert longer.positions.tolist() == [[0, 1, NOWHERE, 2], [0, 1, NOWHERE, 3]]
    assert longer.select(torch.tensor([1])).positions.tolist() == [[0, 1, NOWHERE, 3]]
    assert longer.length == 4


# ---- Low precision


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 1.5e-2)])
def test_attention_with_scores_far_over_65504_is_finite_and_softmax_is_in_fp32(
    tiny_folder, dtype, tolerance
):
    trunk = load_base(str(tiny_folder), dtype).trunk
    calls = [[] for _ in trunk.h]  # q, k, v and output of each layer, for the prefix and the text
    for block, stored in zip(trunk.h, calls):
        attention = block.attn.attention
        attention.q_proj.weight.data *= 100
        attention.k_proj.weight.data *= 100
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(attention, name).register_forward_hook(
                lambda _, __, out, stored=stored: stored.append(out.detach())
            )
        attention.out_proj.register_forward_pre_hook(
            lambda _, x, stored=stored: stored.append(x[0].detach())
        )
    text, prefix = (embeddings.requires_grad_() for embeddings in texts_of(17, 5))
    with torch.autocast("cpu", dtype):
        hidden = trunk(text, Packing.of_texts(torch.tensor([17]), start=5), trunk.past_of(prefix))
    hidden.float().pow(2).sum().backward()
    assert hidden.isfinite().all() and text.grad.isfinite().all() and prefix.grad.isfinite().all()

    for block, stored in zip(trunk.h, calls):
        assert {tensor.dtype for tensor in stored} == {dtype}
        q, k, v, out = (
            torch.cat(parts).view(-1, 3, 8).transpose(0, 1).float()
            for parts in zip(stored[:4], stored[4:])
        )
        computed = out.shape[1]  # the last layer computes only keys and values of the prefix
        assert computed == (17 if block is trunk.h[-1] else 22)
        scores = q @ k.transpose(1, 2)
        assert scores.abs().max() > 2 * 65504
        masked = torch.ones(22, 22).triu(1).bool()
        if block.window_size:
            masked |= torch.ones(22, 22).tril(-WINDOW).bool()
        expected = scores.masked_fill(masked, -torch.inf).softmax(2) @ v
        assert_close(out, expected[:, -computed:], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-2), (torch.bfloat16, 1e-1)])
def test_the_residual_stream_stays_fp32_in_low_precision(tiny_folder, pair, dtype, tolerance):
    trunk, blocks = load_base(str(tiny_folder), dtype).trunk, []
    for block in trunk.h:
        block.register_forward_hook(lambda _, x, out: blocks.append(out[0].dtype))
    ids = torch.tensor([5, 812, 77, 4000])
    with torch.no_grad(), torch.autocast("cpu", dtype):
        hidden = trunk(trunk.embed(ids), Packing.of_texts(torch.tensor([3, 1])))
    assert trunk.embed(ids).dtype == torch.float32 and set(blocks) == {torch.float32}
    with torch.no_grad():
        expected = [
            pair.theirs.transformer(input_ids=text[None]).last_hidden_state[0]
            for text in ids.split([3, 1])
        ]
    assert_close(hidden.float(), torch.cat(expected), tolerance)
