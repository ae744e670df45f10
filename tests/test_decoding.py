"""Decoding, compared with transformers on one example at a time: generation, label scores, loss."""

import dataclasses

import pytest
import torch
from transformers import GPTNeoForCausalLM

from neo_peft.corpora.sources import load_splits
from neo_peft.decoding import evaluate, score
from neo_peft.encoding import Encoder, collate
from neo_peft.runs.baselines import predict_majority
from neo_peft.runs.generation import (
    VOCABULARY_PART,
    evaluate_generated,
    generate,
    match_label,
    most_probable_tokens,
    texts_without_labels,
)
from neo_peft.runs.loading import load_untuned
from neo_peft.runs.texts import predict
from neo_peft.runs.training import perplexity
from neo_peft.settings import make_settings, with_labels
from neo_peft.tasks import TASKS

TEXT = (
    "profit rose fell sharply in the third quarter as sales of paper grew and costs were cut by "
    "the company"
)
WORDS = TEXT.split()
ROWS = [
    {"sentence": " ".join(WORDS[:length]) + " .", "label": label}
    for length, label in (
        (3, "positive"),
        (len(WORDS), "neutral"),
        (1, "negative"),
        (8, "positive"),
        (12, "neutral"),
    )
]


@pytest.fixture
def oracle(tiny_folder):
    return GPTNeoForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()


def untuned(folder, method, **flags):
    """Return a run's model before training; a prompt has random changes."""
    tuned = load_untuned(
        make_settings(task="sentiment", method=method, model=str(folder), **flags), with_method=True
    )
    if tuned.model.prompt is not None:
        with torch.no_grad():
            tuned.model.prompt.embeddings.add_(torch.randn_like(tuned.model.prompt.embeddings))
    return tuned


def oracle_scores(oracle, prefix, text, label_ids):
    """Return the log probability of each label token after a prefix (P, H) and a text."""
    ids = torch.tensor([*text, *label_ids])
    embedded = torch.cat([prefix, oracle.transformer.wte(ids)])[None]
    with torch.no_grad():
        logs = oracle(inputs_embeds=embedded).logits[0].log_softmax(-1)
    first = len(prefix) + len(text) - 1
    return torch.stack([logs[first + step, token] for step, token in enumerate(label_ids)])


@pytest.mark.parametrize("prompt_length", [None, 5, 14])
@pytest.mark.parametrize("end_early", [False, True])
def test_uneven_batches_generate_what_each_example_generates_alone(
    tiny_folder, oracle, prompt_length, end_early
):
    """A prompt of 14 is longer than the window of 11. `end_early` ends some texts before others."""
    flags = {"prompt_length": prompt_length} if prompt_length else {}
    tuned = untuned(tiny_folder, "prompt" if prompt_length else "lora", **flags)
    texts = texts_without_labels(tuned.encoder(ROWS), range(len(ROWS)))
    prefix = tuned.model.prompt.embeddings.detach() if prompt_length else torch.empty(0, 24)

    def alone(end):
        generated = []
        for text in texts:
            embedded = torch.cat([prefix, oracle.transformer.wte(torch.tensor(text))])[None]
            ids = oracle.generate(
                inputs_embeds=embedded,
                attention_mask=torch.ones(embedded.shape[:2]),
                max_new_tokens=10,
                do_sample=False,
                eos_token_id=end,
                pad_token_id=end,
            )[0]
            generated.append([token for token in ids.tolist() if token != end])
        return generated

    end = alone(end=0)[1][2] if end_early else 0
    expected = [tuned.encoder.tokenizer.decode(ids) for ids in alone(end)]
    encoder = dataclasses.replace(tuned.encoder, end_token=end)
    assert generate(tuned.model, encoder, texts, tuned.model.prompt_past()) == expected
    assert len({len(text) for text in texts}) > 3


