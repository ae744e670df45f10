"""Several runs on one base model. Each can predict alone; a mixed batch takes one pass for all.

The base is loaded once and never changes. Each run has its own copy of the trunk, which shares the
base's frozen tensors and adds what the run trained. One more such trunk computes the mixed batches.
There the examples are sorted by run, so that each run has one slice of the N packed tokens. A layer
computes, for a run's slice with LoRA and a trained bias b':

    h = W x + b                                               once, for all N tokens
    h[slice] += (alpha / r) · B A x[slice] + (b' − b)         once for each run

A prompt is a prefix of keys and values, and each example has the one of its own run. Read `lora.py`
and `gptneo.Past` first.
"""

import copy
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from neo_peft.decoding import Evaluation, HiddenStates, Prediction, predict_batch
from neo_peft.encoding import Examples, batches, collate
from neo_peft.errors import InputError
from neo_peft.gptneo import NOWHERE, GPTNeo, Past
from neo_peft.lora import LoRALinear
from neo_peft.model import Batch
from neo_peft.packing import Packing
from neo_peft.progress import Progress, no_progress
from neo_peft.runs.loading import LoadedModel, load, load_base_for, settings_in
from neo_peft.runs.texts import cut_texts, encode_texts, with_cuts
from neo_peft.settings import Settings

# the settings that all runs on one base share: the first run's values
BASE_SETTINGS = ("model", "precision", "device", "threads")


