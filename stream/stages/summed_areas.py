"""Area-averaged copies of any part of a picture, from one table of sums.

Each output pixel is the mean of the whole input pixels that it touches: just what
`torch.nn.functional.interpolate(mode="area")` computes. With the sums of all rectangles that start
in the corner (Crow, 1984) such a mean is four look-ups, and hundreds of crops cost a few calls
instead of a loop. Pixels and sums stay on the device where the pictures are; windows are chosen on
the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    IntArray = NDArray[np.intp]


class SummedAreas:
    """The tables of several pictures.

    Attributes:
        sizes: (P, 2) width and height of each picture.
    """

    def __init__(self, pictures: Sequence[Tensor], device: torch.device) -> None:
        """Sum up pictures, (H, W, 3) uint8 each, none empty, all on `device`; sizes may differ."""
        self.sizes = np.array([(p.shape[1], p.shape[0]) for p in pictures], np.intp).reshape(-1, 2)
        entries = (self.sizes + 1).prod(axis=1)
        self._first = entries.cumsum() - entries  # of each table
        # int32 may overflow, harmlessly: the differences wrap back, unless one mean is taken over
        # more than 8 megapixels.
        self._sums = torch.empty((int(entries.sum()), 3), dtype=torch.int32, device=device)
        for picture, first, n in zip(pictures, self._first, entries, strict=True):
            height, width = picture.shape[:2]
            table = self._sums[first : first + n].view(height + 1, width + 1, 3)
            table[0] = table[:, 0] = 0
            table[1:, 1:] = picture
            torch.cumsum(table, 0, dtype=torch.int32, out=table)
            torch.cumsum(table, 1, dtype=torch.int32, out=table)

    def resized(self, pictures: IntArray, windows: IntArray, height: int, width: int) -> Tensor:
        """Return windows of pictures, all resized to one size.

        Args:
            pictures: (N,) index of each window's picture.
            windows: (N, 4) x1 y1 x2 y2, whole pixels within the picture, x2 and y2 excluded; none
                empty.
            height: of the results; they may be larger than their windows.
            width: of the results.

        Returns:
            (N, 3, height, width) float32, 0..255, on the device of the pictures.
        """
        left, right = _bins(windows[:, 0], windows[:, 2], width)  # (N, width)
        top, bottom = _bins(windows[:, 1], windows[:, 3], height)  # (N, height)
        first, row = self._first[pictures, None], self.sizes[pictures, :1] + 1
        above, below = self._places(first + top * row), self._places(first + bottom * row)
        before, after = self._places(left), self._places(right)
        sums = self._at(below, after)
        sums -= self._at(above, after)
        sums -= self._at(below, before)
        sums += self._at(above, before)
        sums = sums.view(-1, height, width, 3).permute(0, 3, 1, 2)
        area = self._places((bottom - top)[:, :, None] * (right - left)[:, None])
        means = sums.new_empty(sums.shape, dtype=torch.float32)
        return torch.div(sums, area[:, None], out=means)

    def _places(self, numbers: IntArray) -> Tensor:
        """Send numbers to where the sums are, as int32: half as many bytes to read and to send."""
        return torch.from_numpy(numbers.astype(np.int32)).to(self._sums.device)

    def _at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return (N * H * W, 3) sums, where rows (N, H) and columns (N, W) of the tables meet."""
        entries = rows[:, :, None] + columns[:, None]
        return self._sums.index_select(0, entries.view(-1))


def _bins(start: IntArray, end: IntArray, n: int) -> tuple[IntArray, IntArray]:
    """Return where each of n parts of start..end starts and ends; neighbours may share a pixel."""
    length = (end - start)[:, None]
    part = np.arange(n)
    return start[:, None] + part * length // n, start[:, None] - (part + 1) * -length // n
