"""Compare entity scores with those of seqeval."""

import pytest
import seqeval.metrics as seqeval
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, Tokens

from neo_peft.metrics import entity_scores

THREE = ("precision", "recall", "f1")

STRICT = {False: {}, True: {"mode": "strict", "scheme": IOB2}}  # our `strict`: seqeval's options


def seqeval_entities(tags, strict):
    if strict:  # here seqeval's end is one past the last word
        return [(e.tag, e.start, e.end - 1) for e in Tokens(tags, IOB2).entities]
    return get_entities(tags)


def assert_scores_like_seqeval(gold, predicted, strict):
    options = {"output_dict": True, "zero_division": 0, **STRICT[strict]}
    report = seqeval.classification_report(gold, predicted, **options)
    for row in report.values():
        row["f1"] = row.pop("f1-score")
    scores = entity_scores(gold, predicted, strict)
    averages = {"micro": scores, "macro": scores["macro"], "weighted": scores["weighted"]}
    for name, ours in averages.items():
        theirs = report.pop(f"{name} avg")
        assert [ours[key] for key in THREE] == pytest.approx([theirs[key] for key in THREE])
    assert list(scores["per_label"]) == list(report)
    for entity_type, theirs in report.items():
        assert scores["per_label"][entity_type] == pytest.approx(theirs)
    assert scores["accuracy"] == pytest.approx(seqeval.accuracy_score(gold, predicted))
