"""Write the same own rows in each file format, with the standard library and `datasets` alone."""

import csv
import json
from pathlib import Path

TABLES = ("csv", "tsv", "jsonl", "json", "parquet")
WORDS = ("conll", "iob", "iob2", "bio", "txt", "tsv", "jsonl", "json", "parquet", "csv")


def write_as(path: Path, rows: list[dict]) -> Path:
    """Write rows in the format of the file's suffix."""
    suffix, fields = path.suffix[1:], list(rows[0])
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == "json":
        path.write_text(json.dumps(rows, indent=1))
    elif suffix == "parquet":
        import datasets

        columns = {field: [row[field] for row in rows] for field in fields}
        datasets.Dataset.from_dict(columns).to_parquet(str(path))
    elif "tokens" in fields and suffix != "csv":
        mark = "\t" if suffix == "tsv" else " "
        path.write_text("\n".join(map(lambda row: sentence(row, mark), rows)))
    else:
        with open(path, "w", newline="") as file:
            table = csv.writer(file, delimiter="\t" if suffix == "tsv" else ",")
            table.writerow(fields)
            table.writerows([row[field] for field in fields] for row in rows)
    return path


def sentence(row: dict, mark: str) -> str:
    pairs = zip(row["tokens"], row["tags"], strict=True)
    return "".join(f"{token}{mark}{tag}\n" for token, tag in pairs)
