"""Face geometry: how a face box becomes the square crop a network sees.

The only home of this fact: training and streaming both call `crop_faces`, so they cut the same
pixels.

Coordinates are continuous pixels of the source frame, x right, y down; pixel (0, 0) covers [0, 1) x
[0, 1) and its centre is (0.5, 0.5), as in `grid_sample(align_corners=False)`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from models._contract import InputSpec


class CropWindow(NamedTuple):
    """The part of a frame that becomes a crop, pixels of the frame; it may reach outside."""

    left: float
    top: float
    width: float
    height: float


def crop_window(box: NDArray[np.float32], spec: InputSpec, frame_px: tuple[int, int]) -> CropWindow:
    """Return what `crop_faces` cuts.

    Args:
        box: (4,) x1 y1 x2 y2, pixels.
        spec: margin and window rule; `inside` is that of MiniFASNet (its corners are whole pixels).
        frame_px: width and height of the frame.

    Raises:
        ValueError: the box has no area.
    """
    x1, y1, x2, y2 = (float(v) for v in box)
    if not (x2 > x1 and y2 > y1):
        raise ValueError(f"a face box needs an area, found {x2 - x1:g} x {y2 - y1:g} px")
    if spec.window == "pad":
        side = max(x2 - x1, y2 - y1) * spec.margin
        return CropWindow((x1 + x2 - side) / 2, (y1 + y2 - side) / 2, side, side)
    sides = x2 - x1, y2 - y1
    scale = min(spec.margin, *((n - 1) / side for n, side in zip(frame_px, sides, strict=True)))
    left, right = _inside(x1 + sides[0] / 2, sides[0] * scale, frame_px[0])
    top, bottom = _inside(y1 + sides[1] / 2, sides[1] * scale, frame_px[1])
    return CropWindow(left, top, right - left, bottom - top)


def _inside(centre: float, length: float, n: int) -> tuple[int, int]:
    """Return first and past-the-last pixel of an interval that is shifted into 0..n."""
    low, high = centre - length / 2, centre + length / 2
    if low < 0:
        low, high = 0.0, high - low
    if high > n - 1:
        low, high = low - (high - n + 1), float(n - 1)
    return int(max(low, 0.0)), int(high) + 1


def box_in_crop(
    box: NDArray[np.float32], window: CropWindow, size_px: int
) -> tuple[float, float, float, float]:
    """Return where a face's box (x1 y1 x2 y2, px of the frame) lies in its crop, px of the crop."""
    x1, y1, x2, y2 = (float(v) for v in box)
    across, down = size_px / window.width, size_px / window.height
    return (
        (x1 - window.left) * across,
        (y1 - window.top) * down,
        (x2 - window.left) * across,
        (y2 - window.top) * down,
    )


def crop_faces(image: Tensor, boxes: NDArray[np.float32], spec: InputSpec) -> Tensor:
    """Cut faces out of a frame and scale them to the network's input size.

    With `area`, where the face is larger than the output, each output pixel is the mean of several
    samples, so that fine texture does not alias into moire that a detector could take for a screen.
    Outside the frame the border pixel is repeated.

    Args:
        image: (H, W, 3) uint8 RGB, any device.
        boxes: (N, 4) x1 y1 x2 y2, pixels of `image`.
        spec: size, margin, window rule and resampling.

    Returns:
        (N, 3, S, S) uint8 RGB on the device of `image`, S = `spec.size_px`.

    Raises:
        ValueError: a box has no area.
    """
    height, width = image.shape[:2]
    crops = [_crop(image, crop_window(box, spec, (width, height)), spec) for box in boxes]
    if not crops:
        return image.new_empty((0, 3, spec.size_px, spec.size_px))
    return torch.stack(crops)


def _crop(image: Tensor, window: CropWindow, spec: InputSpec) -> Tensor:
    height, width = image.shape[:2]
    x0, x1, x = _samples(window.left, window.width, width, spec)
    y0, y1, y = _samples(window.top, window.height, height, spec)
    part = image[y0:y1, x0:x1].permute(2, 0, 1)[None].float()
    grid = np.empty((1, len(y), len(x), 2), np.float32)
    grid[..., 0], grid[..., 1] = x, y[:, None]
    places = torch.from_numpy(grid).to(image.device)
    sampled = F.grid_sample(part, places, padding_mode="border", align_corners=False)
    each = len(y) // spec.size_px, len(x) // spec.size_px
    if each != (1, 1):
        sampled = F.avg_pool2d(sampled, each)
    return sampled[0].round_().clamp_(0, 255).to(torch.uint8)


def _samples(
    low: float, length: float, n: int, spec: InputSpec
) -> tuple[int, int, NDArray[np.float32]]:
    """Return the pixels to read along one side of a frame, from and to, and where to sample them.

    The samples are places as `grid_sample` takes them, -1..1 from border to border of those pixels.
    """
    finer = 1 if spec.resize == "bilinear" else max(1, math.ceil(length / spec.size_px))
    count = spec.size_px * finer  # before averaging
    # Only the window is converted to float; one pixel more on each side feeds the interpolation.
    spare = 1 if spec.window == "pad" else 0
    first = min(max(math.floor(low) - spare, 0), n - 1)
    past = min(max(math.ceil(low + length) + spare, first + 1), n)
    steps = np.arange(0.5, count, dtype=np.float32) * np.float32(length / count)
    places = (np.float32(low - first) + steps) * np.float32(2 / (past - first))
    return first, past, places - np.float32(1)
