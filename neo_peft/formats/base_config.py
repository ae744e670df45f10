"""Read a base model's config.json, with the defaults of transformers. A setting that our GPT-Neo
does not support raises InputError."""

from pathlib import Path
from typing import Any

from neo_peft.errors import InputError
from neo_peft.gptneo import Config
from neo_peft.system.files import read_json

# the most layers, and the largest size; a config with larger numbers is a broken file
MOST_LAYERS, LARGEST = 1024, 2**24
# the defaults of transformers, for sizes that the file does not have
SIZES = {
    "vocab_size": 50257,
    "hidden_size": 2048,
    "num_heads": 16,
    "max_position_embeddings": 2048,
    "window_size": 256,
}
# transformers takes these names for ours; where a file has both, it uses the alias
ALIASES = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}


def read_config(folder: Path) -> Config:
    """Read a folder's config.json. Raises InputError if it is not a supported GPT-Neo."""
    path = folder / "config.json"
    if not path.exists():
        raise InputError(
            f"{path} does not exist: {folder} is not a model folder; give one with --model"
        )
    config = read_json(path)
    _check_architecture(path, config)
    config |= {name: config[alias] for alias, name in ALIASES.items() if alias in config}
    try:
        layers = _layers(config)
        sizes = {name: _number(path, config, name, default) for name, default in SIZES.items()}
        if config.get("intermediate_size") is None:
            config["intermediate_size"] = 4 * sizes["hidden_size"]
        sizes["intermediate_size"] = _number(path, config, "intermediate_size", None)
        return _checked_config(path, config, tuple(layers), sizes)
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{path} is not a GPT-Neo config: {type(error).__name__}: {error}"
        ) from None


def _check_architecture(path: Path, config: dict) -> None:
    """Raise InputError for another model, or a variant of GPT-Neo that is not supported."""
    if config.get("model_type") != "gpt_neo":
        raise InputError(
            f"{path}: model_type is {config.get('model_type')!r}; only gpt_neo is supported"
        )
    if config.get("tie_word_embeddings", True) is not True:
        raise InputError(
            f"{path}: tie_word_embeddings is {config['tie_word_embeddings']!r}; only True is "
            "supported"
        )
    if config.get("activation_function", "gelu_new") != "gelu_new":
        raise InputError(
            f"{path}: activation_function is {config['activation_function']!r}; only gelu_new is "
            "supported"
        )
    for name in ("embed_dropout", "attention_dropout", "resid_dropout"):
        if config.get(name, 0) != 0:
            raise InputError(
                f"{path}: {name} is {config[name]}; only 0, as in GPT-Neo, is supported"
            )


def _layers(config: dict) -> list[str]:
    """Return each layer's kind of attention, from `attention_layers` or `attention_types`."""
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
            f"{path}: attention layers are {sorted(set(layers))}; only global and local are "
            "supported"
        )
    if config.get("num_layers", len(layers)) != len(layers):
        raise InputError(
            f"{path}: num_layers is {config['num_layers']}, but {len(layers)} attention layers are "
            "listed"
        )
    if len(layers) > MOST_LAYERS:
        raise InputError(
            f"{path}: {len(layers):,} attention layers are listed; at most {MOST_LAYERS} are "
            "supported"
        )
    if (
        not all(1 <= size <= LARGEST for size in sizes.values())
        or sizes["hidden_size"] % sizes["num_heads"]
    ):
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InputError(
            f"{path}: wrong sizes: {listed}; each must be from 1 to {LARGEST}, and hidden_size a "
            "multiple of num_heads"
        )
    end = config.get("eos_token_id", 50256)
    end = end[0] if isinstance(end, list) and end else end
    if not isinstance(end, int) or not 0 <= end < sizes["vocab_size"]:
        raise InputError(
            f"{path}: eos_token_id is {end!r}; expected a token id below vocab_size, "
            f"{sizes['vocab_size']}"
        )
    small = {"layer_norm_epsilon": 1e-5, "initializer_range": 0.02}
    for name, default in small.items():
        small[name] = _number(path, config, name, default, float)
        if not 0 < small[name] < 100:  # false for nan too
            raise InputError(f"{path}: {name} is {small[name]}; expected a small number above 0")
    return Config(**sizes, **small, attention_layers=layers, eos_token_id=end)
