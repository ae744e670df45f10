"""evaluate.py --strict: the entity scores are those of seqeval's strict mode."""

import json
from pathlib import Path

import pytest
import seqeval.metrics as seqeval
from seqeval.scheme import IOB2

import evaluate
import train
from neo_peft.errors import InputError


def test_strict_scores_are_those_of_seqeval_in_strict_mode(tiny_folder, capsys):
    """Greedy tags of a head without training often have an I- that follows no B-."""
    flags = ["--task", "ner", "--method", "head", "--model", str(tiny_folder)]
    flags += ["--epochs", "1", "--train-limit", "8", "--eval-limit", "30"]
    train.main([*flags, "--tag-decoding", "greedy", "--learning-rate", "1e-9", "--out", "run"])
    found = {}
    for extra in ([], ["--strict"]):
        capsys.readouterr()
        evaluate.main(["run", "--json", *extra])
        found[bool(extra)] = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in Path("run/predictions.jsonl").read_text().splitlines()]
    gold, predicted = ([row[name] for row in rows] for name in ("tags", "predicted"))
    for strict, options in ((False, {}), (True, {"mode": "strict", "scheme": IOB2})):
        expected = seqeval.f1_score(gold, predicted, zero_division=0, **options)
        assert found[strict]["scores"]["f1"] == pytest.approx(expected)
    assert found[True]["scores"]["f1"] != found[False]["scores"]["f1"]
    assert found[True]["strict"] and "strict" not in found[False]


def test_strict_is_refused_for_classification(tiny_folder):
    flags = ["--task", "sentiment", "--model", str(tiny_folder), "--eval-limit", "3", "--strict"]
    with pytest.raises(InputError, match="--strict belongs to tagging tasks"):
        evaluate.main(flags)
