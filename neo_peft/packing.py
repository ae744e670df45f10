"""The packed batch: the N tokens of B texts are concatenated, without padding.

Linear layers, norms and embeddings work on packed tokens (N, H). Only attention needs grids of b
texts and T positions (b, T). A `Packing` describes them. On a CPU, consecutive texts of the same
length share a grid. Then nothing is padded, and attention takes half the time of one padded grid.
On a GPU each call has a fixed cost, so one grid contains the whole batch, padded on the right. It
needs no padding mask: with a causal mask no token attends to padding on its right.
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
    batch: int  # b, the number of texts
    longest: int  # T, the length of the longest text
    size: int  # number of tokens, without padding
    positions: Tensor  # absolute positions (b, T), or (1, T) if they are equal for all texts
    indices: Tensor | None  # (size,), each token's index in the flattened grid; None: no padding

    @classmethod
    def of_texts(cls, first: int, lengths: Sequence[int], starts: Tensor) -> "Grid":
        """Return the grid of texts; `starts` (1,) or (b,): position of each text's first token."""
        batch, longest, size, indices = len(lengths), max(1, *lengths), sum(lengths), None
        columns = torch.arange(longest)
        if size < batch * longest:
            indices = (columns < torch.tensor(lengths)[:, None]).flatten().nonzero().squeeze(1)
        return cls(first, batch, longest, size, starts[:, None] + columns, indices)

    def scatter(self, tokens: Tensor) -> Tensor:
        """Return the grid (b, T, C) of tokens (size, C); padding is zero."""
        if self.indices is not None:
            empty = tokens.new_zeros(self.batch * self.longest, tokens.shape[1])
            tokens = empty.index_copy(0, self.indices, tokens)
        return tokens.view(self.batch, self.longest, -1)

    def gather(self, grid: Tensor) -> Tensor:
        """Return the tokens (size, C) of a grid (b, T, C)."""
        flat = grid.reshape(self.batch * self.longest, -1)
        return flat if self.indices is None else flat.index_select(0, self.indices)

    def select(self, tensor: Tensor) -> Tensor:
        """Return the entries (b, …) of this grid's texts from a tensor (B, …) of the whole batch. A
        tensor (1, …) is shared by all texts and returned unchanged."""
        return tensor if len(tensor) == 1 else tensor[self.first : self.first + self.batch]

    def to(self, device: torch.device) -> "Grid":
        indices = None if self.indices is None else self.indices.to(device, non_blocking=True)
        return replace(
            self, positions=self.positions.to(device, non_blocking=True), indices=indices
        )


@dataclass(frozen=True)
class Packing:
    """The grids and the positions of a packed batch."""

    grids: tuple[Grid, ...]  # in the order of the packed tokens
    positions: Tensor  # the absolute position of each token (N,)
    has_prompt: bool = False  # the first grid is the prompt; its keys come before all other keys

    @property
    def sizes(self) -> list[int]:
        return [grid.size for grid in self.grids]

    @classmethod
    def of_texts(
        cls, lengths: Tensor, start: int | Tensor = 0, together: bool = False, prompt: bool = False
    ) -> "Packing":
        """Return the packing of texts with these `lengths` (B,).

        `start` is the position of each text's first token: one number, or one for each text (B,).
        `together` puts all texts into one grid. `prompt` adds a prompt of `start` tokens in front.
        """
        counts, starts = lengths.tolist(), torch.as_tensor(start).view(-1)
        groups = [counts] if together else [list(same) for _, same in groupby(counts)]
        grids, first = [], 0
        for group in groups:
            group_starts = starts if len(starts) == 1 else starts[first : first + len(group)]
            grids.append(Grid.of_texts(first, group, group_starts))
            first += len(group)
        if prompt:
            grids.insert(0, Grid.of_texts(0, [start], torch.zeros(1, dtype=torch.long)))
        return cls(tuple(grids), torch.cat([_token_positions(grid) for grid in grids]), prompt)

    def to(self, device: torch.device) -> "Packing":
        grids = tuple(grid.to(device) for grid in self.grids)
        return replace(self, grids=grids, positions=self.positions.to(device, non_blocking=True))


def _token_positions(grid: Grid) -> Tensor:
    positions = grid.positions.expand(grid.batch, -1)
    return grid.gather(positions[:, :, None]).flatten()
