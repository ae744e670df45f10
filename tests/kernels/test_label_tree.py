"""A tree of labels after each text, compared with transformers on each text and label alone."""

import dataclasses

import pytest
import torch
from parity import batch_of

from neo_peft.decoding import HiddenStates, evaluate
from neo_peft.gptneo import Block
from neo_peft.kernels import label_tree
from neo_peft.kernels.label_tree import LabelTree, forward_and_store, log_probabilities
from neo_peft.model import TunedModel
from neo_peft.prompt import SoftPrompt
from neo_peft.runs.generation import texts_without_labels
from neo_peft.runs.loading import load_untuned
from neo_peft.settings import make_settings

END = 0
# Labels share one, two or three tokens; one has 12 tokens: more than the window, which is 11.
LABELS = [
    [50, 60, END],
    [50, 70, END],
    [50, 70, 80, END],
    [50, 70, 80, 60, 60, END],
    [90, *range(100, 111), END],
    [90, 60, END],
    [90, END],
]
LENGTHS = (3, 3, 17, 1, 12)


@pytest.fixture
def texts():
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(1, 8192, (n,), generator=generator).numpy() for n in LENGTHS]


def tree_scores(model, texts, labels, prefix, again=False):
    """Return the log probabilities of labels. The batch is computed `again` if its keys and values
    are not stored."""
    texts = [torch.from_numpy(text) for text in texts]
    ends = torch.tensor([len(text) for text in texts]).cumsum(0) - 1
    batch = batch_of(texts, ends)
    with torch.inference_mode():
        stored = None if again else forward_and_store(model, batch, prefix)[1]
        states = HiddenStates(None, range(len(texts)), batch, None, prefix, stored)
        return log_probabilities(model, states, labels)


def alone(oracle, prefix, text, label):
    """Return log p(label, end token | text, first token) by transformers, after `prefix` (P, H)."""
    ids = torch.tensor([*text.tolist(), *label[:-1]])
    embedded = torch.cat([prefix, oracle.transformer.wte(ids)])[None]
    with torch.no_grad():
        logs = oracle(inputs_embeds=embedded).logits[0].log_softmax(-1)
    first = len(prefix) + len(text)  # the position of the label's first token
    return sum(logs[first + step, token] for step, token in enumerate(label[1:]))


@pytest.mark.parametrize("tokens_in_pass", [1, 60, 10_000])
@pytest.mark.parametrize("prompt_length", [0, 5, 14])
def test_each_label_has_the_log_probability_that_it_has_alone(
    base, oracle, texts, prompt_length, tokens_in_pass, monkeypatch
):
    """In passes of one text, of some and of all. A prompt of 14 is longer than the window."""
    monkeypatch.setattr(label_tree, "TOKENS_IN_PASS", tokens_in_pass)
    monkeypatch.setattr(label_tree, "TOKENS_WITH_LOGITS", 7)  # the nodes are no multiple of 7
    embeddings = torch.randn(prompt_length, 24)
    model = TunedModel(base.trunk, prompt=SoftPrompt(embeddings) if prompt_length else None).eval()
    found = tree_scores(model, texts, LABELS, model.prompt_past())
    assert torch.equal(tree_scores(model, texts, LABELS, model.prompt_past(), again=True), found)
    expected = [[alone(oracle, embeddings, text, label) for label in LABELS] for text in texts]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_the_tree_has_each_beginning_of_a_label_once():
    tree = LabelTree.of_labels([[5, 6, END], [5, 7, 8, END], [5, 7, END]], torch.device("cpu"))
    assert tree.tokens.tolist() == [5, 6, 7, 8] and tree.depths.tolist() == [0, 1, 1, 2]
    assert tree.attends.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]
    assert tree.steps.tolist() == [[0, 1, 0, 2, 3, 0, 2], [6, END, 7, 8, END, 7, END]]
    assert tree.counts == [2, 3, 2]


