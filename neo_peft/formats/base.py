"""The base model: from `--model` to a GPT-Neo trunk and its tokenizer.

A base is a folder in Hugging Face's layout: config.json, tokenizer files, and weights in
safetensors, in one file or in shards. `neo-mini` is bundled; a hub id, owner/name or
owner/name@revision, is fetched into the hub's cache. Weights that are stored in the wanted dtype
stay in the mapped file, others go straight into it. Strictly: every tensor of the trunk must be
there, in its shape, and nothing else may be.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from neo_peft.defaults import ASSETS, BUNDLED_MODEL
from neo_peft.errors import InputError
from neo_peft.gptneo import Config, GPTNeo
from neo_peft.system import hub
from neo_peft.system.files import LARGEST_JSON, read_json, refuse_endless

BUNDLED = {BUNDLED_MODEL: ASSETS / BUNDLED_MODEL}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
)
HEADS = ("classifier", "score")
# layers, and any size of a config: beyond them a file is broken, no larger model
MOST_LAYERS, LARGEST = (1024, 2**24)


@dataclass
class Base:
    """A loaded base. `fingerprint` names its weights as they are stored, `parameters` counts them;
    `notes` are lines that a user should see."""

    trunk: GPTNeo
    tokenizer: Any
    folder: Path
    fingerprint: str
    notes: list[str]
    parameters: int


def load_base(model: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Base:
    """Load a base, frozen: matrices in `dtype`, norms and biases in fp32. Raise InputError for what
    is no GPT-Neo.

    On the CPU, weights stored in these dtypes are views of the mapped file: read where they are
    first used, shared with other processes, and private once written to, so that no tuning changes
    the file. It may be replaced or deleted meanwhile, but not rewritten in place.
    """
    folder = find_folder(model)
    for name in ("config.json", INDEX, *TOKENIZER_FILES):
        refuse_endless(folder / name, LARGEST_JSON)
    refuse_endless(folder / WEIGHTS)
    config = read_config(folder)  # first: what is no GPT-Neo need not be read
    tensors, notes, digest = {}, [], {}
    for name, tensor in _canonical_tensors(folder, notes):
        if name in tensors:
            raise InputError(f"{folder}: the weights hold {name} twice")
        digest[name] = _digest(name, tensor)
        held = dtype if tensor.dim() > 1 else torch.float32
        tensors[name] = tensor.to(device=device, dtype=held)
        # What stays in the mapped file, gigabytes, is not read for this; a run stops at a loss that
        # is not finite.
        if (tensor.dim() < 2 or tensors[name] is not tensor) and not _is_finite(tensors[name]):
            raise InputError(
                f"{folder}: {name}, stored as {_name(tensor.dtype)}, is not finite in {_name(held)}"
            )
    fingerprint = hashlib.sha256(b"".join(digest[name] for name in sorted(digest))).hexdigest()
    trunk = trunk_of(config, tensors, folder)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    return Base(trunk, load_tokenizer(folder), folder, fingerprint, notes, parameters)


def _is_finite(tensor: Tensor) -> bool:
    """Say whether all numbers are finite; in a tenth of the time that `isfinite().all()` takes."""
    return not tensor.numel() or all(bound.isfinite() for bound in torch.aminmax(tensor))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def find_folder(model: str) -> Path:
    """Find a base's folder: a bundled one, a local one, or a hub repository's in the cache, fetched
    if need be."""
    if model in BUNDLED:
        return BUNDLED[model]
    if Path(model).is_dir():
        return Path(model)
    repository, revision = split_revision(model)
    if (
        Path(model).exists()
        or repository.count("/") > 1
        or revision == ""
        or model.startswith((".", "/", "~"))
    ):
        raise InputError(
            f"--model {model} is no folder; it may be neo-mini, a folder, or a hub id (owner/name, "
            "owner/name@revision)"
        )
    folder = hub.hub_file(repository, "config.json", revision=revision).parent
    read_config(folder)  # before gigabytes of what is no GPT-Neo are fetched
    for filename in TOKENIZER_FILES:
        _fetch_if_there(repository, filename, revision)
    _check_tokenizer_files(folder)
    if _fetch_if_there(repository, WEIGHTS, revision):
        return folder
    index = _fetch_if_there(repository, INDEX, revision)
    if index is None:
        raise InputError(
            f"{model} holds neither {WEIGHTS} nor {INDEX}; pickled weights (pytorch_model.bin) are "
            "never fetched; "
            "convert them once into a folder for --model: "
            'python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
            f"[C.from_pretrained('{repository}', "
            f"revision='{revision or 'main'}').save_pretrained('converted') "
            'for C in (M, T)]"'
        )
    for filename in _shards(index):
        hub.hub_file(repository, filename, revision=revision)
    return folder


def split_revision(model: str) -> tuple[str, str | None]:
    """Split owner/name@revision; what is a folder, and what names no revision, stays whole beside
    None."""
    if "@" not in model or Path(model).is_dir():
        return model, None
    repository, _, revision = model.partition("@")
    return repository, revision


def _fetch_if_there(repository: str, filename: str, revision: str | None) -> Path | None:
    try:
        return hub.hub_file(repository, filename, revision=revision)
    except FileNotFoundError:
        return None


def read_config(folder: Path) -> Config:
    """Read config.json as transformers does, and refuse by name what this trunk does not
    compute."""
    path = folder / "config.json"
    if not path.exists():
        raise InputError(
            f"{path} does not exist: {folder} is no model's folder; name one with --model"
        )
    config = read_json(path)
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
    try:
        layers = config.get("attention_layers")
        if layers is None:
            types = config["attention_types"]
            if any(times > MOST_LAYERS for _, times in types):
                raise ValueError(f"more than {MOST_LAYERS} attention layers")
            layers = [kind for kinds, times in types for _ in range(times) for kind in kinds]
        sizes = {
            name: _number(path, config, name, default)
            for name, default in {
                "vocab_size": 50257,
                "hidden_size": 2048,
                "num_heads": 16,
                "max_position_embeddings": 2048,
                "window_size": 256,
            }.items()
        }
        if config.get("intermediate_size") is None:
            config = config | {"intermediate_size": 4 * sizes["hidden_size"]}
        sizes["intermediate_size"] = _number(path, config, "intermediate_size", None)
        return _checked_config(path, config, tuple(layers), sizes)
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path} is not a GPT-Neo's: {type(error).__name__}: {error}") from None


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
        min(sizes.values()) < 1
        or max(sizes.values()) > LARGEST
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
    small = {name: _number(path, config, name, default, float) for name, default in small.items()}
    for name, value in small.items():
        if not 0 < value < 100:  # also refuses what is no number at all, nan
            raise InputError(f"{path}: {name} is {value}; it is a small number above 0")
    return Config(**sizes, **small, attention_layers=layers, eos_token_id=end)


def trunk_of(config: Config, tensors: dict[str, Tensor], source: Path) -> GPTNeo:
    """Make a frozen trunk around tensors with canonical names, which it takes over without a
    copy."""
    with torch.device("meta"):
        trunk = GPTNeo(config)
    wanted = {
        f"transformer.{name}": parameter.shape for name, parameter in trunk.named_parameters()
    }
    for problem, names in (
        ("lack", wanted.keys() - tensors.keys()),
        ("also hold", tensors.keys() - wanted.keys()),
    ):
        if names:
            raise InputError(
                f"{source}: the weights {problem} {len(names)} tensors, the first is {min(names)}"
            )
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise InputError(
                f"{source}: {name} has the shape {tuple(tensors[name].shape)}; config.json asks "
                f"for {tuple(shape)}"
            )
    trunk.load_state_dict(
        {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}, assign=True
    )
    return trunk.requires_grad_(False).eval()


def load_tokenizer(folder: Path) -> Any:
    """Load a folder's tokenizer; a space in front of a text is ours to set, so its own
    `add_prefix_space` goes."""
    from transformers import AutoTokenizer

    _check_tokenizer_files(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        before_words = tokenizer.backend_tokenizer.pre_tokenizer
        if getattr(before_words, "add_prefix_space", False):
            before_words.add_prefix_space = False
            tokenizer.add_prefix_space = tokenizer.init_kwargs["add_prefix_space"] = (
                False  # what is saved again
            )
            tokenizer.backend_tokenizer.pre_tokenizer = before_words
        largest = max(tokenizer.get_vocab().values())
        if not tokenizer.backend_tokenizer.encode(" Label :", add_special_tokens=False).ids:
            raise ValueError("it makes no tokens")
    except Exception as error:  # the library's own errors are of every kind
        raise InputError(
            f"{folder}: the tokenizer cannot be read: {type(error).__name__}: {error}; put the "
            "model's own files there"
        ) from error
    if largest > LARGEST:
        raise InputError(f"{folder}: the tokenizer has a token {largest}; {LARGEST} is the most")
    return tokenizer


def _check_tokenizer_files(folder: Path) -> None:
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
        raise InputError(
            f"{folder} has no tokenizer: it needs tokenizer.json, or vocab.json and merges.txt"
        )
    if not (folder / "tokenizer.json").exists() and not (folder / "merges.txt").exists():
        raise InputError(f"{folder / 'merges.txt'} is missing; vocab.json alone is no tokenizer")


def stored_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Walk over a folder's tensors under their stored names, each read from its file only when it
    is used."""
    from safetensors import SafetensorError, safe_open

    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path} is not a readable safetensors file: {error}; put the whole file there (a "
                "clone without "
                "git-lfs leaves a stub)"
            ) from None


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / INDEX).exists():
        files = [folder / name for name in _shards(folder / INDEX)]
        for file in files:
            if not file.is_file():
                raise InputError(f"{file} is missing; {INDEX} names it")
        return files
    if any(folder.glob("pytorch_model*.bin")):
        raise InputError(
            f"{folder} holds only pickled weights, which are never read here; convert them once: "
            'python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{folder}').save_pretrained('{folder}')\""
        )
    raise InputError(f"{folder} holds no weights: it needs {WEIGHTS}, or {INDEX} with its shards")


