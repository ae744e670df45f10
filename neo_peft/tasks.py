"""What a task is: its labels, how a row is said to the model, and where its answer is read. No torch here.

Every task is "read a class at marked rows". A tagged sentence is read at each of its words by a linear head;
a sentence or a pair is read at its end, after `Label :`, where the language model says the label's word.
"""

from dataclasses import dataclass
from typing import NamedTuple

from neo_peft.errors import InputError

METHODS = ("lora", "prompt", "full", "head", "lora+prompt")


class Piece(NamedTuple):
    """A stretch of an example's text. It carries a label where one is read, and may be cut where it is data."""

    text: str
    label: str | None = None
    is_data: bool = False


@dataclass(frozen=True)
class Task:
    """A task: `fields` name what a raw row holds (the last one is its label, or its tags), `labels` their order.

    `template` alternates fixed text and data fields, and ends where the answer is read; a task without one tags
    the words of its rows. `source_template` is the same in the words of the study that this project follows.
    `instruction` stands in front of a text that an untuned model answers, and is what a soft prompt starts from.
    """

    name: str
    fields: tuple[str, ...]
    labels: tuple[str, ...]
    metric: str
    template: tuple[str, ...] = ()
    source_template: tuple[str, ...] = ()
    instruction: str = ""

    @property
    def tags_words(self) -> bool:
        return not self.template

    def pieces(self, row: dict, source_text: bool = False) -> list[Piece]:
        """Say a row as pieces of text; the label of an answer task is not among them, see `answer`."""
        if self.tags_words:
            # Every word carries its leading space, the first one too, as under add_prefix_space=True.
            words, tags = row["tokens"], row.get("tags") or [None] * len(row["tokens"])
            return [Piece(" " + word, tag, is_data=True) for word, tag in zip(words, tags, strict=True)]
        template = self.source_template if source_text else self.template
        pieces = []
        for text, field in zip(template, (*self.fields[:-1], None), strict=True):
            pieces.append(Piece(text))
            if field:
                pieces.append(Piece(" " + row[field].strip(), is_data=True))
        return pieces

    def answer(self, label: str, source_text: bool = False) -> str:
        """Say a label: with its leading space, except in the source's text, which leaves it out."""
        return label if source_text else " " + label


_ENTITY_TYPES = ("DNA", "protein", "cell_type", "cell_line", "RNA")

# The order of the labels is fixed: heads are exchanged with other programs by row.
TASKS = {
    task.name: task
    for task in (
        Task(
            name="ner",
            fields=("tokens", "tags"),
            labels=("O", *(f"{prefix}-{kind}" for kind in _ENTITY_TYPES for prefix in "BI")),
            metric="f1",
            instruction="Label each word as part of the name of a DNA, protein, cell type, cell line or RNA:\n",
        ),
        Task(
            name="sentiment",
            fields=("sentence", "label"),
            labels=("negative", "neutral", "positive"),
            metric="accuracy",
            template=("Sentence :", " Label :"),
            source_template=("sentence :", " Label : "),
            instruction="Classify if the sentence is neutral, negative, positive:\n",
        ),
        Task(
            name="similarity",
            fields=("sentence1", "sentence2", "label"),
            labels=("not equivalent", "equivalent"),
            metric="accuracy",
            template=("Sentence1 :", " Sentence2 :", " Label :"),
            source_template=('"Sentence1":', ' "Sentence2":', ' "Label":'),
            instruction="Classify if the two sentences are equivalent or not:\n",
        ),
    )
}


def get_task(name: str) -> Task:
    """Look a task up by name."""
    if name not in TASKS:
        raise InputError(f"there is no task {name!r}; the tasks are {', '.join(TASKS)}")
    return TASKS[name]
