"""Load the base model that `--model` names: a GPT-Neo trunk and its tokenizer.

A base model is a folder in the layout of transformers. base_folder.py finds it, base_config.py
reads its config.json, tokenizer.py loads its tokenizer. Weights stored in the wanted dtype stay in
the memory-mapped file; others are converted. Loading is strict: it raises InputError for a missing
or unexpected tensor, or a wrong shape.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neo_peft.errors import InputError
from neo_peft.formats.base_config import read_config
from neo_peft.formats.base_folder import (
    INDEX,
    TOKENIZER_FILES,
    WEIGHTS,
    find_folder,
    versioned_tokenizers,
    weight_files,
)
from neo_peft.formats.mapped_tensors import mapped_tensors
from neo_peft.formats.tokenizer import load_tokenizer, splitting_digest
from neo_peft.gptneo import GPTNeo
from neo_peft.kernels.linear import Linear
from neo_peft.kernels.quantized import BLOCK, GROUP, QuantizedLinear
from neo_peft.system.files import LARGEST_JSON, refuse_endless

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

RECORDED = ("num_heads", "window_size", "layer_norm_epsilon", "eos_token_id")  # in run.json
ROUNDED = (torch.bfloat16, torch.float16)
HASHED = 4096  # bytes of a block that is hashed


@dataclass
class Base:
    """A loaded base model."""

    trunk: GPTNeo  # the frozen model without a head
    tokenizer: "PreTrainedTokenizerFast"  # its tokenizer
    folder: Path  # the folder with its files
    fingerprint: str  # hash of the stored weights
    notes: list[str]  # lines to print for the user
    parameters: int  # number of parameters
    stored_dtype: str  # of the token embeddings in the file
    # hashes of the weights rounded to ROUNDED: equal where only the stored dtype differs
    rounded: list[str]
    splitting: str  # hash of how the tokenizer splits texts
    quantize: str = "none"  # how the linear layers are stored in memory: none, int8 or nf4
    weight_bytes: int = 0  # bytes of all weights in memory

    def record(self) -> dict:
        """Return what run.json records of the base."""
        return {
            "fingerprint": self.fingerprint,
            "parameters": self.parameters,
            "stored_dtype": self.stored_dtype,
            "rounded": self.rounded,
            "quantize": self.quantize,
            "weight_bytes": self.weight_bytes,
            **self.computed(),
        }

    def computed(self) -> dict:
        """Return what decides the base's outputs and stands in no tensor: values of its config, and
        how its tokenizer splits texts. A run is loaded only on a base with the same values."""
        config = dataclasses.asdict(self.trunk.config)
        values = {name: config[name] for name in RECORDED}
        layers = list(config["attention_layers"])  # as JSON has it
        return values | {"attention_layers": layers, "tokenizer": self.splitting}


def load_base(
    model: str, dtype: torch.dtype = torch.float32, device: str = "cpu", quantize: str = "none"
) -> Base:
    """Load a frozen base: matrices in `dtype`, norms and biases in fp32. Raises InputError if it is
    not a GPT-Neo.

    quantize: int8 or nf4 stores the linear layers in 8 or 4 bits (kernels/quantized.py). Each is
        quantised when it is read, and its part of the file is then removed from memory.

    On the CPU, weights stored in these dtypes are views of the memory-mapped file. They are read at
    their first use, and shared with other processes. A write makes a private copy, so tuning never
    changes the file. During a run the file can be replaced or deleted, but must not be rewritten in
    place.
    """
    folder = find_folder(model)
    for name in (INDEX, *TOKENIZER_FILES, *versioned_tokenizers(folder)):
        refuse_endless(folder / name, LARGEST_JSON)
    refuse_endless(folder / WEIGHTS)
    notes = []
    config = read_config(folder, notes)  # first, so that no other model's weights are read
    with torch.device("meta"):
        trunk = GPTNeo(config)
    shapes = _linear_shapes(trunk) if quantize != "none" else {}
    tensors, digest, stored = {}, {}, {}
    rounded = {dtype: {} for dtype in ROUNDED}
    for name, tensor in _canonical_tensors(folder, notes):
        if name in tensors:
            raise InputError(f"{folder}: the weights have {name} twice")
        digest[name], stored[name] = _digest(name, tensor), tensor.dtype
        for precision in ROUNDED:
            rounded[precision][name] = _digest(name, tensor, precision, blocks=8)
        if shapes.get(name) == tensor.shape:
            tensors[name] = QuantizedLinear(tensor.to(device), quantize, dtype)
        else:
            wanted = dtype if tensor.dim() > 1 else torch.float32
            tensors[name] = tensor.to(device=device, dtype=wanted)
        _check_finite(f"{folder}: {name}", tensor, tensors[name])
    _fill(trunk, tensors, folder)
    tokenizer = load_tokenizer(folder)
    return Base(
        trunk,
        tokenizer,
        folder,
        _joined(digest),
        notes,
        parameters=sum(tensor.shape.numel() for tensor in tensors.values()),
        stored_dtype=_name(stored["transformer.wte.weight"]),
        rounded=[_joined(digests) for digests in rounded.values()],
        splitting=splitting_digest(tokenizer),
        quantize=quantize,
        weight_bytes=sum(parameter.nbytes for parameter in trunk.parameters()),
    )


def _check_finite(name: str, stored: Tensor, loaded: Tensor | QuantizedLinear) -> None:
    """Raise InputError where a loaded tensor has values that are not finite.

    Matrices that stay in the mapped file are not checked: that would read gigabytes. A run stops
    when its loss is not finite.
    """
    if loaded is stored and stored.dim() > 1:
        return
    checked = loaded.scales if isinstance(loaded, QuantizedLinear) else loaded
    if not _is_finite(checked):
        raise InputError(
            f"{name}, stored as {_name(stored.dtype)}, has values that are not finite in "
            f"{_name(checked.dtype)}"
        )


def _is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite. Takes a tenth of the time of `isfinite().all()`."""
    return not tensor.numel() or all(bound.isfinite() for bound in torch.aminmax(tensor))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _linear_shapes(trunk: GPTNeo) -> dict[str, torch.Size]:
    """Return the shapes of the linear layers' weights, by name."""
    return {
        f"transformer.{name}.weight": layer.weight.shape
        for name, layer in trunk.named_modules()
        if isinstance(layer, Linear)
    }


