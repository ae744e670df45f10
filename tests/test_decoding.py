"""Decoding: generation against transformers' own on each example alone, ranking against the sums
written out."""

import dataclasses

import pytest
import torch
from transformers import GPTNeoForCausalLM

from neo_peft.corpora.sources import load_splits
from neo_peft.decoding import evaluate, predict, score, texts_without_labels
from neo_peft.encoding import Encoder, collate
from neo_peft.runs.baselines import majority_scores
from neo_peft.runs.generation import evaluate_generated, generate, match_label
from neo_peft.runs.loading import load_untuned
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
    tuned = load_untuned(
        make_settings(task="sentiment", method=method, model=str(folder), **flags), with_method=True
    )
    if tuned.model.prompt is not None:
        with torch.no_grad():
            tuned.model.prompt.embeddings.add_(torch.randn_like(tuned.model.prompt.embeddings))
    return tuned


def oracle_scores(oracle, prefix, text, answer):
    """Compute log p of each answer token behind a prefix of embedding rows and a text, one example
    alone."""
    ids = torch.tensor([*text, *answer])
    embedded = torch.cat([prefix, oracle.transformer.wte(ids)])[None]
    with torch.no_grad():
        logs = oracle(inputs_embeds=embedded).logits[0].log_softmax(-1)
    first = len(prefix) + len(text) - 1
    return torch.stack([logs[first + step, token] for step, token in enumerate(answer)])


@pytest.mark.parametrize("prompt_length", [None, 5, 14])
@pytest.mark.parametrize("end_early", [False, True])
def test_uneven_batches_generate_what_each_example_generates_alone(
    tiny_folder, oracle, prompt_length, end_early
):
    """A prompt of 14 is longer than the window of 11. An end token that is said makes texts leave
    the batch."""
    flags = {"prompt_length": prompt_length} if prompt_length else {}
    tuned = untuned(tiny_folder, "prompt" if prompt_length else "lora", **flags)
    texts = texts_without_labels(tuned.encoder(ROWS), range(len(ROWS)))
    prefix = tuned.model.prompt.embeddings.detach() if prompt_length else torch.empty(0, 24)

    def alone(end):
        said = []
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
            said.append([token for token in ids.tolist() if token != end])
        return said

    free = alone(end=0)
    end = free[1][2] if end_early else 0
    expected = [tuned.encoder.tokenizer.decode(ids) for ids in alone(end)]
    encoder = dataclasses.replace(tuned.encoder, end_token=end)
    assert generate(tuned.model, encoder, texts, tuned.model.prefix()) == expected
    assert len({len(text) for text in texts}) > 3


@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_rank_is_the_label_with_the_likeliest_first_token(tiny_folder, oracle, method):
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


def test_labels_that_share_their_first_token_are_ranked_by_their_sums(tiny_folder, oracle):
    task = dataclasses.replace(TASKS["sentiment"], labels=("not now", "not ever", "yes"))
    tuned = untuned(tiny_folder, "prompt")
    config = tuned.base.trunk.config
    encoder = Encoder(
        task, tuned.encoder.tokenizer, config.eos_token_id, False, 100, config.vocab_size
    )
    a, b, c = (encoder.label_tokens[label] for label in task.labels)
    assert a[0] == b[0] != c[0] and len(a) > 2
    rows = [{"sentence": row["sentence"]} for row in ROWS]
    # A model that likes to begin with "not" makes the two that share it win at the mark.
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
        best = max(task.labels, key=lambda label: sums[label][0])
        tied = [
            label
            for label in task.labels
            if encoder.label_tokens[label][0] == encoder.label_tokens[best][0]
        ]
        expected.append(max(tied, key=lambda label: sums[label].sum()))
    assert {"not now", "not ever"} & set(expected)
    assert evaluate(tuned.model, encoder, encoder(rows), batch_size=3).predicted == expected


def test_the_loss_is_the_mean_over_answer_tokens_and_end_tokens(tiny_folder, oracle):
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
    assert perplexity(1e6) == float("inf")


def test_an_instruction_stands_in_front_of_every_text(tiny_folder, oracle):
    tuned = load_untuned(make_settings(task="sentiment", method="head", model=str(tiny_folder)))
    assert tuned.model.head is None  # the untuned base answers with the language model's own head
    instruction = TASKS["sentiment"].instruction
    written = torch.tensor(tuned.encoder.tokenizer.encode(instruction))
    with torch.no_grad():
        prefix = oracle.transformer.wte(written)
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
    said = evaluate_generated(
        tuned.model, tuned.encoder, tuned.encoder(ROWS), instruction, batch_size=2
    ).generated
    ids = oracle.generate(
        torch.tensor([[*written.tolist(), *texts[3]]]),
        attention_mask=torch.ones(1, len(written) + len(texts[3])),
        max_new_tokens=10,
        do_sample=False,
    )
    assert said[3] == tuned.encoder.tokenizer.decode(
        [i for i in ids[0, len(written) + len(texts[3]) :].tolist() if i]
    )


