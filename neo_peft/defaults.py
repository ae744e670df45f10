"""Data alone: what the package brings along, and the presets."""

from dataclasses import dataclass, field
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"  # the bundled model and sample, page templates
BUNDLED_MODEL = "neo-mini"
# The method of a study where no flag names one, by whether its task tags words.
STUDY_METHODS = {True: "lora", False: "prompt"}


@dataclass(frozen=True)
class Recipe:
    """A preset's settings for one task.

    method: its method.
    always: settings whatever the method; those that have no effect with it are left out.
    of_method: settings for its own method; another one that a flag names does not get them.
    on_bundled: settings for its own method that were chosen on the bundled model.
    assumed: settings that the study does not print; run.json marks them.
    """

    method: str | None = None
    always: dict[str, object] = field(default_factory=dict)
    of_method: dict[str, object] = field(default_factory=dict)
    on_bundled: dict[str, object] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()

    def values(self) -> dict[str, object]:
        return self.always | self.of_method | self.on_bundled


# The recipe of the study that this project follows. What it does not print is taken from the guide
# whose code it follows, and from its trainer's defaults.
_PAPER = {
    "model": "EleutherAI/gpt-neo-1.3B",
    "data": "hub",
    "protocol": "paper",
    "wording": "source",
    "weight_decay": 0.01,
    "warmup_ratio": 0.0,
    "gradient_accumulation": 1,
}
_PAPER_TAGS = Recipe(
    method="lora",
    always=_PAPER
    | {
        "batch_size": 16,
        "epochs": 10,
        "clip_norm": 1.0,
        "head_dropout": 0.1,
        "tag_subtoken": "first",
        "tag_decoding": "greedy",
        "keep": "best",
        "rank": 16,
        "alpha": 16.0,
        "dropout": 0.1,
        "bias": "all",
    },
    of_method={"learning_rate": 1e-3},
    assumed=("clip_norm", "warmup_ratio", "head_dropout"),
)


def _paper_answers(epochs: int, max_length: int) -> Recipe:
    return Recipe(
        method="prompt",
        always=_PAPER
        | {
            "batch_size": 8,
            "clip_norm": 0.0,
            "keep": "last",
            "generate": True,
            "epochs": epochs,
            "max_length": max_length,
            "prompt_length": 8,
            "prompt_init": "text",
        },
        of_method={"learning_rate": 3e-2},
        assumed=(
            *("learning_rate", "batch_size", "warmup_ratio", "clip_norm", "weight_decay"),
            *("prompt_init", "epochs", "max_length"),
        ),
    )


# What beat that recipe on the bundled model, see docs/results.md: of tags on ner, of answers on
# sentiment and similarity; on rows of one's own it is untried.
_BEST_TAGS = Recipe(
    method="lora",
    always={"target_modules": ("all-linear",), "rank": 32, "alpha": 32.0} | {"echo": True},
    on_bundled={"learning_rate": 3e-3},
)
_BEST_ANSWERS = Recipe(
    method="lora",
    always={"target_modules": ("all-linear",), "rank": 16, "alpha": 16.0}
    | {"readout": "head", "keep": "best"},
    on_bundled={"learning_rate": 1.5e-3},
)
PRESETS: dict[str, dict[str, Recipe]] = {
    "paper": {
        "ner": _PAPER_TAGS,
        "sentiment": _paper_answers(epochs=5, max_length=64),
        "similarity": _paper_answers(epochs=10, max_length=128),
    },
    "best": {
        **dict.fromkeys(("ner", "tagging"), _BEST_TAGS),
        **dict.fromkeys(("sentiment", "classification", "similarity", "pairs"), _BEST_ANSWERS),
    },
}
