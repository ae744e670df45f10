"""The benchmarks are fair: both sides compute the same loss with the same weights."""

import json

import pytest
from repeats import pairs

from benchmarks import jobs, peers, sides
from benchmarks.lengths import load_examples
from benchmarks.measure import alternate
from benchmarks.sides import Job, Ours, Peer


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setitem(sides.SHAPES, "125m", (36, 2, 3))
    monkeypatch.setattr(peers, "RECORDS", tmp_path / "records")


@pytest.mark.parametrize(
    ("kind", "careful"),
    pairs(["ner 125m", "sentiment 125m", "similarity 125m", "sentiment neo-mini"], [True, False]),
)
def test_both_sides_compute_the_same_loss(kind, careful):
    task, shape = kind.split()
    job = Job(task, shape, grouped=careful)
    ours, peer, chosen = Ours(job), Peer(job, careful), job.order(1)[0]
    assert ours.plain_loss(chosen) == pytest.approx(peer.plain_loss(chosen), rel=1e-6)
    before = ours.plain_loss(chosen)
    for side in (ours, peer):
        for _ in range(3):
            side(chosen)
        assert side.plain_loss(chosen) < before


def test_both_sides_encode_rows_alike():
    assert [line["agrees"] for line in jobs.encode({"pairs": 1})] == [True, True]


def test_target_indices_lie_inside_the_examples():
    for task, rows in {"ner": 512, "sentiment": 512, "similarity": 512}.items():
        examples = load_examples(task)
        assert len(examples) == rows and examples.starts[-1] == len(examples.ids)
        for index in range(rows):
            indices = examples.target_indices[
                examples.target_starts[index] : examples.target_starts[index + 1]
            ]
            length = examples.starts[index + 1] - examples.starts[index]
            assert (indices[1:] > indices[:-1]).all() and indices[0] >= 0 and indices[-1] < length


def test_sides_run_in_turn_on_the_same_batches():
    calls = []
    times = alternate(
        lambda n: calls.append(("ours", n)),
        lambda n: calls.append(("theirs", n)),
        pairs=3,
        warm_up=1,
    )
    assert calls == [(side, n) for n in (2, 0, 1, 2) for side in ("ours", "theirs")]
    assert len(times.ours) == len(times.theirs) == len(times.ratios) == 3


@pytest.mark.parametrize("decode", ["labels", "generate"])
def test_both_ways_to_predict_are_compared(decode):
    flags = {"shape": "125m", "precision": "fp32", "device": "cpu", "pairs": 1}
    assert jobs.evaluation(decode, careful=True, goal=1, at=flags)["ratio"] > 0


def test_a_job_prints_its_ratio_and_writes_a_record(tmp_path, capsys):
    peers.main(["--job", "sentiment", "--pairs", "2", "--json"])
    printed = json.loads(capsys.readouterr().out)["sentiment"]
    assert printed["ratio_min"] <= printed["ratio"] <= printed["ratio_max"] and printed["share"] > 0
    record = json.loads((tmp_path / "records/sentiment-125m-fp32-cpu.json").read_text())
    line = record["jobs"]["sentiment"][0]
    assert line["agrees"] and line["goal"] == 3.3 and line["ratio"] == printed["ratio"]
    assert record["hardware"]["cores"] >= 1 and record["flags"]["pairs"] == 2