def test_not_equivalent_is_never_read_as_equivalent():
    labels = TASKS["similarity"].labels
    for order in (labels, labels[::-1]):
        task = with_labels(TASKS["similarity"], order)
        assert match_label(" Not equivalent , since", task) == "not equivalent"
        assert match_label("equivalent", task) == "equivalent"
        assert match_label(" is equivalent", task) is None
        assert match_label("", task) is None


def test_tags_come_back_in_the_order_of_the_rows_and_lost_words_are_o(tiny_folder):
    tuned = load_untuned(
        make_settings(task="ner", method="lora", model=str(tiny_folder)), with_method=True
    )
    rows = [{"tokens": ["IL-2"] * length} for length in (3, 1, 90, 2)]
    alone = [predict(tuned.model, tuned.encoder, [row])[0] for row in rows]
    assert predict(tuned.model, tuned.encoder, rows, batch_size=2) == alone
    assert [len(tags) for tags in alone] == [3, 1, 90, 2]
    fits = tuned.encoder.max_length // len(tuned.encoder.tokenizer.encode(" IL-2"))
    assert fits < 90 and alone[2][fits + 1 :] == ["O"] * (89 - fits)


def test_an_empty_sentence_has_no_tags(tiny_folder):
    tuned = load_untuned(
        make_settings(task="ner", method="lora", model=str(tiny_folder)), with_method=True
    )
    assert predict(tuned.model, tuned.encoder, [{"tokens": []}]) == [[]]
    assert [
        len(tags)
        for tags in predict(tuned.model, tuned.encoder, [{"tokens": []}, {"tokens": ["IL-2"]}])
    ] == [0, 1]


def test_words_that_were_lost_stay_in_the_gold():
    rows = [{"tokens": ["a", "b", "c"], "tags": ["B-DNA", "O", "B-RNA"]}]
    assert score(TASKS["ner"], rows, [["B-DNA"]])["recall"] == 0.5


def test_evaluation_drops_nothing_out(tiny_folder):
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
        tuned.model.train()  # as the loop leaves it
        losses.append(
            evaluate(tuned.model, tuned.encoder, tuned.encoder(rows), with_loss=True).loss
        )
    assert losses[0] == losses[1] and not tuned.model.training


def test_labels_that_tie_in_bf16_are_ranked_in_fp32(tiny_folder):
    settings = make_settings(
        task="sentiment", method="lora", model=str(tiny_folder), precision="bf16"
    )
    tuned = load_untuned(settings, with_method=True)
    wte, answers = (
        tuned.model.transformer.wte.weight,
        [ids[0] for ids in tuned.encoder.label_tokens.values()],
    )
    with torch.no_grad():  # three rows that differ in a coordinate by one step of bf16
        for token, coordinate in zip(answers, (3, 7, 11)):
            wte[token] = wte[answers[0]] if token != answers[0] else 20 * wte[token]
            wte[token, coordinate] *= 1 + 2**-7
    rows = load_splits(TASKS["sentiment"], "sample").validation[:30]
    examples = tuned.encoder(rows)
    with torch.no_grad():
        hidden = torch.stack([tuned.model(collate(examples, [i]), None)[0] for i in range(30)])
    exact = hidden.double() @ wte[answers].double().T
    in_bf16 = (hidden.bfloat16() @ wte[answers].T).argmax(1)
    assert not torch.equal(in_bf16, exact.argmax(1))
    expected = [TASKS["sentiment"].labels[index] for index in exact.argmax(1).tolist()]
    assert evaluate(tuned.model, tuned.encoder, examples, batch_size=1).predicted == expected


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_reaches_instruction_and_generation(tiny_folder, precision):
    tuned = load_untuned(
        make_settings(task="sentiment", method="lora", model=str(tiny_folder), precision=precision)
    )
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    assert tuned.model.compute_dtype == dtype
    assert tuned.model.text_prefix([5, 6, 7]).keys[0].dtype == dtype
    found = evaluate_generated(
        tuned.model, tuned.encoder, tuned.encoder(ROWS), TASKS["sentiment"].instruction
    )
    assert len(found.generated) == len(ROWS) and all(found.generated)


def test_the_majority_is_that_of_the_training_rows():
    task = TASKS["sentiment"]
    rows = lambda labels: [{"sentence": "x", "label": label} for label in labels]  # noqa: E731
    train, test = rows(["neutral"] * 2 + ["positive"]), rows(["positive"] * 3 + ["neutral"])
    assert majority_scores(task, train, test)["accuracy"] == 0.25
    tagged = [{"tokens": ["a", "b"], "tags": ["B-DNA", "O"]}]
    scores = majority_scores(TASKS["ner"], tagged, tagged)
    assert (scores["f1"], scores["accuracy"]) == (0, 0.5)


def test_scores_are_entity_scores_for_tags_and_accuracy_for_answers():
    assert score(TASKS["ner"], [{"tokens": ["a"], "tags": ["B-DNA"]}], [["I-DNA"]])["f1"] == 1
    assert (
        score(TASKS["similarity"], [{"label": "equivalent"}] * 2, ["equivalent", None])["accuracy"]
        == 0.5
    )
