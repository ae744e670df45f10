"""Write the model card of an exported run: README.md with the hub's metadata, the labels, what the
input is, the scores with their intervals, and Python code that loads and uses the model."""

import json
import re
from pathlib import Path
from typing import NamedTuple

from neo_peft.formats.base_folder import BUNDLED
from neo_peft.model import HeadKind
from neo_peft.runs.bootstrap import Interval, intervals
from neo_peft.runs.folder import RUN, read_finished_run, short_name
from neo_peft.runs.loading import LoadedModel
from neo_peft.runs.predictions import PredictionKind, read_predictions, reported_split
from neo_peft.runs.tables import metric_name
from neo_peft.system.files import write_text
from neo_peft.system.hub import repository_of

# for each head: transformers' AutoModelFor… class, its pipeline, and the pipeline call's arguments
TRANSFORMERS_NAMES = {
    HeadKind.CLASSIFIER: ("TokenClassification", "token-classification", ""),
    HeadKind.SCORE: ("SequenceClassification", "text-classification", ""),
    HeadKind.LM_HEAD: (
        "CausalLM",
        "text-generation",
        ", max_new_tokens=10, do_sample=False, return_full_text=False",
    ),
}


METRIC_TYPES = {"matthews": "matthews_correlation"}  # the hub's names, where they are not ours
# Two sentences for the examples: plain words, and others that tokenizers split in several ways.
SENTENCES = ("The IL-2 gene is active in T cells .", "Z\u00fcrich's NET sales rose to 1,250.5 mn .")


class Scores(NamedTuple):
    """A run's scores on the split that it reports."""

    split: str  # "test", or "validation"
    rows: int  # number of its rows
    values: dict[str, float]  # by metric
    intervals: dict[str, Interval]  # 95 % bootstrap interval of each metric
    names: dict[str, str]  # the printed name of each metric

    def lines(self) -> list[str]:
        """Return a line for each metric."""
        return [
            f"{self.names[name]} {self.values[name]:.3f} ({low:.3f} to {high:.3f})"
            for name, (low, high) in self.intervals.items()
        ]


def write_card(folder: Path, tuned: LoadedModel, run: Path, is_adapter: bool) -> None:
    """Write the model card. Its code runs inside the folder."""
    settings, task, scores = tuned.settings, tuned.encoder.task, reported_scores(run)
    what = "An adapter for peft" if is_adapter else "A whole model for transformers"
    usage = tagging_usage(tuned) if task.is_tagging else classification_usage(tuned)
    code = adapter_code(tuned) if is_adapter else model_code(tuned)
    score_text = ""
    if scores:
        kind = tuned.base.quantize
        stored = "" if kind == "none" else f" with the base in {kind}"
        score_text = (
            f"\nScores on {scores.split} ({scores.rows} rows){stored}, with 95 % bootstrap "
            f"intervals: {', '.join(scores.lines())}.\n"
        )
    text = f"""\
{front_matter(tuned, scores, is_adapter)}
# {task.name}, {settings.method} on {base_name(tuned)}

{what}, made by neo_peft. Labels in order: {", ".join(task.labels)}.
{usage}
{score_text}
```python
{code}
```
"""
    write_text(folder / "README.md", text)


# ---- Metadata


def public_model(tuned: LoadedModel) -> str | None:
    """Return the base's hub id, with @revision if one is known; None for a local folder."""
    model = tuned.settings.model
    if model in BUNDLED or Path(model).is_dir():
        return repository_of(tuned.base.folder)
    return model


def base_name(tuned: LoadedModel) -> str:
    """Return the name of the base for a reader: its hub id, or its folder's name."""
    return (public_model(tuned) or short_name(tuned.settings.model)).split("@")[0]


def licence(folder: Path) -> str | None:
    """Return the licence in the metadata of a base's model card; None if it is not known."""
    try:
        text = (folder / "README.md").read_text("utf-8")
    except (OSError, ValueError):
        return None
    metadata = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    found = metadata and re.search(r"^license: *[\"']?([\w.-]+)[\"']?$", metadata[1], re.MULTILINE)
    return found[1] if found else None