def test_the_most_probable_token_is_that_of_the_whole_vocabulary():
    """Also if it is the first token of a part or the last one of the vocabulary."""
    hidden, wte = torch.randn(5, 24), torch.randn(2 * VOCABULARY_PART + 37, 24)
    best = [0, VOCABULARY_PART - 1, VOCABULARY_PART, 2 * VOCABULARY_PART, len(wte) - 1]
    wte[best] = 100 * hidden
    assert most_probable_tokens(hidden, wte).tolist() == best
    others = torch.randn(40, 24)
    assert torch.equal(most_probable_tokens(others, wte), (others @ wte.T).argmax(1))


@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_the_prediction_is_the_label_with_the_most_probable_first_token(
    tiny_folder, oracle, method
):
    tuned = untuned(tiny_folder, method)
    prefix = tuned.model.prompt.embeddings.detach() if method == "prompt" else torch.empty(0, 24)
    rows = load_splits(TASKS["sentiment"], "sample").validation[:30]
    expected = []
    for text in texts_without_labels(tuned.encoder(rows), range(len(rows))):
        first = {
            label: oracle_scores(oracle, prefix, text, ids[:1])
            for label, ids in tuned.encoder.label_tokens.items()
        }
        expected.append(max(first, key=first.get))
    assert len(set(expected)) > 1
    for batch_size in (4, 30):
        assert (
            evaluate(
                tuned.model, tuned.encoder, tuned.encoder(rows), batch_size=batch_size
            ).predicted
            == expected
        )


def test_labels_with_the_same_first_token_divide_its_probability_by_all_their_tokens(
    tiny_folder, oracle
):
    task = dataclasses.replace(TASKS["sentiment"], labels=("not now", "not ever", "yes"))
    tuned = untuned(tiny_folder, "prompt")
    config = tuned.base.trunk.config
    encoder = Encoder(
        task, tuned.encoder.tokenizer, config.eos_token_id, False, 100, config.vocab_size
    )
    a, b, c = (encoder.label_tokens[label] for label in task.labels)
    assert a[0] == b[0] != c[0] and len(a) > 2
    rows = [{"sentence": row["sentence"]} for row in ROWS]
    # Larger logits of " not": the two labels that start with it are often the best ones.
    with torch.no_grad():
        for model in (tuned.model.transformer, oracle.transformer):
            model.wte.weight[a[0]] *= 3
    prefix = tuned.model.prompt.embeddings.detach()
    expected = []
    for text in texts_without_labels(encoder(rows), range(len(rows))):
        sums = {
            label: oracle_scores(oracle, prefix, text, encoder.label_tokens[label])
            for label in task.labels
        }
        by_first = {label: sums[label][0].exp() for label in task.labels}
        whole = {label: sums[label].sum().exp() for label in task.labels}
        both = whole["not now"] + whole["not ever"]
        for label in ("not now", "not ever"):
            by_first[label] *= whole[label] / both
        expected.append(max(by_first, key=by_first.get))
    assert {"not now", "not ever"} & set(expected)
    assert evaluate(tuned.model, encoder, encoder(rows), batch_size=3).predicted == expected


def test_the_loss_is_the_mean_over_label_tokens_and_end_tokens(tiny_folder, oracle):
    tuned = untuned(tiny_folder, "prompt")
    texts = texts_without_labels(tuned.encoder(ROWS), range(len(ROWS)))
    prefix = tuned.model.prompt.embeddings.detach()
    logs = torch.cat(
        [
            oracle_scores(oracle, prefix, text, tuned.encoder.label_tokens[row["label"]])
            for text, row in zip(texts, ROWS)
        ]
    )
    loss = evaluate(
        tuned.model, tuned.encoder, tuned.encoder(ROWS), batch_size=2, with_loss=True
    ).loss
    assert loss == pytest.approx(-logs.mean().item(), rel=1e-5)
    assert perplexity(2.5) == pytest.approx(12.18249396)
    assert perplexity(1e6) is None


