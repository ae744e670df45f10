"""The bundled files and the presets, as plain data."""

from dataclasses import dataclass, field
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"  # the bundled model and sample, page templates
BUNDLED_MODEL = "neo-mini"
# The default method of a study, by `Task.is_tagging`.
STUDY_METHODS = {True: "lora", False: "prompt"}


@dataclass(frozen=True)
class Recipe:
    """A preset's settings for one task."""

    method: str | None = None  # the preset's method; `--method` overrides it
    # For every method. Those that have no effect on the run's method are ignored.
    always: dict[str, object] = field(default_factory=dict)
    for_method: dict[str, object] = field(default_factory=dict)  # only for the preset's method
    # Only for the preset's method on the bundled model.
    on_bundled: dict[str, object] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()  # settings that the study does not report; run.json lists them

    def values(self) -> dict[str, object]:
        return self.always | self.for_method | self.on_bundled


# The recipe of the original study. Settings that it does not report have the values of its code's
# guide, or of its trainer's defaults.
_PAPER = {
    "model": "EleutherAI/gpt-neo-1.3B",
    "data": "hub",
    "protocol": "paper",
    "wording": "source",
    "truncate": "end",
    "weight_decay": 0.01,
    "warmup_ratio": 0.0,
    "gradient_accumulation": 1,
}
_PAPER_TAGGING = Recipe(
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
    for_method={"learning_rate": 1e-3},
    assumed=("clip_norm", "warmup_ratio", "head_dropout"),
)


def _paper_classification(epochs: int, max_length: int) -> Recipe:
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
        for_method={"learning_rate": 3e-2},
        assumed=(
            *("learning_rate", "batch_size", "warmup_ratio", "clip_norm", "weight_decay"),
            *("prompt_init", "epochs", "max_length"),
        ),
    )


# Recipes with higher scores on the bundled model (docs/results.md): for tagging on ner, for
# classification on sentiment and similarity. Nobody has measured them on other data.
_BEST_TAGGING = Recipe(
    method="lora",
    always={"target_modules": ("all-linear",), "rank": 32, "alpha": 32.0} | {"echo": True},
    on_bundled={"learning_rate": 1e-3},
)
_BEST_CLASSIFICATION = Recipe(
    method="lora",
    always={"target_modules": ("all-linear",), "rank": 16, "alpha": 16.0}
    | {"readout": "head", "keep": "best"},
    on_bundled={"learning_rate": 1.5e-3},
)
PRESETS: dict[str, dict[str, Recipe]] = {
    "paper": {
        "ner": _PAPER_TAGGING,
        "sentiment": _paper_classification(epochs=5, max_length=64),
        "similarity": _paper_classification(epochs=10, max_length=128),
    },
    "best": {
        **dict.fromkeys(("ner", "tagging"), _BEST_TAGGING),
        **dict.fromkeys(
            ("sentiment", "classification", "similarity", "pairs"), _BEST_CLASSIFICATION
        ),
    },
}