def reported_scores(run: Path) -> Scores | None:
    """Return the scores of a run's tuned model; None without recorded scores and predictions."""
    if not (run / RUN).exists():  # an adapter that another program wrote
        return None
    record, task = read_finished_run(run)
    kind = PredictionKind("after")
    if "scores" not in record or not (run / kind.path(reported_split(record["rows"]))).exists():
        return None
    split = reported_split(record["rows"])
    rows = read_predictions(run, kind, split)
    ranges = intervals(task, rows, [[row["predicted"] for row in rows]])
    names = {metric: metric_name(task, metric) for metric in ranges}
    return Scores(split, len(rows), kind.scores(record)[split], ranges, names)


def front_matter(tuned: LoadedModel, scores: Scores | None, is_adapter: bool) -> str:
    """Return the hub's metadata in YAML. Strings are quoted as in JSON, which YAML reads too."""
    pipeline, repository = TRANSFORMERS_NAMES[tuned.model.head_kind][1], public_model(tuned)
    lines = ["---", f"library_name: {'peft' if is_adapter else 'transformers'}"]
    if repository:
        lines.append(f"base_model: {json.dumps(repository.split('@')[0])}")
    lines += [f"pipeline_tag: {pipeline}", "tags:", "- neo_peft"]
    if name := licence(tuned.base.folder):
        lines.append(f"license: {name}")
    if scores:
        lines += model_index(tuned, scores, pipeline)
    return "\n".join([*lines, "---"])


def model_index(tuned: LoadedModel, scores: Scores, pipeline: str) -> list[str]:
    """Return the lines of the scores in the hub's format, `model-index`."""
    task, settings = tuned.encoder.task, tuned.settings
    data = f"{task.name}, {Path(settings.data).name}"
    lines = [
        "model-index:",
        f"- name: {json.dumps(f'{task.name}, {settings.method} on {base_name(tuned)}')}",
        "  results:",
        f"  - task: {{type: {pipeline}}}",
        f"    dataset: {{type: {json.dumps(task.name)}, name: {json.dumps(data)}, "
        f"split: {scores.split}}}",
        "    metrics:",
    ]
    for name, (low, high) in scores.intervals.items():
        shown = f"{scores.names[name]} (95 % interval {low:.3f} to {high:.3f}, {scores.rows} rows)"
        lines += [
            f"    - type: {METRIC_TYPES.get(name, name)}",
            f"      value: {scores.values[name]:.4f}",
            f"      name: {json.dumps(shown)}",
            f"      args: {{low: {low:.4f}, high: {high:.4f}, level: 0.95}}",
        ]
    return lines


# ---- The input, and where the model predicts


def example_rows(tuned: LoadedModel) -> list[dict]:
    """Return two rows of data without labels."""
    task = tuned.encoder.task
    if task.is_tagging:
        return [{"tokens": sentence.split()} for sentence in SENTENCES]
    return [dict.fromkeys(task.fields[:-1], sentence) for sentence in SENTENCES]


def text_of(tuned: LoadedModel, row: dict) -> str:
    """Return the input text of a row."""
    encoder = tuned.encoder
    if encoder.task.is_tagging:
        return " ".join(row["tokens"] * (2 if encoder.echo else 1))
    return "".join(encoder.task.texts(row, encoder.source_text))


def example_text(tuned: LoadedModel) -> str:
    """Return the input text of the first example."""
    return text_of(tuned, example_rows(tuned)[0])


def template(tuned: LoadedModel) -> str:
    """Return the input text with the names of the fields in place of data."""
    return text_of(tuned, {field: f"<{field}>" for field in tuned.encoder.task.fields})


def classification_usage(tuned: LoadedModel) -> str:
    """Return the card's sentences on the input text and on where the model predicts the label."""
    task, text = tuned.encoder.task, f"The text is `{template(tuned)}`"
    if tuned.model.head is None:
        texts = (task.label_text(label, tuned.encoder.source_text) for label in task.labels)
        return (
            f"{text}, without special tokens. The model generates one of "
            f"{', '.join(f'`{each}`' for each in texts)} and then the end token."
            + f" Generate for one text at a time, because of the {front_name(tuned)}."
            * bool(tuned.model.prompt)
        )
    batching = "Pad on the right."
    if has_embeddings(tuned):  # transformers then ignores the padding, and takes the last position
        batching = "All texts of a batch must have the same length, because of the prompt."
    return f"{text}. A linear head predicts the label at the text's last token. {batching}"


