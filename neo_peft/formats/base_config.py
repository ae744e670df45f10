"""Read a base model's config.json as transformers reads it. A setting that our GPT-Neo does not
support raises InputError. A default that no tensor's shape can confirm is noted."""

from pathlib import Path

from neo_peft.errors import InputError
from neo_peft.gptneo import Config
from neo_peft.system.files import read_json

# the most layers, and the largest size; a config with larger numbers is a broken file
MOST_LAYERS, LARGEST = 1024, 2**24
# The defaults of transformers, for entries that the file does not have. The shapes of the tensors
# show whether these are right.
SHOWN = {
    "vocab_size": 50257,
    "hidden_size": 2048,
    "max_position_embeddings": 2048,
    "intermediate_size": None,  # 4 * hidden_size
    "tie_word_embeddings": True,
}
# Of these no tensor's shape shows the value: another one gives other outputs without an error.
NOT_SHOWN = {
    "num_heads": 16,
    "window_size": 256,
    "attention_types": [[["global", "local"], 12]],  # or `attention_layers`
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "eos_token_id": 50256,
}
# transformers takes these names for ours; where a file has both, it uses the alias
ALIASES = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}
# With one of these transformers reads other values than those of the other entries.
UNSUPPORTED = ("configuration_files", "per_layer_config", "quantization_config")


def read_config(folder: Path, notes: list[str] | None = None) -> Config:
    """Read a folder's config.json. Adds a line to `notes` for values that are assumed. Raises
    InputError if it is not a supported GPT-Neo."""
    path = folder / "config.json"
    if not path.exists():
        raise InputError(
            f"{path} does not exist: {folder} is not a model folder; give one with --model"
        )
    entries = read_json(path)
    if entries.get("model_type") != "gpt_neo":
        raise InputError(
            f"{path}: model_type is {entries.get('model_type')!r}; only gpt_neo is supported"
        )
    entries = _completed(path, entries, [] if notes is None else notes)
    _check_architecture(path, entries)
    try:
        layers = _layers(entries)
        return _checked_config(path, entries, tuple(layers))
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{path} is not a GPT-Neo config: {type(error).__name__}: {error}"
        ) from None


def _completed(path: Path, entries: dict, notes: list[str]) -> dict:
    """Return the entries with aliases replaced and defaults added, as transformers does. Add a note
    where this decides a value that no tensor's shape shows."""
    entries = dict(entries)
    for alias, name in ALIASES.items():
        if alias in entries:
            used = entries[alias]
            if name in entries and entries[name] != used:
                notes.append(
                    f"{path}: {name} is {entries[name]!r}, but {alias} is {used!r}: the second is "
                    "used, as in transformers"
                )
            entries[name] = used
    if entries.get("attention_types") is None:  # transformers takes null for a missing entry
        entries.pop("attention_types", None)
    assumed = {name: value for name, value in NOT_SHOWN.items() if name not in entries}
    if entries.get("attention_layers") is not None:
        assumed.pop("attention_types", None)
    if assumed:
        listed = ", ".join(f"{name} {value}" for name, value in assumed.items())
        notes.append(f"{path} lacks entries; as in transformers this is assumed: {listed}")
    return SHOWN | NOT_SHOWN | entries


def _check_architecture(path: Path, entries: dict) -> None:
    """Raise InputError for a variant of GPT-Neo that is not supported."""
    for name, supported in (("tie_word_embeddings", True), ("activation_function", "gelu_new")):
        if entries[name] != supported or type(entries[name]) is not type(supported):
            raise InputError(f"{path}: {name} is {entries[name]!r}; only {supported} is supported")
    for name in ("embed_dropout", "attention_dropout", "resid_dropout"):
        if entries.get(name, 0) != 0:
            raise InputError(
                f"{path}: {name} is {entries[name]}; only 0, as in GPT-Neo, is supported"
            )
    for name in UNSUPPORTED:
        if entries.get(name):
            raise InputError(f"{path} has the entry {name}, which is not supported")


def _layers(entries: dict) -> list[str]:
    """Return each layer's kind of attention, from `attention_layers` or `attention_types`."""
    layers = entries.get("attention_layers")
    if layers is None:
        types = entries["attention_types"]
        if any(times > MOST_LAYERS for _, times in types):
            raise ValueError(f"more than {MOST_LAYERS} attention layers")
        layers = [kind for kinds, times in types for _ in range(times) for kind in kinds]
    return layers


def _whole_number(path: Path, name: str, value: object) -> int:
    if type(value) is not int:  # transformers refuses 16.0 and true too
        raise InputError(f"{path}: {name} is {value!r}; expected a whole number")
    return value


def _checked_config(path: Path, entries: dict, layers: tuple[str, ...]) -> Config:
    if not layers or not set(layers) <= {"global", "local"}:
        raise InputError(
            f"{path}: attention layers are {sorted(set(layers))}; only global and local are "
            "supported"
        )
    if entries.get("num_layers", len(layers)) != len(layers):
        is_default = entries["attention_types"] is NOT_SHOWN["attention_types"]
        listed = "the default" if is_default and not entries.get("attention_layers") else "listed"
        raise InputError(
            f"{path}: num_layers is {entries['num_layers']}, but {len(layers)} attention layers "
            f"are {listed}"
        )
    if len(layers) > MOST_LAYERS:
        raise InputError(
            f"{path}: {len(layers):,} attention layers are listed; at most {MOST_LAYERS} are "
            "supported"
        )
    sizes = _sizes(path, entries)
    end = entries["eos_token_id"]
    end = end[0] if isinstance(end, list) and end else end
    if type(end) is not int or not 0 <= end < sizes["vocab_size"]:
        raise InputError(
            f"{path}: eos_token_id is {end!r}; expected a token id below vocab_size, "
            f"{sizes['vocab_size']}"
        )
    small = {name: entries[name] for name in ("layer_norm_epsilon", "initializer_range")}
    for name, value in small.items():
        if type(value) not in (int, float):
            raise InputError(f"{path}: {name} is {value!r}; expected a number")
        if not 0 < value < 100:  # false for nan too
            raise InputError(f"{path}: {name} is {value}; expected a small number above 0")
        small[name] = float(value)
    return Config(**sizes, **small, attention_layers=layers, eos_token_id=end)


def _sizes(path: Path, entries: dict) -> dict[str, int]:
    """Return the sizes by their names in `Config`."""
    names = ("vocab_size", "hidden_size", "num_heads", "max_position_embeddings", "window_size")
    sizes = {name: _whole_number(path, name, entries[name]) for name in names}
    inner = entries["intermediate_size"]
    inner = 4 * sizes["hidden_size"] if inner is None else inner
    sizes["intermediate_size"] = _whole_number(path, "intermediate_size", inner)
    if (
        not all(1 <= size <= LARGEST for size in sizes.values())
        or sizes["hidden_size"] % sizes["num_heads"]
    ):
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InputError(
            f"{path}: wrong sizes: {listed}; each must be from 1 to {LARGEST}, and hidden_size a "
            "multiple of num_heads"
        )
    return sizes
