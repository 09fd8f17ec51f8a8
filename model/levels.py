"""A pyramid of maps, one after another in memory, as deformable attention samples them.

What follows from the sizes alone is made once a forward and handed to all layers, and comes from
the host in a copy that nobody waits for: a tensor made of Python's numbers would stop a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .transfers import send

Shapes = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Levels:
    """Sizes of the maps, and vectors of [heads * levels * points]: what each sampled number sees.

    Arithmetic on such vectors is an order faster than on [heads, levels, points] against
    [levels, 1]. Maps have a border of one pixel of zeros where they are sampled; their rows are
    pixels in row-major order, and of a pixel head after head.
    """

    shapes: tuple[tuple[int, int], ...]
    """(H, W) of each map, without the border."""
    heads: int
    points: int
    offset_size: Tensor
    """[heads * levels * points * 2] float32: W and H in turn, as sampling offsets are ordered."""
    size: Tensor
    """[2, 1, 1, heads * levels * points] float32: W, and H."""
    far: Tensor
    """The same, the last place on the border: W + 1, and H + 1."""
    step: Tensor
    """The same, int32: rows from one pixel to the next, and from one line to the next."""
    start: Tensor
    """[heads * levels * points] int32: row of the upper left corner of the border."""
    zero: Tensor
    """[] float32."""
    maps: Tensor
    """[levels, 3] int32: of each map H, W, and its first pixel among all, without borders."""

    @classmethod
    def of(
        cls, shapes: Shapes, heads: int, points: int, device: torch.device | None = None
    ) -> "Levels":
        """shapes: (H, W) of each map; heads and points of the attention that looks at them."""
        offsets: list[int] = []
        width: list[int] = []
        height: list[int] = []
        line: list[int] = []
        start: list[int] = []
        for head in range(heads):
            first = head
            for h, w in shapes:
                offsets += [w, h] * points
                width += [w] * points
                height += [h] * points
                line += [(w + 2) * heads] * points
                start += [first] * points
                first += (h + 2) * (w + 2) * heads
        maps: list[int] = []
        first = 0
        for h, w in shapes:
            maps += [h, w, first]
            first += h * w
        count = len(start)
        numbers = torch.tensor(
            [*offsets, *width, *height, *[heads] * count, *line, *start, 0, *maps],
            dtype=torch.int32,
        )
        numbers = send(numbers, torch.device("cpu") if device is None else device)
        sizes = numbers.float()

        def pair(of: Tensor, place: int) -> Tensor:
            return of[place * count : (place + 2) * count].view(2, 1, 1, count)

        size = pair(sizes, 2)
        return cls(
            tuple((h, w) for h, w in shapes), heads, points,
            sizes[: 2 * count], size, size + 1, pair(numbers, 4),
            numbers[6 * count : 7 * count], sizes[7 * count],
            numbers[7 * count + 1 :].view(-1, 3),
        )  # fmt: skip

    @property
    def pixels(self) -> int:
        """S: of all maps, without borders."""
        return sum(h * w for h, w in self.shapes)

    @property
    def bordered(self) -> list[tuple[int, int]]:
        """(H + 2, W + 2) of each map."""
        return [(h + 2, w + 2) for h, w in self.shapes]

    @property
    def rows(self) -> int:
        """Of one batch entry, all heads together, with borders."""
        return sum(h * w for h, w in self.bordered) * self.heads


torch.export.register_dataclass(Levels)
