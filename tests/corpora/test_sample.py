"""The bundled sample: it is large enough, has the balance of the real data, and simple baselines do
not solve it."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from corpus_files import CORPORA, EMPTY, LABELS, NO_ROWS, TAGS, refusal, sample_folder
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from tags import most_frequent_tags

from neo_peft.corpora import sample
from neo_peft.corpora.sample import SAMPLE
from neo_peft.corpora.sources import load_splits
from neo_peft.metrics import entities, entity_scores
from neo_peft.runs.tables import marked
from neo_peft.tasks import TASKS

SPLITS = {name: load_splits(TASKS[name], "sample") for name in ("ner", "sentiment", "similarity")}
CLASSIFICATION = ("sentiment", "similarity")


def words(row: dict) -> list[str]:
    """Return the words of a row's sentences."""
    return (
        row["tokens"] if "tokens" in row else " ".join(row[f] for f in row if f != "label").split()
    )


def names(rows: list[dict]) -> Counter:
    """Count the entities by their type and their words in lower case."""
    spans = (
        (row["tokens"][first : last + 1], kind)
        for row in rows
        for kind, first, last in entities(row["tags"])
    )
    return Counter((kind, " ".join(span).lower()) for span, kind in spans)


@pytest.mark.parametrize("task", CORPORA)
def test_each_split_has_enough_rows_and_every_label(task):
    splits = SPLITS[task]
    assert splits.protocol == "single"
    validation, test = (300, 300) if task == "similarity" else (100, 150)
    for rows, least in ((splits.train, 300), (splits.validation, validation), (splits.test, test)):
        assert len(rows) >= least
        assert {tag for row in rows for tag in row.get("tags", [row.get("label")])} == set(
            TASKS[task].labels
        )


@pytest.mark.parametrize(
    "task, shares",
    [
        # PhraseBank: 12.5, 59.3, 28.2 %; MRPC: 32.6, 67.4 %.
        (
            "sentiment",
            {"negative": (0.10, 0.20), "neutral": (0.52, 0.66), "positive": (0.22, 0.34)},
        ),
        ("similarity", {"not equivalent": (0.27, 0.38), "equivalent": (0.62, 0.73)}),
    ],
)
def test_labels_are_balanced_as_in_the_real_data(task, shares):
    splits = SPLITS[task]
    for rows in (splits.train, splits.validation, splits.test):
        for label, (least, most) in shares.items():
            assert least <= sum(row["label"] == label for row in rows) / len(rows) <= most


def test_entities_are_balanced_as_in_the_real_data():
    for rows in (SPLITS["ner"].train, SPLITS["ner"].validation, SPLITS["ner"].test):
        kinds = Counter(kind for row in rows for kind, _, _ in entities(row["tags"]))
        shares = {kind: count / kinds.total() for kind, count in kinds.items()}
        # JNLPBA's train file has 2.8 entities per sentence: 59 % protein, 19 % DNA, 13 %
        # cell_type, 7 % cell_line, 2 % RNA.
        assert max(shares, key=shares.get) == "protein" and 0.35 < shares["protein"] < 0.65
        assert 0.12 < shares["DNA"] < 0.30 and 0.08 < shares["cell_type"] < 0.25
        assert 0.04 < shares["cell_line"] < 0.15 and 0.02 < shares["RNA"] < 0.12
        assert 1.5 < kinds.total() / len(rows) < 3.5
        assert 0.05 < sum(not entities(row["tags"]) for row in rows) / len(rows) < 0.30


def test_the_sample_has_hard_cases():
    """IL-2 is a protein, but the IL-2 promoter is DNA and IL-2 mRNA is RNA. Some names are long,
    some are followed by an abbreviation in brackets, some are joined by "and"."""
    train_names = names(SPLITS["ner"].train)
    assert (
        train_names["protein", "il-2"]
        and train_names["DNA", "il-2 promoter"]
        and train_names["RNA", "il-2 mrna"]
    )
    lengths = Counter(len(name.split()) for _, name in train_names.elements())
    assert (
        lengths[1] and lengths[2] and lengths[3] and sum(lengths[n] for n in lengths if n >= 4) > 20
    )
    text = (SAMPLE / "ner" / "train.txt").read_text(encoding="utf-8")
    assert text.count("] ( [") >= 12 and text.count("] and [") >= 20