def front_name(tuned: LoadedModel) -> str:
    """Return what is in front of every text: "prompt" or "prefix"; "" if nothing is."""
    return next((part.name for part in tuned.settings.parts if part.length_flag), "")


def has_embeddings(tuned: LoadedModel) -> bool:
    """Return whether peft puts embeddings in front of every text. They have logits too."""
    return tuned.model.prompt is not None and tuned.model.prompt.embeddings is not None


def tagging_usage(tuned: LoadedModel) -> str:
    """Return the card's sentences on the input text and on where the model predicts the tags."""
    lines = [
        "Words are separated by spaces. Every word is encoded with a leading space, the first one "
        "too (`add_prefix_space`)."
    ]
    if tuned.encoder.echo:
        lines.append("The input is the sentence twice. Use the tags of the second copy.")
    if tuned.encoder.viterbi:
        lines.append(
            "neo_peft chooses the best sequence of tags that BIO allows (Viterbi); transformers "
            "chooses each word's tag alone."
        )
    if tuned.encoder.tag_last_subtoken:
        where = "last sub-token. No aggregation strategy of transformers uses that one."
    else:
        where = 'first sub-token, as `aggregation_strategy="first"` does.'
    return "\n".join([*lines, f"The tag of a word is predicted at its {where}"])


# ---- The code


def adapter_code(tuned: LoadedModel) -> str:
    """Return the Python code that loads an adapter with peft, and predicts."""
    model, parts = tuned.model, tuned.settings.parts
    *others, last = [part.name for part in parts] if len(parts) > 1 else ["."]
    auto = f"AutoModelFor{TRANSFORMERS_NAMES[model.head_kind][0]}"
    labels = ", num_labels=len(labels)" if model.head else ""
    lines = [
        "from peft import PeftConfig, PeftModel",
        f"from transformers import {auto}, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained(".")  # it encodes texts as in training',
        f'config = PeftConfig.from_pretrained("{[*others, last][0]}")',
        f"base = config.base_model_name_or_path  # any copy of {base_name(tuned)}",
        'options = {"revision": config.revision or "main", "dtype": "float32"}',
        "# GPT-Neo has no padding token, which a batch needs",
        'options["pad_token_id"] = tokenizer.pad_token_id',
        f"model = {auto}.from_pretrained(base, **options{labels})",
    ]
    if model.head:
        lines.insert(3, f"labels = {list(tuned.encoder.task.labels)}")
    for name in others:  # merged first, since peft cannot load both into one model
        lines.append(f'model = PeftModel.from_pretrained(model, "{name}").merge_and_unload()')
    lines.append(f'model = PeftModel.from_pretrained(model, "{last}").eval()')
    return "\n".join([*lines, "", *prediction_code(tuned)])


def prediction_code(tuned: LoadedModel) -> list[str]:
    """Return the lines of an adapter's code that predict for the example."""
    model, text = tuned.model, example_text(tuned)
    lines = [f"texts = [{text!r}]", 'inputs = tokenizer(texts, padding=True, return_tensors="pt")']
    if model.head is None:
        return [
            *lines,
            "output = model.generate(**inputs, max_new_tokens=10, do_sample=False)",
            'print(tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :]))',
        ]
    logits = "logits = model(**inputs).logits"
    if model.head_kind == HeadKind.SCORE:
        return [*lines, logits, "print([labels[index] for index in logits.argmax(-1)])"]
    if has_embeddings(tuned):
        count = len(model.prompt)
        logits += f"[:, {count}:]  # the first {count} logits belong to the prompt"
    return [*lines, logits, "print([labels[index] for index in logits[0].argmax(-1)])"]


def model_code(tuned: LoadedModel) -> str:
    """Return the Python code that predicts with a whole model in a transformers pipeline."""
    _, pipeline, arguments = TRANSFORMERS_NAMES[tuned.model.head_kind]
    options = ""
    if tuned.encoder.task.is_tagging:
        strategy = "none" if tuned.encoder.tag_last_subtoken else "first"
        options = f', aggregation_strategy="{strategy}"'
    return f"""\
from transformers import pipeline

predict = pipeline("{pipeline}", model="."{options})
print(predict({example_text(tuned)!r}{arguments}))"""
