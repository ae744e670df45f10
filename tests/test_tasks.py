"""Tasks: templates, instructions, and the metrics of GLUE."""

import pytest

from neo_peft.errors import InputError
from neo_peft.settings import make_settings, task_of, with_labels
from neo_peft.tasks import TASKS

CLASSIFICATION = TASKS["classification"]


def test_many_labels_are_not_listed_in_front_of_every_text():
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


def test_a_template_names_its_fields():
    task = task_of(make_settings(task="glue/qnli", method="lora"))
    texts = task.texts({"question": "Why ?", "sentence": "So it is ."})
    assert "".join(texts) == "Question : Why ? Sentence : So it is . Label :"
    assert task.label_text("not entailment") == " not entailment"


def test_the_metrics_are_glues_own():
    metrics = {name: task.metric for name, task in TASKS.items() if name.startswith("glue/")}
    assert len(metrics) == 8
    assert metrics == dict.fromkeys(metrics, "accuracy") | {
        "glue/cola": "matthews",
        "glue/mrpc": "f1",
        "glue/qqp": "f1",
    }