def weight_bytes(trunk: GPTNeo, quantize: str) -> int:
    """Return the bytes of an fp32 trunk in memory, with `quantize` as in `load_base`. It can be on
    the meta device."""
    total = sum(4 * parameter.numel() for parameter in trunk.parameters())
    for shape in _linear_shapes(trunk).values() if quantize != "none" else ():
        blocks = math.ceil(shape.numel() / BLOCK)
        groups = math.ceil(blocks / GROUP)
        int8, nf4 = shape.numel() + 4 * shape[0], BLOCK // 2 * blocks + (GROUP + 4) * groups + 4
        total += (int8 if quantize == "int8" else nf4) - 4 * shape.numel()
    return total


def _fill(trunk: GPTNeo, tensors: dict[str, Tensor | QuantizedLinear], folder: Path) -> None:
    """Give a trunk on the meta device these weights, without a copy, and freeze it. Their names are
    GPT-Neo's, with `transformer.` in front."""
    model = torch.nn.ModuleDict({"transformer": trunk})
    parameters = dict(model.named_parameters())
    for problem, names in (
        ("missing", parameters.keys() - tensors.keys()),
        ("unexpected", tensors.keys() - parameters.keys()),
    ):
        if names:
            raise InputError(
                f"{folder}: {problem} tensors: {len(names)}, the first is {min(names)}"
            )
    for name, parameter in parameters.items():
        if tensors[name].shape != parameter.shape:
            raise InputError(
                f"{folder}: {name} has the shape {tuple(tensors[name].shape)}; expected "
                f"{tuple(parameter.shape)}, by config.json"
            )
    plain = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    model.load_state_dict(plain, assign=True, strict=False)
    for name in tensors.keys() - plain.keys():
        layer, path = tensors[name], name.removesuffix(".weight")
        layer.bias = model.get_submodule(path).bias
        model.set_submodule(path, layer)
    trunk.requires_grad_(False).eval()


def _stored_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (stored name, tensor) for each tensor in a folder's weight files. A tensor is read from
    its file at its first use."""
    from safetensors import SafetensorError

    for path in weight_files(folder):
        try:
            yield from mapped_tensors(path)
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path} is not a readable safetensors file: {error}; put the complete file there "
                "(git clone without git-lfs gives only a pointer file)"
            ) from None


def _canonical_tensors(folder: Path, notes: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) for each tensor of the trunk. Every name starts with `transformer.`

    Skips stored causal masks and heads; adds a note for a head. Raises InputError for tensors that
    are not floats, and for untied embeddings.
    """
    wte = lm_head = None
    for name, tensor in _stored_tensors(folder):
        if name.endswith(("attn.attention.bias", "attn.attention.masked_bias")):
            continue  # the causal mask, which old versions stored
        if name.split(".")[0] in ("classifier", "score"):
            notes.append(f"{folder}: {name} was not loaded; a run makes its own new head")
            continue
        if name == "lm_head.weight":
            lm_head = tensor
            continue
        name = name if name.startswith("transformer.") else "transformer." + name
        if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
            raise InputError(
                f"{folder}: {name} is stored as {_name(tensor.dtype)}; only floats of 16 to 64 "
                "bits are supported"
            )
        if name == "transformer.wte.weight":
            wte = tensor
        yield name, tensor
    if lm_head is not None and wte is None:
        yield "transformer.wte.weight", lm_head
    elif lm_head is not None and not torch.equal(lm_head, wte):
        raise InputError(
            f"{folder}: lm_head.weight differs from wte: untied embeddings are not supported"
        )


def _digest(name: str, tensor: Tensor, dtype: torch.dtype | None = None, blocks: int = 64) -> bytes:
    """Return a hash of a tensor's name, shape and dtype, and of at most `blocks` blocks of its
    bytes (4 KiB each, evenly spaced). With a `dtype`, of the tensor converted to it."""
    dtype = dtype or tensor.dtype
    values, size = tensor.contiguous().view(-1), HASHED // dtype.itemsize
    last = max(0, (len(values) - 1) // size)
    digest = hashlib.sha256(f"{name} {tuple(tensor.shape)} {dtype}".encode())
    for block in sorted({i * last // (blocks - 1) for i in range(blocks)}):
        content = values[block * size : (block + 1) * size].to(dtype)
        digest.update(content.view(torch.uint8).numpy())
    return digest.digest()


def _joined(digests: dict[str, bytes]) -> str:
    """Return one hash of all tensors' hashes."""
    return hashlib.sha256(b"".join(digests[name] for name in sorted(digests))).hexdigest()