def test_an_instruction_is_put_in_front_of_every_text(tiny_folder, oracle):
    tuned = load_untuned(make_settings(task="sentiment", method="head", model=str(tiny_folder)))
    assert tuned.model.head is None  # the untuned base uses the language model head
    instruction = TASKS["sentiment"].instruction
    instruction_ids = torch.tensor(tuned.encoder.tokenizer.encode(instruction))
    with torch.no_grad():
        prefix = oracle.transformer.wte(instruction_ids)
    texts = texts_without_labels(tuned.encoder(ROWS), range(len(ROWS)))
    expected = []
    for text in texts:
        first = {
            label: oracle_scores(oracle, prefix, text, ids[:1])
            for label, ids in tuned.encoder.label_tokens.items()
        }
        expected.append(max(first, key=first.get))
    assert (
        evaluate(tuned.model, tuned.encoder, tuned.encoder(ROWS), instruction).predicted == expected
    )
    generated = evaluate_generated(
        tuned.model, tuned.encoder, tuned.encoder(ROWS), instruction, batch_size=2
    ).generated
    ids = oracle.generate(
        torch.tensor([[*instruction_ids.tolist(), *texts[3]]]),
        attention_mask=torch.ones(1, len(instruction_ids) + len(texts[3])),
        max_new_tokens=10,
        do_sample=False,
    )
    assert generated[3] == tuned.encoder.tokenizer.decode(
        [i for i in ids[0, len(instruction_ids) + len(texts[3]) :].tolist() if i]
    )


def test_not_equivalent_never_matches_equivalent():
    labels = TASKS["similarity"].labels
    for order in (labels, labels[::-1]):
        task = with_labels(TASKS["similarity"], order)
        assert match_label(" Not equivalent , since", task) == "not equivalent"
        assert match_label("equivalent", task) == "equivalent"
        assert match_label(" is equivalent", task) is None
        assert match_label("", task) is None


def test_a_number_is_not_the_label_that_it_starts_with():
    task = with_labels(TASKS["classification"], ("1", "2", "10", "grade 1"))
    texts = {"1": "1", " 10 .": "10", "15": None, "100": None, "1, since": "1", "grade 12": None}
    assert {text: match_label(text, task) for text in texts} == texts
    assert match_label("2nd", task) == "2"


def test_tags_are_in_the_order_of_the_rows_and_words_that_were_cut_have_none(tiny_folder):
    """In an evaluation they have `O`, so that they count in the scores."""
    tuned = load_untuned(
        make_settings(task="ner", method="lora", model=str(tiny_folder), truncate="end"),
        with_method=True,
    )
    rows = [{"tokens": ["IL-2"] * length} for length in (3, 1, 90, 2)]
    alone = [predict(tuned.model, tuned.encoder, [row])[0] for row in rows]
    assert predict(tuned.model, tuned.encoder, rows, batch_size=2) == alone
    assert [len(tags) for tags in alone] == [3, 1, 90, 2]
    fitting = tuned.encoder.max_length // len(tuned.encoder.tokenizer.encode(" IL-2"))
    assert fitting < 90 and alone[2][fitting + 1 :] == [None] * (89 - fitting)
    assert None not in alone[2][:fitting]
    scored = evaluate(tuned.model, tuned.encoder, tuned.encoder(rows)).predicted[2]
    assert scored == [tag or "O" for tag in alone[2]]


def test_an_empty_sentence_has_no_tags(tiny_folder):
    tuned = load_untuned(
        make_settings(task="ner", method="lora", model=str(tiny_folder)), with_method=True
    )
    assert predict(tuned.model, tuned.encoder, [{"tokens": []}]) == [[]]
    assert [
        len(tags)
        for tags in predict(tuned.model, tuned.encoder, [{"tokens": []}, {"tokens": ["IL-2"]}])
    ] == [0, 1]


def test_words_that_were_cut_count_in_the_gold_tags():
    rows = [{"tokens": ["a", "b", "c"], "tags": ["B-DNA", "O", "B-RNA"]}]
    assert score(TASKS["ner"], rows, [["B-DNA"]])["recall"] == 0.5