def test_forty_percent_of_the_test_entities_are_not_in_train():
    splits = SPLITS["ner"]
    train_names, test_names = names(splits.train), names(splits.test)
    new = [name for name in test_names if name not in train_names]
    assert len(new) / len(test_names) >= 0.4
    assert sum(test_names[name] for name in new) / test_names.total() >= 0.4


@pytest.mark.parametrize("task", CORPORA)
def test_rows_of_different_splits_share_at_most_half_of_their_trigrams(task):
    splits, rows_with = SPLITS[task], defaultdict(set)
    rows = [
        (part, words(row))
        for part in ("train", "validation", "test")
        for row in getattr(splits, part)
    ]
    trigrams = [
        {tuple(w.lower() for w in row[i : i + 3]) for i in range(len(row) - 2)} for _, row in rows
    ]
    for index, row_trigrams in enumerate(trigrams):
        for trigram in row_trigrams:
            rows_with[trigram].add(index)
    for index, row_trigrams in enumerate(trigrams):
        shared = Counter(
            other
            for trigram in row_trigrams
            for other in rows_with[trigram]
            if rows[other][0] != rows[index][0]
        )
        for other, count in shared.items():
            assert count <= 0.5 * min(len(row_trigrams), len(trigrams[other])), (
                rows[index],
                rows[other],
            )


@pytest.mark.parametrize("task", CLASSIFICATION)
def test_word_counts_do_not_solve_the_task(task):
    """Logistic regression on word counts. A pair has two counts: of the words that are in both
    sentences, and of the words that are in only one."""
    splits = SPLITS[task]

    def texts(rows: list[dict]) -> list[list[str]]:
        if task == "sentiment":
            return [[row["sentence"] for row in rows]]
        sides = [
            (set(row["sentence1"].lower().split()), set(row["sentence2"].lower().split()))
            for row in rows
        ]
        return [[" ".join(a & b) for a, b in sides], [" ".join(a ^ b) for a, b in sides]]

    counters = [CountVectorizer(token_pattern=r"\S+").fit(part) for part in texts(splits.train)]

    def features(rows: list[dict]) -> np.ndarray:
        return np.hstack(
            [counter.transform(part).toarray() for counter, part in zip(counters, texts(rows))]
        )

    gold = [row["label"] for row in splits.test]
    majority = max(Counter(gold).values()) / len(gold)
    scores = []
    for strength in (0.03, 0.1, 0.3, 1, 3, 10):
        model = LogisticRegression(C=strength, max_iter=2000).fit(
            features(splits.train), [row["label"] for row in splits.train]
        )
        scores.append(model.score(features(splits.test), gold))
    assert max(scores) < 0.8
    assert max(scores) > majority - 0.1  # so the classifier has been fitted


def test_the_most_frequent_tag_of_each_word_is_a_weak_baseline():
    """test_default_runs.py compares the default run with this baseline."""
    splits = SPLITS["ner"]
    baseline = entity_scores(
        [row["tags"] for row in splits.test], most_frequent_tags(splits.train, splits.test)
    )["f1"]
    assert 0.2 < baseline < 0.45


def test_the_files_are_well_formed_and_their_readme_has_the_counts():
    """Marking the entities of the loaded rows gives the lines of the file again. No token has a
    bracket or a space."""
    for split in ("train", "validation", "test"):
        lines = (SAMPLE / "ner" / f"{split}.txt").read_text(encoding="utf-8").splitlines()
        rows = getattr(SPLITS["ner"], split)
        assert [marked(row["tokens"], row["tags"]) for row in rows] == lines
        assert all(not set("[] ") & set(token) for row in rows for token in row["tokens"])
    page = (SAMPLE / "README.md").read_text(encoding="utf-8")
    for task, splits in SPLITS.items():
        counts = " / ".join(
            str(len(rows)) for rows in (splits.train, splits.validation, splits.test)
        )
        assert f"| `{task}` |" in page and f"| {counts} |" in page
    assert "CC0" in page


