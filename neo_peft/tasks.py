"""A task: its labels, the text that the model gets for a row, and the words of each label.

Every task predicts one class or token at each target position. In a tagging task a linear head
predicts a tag for each word. In a classification task the text ends with `Label :`. At its last
token the language model predicts the words of the label, or a linear head predicts the label.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from neo_peft.errors import InputError


@dataclass(frozen=True)
class Task:
    """A task: the fields of its rows, its labels, and the text around a row's data."""

    name: str  # the value of `--task`
    fields: tuple[str, ...]  # names of a row's fields; the last one is its label, or its tags
    labels: tuple[str, ...]  # in the order of a head's outputs; () if your own rows define them
    metric: str  # the score that selects the best epoch
    # Fixed texts around the data fields, for example ("Sentence :", " Label :"). The first target
    # position is the last token of the last text. A tagging task has no template.
    template: tuple[str, ...] = ()
    source_template: tuple[str, ...] = ()  # the template of the original study
    instruction: str = ""  # default of --prompt-text; before texts that an untuned model classifies
    instruction_for_labels: str = ""  # instruction for your own labels, which replace "{}"
    short_instruction_for_labels: str = ""  # the same if the list of labels is too long
    label_words: tuple[str, ...] = ()  # the word for each label; () if the label itself is the word

    @property
    def is_tagging(self) -> bool:
        """Whether this is a tagging task; if not, it is a classification task."""
        return not self.template

    def texts(self, row: dict, source_text: bool = False) -> list[str]:
        """Return the parts of a row's text, without the label text; each is tokenised alone."""
        if self.is_tagging:
            # One leading space, as with add_prefix_space=True; a second one would be its own token.
            return [" " + word.strip() for word in row["tokens"]]
        first, *template = self.template_for(source_text)
        texts = [first]
        for field, text in zip(self.fields[:-1], template, strict=True):
            texts += (" " + row[field].strip(), text)
        return texts

    def labels_of(self, row: dict) -> list[str | None]:
        """Return a row's tags, or a list with its label; a missing tag or label is None."""
        if not self.is_tagging:
            return [row.get(self.fields[-1])]
        words = row["tokens"]
        tags = row.get("tags") or [None] * len(words)
        if len(tags) != len(words):
            raise ValueError(f"{len(words)} words, but {len(tags)} tags: {' '.join(words)[:40]!r}")
        return tags

    def own_labels(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Return the labels that a user names. In a tagging task entity types become tags."""
        are_types = self.is_tagging and not any(map(is_tag, labels))
        return tags_of(labels) if are_types else tuple(labels)

    def template_for(self, source_text: bool = False) -> tuple[str, ...]:
        """Return the template: the original study's, if `source_text` is set and it has one."""
        return self.source_template if source_text and self.source_template else self.template

    def label_text(self, label: str, source_text: bool = False) -> str:
        """Return the text after "Label :". It starts with a space, unless `source_text` is set."""
        word = self.label_words[self.labels.index(label)] if self.label_words else label
        return word if source_text else " " + word


def is_tag(label: object) -> bool:
    """Return whether a label is a BIO tag."""
    return label == "O" or (isinstance(label, str) and label[:2] in ("B-", "I-") and len(label) > 2)


def tags_of(types: Iterable[str]) -> tuple[str, ...]:
    """Return O, then B- and I- of each entity type."""
    return ("O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI"))


# Three tasks for your own data. Their labels come from the data.
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

# The three tasks of the original study.
_ENTITY_TYPES = ("DNA", "protein", "cell_type", "cell_line", "RNA")
_STUDIED = (
    replace(
        _TAGGING,
        name="ner",
        labels=tags_of(_ENTITY_TYPES),
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

_SENTENCE_IS, _PAIR = "Classify if the sentence is", "sentence1 sentence2"
_SENTENCES_ARE = "Classify if the two sentences are"
_QUESTIONS_ARE = "Classify if the two questions are"
_SENTENCE_ANSWERS = "Classify if the sentence answers:"
_FOLLOWS = "Classify if the second sentence follows from the first:"
# GLUE (Wang et al. 2019): name, fields, labels (files store their indices), metric, instruction.
_GLUE = (
    ("cola", "sentence", "unacceptable, acceptable", "matthews", _SENTENCE_IS),
    ("sst2", "sentence", "negative, positive", "accuracy", _SENTENCE_IS),
    ("mrpc", _PAIR, "not equivalent, equivalent", "f1", _SENTENCES_ARE),
    ("qqp", "question1 question2", "not duplicate, duplicate", "f1", _QUESTIONS_ARE),
    ("mnli", "premise hypothesis", "entailment, neutral, contradiction", "accuracy", _FOLLOWS),
    ("qnli", "question sentence", "entailment, not entailment", "accuracy", _SENTENCE_ANSWERS),
    ("rte", _PAIR, "entailment, not entailment", "accuracy", _FOLLOWS),
    ("wnli", _PAIR, "not entailment, entailment", "accuracy", _FOLLOWS),
)


def _glue(name: str, fields: str, labels: str, metric: str, instruction: str) -> Task:
    names = (*fields.split(), "label")
    first, *others = (f"{' ' * (i > 0)}{field.capitalize()} :" for i, field in enumerate(names))
    return Task(
        name=f"glue/{name}",
        fields=names,
        labels=tuple(labels.split(", ")),
        metric=metric,
        template=(first, *others),
        instruction=f"{instruction} {labels}:\n",
    )


# Never change the order of a task's labels: the outputs of saved heads have this order.
_ALL = (*_STUDIED, _TAGGING, _CLASSIFICATION, _PAIRS, *(_glue(*item) for item in _GLUE))
TASKS = {task.name: task for task in _ALL}


def get_task(name: str) -> Task:
    """Return the task with this name."""
    if name not in TASKS:
        raise InputError(f"there is no task {name!r}; the tasks are {', '.join(TASKS)}")
    return TASKS[name]
