"""Colours of decoded pictures as RGB, on the device where the pixels are.

Decoders in hardware give luma and chroma, or RGB by a matrix of their own. Here the numbers are
those of FFmpeg's scaler as `PyAVDecoder` uses it: the matrix and range that the stream tags, chroma
not interpolated. What is left is how both round (docs/sources.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from torch import Tensor

# Shares of red and blue in luma, by AVColorSpace (ITU-T H.273, table 4).
_BT601: Final = 0.299, 0.114
_SHARES: Final = {
    1: (0.2126, 0.0722),  # BT.709
    4: (0.30, 0.11),  # FCC
    5: _BT601,
    6: _BT601,  # SMPTE 170M
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020
    10: (0.2627, 0.0593),
}


@dataclass(frozen=True, slots=True)
class Colour:
    """How a stream's luma and chroma are meant."""

    matrix: int  # AVColorSpace
    full_range: bool  # luma 0..255 rather than 16..235


@dataclass(frozen=True, slots=True)
class Planes:
    """A picture as luma and chroma: uint8, or uint16 with the bits at the upper end."""

    luma: Tensor  # (H, W)
    blue: Tensor  # (h, w), chroma; h and w are H and W, or half of them, rounded up or down
    red: Tensor  # (h, w)


def rgb_of(planes: Planes, colour: Colour) -> Tensor:
    """Return (H, W, 3) uint8 RGB, on the planes' device, in memory of its own."""
    luma, blue, red = (_as_8_bit(plane) for plane in (planes.luma, planes.blue, planes.red))
    share_r, share_b = _shares(colour.matrix)
    share_g = 1 - share_r - share_b
    black, luma_gain, chroma_gain = (
        (0, 1.0, 1.0) if colour.full_range else (16, 255 / 219, 255 / 224)
    )
    blue, red = (blue - 128) * chroma_gain, (red - 128) * chroma_gain
    chroma = torch.stack(
        (
            2 * (1 - share_r) * red,
            -2 * (share_r * (1 - share_r) * red + share_b * (1 - share_b) * blue) / share_g,
            2 * (1 - share_b) * blue,
        ),
        -1,
    )
    height, width = luma.shape
    rgb = ((luma - black) * luma_gain)[..., None] + _spread(chroma, height, width)
    return rgb.clamp(0, 255).to(torch.uint8)  # cut off, as FFmpeg's scaler does


def from_bt601(rgb: Tensor, matrix: int) -> Tensor:
    """Return RGB as it would be by a stream's own matrix, of RGB made by that of BT.601.

    Args:
        rgb: (..., 3) uint8.
        matrix: AVColorSpace of the stream.
    """
    shares = _shares(matrix)
    if shares == _BT601:
        return rgb
    change = _to_rgb(shares) @ torch.linalg.inv(_to_rgb(_BT601))
    changed: Tensor = rgb.float() @ change.T.to(rgb.device)
    return changed.round().clamp(0, 255).to(torch.uint8)


def _to_rgb(shares: tuple[float, float]) -> Tensor:
    """Return (3, 3): luma and both chromas, 0..1 and -0.5..0.5, to RGB."""
    r, b = shares
    g = 1 - r - b
    return torch.tensor(
        [
            [1, 0, 2 * (1 - r)],
            [1, -2 * b * (1 - b) / g, -2 * r * (1 - r) / g],
            [1, 2 * (1 - b), 0],
        ]
    )


def _shares(matrix: int) -> tuple[float, float]:
    return _SHARES.get(matrix, _BT601)  # FFmpeg's own choice for what it does not know


def _as_8_bit(plane: Tensor) -> Tensor:
    values = plane.to(torch.float32)
    return values / 256 if plane.dtype == torch.uint16 else values


def _spread(chroma: Tensor, height: int, width: int) -> Tensor:
    """Return (H, W, 3) of (h, w, 3), each value for the pixels it was taken from."""
    for axis, size in enumerate((height, width)):
        n = chroma.shape[axis]
        if n != size:
            places = torch.arange(size, device=chroma.device) // 2
            chroma = chroma.index_select(axis, places.clamp_(max=n - 1))
    return chroma
