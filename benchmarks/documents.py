"""Write long documents to tag: consecutive sentences of JNLPBA, joined. Its test files do not mark
where an abstract ends, so a document can have sentences of two.

    python -m benchmarks.documents DATA FOLDER --sentences 12

DATA is the folder of the original files. FOLDER gets a file for each split:

    python train.py --task ner --method lora --data FOLDER
"""

import argparse
import json
from pathlib import Path

from neo_peft.corpora.sources import load_splits
from neo_peft.tasks import get_task


def join(rows: list[dict], sentences: int) -> list[dict]:
    """Return a row for each `sentences` rows."""
    parts = [rows[start : start + sentences] for start in range(0, len(rows), sentences)]
    return [
        {field: [item for row in part for item in row[field]] for field in ("tokens", "tags")}
        for part in parts
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Join the sentences of JNLPBA to documents.")
    parser.add_argument("data", help="the folder of the original files")
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--sentences", type=int, default=12, help="sentences of a document")
    flags = parser.parse_args()
    flags.folder.mkdir(parents=True)
    for name, rows in load_splits(get_task("ner"), flags.data).named().items():
        lines = [json.dumps(row) + "\n" for row in join(rows, flags.sentences)]
        (flags.folder / f"{name}.jsonl").write_text("".join(lines))
        print(f"{name}: {len(lines):,} documents")


if __name__ == "__main__":
    main()
