"""Tasks: templates, instructions, and the metrics of the GLUE tasks."""

import pytest

from neo_peft.errors import InputError
from neo_peft.settings import make_settings, task_of, with_labels
from neo_peft.tasks import TASKS

CLASSIFICATION = TASKS["classification"]


def test_an_instruction_does_not_list_many_labels():
    few, many = (tuple(f"label {i}" for i in range(count)) for count in (7, 70))
    instructions = [with_labels(CLASSIFICATION, labels).instruction for labels in (few, many)]
    assert instructions == [
        f"Classify if the sentence is {', '.join(few)}:\n",
        "Classify the sentence:\n",
    ]
    with pytest.raises(
        InputError, match="the labels good and Good have the same label words 'good'; give each its"
    ):
        with_labels(CLASSIFICATION, ("good", "Good"))
    assert (
        with_labels(CLASSIFICATION, ("good", "Good"), ("fine", "great")).label_text("Good")
        == " great"
    )


def test_a_template_has_the_names_of_its_fields():
    task = task_of(make_settings(task="glue/qnli", method="lora"))
    texts = task.texts({"question": "Why ?", "sentence": "So it is ."})
    assert "".join(texts) == "Question : Why ? Sentence : So it is . Label :"
    assert task.label_text("not entailment") == " not entailment"


def test_the_metrics_of_the_glue_tasks_are_those_of_glue():
    metrics = {name: task.metric for name, task in TASKS.items() if name.startswith("glue/")}
    assert len(metrics) == 8
    assert metrics == dict.fromkeys(metrics, "accuracy") | {
        "glue/cola": "matthews",
        "glue/mrpc": "f1",
        "glue/qqp": "f1",
    }


def test_the_order_of_the_labels_is_fixed_since_saved_heads_have_it():
    """Worked by hand from the data sets' own files and GLUE's numbers."""
    kinds = ("DNA", "protein", "cell_type", "cell_line", "RNA")
    tags = ("O", *(f"{prefix}-{kind}" for kind in kinds for prefix in ("B", "I")))
    expected = {
        "ner": tags,
        "sentiment": ("negative", "neutral", "positive"),
        "similarity": ("not equivalent", "equivalent"),
        "glue/cola": ("unacceptable", "acceptable"),
        "glue/sst2": ("negative", "positive"),
        "glue/mrpc": ("not equivalent", "equivalent"),
        "glue/qqp": ("not duplicate", "duplicate"),
        "glue/mnli": ("entailment", "neutral", "contradiction"),
        "glue/qnli": ("entailment", "not entailment"),
        "glue/rte": ("entailment", "not entailment"),
        "glue/wnli": ("not entailment", "entailment"),
    }
    assert {name: task.labels for name, task in TASKS.items() if task.labels} == expected