class AdapterSet:
    """Several runs on one base, by name. `runs["ner-lora"]` is the same as `load` returns, but it
    shares the base's tensors.

    Takes folders, or a mapping {name: folder}. The name of a run defaults to its folder's name. The
    first run's settings decide the device, the precision and the number of threads.
    """

    def __init__(self, runs: Iterable[Path | str] | Mapping[str, Path | str] = ()):
        self.base = None
        self._base_settings = {}
        self._runs = {}
        self._prefixes = {}  # the prompt's keys and values of each run; None without a prompt
        has_names = isinstance(runs, Mapping)
        for run in runs:
            self.add(runs[run] if has_names else run, run if has_names else None)

    def __getitem__(self, name: str) -> LoadedModel:
        return self._runs[self._checked(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)

    def add(
        self, folder: Path | str, name: str | None = None, settings: Settings | None = None
    ) -> LoadedModel:
        """Load a run. The first run also loads the base.

        `settings` are needed for an adapter that peft wrote, as in `load`. The keys and values of a
        prompt are computed here, once. Raises InputError where the run does not fit the base.
        """
        folder, settings = Path(folder), settings or settings_in(Path(folder))
        name = name or Path(os.path.abspath(folder)).name
        if name in self._runs:
            raise InputError(
                f"two runs are called {name}; the second is {folder}: rename it, or pass {{name: "
                f"folder}}"
            )
        if unmixable := [part.name for part in settings.parts if not part.mixes]:
            raise InputError(f"{folder} was trained by {unmixable[0]}: it cannot share a base")
        if self.base and settings.quantize != self.base.quantize:
            raise InputError(
                f"{folder} was trained with --quantize {settings.quantize}, but the base here was "
                f"loaded with {self.base.quantize}: use an AdapterSet for each"
            )
        settings = dataclasses.replace(settings, **self._base_settings)
        base = self.base or load_base_for(settings)
        trunk = copy_sharing_matrices(base.trunk)
        tuned = load(folder, settings, dataclasses.replace(base, trunk=trunk))
        share_frozen(trunk, base.trunk)
        self.base = base
        self._base_settings = {field: getattr(settings, field) for field in BASE_SETTINGS}
        self._runs[name] = tuned
        with torch.no_grad():
            self._prefixes[name] = tuned.model.prompt_past()
        self._build_mixed_trunk()
        return tuned

    def remove(self, name: str) -> None:
        """Remove a run. The base stays loaded."""
        self._runs.pop(self._checked(name))
        self._prefixes.pop(name)
        self._build_mixed_trunk()

    def _checked(self, name: str) -> str:
        """Return a name. Raise InputError where no run has it."""
        if name not in self._runs:
            raise InputError(
                f"there is no run {name!r} here; the runs are {', '.join(self._runs) or 'none yet'}"
            )
        return name

    def _build_mixed_trunk(self) -> None:
        """Make the trunk of mixed batches: a layer that some run has changed is a `MixedLayer`."""
        self._trunk, self._slices = copy_sharing_matrices(self.base.trunk), {}
        for path, layer in self.base.trunk.named_modules():
            changed = {}
            for name, tuned in self._runs.items():
                module = tuned.model.transformer.get_submodule(path)
                new_bias = getattr(module, "bias", None) is not getattr(layer, "bias", None)
                if new_bias or isinstance(module, LoRALinear):
                    changed[name] = module
            if changed:
                self._trunk.set_submodule(path, MixedLayer(layer, changed, self._slices))

    def predict(self, rows: Sequence[dict], batch_size: int = 32) -> list:
        """Return a label, or a tag for each word, for each row. A row has the name of its run in
        the field "run", and needs no labels. The tag of a word after the cut of a long text is
        None."""
        return self.evaluate(rows, batch_size).predicted

    @torch.inference_mode()
    def evaluate(
        self, rows: Sequence[dict], batch_size: int = 32, progress: Progress = no_progress
    ) -> Evaluation:
        """Return the predictions for rows with a field "run", their probabilities, and how much of
        each text was used.

        A batch takes one pass, also where its rows belong to different runs. Rows of similar length
        are in one batch.
        """
        row_indices = self._rows_by_run(rows)
        examples = {
            name: encode_texts(self[name].encoder, [rows[index] for index in indices])
            for name, indices in row_indices.items()
        }
        # for each row, sorted by run: its run, its index in the run's rows, its index in `rows`
        sources = [
            (name, row, index)
            for name, indices in row_indices.items()
            for row, index in enumerate(indices)
        ]
        lengths = np.array([length for part in examples.values() for length in part.row_lengths])
        index_batches = list(batches(np.argsort(lengths, kind="stable"), batch_size))
        tokens = [int(lengths[chosen].sum()) for chosen in index_batches]
        predictions = {}  # by the row's index
        for chosen in progress(index_batches, "score", sum(tokens), tokens):
            batch_indices, batch_rows = [], {}
            for source in np.sort(chosen):  # sorted by run again
                name, row, index = sources[source]
                batch_rows.setdefault(name, []).append(row)
                batch_indices.append(index)
            predicted = self._predict_batch(examples, batch_rows, batch_size)
            predictions |= zip(batch_indices, predicted, strict=True)
        in_order = [predictions[index] for index in range(len(rows))]
        evaluation = Evaluation(
            [answer.predicted for answer in in_order],
            probabilities=[answer.probabilities for answer in in_order],
            cut=sum(part.cut for part in examples.values()),
        )
        cuts = {}  # by the row's index
        for name, indices in row_indices.items():
            run_rows = [rows[index] for index in indices]
            for row, used in cut_texts(self[name].encoder, run_rows, examples[name]).items():
                cuts[indices[row]] = used
        return with_cuts(evaluation, cuts)

    def _rows_by_run(self, rows: Sequence[dict]) -> dict[str, list[int]]:
        """Return the indices of each run's rows."""
        indices = {}
        for index, row in enumerate(rows):
            if row.get("run") not in tuple(self):
                raise InputError(
                    f'row {index}: its "run" is {row.get("run")!r}; it must be one of '
                    f"{', '.join(self)}"
                )
            indices.setdefault(row["run"], []).append(index)
        return indices

    def _predict_batch(
        self, examples: dict[str, Examples], chosen: dict[str, list[int]], size: int
    ) -> list[Prediction]:
        """Return the predictions of one batch, sorted by run: `chosen` are the indices of each
        run's rows in it. It takes one pass for each `size` of their examples."""
        indices = {name: examples[name].of_rows(rows) for name, rows in chosen.items()}
        hidden = {name: [] for name in chosen}
        for in_pass in split_into_passes(indices, size):
            parts = {name: collate(examples[name], part) for name, part in in_pass.items()}
            counts = [len(part.target_indices) for part in parts.values()]
            for name, found in zip(parts, self.hidden(parts).split(counts), strict=True):
                hidden[name].append(found)
        predictions = []
        for name in chosen:
            tuned, run_hidden = self[name], torch.cat(hidden[name])
            if not run_hidden.isfinite().all():
                reason = "its weights are damaged or too large"
                raise InputError(f"the hidden states of {name} are not finite: {reason}")
            batch = collate(examples[name], indices[name])
            states = HiddenStates(
                examples[name], chosen[name], batch, run_hidden, self._prefixes[name]
            )
            # Where labels share their first token, this makes more passes: see `score_labels`.
            predictions += predict_batch(tuned.model, tuned.encoder, states)
        return predictions

    def hidden(self, parts: dict[str, Batch]) -> Tensor:
        """Return the hidden states (M, H) at the target positions, in one pass.

        `parts` has one batch for each run. Not thread-safe: the layers use the token slices of the
        current call.
        """
        model = self[next(iter(parts))].model  # all are on one device, in one precision
        first, target_indices = 0, []
        self._slices.clear()
        for name, part in parts.items():
            self[name].model.eval()
            target_indices.append(part.target_indices + first)
            self._slices[name] = slice(first, first := first + len(part.ids))
        ids = torch.cat([part.ids for part in parts.values()]).to(model.device)
        lengths = torch.cat([part.lengths for part in parts.values()])
        past, starts = self._prefix({name: len(part.lengths) for name, part in parts.items()})
        packing = Packing.of_texts(lengths, starts, model.device.type != "cpu").to(model.device)
        with model.autocast():
            # The slices of `MixedLayer` index all tokens, so the last layer computes all of them,
            # not the target positions alone.
            hidden = self._trunk(self._trunk.embed(ids), packing, past)
        return hidden[torch.cat(target_indices).to(model.device)]

    def _prefix(self, counts: dict[str, int]) -> tuple[Past | None, Tensor | int]:
        """Return the prefix of each example, and the position of its first token (B,). `counts` has
        the number of examples of each run."""
        prefixes = [self._prefixes[name] for name in counts]
        if not any(prefixes):
            return None, 0  # the trunk is faster without a prefix
        run_of_example = torch.repeat_interleave(torch.tensor(list(counts.values())))  # (B,)
        lengths = torch.tensor([prefix.length if prefix else 0 for prefix in prefixes])
        past = pad_prefixes(prefixes)
        return past.select(run_of_example.to(past.positions.device)), lengths[run_of_example]


class MixedLayer(nn.Module):
    """A frozen layer of the base with what each run changes in it.

    `changed` has each run's own version of the layer, and `slices` each run's tokens in the current
    batch.
    """

    def __init__(self, layer: nn.Module, changed: dict[str, nn.Module], slices: dict[str, slice]):
        super().__init__()
        self.layer, self.changed, self.slices = layer, changed, slices

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        for name, module in self.changed.items():
            if name in self.slices:
                part = out[self.slices[name]]  # a view: adding to it changes `out`
                if isinstance(module, LoRALinear):
                    part += module.correction(x[self.slices[name]])
                if module.bias is not self.layer.bias:
                    part += module.bias - self.layer.bias
        return out


def split_into_passes(
    indices: dict[str, Sequence[int]], size: int
) -> Iterator[dict[str, list[int]]]:
    """Yield `size` examples at a time, by run. `indices` are the indices of each run's examples."""
    pairs = [(name, index) for name, of_run in indices.items() for index in of_run]
    for start in range(0, len(pairs), size):
        in_pass = {}
        for name, index in pairs[start : start + size]:
            in_pass.setdefault(name, []).append(index)
        yield in_pass


def copy_sharing_matrices(trunk: GPTNeo) -> GPTNeo:
    """Return a copy of a trunk that shares its matrices. Biases and norms, which are small, are
    copied."""
    shared = {id(tensor): tensor for tensor in trunk.parameters() if tensor.dim() > 1}
    return copy.deepcopy(trunk, shared)


def share_frozen(trunk_copy: GPTNeo, trunk: GPTNeo) -> None:
    """Replace the copy's frozen tensors by those of the trunk."""
    for name, tensor in trunk.named_parameters():
        path, _, kind = name.rpartition(".")
        module = trunk_copy.get_submodule(path)
        module = module.base_layer if isinstance(module, LoRALinear) else module
        if not getattr(module, kind).requires_grad:
            setattr(module, kind, tensor)


def pad_prefixes(prefixes: Sequence[Past | None]) -> Past:
    """Return n prefixes of different lengths as one past, padded to the longest, P: its keys and
    values are (n, heads, P, head_dim).

    None is a prefix of length 0; at least one must not be None. Padding has the position NOWHERE:
    no query attends to it.
    """
    any_prefix = next(prefix for prefix in prefixes if prefix)
    empty = any_prefix.map(lambda tensor: tensor[:, :, :0], any_prefix.positions[:, :0])
    pasts = [prefix or empty for prefix in prefixes]

    def pad(layer_tensors: Sequence[Tensor]) -> Tensor:
        sequences = [tensor[0].transpose(0, 1) for tensor in layer_tensors]  # (P, heads, head_dim)
        return pad_sequence(sequences, batch_first=True).transpose(1, 2)

    keys, values = (
        tuple(map(pad, zip(*tensors, strict=True)))
        for tensors in ([past.keys for past in pasts], [past.values for past in pasts])
    )
    positions = [past.positions[0] for past in pasts]
    return Past(keys, values, pad_sequence(positions, batch_first=True, padding_value=NOWHERE))