def test_evaluation_uses_no_dropout(tiny_folder):
    settings = make_settings(
        task="ner", method="lora", model=str(tiny_folder), dropout=0.5, head_dropout=0.5
    )
    tuned = load_untuned(settings, with_method=True)
    with torch.no_grad():
        for parameter in tuned.model.trainable().values():
            parameter.add_(torch.randn_like(parameter))
    rows = load_splits(TASKS["ner"], "sample").validation[:6]
    losses = []
    for _ in range(2):
        tuned.model.train()  # the mode after training
        losses.append(
            evaluate(tuned.model, tuned.encoder, tuned.encoder(rows), with_loss=True).loss
        )
    assert losses[0] == losses[1] and not tuned.model.training


def test_generation_for_a_score_uses_no_dropout(tiny_folder):
    settings = make_settings(
        task="sentiment", method="lora", model=str(tiny_folder), dropout=0.5, head_dropout=0.5
    )
    tuned = load_untuned(settings, with_method=True)
    tuned.model.train()  # the mode after training
    rows = load_splits(TASKS["sentiment"], "sample").validation[:2]
    evaluate_generated(tuned.model, tuned.encoder, tuned.encoder(rows))
    assert not tuned.model.training


def test_label_scores_are_compared_in_fp32_where_bf16_gives_ties(tiny_folder):
    settings = make_settings(
        task="sentiment", method="lora", model=str(tiny_folder), precision="bf16"
    )
    tuned = load_untuned(settings, with_method=True)
    wte = tuned.model.transformer.wte.weight
    label_ids = [ids[0] for ids in tuned.encoder.label_tokens.values()]
    with torch.no_grad():  # three embeddings that differ in one coordinate by one step of bf16
        for token, coordinate in zip(label_ids, (3, 7, 11)):
            wte[token] = wte[label_ids[0]] if token != label_ids[0] else 20 * wte[token]
            wte[token, coordinate] *= 1 + 2**-7
    rows = load_splits(TASKS["sentiment"], "sample").validation[:30]
    examples = tuned.encoder(rows)
    with torch.no_grad():
        hidden = torch.stack([tuned.model(collate(examples, [i]), None)[0] for i in range(30)])
    exact = hidden.double() @ wte[label_ids].double().T
    in_bf16 = (hidden.bfloat16() @ wte[label_ids].T).argmax(1)
    assert not torch.equal(in_bf16, exact.argmax(1))
    expected = [TASKS["sentiment"].labels[index] for index in exact.argmax(1).tolist()]
    assert evaluate(tuned.model, tuned.encoder, examples, batch_size=1).predicted == expected


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_instruction_and_generation_use_half_precision(tiny_folder, precision):
    tuned = load_untuned(
        make_settings(task="sentiment", method="lora", model=str(tiny_folder), precision=precision)
    )
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    assert tuned.model.compute_dtype == dtype
    assert tuned.model.instruction_past([5, 6, 7]).keys[0].dtype == dtype
    evaluation = evaluate_generated(
        tuned.model, tuned.encoder, tuned.encoder(ROWS), TASKS["sentiment"].instruction
    )
    assert len(evaluation.generated) == len(ROWS) and all(evaluation.generated)


def test_the_majority_class_is_that_of_the_training_rows():
    task = TASKS["sentiment"]
    rows = lambda labels: [{"sentence": "x", "label": label} for label in labels]  # noqa: E731
    train, test = rows(["neutral"] * 2 + ["positive"]), rows(["positive"] * 3 + ["neutral"])
    assert predict_majority(task, train, test) == ["neutral"] * 4
    tagged = [{"tokens": ["a", "b"], "tags": ["B-DNA", "O"]}]
    assert predict_majority(TASKS["ner"], tagged, tagged) == [["O", "O"]]


def test_scores_are_entity_scores_for_tags_and_accuracy_for_labels():
    assert score(TASKS["ner"], [{"tokens": ["a"], "tags": ["B-DNA"]}], [["I-DNA"]])["f1"] == 1
    assert (
        score(TASKS["similarity"], [{"label": "equivalent"}] * 2, ["equivalent", None])["accuracy"]
        == 0.5
    )
