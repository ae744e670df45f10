"""The benchmark of quantised bases: it measures each kind, in turn, and compares it with fp32."""

import json

import pytest

from benchmarks import peers, quantized


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(peers, "RECORDS", tmp_path / "records")
    monkeypatch.setitem(quantized.SHAPES, "125m", (64, 2, 1))


def test_a_record_and_a_table_have_the_bytes_and_the_seconds_of_each_kind(tmp_path, capsys):
    quantized.main(["--rounds", "1", "--steps", "1", "--batch-size", "2"])
    record = json.loads((tmp_path / "records/quantized-125m-fp32-cpu.json").read_text())
    assert record["layers"] == 2 and len(record["rounds"]) == 1
    lines = record["lines"]
    layers = 2 * 12 * 64**2  # weights; 4, 1 and about 0.52 bytes for each
    assert lines["fp32"]["weights"] - lines["int8"]["weights"] == 3 * layers - 4 * 2 * 9 * 64
    assert lines["nf4"]["weights"] < lines["int8"]["weights"]
    for line in lines.values():
        assert line["peak"] > 1e8 and line["seconds"] > 0 and line["tokens"] > 10
    assert lines["fp32"]["peak_ratio"] == lines["fp32"]["seconds_ratio"] == 1
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[2:]] == ["fp32", "int8", "nf4"]


def test_generation_is_measured_with_and_without_kept_weights(capsys):
    quantized.main(["--generate", "--rounds", "1"])
    printed = capsys.readouterr().out.splitlines()
    names = ["fp32", *(f"{kind}, {how}" for kind in ("int8", "nf4") for how in HOW)]
    assert [line.split("  ")[0] for line in printed[2:]] == names


HOW = ("kept", "for each token")