# ---- The formats of its files


def test_each_format_of_the_sample_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "SAMPLE", tmp_path)
    for task in CORPORA:
        sample_folder(tmp_path, task)
    assert load_splits(TASKS["ner"], "sample").train == [
        {
            "tokens": ["NF-kappa", "B", "binds", "the", "IL-2", "promoter", "."],
            "tags": ["B-protein", "I-protein", "O", "O", "B-DNA", "I-DNA", "O"],
        },
        {"tokens": ["mRNA", "c-fos"], "tags": ["B-RNA", "B-RNA"]},
    ]
    assert load_splits(TASKS["sentiment"], "sample").validation == [
        {"sentence": "Profit rose .", "label": "positive"},
        {"sentence": "The office\tis here .", "label": "neutral"},
    ]
    assert load_splits(TASKS["similarity"], "sample").test == [
        {"sentence1": "It rose .", "sentence2": "It went up .", "label": "equivalent"},
        {"sentence1": "It fell .", "sentence2": "It was said .", "label": "not equivalent"},
    ]


STRAY = "expected words separated by one space, and marks such as [protein NF-kappa B]"


BAD_SAMPLES = [
    ("ner", b"", NO_ROWS),
    (
        "ner",
        b"The [DNA gene]\nThe [DNA gene\n",
        f", line 2: a wrong bracket or space in 'The [DNA gene'; {STRAY}",
    ),
    ("ner", b"The DNA] gene\n", ", line 1: a wrong bracket or space in 'The DNA] gene'; "),
    ("ner", b"The [DNA] gene\n", ", line 1: a wrong bracket or space in 'The [DNA] gene'; "),
    (
        "ner",
        b"The [DNA a [RNA b] c]\n",
        ", line 1: a wrong bracket or space in 'The [DNA a [RNA b] c]'; ",
    ),
    ("ner", b"The x[DNA a] b\n", ", line 1: a wrong bracket or space in 'The x[DNA a] b'; "),
    ("ner", b"The  gene\n", ", line 1: a wrong bracket or space in 'The  gene'; "),
    ("ner", b"The gene \n", ", line 1: a wrong bracket or space in 'The gene '; "),
    ("ner", b"The [DNA a  b] .\n", f", line 1: {EMPTY.format('')}"),
    ("ner", b"The [LOC gene]\n", f", line 1: unknown label 'B-LOC'; {TAGS}"),
    (
        "sentiment",
        b"positive\tUp .\npositive Up .\n",
        ", line 2: 'positive Up .'; expected a label, a tab and",
    ),
    ("sentiment", b"good\tUp .\n", f", line 1: unknown label 'good'; {LABELS}"),
    ("sentiment", b"positive\t \n", f", line 1: {EMPTY.format(' ')}"),
    (
        "similarity",
        b"equivalent\nA\nB\n\nequivalent\nA\n",
        ", line 5: a block of 2 lines; expected a label, two",
    ),
    (
        "similarity",
        b"equivalent\nA\nB\nequivalent\nA\nB\n",
        ", line 1: a block of 6 lines; expected a label, two",
    ),
    (
        "similarity",
        b"same\nA\nB\n",
        ", line 1: unknown label 'same'; expected one of not equivalent, equivalent",
    ),
]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("task, content, message", BAD_SAMPLES)
def test_a_bad_sample_is_refused_at_its_line(tmp_path, monkeypatch, task, content, message, split):
    monkeypatch.setattr(sample, "SAMPLE", sample_folder(tmp_path, task))
    (tmp_path / task / f"{split}.txt").write_bytes(content)
    assert refusal(TASKS[task], "sample").startswith(f"{tmp_path / task / split}.txt{message}")
