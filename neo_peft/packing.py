"""The unpadded batch: which row belongs to which example and position.

A batch of B uneven texts is held as the N rows of its real tokens, one behind the other, (N, H):
every linear layer, norm and embedding works on those alone. Only attention needs rectangles (b, T).
On a CPU neighbours share one only where they are of one length, so that nothing is padded: that
takes half the time of one rectangle for all. On a GPU, where every call costs the same, one
rectangle holds the batch, padded on the right. Under a causal mask such padding is seen by padding
alone, so no padding mask is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rectangle:
    """The layout of b neighbouring texts, of which the batch's text number `first` is the first, by
    the longest, T.

    `size` counts its rows, `positions` (1 or b, T) are the absolute positions of its places, and
    `slots` (size,) the places of its rows in the flattened (b, T): None where nothing is padded."""

    first: int
    batch: int
    longest: int
    size: int
    positions: Tensor
    slots: Tensor | None

    @classmethod
    def of_texts(cls, first: int, lengths: Sequence[int], starts: Tensor) -> "Rectangle":
        """Lay out texts of these lengths, from the positions `starts` (1 or b,) on."""
        batch, longest, size, slots = len(lengths), max(1, *lengths), sum(lengths), None
        steps = torch.arange(longest)
        if size < batch * longest:
            slots = (steps < torch.tensor(lengths)[:, None]).flatten().nonzero().squeeze(1)
        return cls(first, batch, longest, size, starts[:, None] + steps, slots)

    def scatter(self, rows: Tensor) -> Tensor:
        """Place rows (size, C) into the rectangle (b, T, C); padding is zero."""
        if self.slots is not None:
            rows = rows.new_zeros(self.batch * self.longest, rows.shape[1]).index_copy(
                0, self.slots, rows
            )
        return rows.view(self.batch, self.longest, -1)

    def gather(self, rectangle: Tensor) -> Tensor:
        """Take the rows (size, C) out of the rectangle (b, T, C)."""
        places = rectangle.reshape(self.batch * self.longest, -1)
        return places if self.slots is None else places.index_select(0, self.slots)

    def own(self, tensor: Tensor) -> Tensor:
        """Take these texts' part of a tensor that holds something for each text of the batch, (B,
        …), or for all in common, (1, …)."""
        return tensor if len(tensor) == 1 else tensor[self.first : self.first + self.batch]

    def to(self, device: torch.device) -> "Rectangle":
        slots = None if self.slots is None else self.slots.to(device, non_blocking=True)
        return replace(self, positions=self.positions.to(device, non_blocking=True), slots=slots)


@dataclass(frozen=True)
class Rows:
    """The layout of N rows: the rectangles that they attend in, one behind the other, and the
    absolute positions (N,).

    Where it is `led`, the first rectangle is no text of the batch but the prompt, which all the
    others see.
    """

    rectangles: tuple[Rectangle, ...]
    positions: Tensor
    led: bool = False

    @property
    def sizes(self) -> list[int]:
        return [rectangle.size for rectangle in self.rectangles]

    @classmethod
    def of_texts(
        cls, lengths: Tensor, start: int | Tensor = 0, together: bool = False, led: bool = False
    ) -> "Rows":
        """Lay out texts of `lengths` (B,), each at the positions from `start` on: one for all, or
        each its own (B,).

        `together` puts them into one rectangle. `led` puts the `start` rows of a prompt in front of
        them.
        """
        counts, starts = lengths.tolist(), torch.as_tensor(start).view(-1)
        alike = [counts] if together else [list(neighbours) for _, neighbours in groupby(counts)]
        rectangles, first = [], 0
        for group in alike:
            own = starts if len(starts) == 1 else starts[first : first + len(group)]
            rectangles.append(Rectangle.of_texts(first, group, own))
            first += len(group)
        if led:
            rectangles.insert(0, Rectangle.of_texts(0, [start], torch.zeros(1, dtype=torch.long)))
        return cls(
            tuple(rectangles),
            torch.cat([_row_positions(rectangle) for rectangle in rectangles]),
            led,
        )

    @classmethod
    def of_next_tokens(cls, positions: Tensor) -> "Rows":
        """Lay out one further token for each of B texts, at its own absolute position (B,)."""
        batch = len(positions)
        return cls((Rectangle(0, batch, 1, batch, positions[:, None], None),), positions)

    def to(self, device: torch.device) -> "Rows":
        moved = tuple(rectangle.to(device) for rectangle in self.rectangles)
        return Rows(moved, self.positions.to(device, non_blocking=True), self.led)


def _row_positions(rectangle: Rectangle) -> Tensor:
    places = rectangle.positions.expand(rectangle.batch, -1)
    return rectangle.gather(places[:, :, None]).flatten()
