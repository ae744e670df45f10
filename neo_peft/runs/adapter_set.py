"""Several runs on one base: each answers alone, or all of them answer a mixed batch in one pass
through the trunk.

The base is loaded once, and nothing ever changes it. A run's model is a trunk of its own around the
base's tensors, to which it adds only what it trained. A mixed batch goes through one more such
trunk. Its examples stand sorted by run, so that each run owns a stretch of the N tokens, to which a
layer adds what that run learned there:

    h = W x + b                                       once, for all tokens
    h[its tokens] += (alpha / r) · B A x[its tokens] + (its b − b)

The prompts stand in front as keys and values, each example's own. Read `lora.py` and `gptneo.Past`
first.
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

from neo_peft.decoding import Evaluation, Prediction, States, evaluate, predict_batch
from neo_peft.encoding import Encoder, Examples, batches, collate
from neo_peft.errors import InputError
from neo_peft.gptneo import NOWHERE, GPTNeo, Past
from neo_peft.lora import LoRALinear
from neo_peft.model import Batch
from neo_peft.packing import Packing
from neo_peft.runs.loading import Tuned, base_of, load, settings_in
from neo_peft.settings import Settings

# the settings that runs on one base have in common
OF_THE_BASE = ("model", "precision", "device", "threads")


class AdapterSet:
    """Runs by their names, on one base: `runs["ner-lora"]` is what `load` makes, and shares the
    base's tensors.

    The names are those of a mapping {name: folder}, or the folders' own. Where it is computed, and
    in which precision, the first run's settings say.
    """

    def __init__(self, runs: Iterable[Path | str] | Mapping[str, Path | str] = ()):
        self.base = None
        self._of_base = {}
        self._runs = {}
        self._prefixes = {}  # of each run; None without a prompt
        named = isinstance(runs, Mapping)
        for run in runs:
            self.add(runs[run] if named else run, run if named else None)

    def __getitem__(self, name: str) -> Tuned:
        return self._runs[self._known(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)

    def add(
        self, folder: Path | str, name: str | None = None, settings: Settings | None = None
    ) -> Tuned:
        """Load a run onto the base, which the first one brings. Raise InputError where it does not
        fit on it.

        `settings` are for an adapter of peft's own, as in `load`. The prompt's keys and values are
        computed now.
        """
        folder, settings = Path(folder), settings or settings_in(Path(folder))
        name = name or Path(os.path.abspath(folder)).name
        if name in self._runs:
            raise InputError(
                f"two runs are called {name}; the second is {folder}: rename it, or give {{name: "
                f"folder}}"
            )
        if alone := [part.name for part in settings.parts if not part.mixes]:
            raise InputError(f"{folder} was trained by {alone[0]}: it cannot share a base")
        settings = dataclasses.replace(settings, **self._of_base)
        base = self.base or base_of(settings)
        trunk = view_of(base.trunk)
        tuned = load(folder, settings, dataclasses.replace(base, trunk=trunk))
        share_frozen(trunk, base.trunk)
        self.base, self._of_base = base, {field: getattr(settings, field) for field in OF_THE_BASE}
        self._runs[name] = tuned
        with torch.no_grad():
            self._prefixes[name] = tuned.model.prefix()
        self._mix()
        return tuned

    def remove(self, name: str) -> None:
        """Forget a run; the base stays."""
        self._runs.pop(self._known(name))
        self._prefixes.pop(name)
        self._mix()

    def _known(self, name: str) -> str:
        if name not in self._runs:
            raise InputError(
                f"there is no run {name!r} here; the runs are {', '.join(self._runs) or 'none yet'}"
            )
        return name

    def _mix(self) -> None:
        """Make the trunk of mixed batches: where a run differs from the base, a layer knows it."""
        self._trunk, self._stretches = view_of(self.base.trunk), {}
        for place, layer in self.base.trunk.named_modules():
            own = {}
            for name, tuned in self._runs.items():
                module = tuned.model.transformer.get_submodule(place)
                own_bias = getattr(module, "bias", None) is not getattr(layer, "bias", None)
                if own_bias or isinstance(module, LoRALinear):
                    own[name] = module
            if own:
                self._trunk.set_submodule(place, MixedLayer(layer, own, self._stretches))

    def predict(self, rows: Sequence[dict], batch_size: int = 32) -> list:
        """Answer rows that name their "run", whose labels are not needed: a label, or a tag for
        each word."""
        return self.evaluate(rows, batch_size).predicted

    @torch.inference_mode()
    def evaluate(self, rows: Sequence[dict], batch_size: int = 32) -> Evaluation:
        """Answer rows that name their "run", each batch in one pass whatever the runs; labels are
        read by rank."""
        places = self._places(rows)
        examples = {
            name: encode_texts(self[name].encoder, [rows[place] for place in mine])
            for name, mine in places.items()
        }
        owned = [
            (name, index, place)
            for name, mine in places.items()
            for index, place in enumerate(mine)
        ]
        lengths = [length for part in examples.values() for length in part.lengths]
        answers = {}  # by the row's place
        for chosen in batches(np.argsort(lengths, kind="stable"), batch_size):
            of_batch, shares = [], {}
            for which in np.sort(chosen):  # the examples of one run stand together again
                name, index, place = owned[which]
                shares.setdefault(name, []).append(index)
                of_batch.append(place)
            answers |= zip(of_batch, self._answer(examples, shares), strict=True)
        in_order = [answers[place] for place in range(len(rows))]
        return Evaluation(
            [answer.predicted for answer in in_order],
            probabilities=[answer.probabilities for answer in in_order],
            cut=sum(part.cut for part in examples.values()),
        )

    def _places(self, rows: Sequence[dict]) -> dict[str, list[int]]:
        """Return the indices of each run's rows."""
        places = {}
        for place, row in enumerate(rows):
            if row.get("run") not in tuple(self):
                raise InputError(
                    f'row {place} names the run {row.get("run")!r}; "run" is one of '
                    f"{', '.join(self)}"
                )
            places.setdefault(row["run"], []).append(place)
        return places

    def _answer(
        self, examples: dict[str, Examples], shares: dict[str, list[int]]
    ) -> list[Prediction]:
        """Answer one batch, of which each run has a share of its examples, in the order of the
        shares."""
        parts = {name: collate(examples[name], mine) for name, mine in shares.items()}
        hidden = self.hidden(parts).split([len(part.target_indices) for part in parts.values()])
        answers = []
        for (name, part), of_run in zip(parts.items(), hidden, strict=True):
            tuned = self[name]
            states = States(examples[name], shares[name], part, of_run, self._prefixes[name])
            # Labels that share their first token cost passes of their own: see `score_labels`.
            answers += predict_batch(tuned.model, tuned.encoder, states)
        return answers

    def hidden(self, parts: dict[str, Batch]) -> Tensor:
        """Return the hidden states (M, H) of the tokens that are read, of a batch for each run, in
        one pass.

        Not from two threads at once: the layers look up the stretches of the batch that is under
        way.
        """
        model = self[next(iter(parts))].model  # all are on one device, in one precision
        first, target_indices = 0, []
        self._stretches.clear()
        for name, part in parts.items():
            self[name].model.eval()
            target_indices.append(part.target_indices + first)
            self._stretches[name] = slice(first, first := first + len(part.ids))
        ids = torch.cat([part.ids for part in parts.values()]).to(model.device)
        lengths = torch.cat([part.lengths for part in parts.values()])
        past, starts = self._prefix({name: len(part.lengths) for name, part in parts.items()})
        packing = Packing.of_texts(lengths, starts, model.device.type != "cpu").to(model.device)
        with model.autocast():
            # The last norm sees all tokens, not only those that are read: a stretch is one of all
            # tokens.
            hidden = self._trunk(self._trunk.embed(ids), packing, past)
        return hidden[torch.cat(target_indices).to(model.device)]

    def _prefix(self, counts: dict[str, int]) -> tuple[Past | None, Tensor | int]:
        """Return the prefix of each example's run, and where its text starts, (B,)."""
        prefixes = [self._prefixes[name] for name in counts]
        if not any(prefixes):
            return None, 0  # the trunk is faster without
        owners = torch.repeat_interleave(torch.tensor(list(counts.values())))  # (B,)
        starts = torch.tensor([prefix.length if prefix else 0 for prefix in prefixes])[owners]
        past = side_by_side(prefixes)
        return past.select(owners.to(past.positions.device)), starts


