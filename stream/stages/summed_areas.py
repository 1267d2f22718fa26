"""Area-averaged copies of any part of a picture, from one table of sums.

Each output pixel is the mean of the whole input pixels that it touches: just what
`torch.nn.functional.interpolate(mode="area")` computes. With the sums of all rectangles that start
in the corner (Crow, 1984) such a mean is four look-ups, and hundreds of crops cost a few numpy
calls instead of a loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    IntArray = NDArray[np.intp]


class SummedAreas:
    """The tables of several pictures.

    Attributes:
        sizes: (P, 2) width and height of each picture.
    """

    def __init__(self, pictures: Sequence[NDArray[np.uint8]]) -> None:
        """Sum up pictures, (H, W, 3) each, none empty; sizes may differ."""
        self.sizes = np.array([p.shape[1::-1] for p in pictures], np.intp).reshape(-1, 2)
        entries = (self.sizes + 1).prod(axis=1)
        self._first = entries.cumsum() - entries  # of each table
        # int32 may overflow, harmlessly: the differences wrap back, unless one mean is taken over
        # more than 8 megapixels.
        self._sums = np.empty((entries.sum(), 3), np.int32)
        for picture, first, n in zip(pictures, self._first, entries, strict=True):
            height, width = picture.shape[:2]
            table = self._sums[first : first + n].reshape(height + 1, width + 1, 3)
            table[0] = table[:, 0] = 0
            table[1:, 1:] = picture
            np.cumsum(table, axis=0, out=table)
            np.cumsum(table, axis=1, out=table)

    def resized(
        self, pictures: IntArray, windows: IntArray, height: int, width: int
    ) -> NDArray[np.float32]:
        """Return windows of pictures, all resized to one size.

        Args:
            pictures: (N,) index of each window's picture.
            windows: (N, 4) x1 y1 x2 y2, whole pixels within the picture, x2 and y2 excluded; none
                empty.
            height: of the results; they may be larger than their windows.
            width: of the results.

        Returns:
            (N, 3, height, width), 0..255.
        """
        left, right = _bins(windows[:, 0], windows[:, 2], width)  # (N, width)
        top, bottom = _bins(windows[:, 1], windows[:, 3], height)  # (N, height)
        first, row = self._first[pictures, None], self.sizes[pictures, :1] + 1
        above, below = (first + top * row)[:, :, None], (first + bottom * row)[:, :, None]
        sums = self._sums.take(below + right[:, None], axis=0)  # (N, height, width, 3)
        sums -= self._sums.take(above + right[:, None], axis=0)
        sums -= self._sums.take(below + left[:, None], axis=0)
        sums += self._sums.take(above + left[:, None], axis=0)
        area = ((bottom - top)[:, :, None] * (right - left)[:, None]).astype(np.float32)
        means = np.empty((len(pictures), 3, height, width), np.float32)
        np.divide(sums.transpose(0, 3, 1, 2), area[:, None], out=means)
        return means


def _bins(start: IntArray, end: IntArray, n: int) -> tuple[IntArray, IntArray]:
    """Return where each of n parts of start..end starts and ends; neighbours may share a pixel."""
    length = (end - start)[:, None]
    part = np.arange(n)
    return start[:, None] + part * length // n, start[:, None] - (part + 1) * -length // n