@pytest.mark.parametrize(
    ("tokens_in_pass", "passes"), [(1, [36, 6, 6, 6, 6, 6]), (23, [36, 18, 12]), (30, [36, 30])]
)
def test_a_pass_has_at_most_so_many_tokens_of_trees_or_a_single_tree(
    base, texts, tokens_in_pass, passes, monkeypatch
):
    """The texts have 36 tokens in all. Then the tree of 6 tokens comes after each of them."""
    sizes, forward = [], Block.forward
    monkeypatch.setattr(label_tree, "TOKENS_IN_PASS", tokens_in_pass)
    monkeypatch.setattr(
        Block, "forward", lambda self, x, *rest: sizes.append(len(x)) or forward(self, x, *rest)
    )
    tree_scores(TunedModel(base.trunk).eval(), texts, LABELS[:4], None)
    assert sizes[:: len(base.trunk.h)] == passes


def test_a_text_is_computed_once_to_be_scored_and_to_compare_its_labels(tiny_folder, monkeypatch):
    settings = make_settings(
        task="classification", method="lora", model=str(tiny_folder), labels=("not now", "not ever")
    )
    tuned = load_untuned(settings, with_method=True)
    examples = tuned.encoder([{"sentence": "profit rose"}, {"sentence": "sales fell in Oulu"}])
    sizes, forward = [], Block.forward
    monkeypatch.setattr(
        Block, "forward", lambda self, x, *rest: sizes.append(len(x)) or forward(self, x, *rest)
    )
    evaluate(tuned.model, tuned.encoder, examples)
    tree = LabelTree.of_labels(list(tuned.encoder.label_tokens.values()), torch.device("cpu"))
    passes = sizes[:: len(tuned.model.transformer.h)]
    assert passes == [int(examples.lengths.sum()), 2 * len(tree.tokens)]


def test_the_probabilities_of_labelled_rows_are_those_of_all_tokens(tiny_folder, oracle):
    """Rows with labels, whose tokens stand in the batch too, and rows without labels."""
    labels = ("not now", "not ever", "yes", "not now , not ever")
    settings = make_settings(
        task="classification", method="lora", model=str(tiny_folder), labels=labels
    )
    tuned = load_untuned(settings, with_method=True)
    rows = [
        {"sentence": " ".join(["profit rose", "sales fell", "in Oulu"] * count), "label": label}
        for count, label in zip((1, 4, 2, 1), labels)
    ]
    encoder = tuned.encoder
    tokens = [encoder.label_tokens[label] for label in labels]
    assert len({ids[0] for ids in tokens}) == 2
    unlabelled = [{"sentence": row["sentence"]} for row in rows]
    for examples in (encoder(rows), encoder(unlabelled)):
        found = evaluate(tuned.model, encoder, examples, batch_size=3)
        for text, probabilities, predicted in zip(
            texts_without_labels(examples, range(4)),
            found.probabilities,
            found.predicted,
            strict=True,
        ):
            with torch.no_grad():
                logits = oracle(torch.from_numpy(text.astype("int64"))[None]).logits[0, -1]
            first = logits[[tokens[0][0], tokens[2][0]]].softmax(0)
            sums = [alone(oracle, torch.empty(0, 24), text, tokens[i]) for i in (0, 1, 3)]
            shares = torch.stack(sums).softmax(0) * first[0]
            expected = [shares[0], shares[1], first[1], shares[2]]
            assert probabilities == pytest.approx([float(p) for p in expected], abs=1e-5)
            assert predicted == labels[probabilities.index(max(probabilities))]


def test_half_precision_compares_in_fp32(tiny_folder):
    settings = make_settings(
        task="sentiment", method="lora", model=str(tiny_folder), precision="bf16"
    )
    tuned = load_untuned(settings, with_method=True)
    encoder = dataclasses.replace(tuned.encoder)
    vars(encoder)["label_tokens"] = dict(zip(encoder.task.labels, LABELS[:3]))
    [scores] = evaluate(tuned.model, encoder, encoder([{"sentence": "x"}])).probabilities
    assert sum(scores) == pytest.approx(1, abs=1e-6)
