"""The base model: from `--model` to a GPT-Neo trunk and its tokenizer.

A base is a folder in Hugging Face's layout: base_folder.py finds it, base_config.py reads its
config.json, tokenizer.py its tokenizer. Weights that are stored in the wanted dtype stay in the
mapped file; others are converted as they are read. Strictly: every tensor of the trunk must be
there, in its shape, and nothing else may be.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neo_peft.errors import InputError
from neo_peft.formats.base_config import read_config
from neo_peft.formats.base_folder import INDEX, TOKENIZER_FILES, WEIGHTS, find_folder, weight_files
from neo_peft.formats.tokenizer import load_tokenizer
from neo_peft.gptneo import Config, GPTNeo
from neo_peft.system.files import LARGEST_JSON, refuse_endless

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass
class Base:
    """A loaded base. `fingerprint` names its weights as they are stored, `parameters` counts them;
    `notes` are lines that a user should see."""

    trunk: GPTNeo
    tokenizer: "PreTrainedTokenizerFast"
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
    for name in (INDEX, *TOKENIZER_FILES):
        refuse_endless(folder / name, LARGEST_JSON)
    refuse_endless(folder / WEIGHTS)
    config = read_config(folder)  # first: what is no GPT-Neo need not be read
    tensors, notes, digest = {}, [], {}
    for name, tensor in _canonical_tensors(folder, notes):
        if name in tensors:
            raise InputError(f"{folder}: the weights hold {name} twice")
        digest[name] = _digest(name, tensor)
        wanted = dtype if tensor.dim() > 1 else torch.float32
        tensors[name] = tensor.to(device=device, dtype=wanted)
        # What stays in the mapped file, gigabytes, is not read for this; a run stops at a loss that
        # is not finite.
        if (tensor.dim() < 2 or tensors[name] is not tensor) and not _is_finite(tensors[name]):
            raise InputError(
                f"{folder}: {name}, stored as {_name(tensor.dtype)}, is not finite in "
                f"{_name(wanted)}"
            )
    fingerprint = hashlib.sha256(b"".join(digest[name] for name in sorted(digest))).hexdigest()
    trunk = _trunk_of(config, tensors, folder)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    return Base(trunk, load_tokenizer(folder), folder, fingerprint, notes, parameters)


def _is_finite(tensor: Tensor) -> bool:
    """Return whether all numbers are finite, in a tenth of the time of `isfinite().all()`."""
    return not tensor.numel() or all(bound.isfinite() for bound in torch.aminmax(tensor))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _trunk_of(config: Config, tensors: dict[str, Tensor], source: Path) -> GPTNeo:
    """Make a frozen trunk around tensors with canonical names, which it takes over without a
    copy."""
    with torch.device("meta"):
        trunk = GPTNeo(config)
    whole = torch.nn.ModuleDict({"transformer": trunk})
    wanted = dict(whole.named_parameters())
    for problem, names in (
        ("lack", wanted.keys() - tensors.keys()),
        ("also hold", tensors.keys() - wanted.keys()),
    ):
        if names:
            raise InputError(
                f"{source}: the weights {problem} {len(names)} tensors, the first is {min(names)}"
            )
    for name, parameter in wanted.items():
        if tensors[name].shape != parameter.shape:
            raise InputError(
                f"{source}: {name} has the shape {tuple(tensors[name].shape)}; config.json asks "
                f"for {tuple(parameter.shape)}"
            )
    whole.load_state_dict(tensors, assign=True)
    return trunk.requires_grad_(False).eval()


def _stored_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Walk over a folder's tensors under their stored names, each read from its file only when it
    is used."""
    from safetensors import SafetensorError, safe_open

    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path} is not a readable safetensors file: {error}; put the whole file there (a "
                "clone without git-lfs leaves a stub)"
            ) from None


def _canonical_tensors(folder: Path, notes: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Walk over the trunk's tensors under their published names; drop or refuse what else is known
    to be there."""
    wte = lm_head = None
    for name, tensor in _stored_tensors(folder):
        if name.endswith(("attn.attention.bias", "attn.attention.masked_bias")):
            continue  # the causal mask, which old versions stored
        if name.split(".")[0] in ("classifier", "score"):
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