def _shards(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} has no weight_map")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        # there a backslash leads elsewhere
        plain = all(kind(name).name == name for kind in (Path, PureWindowsPath))
        if not plain or name == ".." or len(name.encode(errors="replace")) > 255:
            raise InputError(f"{index} names {name[:300]}, which is not a file of its own folder")
    return names


def _canonical_tensors(folder: Path, notes: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Walk over the trunk's tensors under their published names; drop or refuse what else is known
    to be there."""
    wte = lm_head = None
    for name, tensor in stored_tensors(folder):
        if name.endswith(("attn.attention.bias", "attn.attention.masked_bias")):
            continue  # the causal mask, which old versions stored
        if name.split(".")[0] in HEADS:
            notes.append(f"{folder}: its {name} was left out; a head of one's own starts anew")
            continue
        if name == "lm_head.weight":
            lm_head = tensor
            continue
        name = name if name.startswith("transformer.") else "transformer." + name
        if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
            raise InputError(
                f"{folder}: {name} is stored as {_name(tensor.dtype)}; only floats of 16 to 64 "
                "bits are read"
            )
        if name == "transformer.wte.weight":
            wte = tensor
        yield name, tensor
    if lm_head is not None and wte is None:
        yield "transformer.wte.weight", lm_head
    elif lm_head is not None and not torch.equal(lm_head, wte):
        raise InputError(
            f"{folder}: lm_head.weight differs from wte: untied embeddings are not known here"
        )


def _digest(name: str, tensor: Tensor) -> bytes:
    """Hash a tensor's name, shape, stored dtype and up to 64 evenly spaced blocks of 4 KiB of its
    bytes."""
    content = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    last = max(0, (len(content) - 1) // 4096)
    digest = hashlib.sha256(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
    for block in sorted({i * last // 63 for i in range(64)}):
        digest.update(content[block * 4096 : (block + 1) * 4096])
    return digest.digest()
