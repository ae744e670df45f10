"""Find the folder of the base model that `--model` names, and its files.

`--model` is neo-mini (bundled), a local folder, or a hub id (owner/name or owner/name@revision),
whose files are downloaded to the hub's cache. Weights are safetensors: one file, or shards with an
index.
"""

from pathlib import Path, PureWindowsPath

from neo_peft.defaults import ASSETS, BUNDLED_MODEL
from neo_peft.errors import InputError
from neo_peft.formats.peft_config import CONFIG, first_config, named_base
from neo_peft.system import hub
from neo_peft.system.files import read_json

BUNDLED = {BUNDLED_MODEL: ASSETS / BUNDLED_MODEL}
# The fingerprints of earlier versions of neo-mini, which the hash of base.py made.
FORMER_BUNDLED = ("28eb6a19ad97312f229e3f064a79b0a0aad2beeab2a8480d57ca9d8e2677272b",)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# The files that AutoTokenizer reads from the folder of a GPT-Neo. tokenizer_config.json can name
# one more: `versioned_tokenizer`.
TOKENIZER_JSON, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
TOKENIZER_FILES = (
    TOKENIZER_JSON,
    TOKENIZER_CONFIG,
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
LARGE = 1e8  # bytes; a user waits for the loading of larger weights
# Without tokenizer.json, AutoTokenizer takes one of these in place of vocab.json.
OTHER_VOCABULARIES = ("tekken.json", "tokenizer.model", "tiktoken.model")


def find_folder(model: str) -> Path:
    """Return the folder of a base model: bundled, local, or in the hub's cache, after a download if
    files are missing there."""
    folder = BUNDLED.get(model, Path(model))
    if folder.is_dir():
        _refuse_adapter(folder)
        return folder
    repository, revision = split_revision(model)
    if (
        folder.exists()
        or repository.count("/") > 1
        or revision == ""
        or model.startswith((".", "/", "~"))
    ):
        raise InputError(
            f"--model {model} is not a folder; it can be neo-mini, a folder, or a hub id "
            "(owner/name, owner/name@revision)"
        )
    config = _fetch_if_exists(repository, "config.json", revision)
    if config is None:
        _refuse_adapter_on_hub(model, _fetch_if_exists(repository, CONFIG, revision))
        raise InputError(f"{model} has no file config.json, so it is no model; name another")
    from neo_peft.formats.base_config import read_config  # here, since it imports torch

    folder = config.parent
    read_config(folder)  # first, so that no other model's weights are downloaded
    for filename in TOKENIZER_FILES:
        _fetch_if_exists(repository, filename, revision)
    for filename in versioned_tokenizers(folder):
        hub.hub_file(repository, filename, revision=revision)
    check_tokenizer_files(folder)
    if _fetch_if_exists(repository, WEIGHTS, revision):
        return folder
    index = _fetch_if_exists(repository, INDEX, revision)
    if index is None:
        raise InputError(
            f"{model} has neither {WEIGHTS} nor {INDEX}; pickled weights (pytorch_model.bin) are "
            "never downloaded; convert them once into a folder for --model: "
            'python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
            f"[C.from_pretrained('{repository}', "
            f"revision='{revision or 'main'}').save_pretrained('converted') "
            'for C in (M, T)]"'
        )
    for filename in _shards(index):
        hub.hub_file(repository, filename, revision=revision)
    return folder


def with_size(model: str) -> str:
    """Return the name of a base model, with the size of its weights if they are large: "5.3 GB of
    EleutherAI/gpt-neo-1.3B". A model that is not on this machine has no size. No torch here."""
    folder = BUNDLED.get(model, Path(model))
    if not folder.is_dir():
        folder = hub.cached_folder(*split_revision(model))
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) if folder else 0
    return f"{size / 1e9:.1f} GB of {model}" if size >= LARGE else model


