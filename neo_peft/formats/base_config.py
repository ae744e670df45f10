"""A base's config.json: read as transformers does, and refused by name where it asks for what this
trunk does not compute."""

from pathlib import Path
from typing import Any

from neo_peft.errors import InputError
from neo_peft.gptneo import Config
from neo_peft.system.files import read_json

# layers, and any size of a config: beyond them a file is broken, no larger model
MOST_LAYERS, LARGEST = 1024, 2**24
# what transformers takes for a size that the file leaves out
SIZES = {
    "vocab_size": 50257,
    "hidden_size": 2048,
    "num_heads": 16,
    "max_position_embeddings": 2048,
    "window_size": 256,
}


def read_config(folder: Path) -> Config:
    """Read a folder's config.json. Raise InputError for what is no GPT-Neo."""
    path = folder / "config.json"
    if not path.exists():
        raise InputError(
            f"{path} does not exist: {folder} is no model's folder; name one with --model"
        )
    config = read_json(path)
    _refuse_others(path, config)
    try:
        layers = _layers(config)
        sizes = {name: _number(path, config, name, default) for name, default in SIZES.items()}
        if config.get("intermediate_size") is None:
            config["intermediate_size"] = 4 * sizes["hidden_size"]
        sizes["intermediate_size"] = _number(path, config, "intermediate_size", None)
        return _checked_config(path, config, tuple(layers), sizes)
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path} is not a GPT-Neo's: {type(error).__name__}: {error}") from None


def _refuse_others(path: Path, config: dict) -> None:
    """Refuse another model, and a variant of GPT-Neo that this trunk does not compute."""
    if config.get("model_type") != "gpt_neo":
        raise InputError(
            f"{path}: model_type is {config.get('model_type')!r}; only gpt_neo is known here"
        )
    if config.get("tie_word_embeddings", True) is not True:
        raise InputError(
            f"{path}: untied embeddings (tie_word_embeddings) are not GPT-Neo's, and not known here"
        )
    if config.get("activation_function", "gelu_new") != "gelu_new":
        raise InputError(
            f"{path}: activation_function is {config['activation_function']!r}; only gelu_new is "
            "known here"
        )
    for name in ("embed_dropout", "attention_dropout", "resid_dropout"):
        if config.get(name, 0) != 0:
            raise InputError(
                f"{path}: {name} is {config[name]}; only 0, GPT-Neo's own, is known here"
            )


def _layers(config: dict) -> list[str]:
    """Return each layer's kind of attention, from either entry that lists them."""
    layers = config.get("attention_layers")
    if layers is None:
        types = config["attention_types"]
        if any(times > MOST_LAYERS for _, times in types):
            raise ValueError(f"more than {MOST_LAYERS} attention layers")
        layers = [kind for kinds, times in types for _ in range(times) for kind in kinds]
    return layers


def _number(path: Path, config: dict, name: str, default: Any, kind: type = int) -> Any:
    try:
        return kind(config.get(name, default))
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{path}: {name} is {config[name]!r}; expected a number") from None


def _checked_config(
    path: Path, config: dict, layers: tuple[str, ...], sizes: dict[str, int]
) -> Config:
    if not layers or not set(layers) <= {"global", "local"}:
        raise InputError(
            f"{path}: attention layers are {sorted(set(layers))}; only global and local are known"
        )
    if config.get("num_layers", len(layers)) != len(layers):
        raise InputError(
            f"{path}: num_layers is {config['num_layers']}, but {len(layers)} attention layers are "
            "listed"
        )
    if len(layers) > MOST_LAYERS:
        raise InputError(
            f"{path}: {len(layers):,} attention layers are listed; {MOST_LAYERS} are the most"
        )
    if (
        not all(1 <= size <= LARGEST for size in sizes.values())
        or sizes["hidden_size"] % sizes["num_heads"]
    ):
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InputError(
            f"{path}: the sizes do not fit together: {listed}; each is at least 1, and num_heads "
            "divides hidden_size"
        )
    end = config.get("eos_token_id", 50256)
    end = end[0] if isinstance(end, list) and end else end
    if not isinstance(end, int) or not 0 <= end < sizes["vocab_size"]:
        raise InputError(
            f"{path}: eos_token_id is {end!r}; expected a token below vocab_size, "
            f"{sizes['vocab_size']}"
        )
    small = {"layer_norm_epsilon": 1e-5, "initializer_range": 0.02}
    for name, default in small.items():
        small[name] = _number(path, config, name, default, float)
        if not 0 < small[name] < 100:  # also refuses what is no number at all, nan
            raise InputError(f"{path}: {name} is {small[name]}; it is a small number above 0")
    return Config(**sizes, **small, attention_layers=layers, eos_token_id=end)
