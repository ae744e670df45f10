"""The unpadded batch: which row belongs to which example and position.

A batch of B uneven texts is held as the N rows of its real tokens, one behind the other, (N, H): every linear
layer, norm and embedding works on those alone. Only attention needs a rectangle, so it scatters its rows into
(B, T), T the longest text, and gathers them back. The rectangle is padded on the right. Under a causal mask such
padding is seen by padding alone, so no padding mask is needed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The layout of N rows: `slots` (N,) are their places in the flattened (B, T) rectangle, `positions` (N,) their
    absolute positions, `rectangle` (1 or B, T) the absolute positions of all places."""

    batch: int
    longest: int
    slots: Tensor
    positions: Tensor
    rectangle: Tensor

    @classmethod
    def of_texts(cls, lengths: Tensor, start: int | Tensor = 0) -> "Rows":
        """Lay out texts of `lengths` (B,), each at the positions from `start` on: one for all, or each its own (B,)."""
        batch, longest, device = len(lengths), max(1, int(lengths.max())), lengths.device
        steps = torch.arange(longest, device=device)
        slots = (steps < lengths[:, None]).flatten().nonzero().squeeze(1)
        rectangle = torch.as_tensor(start, device=device).view(-1, 1) + steps  # (1 or B, T)
        return cls(batch, longest, slots, rectangle.expand(batch, -1).reshape(-1)[slots], rectangle)

    @classmethod
    def of_next_tokens(cls, positions: Tensor) -> "Rows":
        """Lay out one further token for each of B texts, at its own absolute position (B,)."""
        slots = torch.arange(len(positions), device=positions.device)
        return cls(len(positions), 1, slots, positions, positions[:, None])

    def scatter(self, rows: Tensor) -> Tensor:
        """Place rows (N, C) into the rectangle (B, T, C); padding is zero."""
        if len(rows) < self.batch * self.longest:
            rectangle = rows.new_zeros(self.batch * self.longest, rows.shape[1])
            rows = rectangle.index_copy(0, self.slots, rows)
        return rows.view(self.batch, self.longest, -1)

    def gather(self, rectangle: Tensor) -> Tensor:
        """Take the rows (N, C) out of the rectangle (B, T, C)."""
        places = rectangle.reshape(self.batch * self.longest, -1)
        return places if len(self.slots) == len(places) else places.index_select(0, self.slots)

    def to(self, device: torch.device) -> "Rows":
        move = lambda tensor: tensor.to(device, non_blocking=True)  # noqa: E731
        return Rows(self.batch, self.longest, move(self.slots), move(self.positions), move(self.rectangle))
