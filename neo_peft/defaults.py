"""What a run takes where no flag says otherwise: a method's defaults, and the presets. Only data
here."""

from pathlib import Path

ASSETS = (
    Path(__file__).parent / "assets"
)  # what the package brings: a small model, a sample of data
BUNDLED_MODEL = "neo-mini"

# What a method starts from where nothing else says so, and what differs on the bundled model, which
# is small and takes larger steps: chosen on validation scores, see docs/results.md.
METHOD_DEFAULTS = {
    "lora": {"learning_rate": 1e-3},
    "prompt": {"learning_rate": 3e-2},
    "full": {"learning_rate": 5e-5},
    "head": {"learning_rate": 1e-2},
    "lora+prompt": {"learning_rate": 1e-3},
}
BUNDLED_DEFAULTS = {
    "lora": {"learning_rate": 5e-3},
    "prompt": {"learning_rate": 1e-1, "prompt_length": 20, "epochs": 20, "warmup_ratio": 0.1},
    "full": {"learning_rate": 1e-3},
    "lora+prompt": {"learning_rate": 5e-3},
}

# The method of a study where no flag names one, by whether its task tags words.
STUDY_METHODS = {True: "lora", False: "prompt"}

_PAPER = {
    "model": "EleutherAI/gpt-neo-1.3B",
    "data": "hub",
    "protocol": "paper",
    "weight_decay": 0.01,
    "warmup_ratio": 0.0,
    "gradient_accumulation": 1,
}
_PAPER_PROMPT = {
    **_PAPER,
    "method": "prompt",
    "prompt_length": 8,
    "prompt_init": "text",
    "learning_rate": 3e-2,
    "batch_size": 8,
    "clip_norm": 0.0,
    "keep": "last",
    "generate": True,
}
# What beat the study's recipe on the bundled model, see docs/results.md: of tags on ner, of answers
# on sentiment and similarity; on rows of one's own it is untried.
_BEST = {"method": "lora", "target_modules": ("all-linear",)}
_BEST_TAGS = {
    **_BEST,
    "rank": 32,
    "alpha": 32.0,
    "learning_rate": 3e-3,
    "echo": True,
    "tag_decoding": "viterbi",
}
_BEST_ANSWERS = {
    **_BEST,
    "rank": 16,
    "alpha": 16.0,
    "learning_rate": 1.5e-3,
    "readout": "head",
    "keep": "best",
}
PRESETS = {
    "paper": {
        "ner": {
            **_PAPER,
            "method": "lora",
            "rank": 16,
            "alpha": 16.0,
            "dropout": 0.1,
            "bias": "all",
            "learning_rate": 1e-3,
            "batch_size": 16,
            "epochs": 10,
            "clip_norm": 1.0,
            "head_dropout": 0.1,
            "read": "first",
            "keep": "best",
        },
        "sentiment": {**_PAPER_PROMPT, "epochs": 5, "max_length": 64},
        "similarity": {**_PAPER_PROMPT, "epochs": 10, "max_length": 128},
    },
    "best": {
        **dict.fromkeys(("ner", "tagging"), _BEST_TAGS),
        **dict.fromkeys(("sentiment", "classification", "similarity", "pairs"), _BEST_ANSWERS),
    },
}

# What the study does not print: taken from the guide whose code it follows, and from its trainer's
# defaults.
_ASSUMED_OF_PROMPTS = (
    "learning_rate",
    "batch_size",
    "warmup_ratio",
    "clip_norm",
    "weight_decay",
    "prompt_init",
    "epochs",
    "max_length",
)
ASSUMED = {
    "paper": {
        "ner": ("clip_norm", "warmup_ratio", "head_dropout"),
        "sentiment": _ASSUMED_OF_PROMPTS,
        "similarity": _ASSUMED_OF_PROMPTS,
    }
}
