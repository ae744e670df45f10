"""Files of own rows, with labels that no built-in task has."""

import json
from pathlib import Path

WEEK = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


def write_rows(folder: Path, **splits: list) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


def week_rows(count: int) -> list[dict]:
    return [
        {"sentence": f"We met on day {i % 7} of week {i} .", "label": WEEK[::-1][i % 7]}
        for i in range(count)
    ]


def pair_rows(count: int) -> list[dict]:
    return [
        {"sentence1": f"He has {i} .", "sentence2": f"She has {i + i % 2} .", "label": i % 2}
        for i in range(count)
    ]


def tag_rows(count: int) -> list[dict]:
    tagged = [("B-drug", "B-gene", "I-gene"), ("O", "B-dose", "I-dose"), ("B-gene", "O", "B-drug")]
    return [
        {"tokens": [f"a{i}", "binds", f"b{i}"], "tags": list(tagged[i % 3]), "id": i}
        for i in range(count)
    ]