def _refuse_adapter(folder: Path) -> None:
    """Raise InputError for the folder of an adapter. With a base in the same folder it is not clear
    which of the two is meant: transformers would load both."""
    if not (config := first_config(folder)):
        return
    if (folder / "config.json").exists():
        raise InputError(
            f"--model {folder} holds a base model and an adapter, {config.name}: move the adapter "
            "to a folder of its own"
        )
    raise InputError(
        f"--model {folder} is an adapter, not a base model: train it further with train.py "
        f"--adapter {folder}, or score it with evaluate.py {folder}{_base_of(folder)}"
    )


def _refuse_adapter_on_hub(model: str, config: Path | None) -> None:
    """Raise InputError if a repository of the hub has the config of an adapter."""
    if config:
        raise InputError(
            f"--model {model} is an adapter, not a base model: download it into a folder, for "
            f"train.py --adapter or evaluate.py{_base_of(config.parent)}"
        )


def _base_of(folder: Path) -> str:
    """Return the end of an error line, which names the base of an adapter if it is known."""
    base = named_base(folder)
    return f"; its base is {base}, which --model can name" if base else ""


def split_revision(model: str) -> tuple[str, str | None]:
    """Split owner/name@revision. The revision is None if there is none, or if `model` is a
    folder."""
    if "@" not in model or Path(model).is_dir():
        return model, None
    repository, _, revision = model.partition("@")
    return repository, revision


def _fetch_if_exists(repository: str, filename: str, revision: str | None) -> Path | None:
    try:
        return hub.hub_file(repository, filename, revision=revision)
    except FileNotFoundError:
        return None


def check_tokenizer_files(folder: Path) -> None:
    """Raise InputError if a folder has no tokenizer."""
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
        raise InputError(
            f"{folder} has no tokenizer: it needs tokenizer.json, or vocab.json and merges.txt"
        )
    if (folder / "tokenizer.json").exists():
        return
    if not (folder / "merges.txt").exists():
        raise InputError(f"{folder / 'merges.txt'} is missing; vocab.json needs it")
    if other := [name for name in OTHER_VOCABULARIES if (folder / name).exists()]:
        raise InputError(
            f"{folder} has two vocabularies, vocab.json and {other[0]}; transformers would take "
            "the second: remove the wrong one"
        )


def versioned_tokenizers(folder: Path) -> list[str]:
    """Return the names of the tokenizer.VERSION.json files that a folder's tokenizer_config.json
    lists. AutoTokenizer reads the newest one for its own version."""
    path = folder / TOKENIZER_CONFIG
    names = read_json(path).get("fast_tokenizer_files", []) if path.exists() else []
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str) or not _is_file_name(name):
            raise InputError(f"{path} lists {name!r}, which is not a file of its own folder")
    return names


def weight_files(folder: Path) -> list[Path]:
    """Return a folder's weight files: one file, or the shards in its index."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / INDEX).exists():
        files = [folder / name for name in _shards(folder / INDEX)]
        for file in files:
            if not file.is_file():
                raise InputError(f"{file} is missing; {INDEX} lists it")
        return files
    if any(folder.glob("pytorch_model*.bin")):
        raise InputError(
            f"{folder} has only pickled weights, which are never loaded; convert them once: "
            'python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{folder}').save_pretrained('{folder}')\""
        )
    raise InputError(f"{folder} has no weights: it needs {WEIGHTS}, or {INDEX} with its shards")


def _shards(index: Path) -> list[str]:
    """Return the file names of the shards in an index. Raises InputError for a path to another
    folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} has no weight_map")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        if not _is_file_name(name):
            raise InputError(f"{index} lists {name[:300]}, which is not a file of its own folder")
    return names


def _is_file_name(name: str) -> bool:
    """Return whether a name is a file's, without a folder."""
    # PureWindowsPath: on Windows a backslash also separates folders
    is_short = len(name.encode(errors="replace")) <= 255
    return PureWindowsPath(name).name == name and name != ".." and is_short
