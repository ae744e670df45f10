"""What a task is: its labels, how a row is said to the model, and where its answer is read. No
torch here.

Every task is "read a class at marked rows". A tagged sentence is read at each of its words by a
linear head; a sentence or a pair is read at its end, after `Label :`, where the language model says
the label's word.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from neo_peft.errors import InputError

LISTED = 200  # characters of labels that an instruction names


class Piece(NamedTuple):
    """A stretch of an example's text, which may be cut where it is data."""

    text: str
    is_data: bool


class Glue(NamedTuple):
    """Where GLUE keeps a task: its folder, the columns of its TSV files that hold the task's
    fields, in their order, by name or, where a file has no heading, by number. GLUE's public test
    has no labels: its dev set is the test here, and validation, where it names no file, a tenth of
    train. `beside` is scored beside the test. `corpus` is the task whose original files will do as
    well."""

    folder: str
    columns: tuple[str | int, ...]
    validation: str = ""
    test: str = "dev.tsv"
    beside: str = ""
    corpus: str = ""


@dataclass(frozen=True)
class Task:
    """A task: `fields` name what a raw row holds (the last one is its label, or its tags), `labels`
    their order.

    `template` alternates fixed text and data fields, and ends where the answer is read; a task
    without one tags the words of its rows. `source_template` is the same in the words of the study
    that this project follows. `instruction` stands in front of a text that an untuned model
    answers, and is what a soft prompt starts from; `asks` is how it is said for labels of the
    user's own, `asks_shortly` for many of them. `words` are what the model says for the labels,
    where that is not their names.
    """

    name: str
    fields: tuple[str, ...]
    labels: tuple[str, ...]
    metric: str
    template: tuple[str, ...] = ()
    source_template: tuple[str, ...] = ()
    instruction: str = ""
    asks: str = ""
    asks_shortly: str = ""
    words: tuple[str, ...] = ()
    glue: Glue | None = None

    @property
    def tags_words(self) -> bool:
        return not self.template

    def texts(self, row: dict, source_text: bool = False) -> list[str]:
        """Say a row as stretches of text, each of which is tokenised on its own; an answer is not
        among them."""
        if self.tags_words:
            # Every word carries its leading space, the first one too, as under
            # add_prefix_space=True.
            return [" " + word for word in row["tokens"]]
        first, *template = self.said_template(source_text)
        texts = [first]
        for field, text in zip(self.fields[:-1], template, strict=True):
            texts += (" " + row[field].strip(), text)
        return texts

    def pieces(self, row: dict, source_text: bool = False) -> list[Piece]:
        """Say a row as `texts` does, and which of them are data: every word, or what the template
        stands between."""
        texts = self.texts(row, source_text)
        return [Piece(text, self.tags_words or index % 2 == 1) for index, text in enumerate(texts)]

    def labels_of(self, row: dict) -> list[str | None]:
        """Take a row's labels, None for each that is not given: a tag for each word, or the one
        answer."""
        if not self.tags_words:
            return [row.get(self.fields[-1])]
        tags = row.get("tags") or [None] * len(row["tokens"])
        if len(tags) != len(row["tokens"]):
            raise ValueError(
                f"{len(row['tokens'])} words, but {len(tags)} tags: "
                f"{' '.join(row['tokens'])[:40]!r}"
            )
        return tags

    def said_template(self, source_text: bool = False) -> tuple[str, ...]:
        return self.source_template if source_text and self.source_template else self.template

    def answer(self, label: str, source_text: bool = False) -> str:
        """Say a label: with its leading space, except in the source's text, which leaves it out."""
        word = self.words[self.labels.index(label)] if self.words else label
        return word if source_text else " " + word

    def with_labels(
        self, labels: Sequence[str] | None, words: Sequence[str] | None = None
    ) -> "Task":
        """Make the same task for labels of the user's own, in their order; `words` say them, one
        each."""
        task = self
        if labels is not None and tuple(labels) != self.labels:
            if len(set(labels)) != len(labels):
                raise InputError(f"the labels {', '.join(labels)} hold one twice; name each once")
            if wrong := [label for label in labels if self.tags_words and not is_tag(label)]:
                raise InputError(
                    f"the label {wrong[0]!r} is no tag; those of {self.name} are O, B-type and "
                    "I-type"
                )
            said = (
                {label[2:]: None for label in labels if label != "O"}
                if self.tags_words
                else words or labels
            )
            listed = ", ".join(said)
            # A long list would take the place of the texts behind it.
            asks = self.asks.format(listed) if len(listed) <= LISTED else self.asks_shortly
            task = replace(task, labels=tuple(labels), instruction=asks)
        if words is not None:
            if self.tags_words:
                raise InputError(
                    f"--label-words belongs to tasks whose answer is said; {self.name} tags words "
                    "by a head"
                )
            if len(words) != len(task.labels):
                raise InputError(
                    f"--label-words {','.join(words)}: one word for each of the {len(task.labels)} "
                    "labels "
                    f"is needed, in the order of {', '.join(task.labels)}"
                )
            task = replace(task, words=tuple(words))
        task._refuse_words_alike()
        return task

    def _refuse_words_alike(self) -> None:
        """Refuse words that free generation, which is read without regard to case, could not tell
        apart."""
        alike: dict[str, str] = {}
        for label in () if self.tags_words else self.labels:
            word = self.answer(label).strip().lower()
            if alike.setdefault(word, label) != label:
                raise InputError(
                    f"the labels {alike[word]} and {label} are both said {word!r}; --label-words "
                    "gives each its own"
                )


