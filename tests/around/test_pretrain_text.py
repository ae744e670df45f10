"""The text of scripts/pretrain.py: documents drawn from files, windows, and repeated text."""

import numpy as np
import pytest
from pretrain_text import Windows, choose_documents


def test_repeated_text_is_copied_exactly_or_with_changes():
    windows = Windows([list(range(1, 5001))], end=0, size=250)
    random = np.random.default_rng(0)
    kinds = {"exact": 0, "shorter": 0, "replaced": 0, "halves": 0}
    for _ in range(400):
        tokens = windows.repeated(random)
        assert len(tokens) == 251 and tokens[0] == 0
        end = next((i for i in range(1, 251) if tokens[i] == 0), 251)
        if end == 251:
            continue  # the first pair is cut off
        pair = tokens[1:end]
        # all tokens of the stream rise by one: a segment ends where the next token does not
        length = next((i for i in range(1, len(pair)) if pair[i] != pair[i - 1] + 1), len(pair))
        segment, copy = pair[:length], pair[length:]
        assert 14 <= length < 100
        if np.array_equal(segment, copy):
            kinds["exact"] += 1
        elif np.array_equal(np.sort(copy), segment):
            kinds["halves"] += 1
        elif len(copy) < length:
            assert np.isin(copy, segment).all()
            kinds["shorter"] += 1
        else:
            assert len(copy) == length and (copy == segment).mean() > 0.5
            kinds["replaced"] += 1
    total = sum(kinds.values())
    assert total > 200
    assert kinds["exact"] / total == pytest.approx(1 / 2, abs=0.1)
    for kind in ("shorter", "replaced", "halves"):
        assert kinds[kind] / total == pytest.approx(1 / 6, abs=0.07), kind


def test_a_share_of_the_windows_is_repeated_text():
    windows = Windows([list(range(1, 3001))], end=0, size=250)
    plain = windows.batch(3, 8, 0.0, 0)
    assert np.array_equal(plain, windows.batch(3, 8, 0.0, 0))
    assert (np.diff(plain, axis=1) == 1).all()  # 8 x 12 windows are one epoch of this text
    changed = [
        (windows.batch(step, 8, 0.25, 0) != windows.batch(step, 8, 0.0, 0)).any(axis=1).mean()
        for step in range(200)
    ]
    assert np.mean(changed) == pytest.approx(0.25, abs=0.04)


def test_documents_are_drawn_by_weight_and_some_are_spaced(tmp_path):
    (tmp_path / "a.txt").write_text(
        "\n".join(f"a{i}, (x) 1,000 of IL-2's 0.5 ml." for i in range(200))
    )
    (tmp_path / "b.txt").write_text("\n".join(f"b{i}" for i in range(10)) + "\n\n")
    half, twice = f"{tmp_path}/a.txt:0.5", f"{tmp_path}/b.txt:2"
    plain = choose_documents([half, twice], 0.0, 1)
    assert len(plain) == 120 and len(set(plain)) == 110
    assert sorted(d for d in plain if d[0] == "b") == sorted(2 * [f"b{i}" for i in range(10)])
    assert (
        plain == choose_documents([half, twice], 0.0, 1) != choose_documents([half, twice], 0.0, 2)
    )
    spaced = [d for d in choose_documents([half], 0.5, 1) if d.endswith(" .")]
    assert 30 < len(spaced) < 70
    assert spaced[0].partition(" ")[2] == ", ( x ) 1,000 of IL-2 's 0.5 ml ."


def test_a_text_of_few_tokens_is_repeated():
    windows = Windows([list(range(1, 31))], end=0, size=250)
    tokens = windows.repeated(np.random.default_rng(0))
    assert len(tokens) == 251 and set(tokens) <= set(range(31))
