"""The packed batch: the tokens of B texts one behind the other; only attention may pad.

Every linear layer, norm and embedding works on the N tokens alone, (N, H). Only attention needs
grids (b, T): `Packing` says which tokens stand together in one. On a CPU neighbouring texts share a
grid only where they have the same length, so that nothing is padded: that takes half the time of
one grid for all. On a GPU, where every call costs the same, one grid holds the batch, padded on the
right. Under a causal mask such padding is seen by padding alone, so no padding mask is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """The (b, T) grid of b consecutive texts of a batch."""

    first: int  # the index of its first text in the batch
    batch: int  # b
    longest: int  # T, the length of the longest text
    size: int  # how many of its places hold tokens
    positions: Tensor  # the absolute position of each place (1 or b, T)
    slots: Tensor | None  # each token's place in the flattened grid (size,); None without padding

    @classmethod
    def of_texts(cls, first: int, lengths: Sequence[int], starts: Tensor) -> "Grid":
        """Return the grid of texts of these lengths, at positions from `starts` (1 or b,) on."""
        batch, longest, size, slots = len(lengths), max(1, *lengths), sum(lengths), None
        steps = torch.arange(longest)
        if size < batch * longest:
            slots = (steps < torch.tensor(lengths)[:, None]).flatten().nonzero().squeeze(1)
        return cls(first, batch, longest, size, starts[:, None] + steps, slots)

    def scatter(self, tokens: Tensor) -> Tensor:
        """Place tokens (size, C) into the grid (b, T, C); padding is zero."""
        if self.slots is not None:
            empty = tokens.new_zeros(self.batch * self.longest, tokens.shape[1])
            tokens = empty.index_copy(0, self.slots, tokens)
        return tokens.view(self.batch, self.longest, -1)

    def gather(self, grid: Tensor) -> Tensor:
        """Take the tokens (size, C) out of the grid (b, T, C)."""
        places = grid.reshape(self.batch * self.longest, -1)
        return places if self.slots is None else places.index_select(0, self.slots)

    def select(self, tensor: Tensor) -> Tensor:
        """Take the part of these texts from a tensor with an entry for each text of the batch,
        (B, …). One that all texts share, (1, …), is returned as it is."""
        return tensor if len(tensor) == 1 else tensor[self.first : self.first + self.batch]

    def to(self, device: torch.device) -> "Grid":
        slots = None if self.slots is None else self.slots.to(device, non_blocking=True)
        return replace(self, positions=self.positions.to(device, non_blocking=True), slots=slots)


@dataclass(frozen=True)
class Packing:
    """The layout of a batch of N tokens."""

    grids: tuple[Grid, ...]  # the grids that the tokens attend in, one behind the other
    positions: Tensor  # the absolute position of each token (N,)
    has_prompt: bool = False  # the first grid is a prompt, which the tokens of all others see

    @property
    def sizes(self) -> list[int]:
        return [grid.size for grid in self.grids]

    @classmethod
    def of_texts(
        cls, lengths: Tensor, start: int | Tensor = 0, together: bool = False, prompt: bool = False
    ) -> "Packing":
        """Return the layout of texts of `lengths` (B,).

        `start` is the position of their first tokens: one for all, or one for each (B,).
        `together` puts all texts into one grid. `prompt` puts a prompt of `start` tokens in front.
        """
        counts, starts = lengths.tolist(), torch.as_tensor(start).view(-1)
        groups = [counts] if together else [list(same) for _, same in groupby(counts)]
        grids, first = [], 0
        for group in groups:
            own = starts if len(starts) == 1 else starts[first : first + len(group)]
            grids.append(Grid.of_texts(first, group, own))
            first += len(group)
        if prompt:
            grids.insert(0, Grid.of_texts(0, [start], torch.zeros(1, dtype=torch.long)))
        return cls(tuple(grids), torch.cat([_token_positions(grid) for grid in grids]), prompt)

    def to(self, device: torch.device) -> "Packing":
        grids = tuple(grid.to(device) for grid in self.grids)
        return replace(self, grids=grids, positions=self.positions.to(device, non_blocking=True))


def _token_positions(grid: Grid) -> Tensor:
    places = grid.positions.expand(grid.batch, -1)
    return grid.gather(places[:, :, None]).flatten()