def is_tag(label: object) -> bool:
    return label == "O" or (isinstance(label, str) and label[:2] in ("B-", "I-") and len(label) > 2)


_ENTITY_TYPES = ("DNA", "protein", "cell_type", "cell_line", "RNA")

_ASKS = {
    "tagging": ("Label each word as part of the name of a {}:\n", "Label each word:\n"),
    "classification": ("Classify if the sentence is {}:\n", "Classify the sentence:\n"),
    "pairs": ("Classify if the two sentences are {}:\n", "Classify the two sentences:\n"),
}
_ONE, _TWO = ("Sentence :", " Label :"), ("Sentence1 :", " Sentence2 :", " Label :")

_STUDIED = (
    Task(
        name="ner",
        fields=("tokens", "tags"),
        labels=("O", *(f"{prefix}-{kind}" for kind in _ENTITY_TYPES for prefix in "BI")),
        metric="f1",
        instruction="Label each word as part of the name of a DNA, protein, cell type, cell line "
        "or RNA:\n",
        asks=_ASKS["tagging"][0],
        asks_shortly=_ASKS["tagging"][1],
    ),
    Task(
        name="sentiment",
        fields=("sentence", "label"),
        labels=("negative", "neutral", "positive"),
        metric="accuracy",
        template=_ONE,
        source_template=("sentence :", " Label : "),
        instruction="Classify if the sentence is neutral, negative, positive:\n",
        asks=_ASKS["classification"][0],
        asks_shortly=_ASKS["classification"][1],
    ),
    Task(
        name="similarity",
        fields=("sentence1", "sentence2", "label"),
        labels=("not equivalent", "equivalent"),
        metric="accuracy",
        template=_TWO,
        source_template=('"Sentence1":', ' "Sentence2":', ' "Label":'),
        instruction="Classify if the two sentences are equivalent or not:\n",
        asks=_ASKS["pairs"][0],
        asks_shortly=_ASKS["pairs"][1],
    ),
)

# The same three shapes under plain names, for rows of the user's own, whose labels they have.
_PLAIN = (
    Task("tagging", ("tokens", "tags"), (), "f1", (), (), "", *_ASKS["tagging"]),
    Task(
        "classification",
        ("sentence", "label"),
        (),
        "accuracy",
        _ONE,
        (),
        "",
        *_ASKS["classification"],
    ),
    Task(
        "pairs", ("sentence1", "sentence2", "label"), (), "accuracy", _TWO, (), "", *_ASKS["pairs"]
    ),
)


def _glue(name: str, labels: str, metric: str, fields: str, instruction: str, where: Glue) -> Task:
    """Make one of GLUE's tasks (Wang et al. 2019). The labels are in the order of the numbers that
    its files have."""
    said, names = fields.split(), tuple(label.replace("_", " ") for label in labels.split())
    template = [
        (" " if index else "") + field.capitalize() + " :" for index, field in enumerate(said)
    ]
    return Task(
        f"glue/{name}",
        (*said, "label"),
        names,
        metric,
        (*template, " Label :"),
        instruction=f"{instruction} {', '.join(names)}:\n",
        glue=where,
    )


_PAIR = "sentence1 sentence2"
_ENTAILED = "Classify if the second sentence follows from the first:"
_GLUE = (
    _glue(
        "cola",
        "unacceptable acceptable",
        "matthews",
        "sentence",
        "Classify if the sentence is",
        Glue("CoLA", (3, 1)),
    ),
    _glue(
        "sst2",
        "negative positive",
        "accuracy",
        "sentence",
        "Classify if the sentence is",
        Glue("SST-2", ("sentence", "label")),
    ),
    _glue(
        "mrpc",
        "not_equivalent equivalent",
        "f1",
        _PAIR,
        "Classify if the two sentences are",
        Glue(
            "MRPC",
            ("#1 String", "#2 String", "Quality"),
            "dev.tsv",
            "msr_paraphrase_test.txt",
            "",
            "similarity",
        ),
    ),
    _glue(
        "qqp",
        "not_duplicate duplicate",
        "f1",
        "question1 question2",
        "Classify if the two questions are",
        Glue("QQP", ("question1", "question2", "is_duplicate")),
    ),
    _glue(
        "mnli",
        "entailment neutral contradiction",
        "accuracy",
        "premise hypothesis",
        _ENTAILED,
        Glue(
            "MNLI",
            ("sentence1", "sentence2", "gold_label"),
            "",
            "dev_matched.tsv",
            "dev_mismatched.tsv",
        ),
    ),
    _glue(
        "qnli",
        "entailment not_entailment",
        "accuracy",
        "question sentence",
        "Classify if the sentence answers:",
        Glue("QNLI", ("question", "sentence", "label")),
    ),
    _glue(
        "rte",
        "entailment not_entailment",
        "accuracy",
        _PAIR,
        _ENTAILED,
        Glue("RTE", ("sentence1", "sentence2", "label")),
    ),
    _glue(
        "wnli",
        "not_entailment entailment",
        "accuracy",
        _PAIR,
        _ENTAILED,
        Glue("WNLI", ("sentence1", "sentence2", "label")),
    ),
)

# The order of the labels is fixed: heads are exchanged with other programs by row.
TASKS = {task.name: task for task in (*_STUDIED, *_PLAIN, *_GLUE)}


def get_task(name: str) -> Task:
    """Look a task up by name."""
    if name not in TASKS:
        raise InputError(f"there is no task {name!r}; the tasks are {', '.join(TASKS)}")
    return TASKS[name]