def encode_texts(encoder: Encoder, rows: Sequence[dict]) -> Examples:
    """Encode rows without their labels, which may be any."""
    fields = encoder.task.fields[:-1]
    return encoder([{field: row[field] for field in fields} for row in rows])


def evaluate_texts(tuned: Tuned, rows: Sequence[dict], batch_size: int = 32) -> Evaluation:
    """Answer rows by one run, whatever their labels."""
    examples = encode_texts(tuned.encoder, rows)
    return evaluate(tuned.model, tuned.encoder, examples, batch_size=batch_size)


class MixedLayer(nn.Module):
    """A frozen layer that adds, to each run's stretch of the tokens, what that run's own layer
    learned."""

    def __init__(self, layer: nn.Module, own: dict[str, nn.Module], stretches: dict[str, slice]):
        super().__init__()
        self.layer, self.own, self.stretches = layer, own, stretches

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        for name, module in self.own.items():
            if name in self.stretches:
                mine = out[self.stretches[name]]  # a view: what is added to it is added to `out`
                if isinstance(module, LoRALinear):
                    mine += module.correction(x[self.stretches[name]])
                if module.bias is not self.layer.bias:
                    mine += module.bias - self.layer.bias
        return out


def view_of(trunk: GPTNeo) -> GPTNeo:
    """Return a trunk of new modules around the same matrices; biases and norms, which are small,
    are copies."""
    shared = {id(tensor): tensor for tensor in trunk.parameters() if tensor.dim() > 1}
    return copy.deepcopy(trunk, shared)


def share_frozen(view: GPTNeo, trunk: GPTNeo) -> None:
    """Put the trunk's own tensors into a view wherever the view's do not train."""
    for name, tensor in trunk.named_parameters():
        place, _, kind = name.rpartition(".")
        module = view.get_submodule(place)
        module = module.base_layer if isinstance(module, LoRALinear) else module
        if not getattr(module, kind).requires_grad:
            setattr(module, kind, tensor)


def side_by_side(prefixes: Sequence[Past | None]) -> Past:
    """Return one past of prefixes of different lengths, as if each were an example's: (A, heads, P,
    head_dim). At least one is a prefix. Places that are empty are NOWHERE, where no query sees
    them."""
    some = next(prefix for prefix in prefixes if prefix)
    none = some.map(lambda tensor: tensor[:, :, :0], some.positions[:, :0])
    pasts = [prefix or none for prefix in prefixes]

    def join(of_layer: Sequence[Tensor]) -> Tensor:
        rows = [tensor[0].transpose(0, 1) for tensor in of_layer]  # each (P, heads, head_dim)
        return pad_sequence(rows, batch_first=True).transpose(1, 2)

    keys, values = (
        tuple(map(join, zip(*tensors, strict=True)))
        for tensors in ([past.keys for past in pasts], [past.values for past in pasts])
    )
    positions = [past.positions[0] for past in pasts]
    return Past(keys, values, pad_sequence(positions, batch_first=True, padding_value=NOWHERE))
