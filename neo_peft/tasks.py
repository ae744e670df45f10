"""What a task is: its labels, the text that a model gets for a row, and the words of its answer. No
torch here.

Every task is "predict a class at marked positions". To tag a sentence, a linear head predicts a tag
at each word. To classify a sentence or a pair, the language model continues a text that ends in
`Label :` with the label.
"""

from dataclasses import dataclass, replace

from neo_peft.errors import InputError


@dataclass(frozen=True)
class Task:
    """A task: which rows it has, and how a model is asked for their labels."""

    name: str  # as `--task` gives it
    fields: tuple[str, ...]  # of a row; the last one is its label, or its tags
    labels: tuple[str, ...]  # in the order of a head's outputs; () where own rows bring them
    metric: str  # the score by which the best epoch is kept
    # The fixed texts around the data fields; the last one ends where the answer is read. A task
    # without a template tags the words of its rows.
    template: tuple[str, ...] = ()
    source_template: tuple[str, ...] = ()  # the same in the words of the study that we follow
    instruction: str = ""  # before a text for an untuned model; a soft prompt starts from it
    instruction_for_labels: str = ""  # the same for a user's own labels, which replace "{}"
    short_instruction_for_labels: str = ""  # the same for many labels, without listing them
    words: tuple[str, ...] = ()  # what the model says for each label, where not the label itself

    @property
    def tags_words(self) -> bool:
        return not self.template

    def texts(self, row: dict, source_text: bool = False) -> list[str]:
        """Return the parts of a row's text, without the answer; each is tokenised on its own."""
        if self.tags_words:
            # Every word has a leading space, the first one too, as with add_prefix_space=True.
            return [" " + word for word in row["tokens"]]
        first, *template = self.template_for(source_text)
        texts = [first]
        for field, text in zip(self.fields[:-1], template, strict=True):
            texts += (" " + row[field].strip(), text)
        return texts

    def labels_of(self, row: dict) -> list[str | None]:
        """Return a row's tags, one for each word, or its label; None for each that is absent."""
        if not self.tags_words:
            return [row.get(self.fields[-1])]
        tags = row.get("tags") or [None] * len(row["tokens"])
        if len(tags) != len(row["tokens"]):
            raise ValueError(
                f"{len(row['tokens'])} words, but {len(tags)} tags: "
                f"{' '.join(row['tokens'])[:40]!r}"
            )
        return tags

    def template_for(self, source_text: bool = False) -> tuple[str, ...]:
        """Return the template, or with `source_text` the study's own where there is one."""
        return self.source_template if source_text and self.source_template else self.template

    def answer(self, label: str, source_text: bool = False) -> str:
        """Return the text of a label: with a leading space, which only the study's text lacks."""
        word = self.words[self.labels.index(label)] if self.words else label
        return word if source_text else " " + word


def is_tag(label: object) -> bool:
    """Return whether a label is a BIO tag."""
    return label == "O" or (isinstance(label, str) and label[:2] in ("B-", "I-") and len(label) > 2)


# Three shapes of tasks. The labels are those of a user's own rows.
_TAGGING = Task(
    name="tagging",
    fields=("tokens", "tags"),
    labels=(),
    metric="f1",
    instruction_for_labels="Label each word as part of the name of a {}:\n",
    short_instruction_for_labels="Label each word:\n",
)
_CLASSIFICATION = Task(
    name="classification",
    fields=("sentence", "label"),
    labels=(),
    metric="accuracy",
    template=("Sentence :", " Label :"),
    instruction_for_labels="Classify if the sentence is {}:\n",
    short_instruction_for_labels="Classify the sentence:\n",
)
_PAIRS = Task(
    name="pairs",
    fields=("sentence1", "sentence2", "label"),
    labels=(),
    metric="accuracy",
    template=("Sentence1 :", " Sentence2 :", " Label :"),
    instruction_for_labels="Classify if the two sentences are {}:\n",
    short_instruction_for_labels="Classify the two sentences:\n",
)

# The tasks of the study that this project follows have these shapes, and labels of their own.
_ENTITY_TYPES = ("DNA", "protein", "cell_type", "cell_line", "RNA")
_STUDIED = (
    replace(
        _TAGGING,
        name="ner",
        labels=("O", *(f"{prefix}-{kind}" for kind in _ENTITY_TYPES for prefix in "BI")),
        instruction="Label each word as part of the name of a DNA, protein, cell type, cell line "
        "or RNA:\n",
    ),
    replace(
        _CLASSIFICATION,
        name="sentiment",
        labels=("negative", "neutral", "positive"),
        source_template=("sentence :", " Label : "),
        instruction="Classify if the sentence is neutral, negative, positive:\n",
    ),
    replace(
        _PAIRS,
        name="similarity",
        labels=("not equivalent", "equivalent"),
        source_template=('"Sentence1":', ' "Sentence2":', ' "Label":'),
        instruction="Classify if the two sentences are equivalent or not:\n",
    ),
)


_IS, _PAIR = "Classify if the sentence is", "sentence1 sentence2"
_ARE, _ASKS = "Classify if the two sentences are", "Classify if the two questions are"
_ANSWERS = "Classify if the sentence answers:"
_FOLLOWS = "Classify if the second sentence follows from the first:"
# GLUE (Wang et al. 2019): name, fields, labels in the order of the numbers in its files, metric,
# instruction.
_GLUE = (
    ("cola", "sentence", "unacceptable, acceptable", "matthews", _IS),
    ("sst2", "sentence", "negative, positive", "accuracy", _IS),
    ("mrpc", _PAIR, "not equivalent, equivalent", "f1", _ARE),
    ("qqp", "question1 question2", "not duplicate, duplicate", "f1", _ASKS),
    ("mnli", "premise hypothesis", "entailment, neutral, contradiction", "accuracy", _FOLLOWS),
    ("qnli", "question sentence", "entailment, not entailment", "accuracy", _ANSWERS),
    ("rte", _PAIR, "entailment, not entailment", "accuracy", _FOLLOWS),
    ("wnli", _PAIR, "not entailment, entailment", "accuracy", _FOLLOWS),
)


def _glue(name: str, fields: str, labels: str, metric: str, instruction: str) -> Task:
    names = (*fields.split(), "label")
    first, *others = (f"{' ' * (number > 0)}{n.capitalize()} :" for number, n in enumerate(names))
    return Task(
        name=f"glue/{name}",
        fields=names,
        labels=tuple(labels.split(", ")),
        metric=metric,
        template=(first, *others),
        instruction=f"{instruction} {labels}:\n",
    )


# The order of the labels is fixed: other programs load our heads, whose outputs have that order.
_ALL = (*_STUDIED, _TAGGING, _CLASSIFICATION, _PAIRS, *(_glue(*item) for item in _GLUE))
TASKS = {task.name: task for task in _ALL}


def get_task(name: str) -> Task:
    """Return the task of a name."""
    if name not in TASKS:
        raise InputError(f"there is no task {name!r}; the tasks are {', '.join(TASKS)}")
    return TASKS[name]
