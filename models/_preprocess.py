"""Face geometry: how a face box becomes the square crop a network sees.

The only home of this fact: training and streaming both call `crop_faces`, so they cut the same
pixels.

Coordinates are continuous pixels of the source frame, x right, y down; pixel (0, 0) covers [0, 1) x
[0, 1) and its centre is (0.5, 0.5), as in `grid_sample(align_corners=False)`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from models._contract import InputSpec


def crop_window(box: NDArray[np.float32], margin: float) -> tuple[float, float, float]:
    """Return the square that `crop_faces` cuts: left, top and side, pixels.

    Args:
        box: (4,) x1 y1 x2 y2, pixels.
        margin: side of the square over the longer side of the box.
    """
    x1, y1, x2, y2 = (float(v) for v in box)
    side = max(x2 - x1, y2 - y1) * margin
    return (x1 + x2 - side) / 2, (y1 + y2 - side) / 2, side


def crop_faces(image: Tensor, boxes: NDArray[np.float32], spec: InputSpec) -> Tensor:
    """Cut faces out of a frame and scale them to the network's input size.

    Where the face is larger than the output, each output pixel is the mean of several samples, so
    that fine texture does not alias into moire that a detector could take for a screen. Outside the
    frame the border pixel is repeated.

    Args:
        image: (H, W, 3) uint8 RGB, any device.
        boxes: (N, 4) x1 y1 x2 y2, pixels of `image`.
        spec: size and margin.

    Returns:
        (N, 3, S, S) uint8 RGB on the device of `image`, S = `spec.size_px`.

    Raises:
        ValueError: a box has no area.
    """
    crops = [_crop(image, *crop_window(box, spec.margin), spec.size_px) for box in boxes]
    if not crops:
        return image.new_empty((0, 3, spec.size_px, spec.size_px))
    return torch.stack(crops)


def _crop(image: Tensor, left: float, top: float, side: float, size: int) -> Tensor:
    if not side > 0:
        raise ValueError(f"a face box needs an area, found a square of side {side:g} px")
    height, width = image.shape[:2]
    samples = size * max(1, math.ceil(side / size))  # per side, before averaging
    # Only the window is converted to float; one pixel more on each side feeds the interpolation.
    x0, y0 = (min(max(math.floor(v) - 1, 0), n - 1) for v, n in ((left, width), (top, height)))
    x1, y1 = (
        min(max(math.ceil(v + side) + 1, lo + 1), n)
        for v, lo, n in ((left, x0, width), (top, y0, height))
    )
    window = image[y0:y1, x0:x1].permute(2, 0, 1)[None].float()
    steps = (torch.arange(samples, device=image.device) + 0.5) * (side / samples)
    x = (left - x0 + steps) * (2 / (x1 - x0)) - 1
    y = (top - y0 + steps) * (2 / (y1 - y0)) - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
    sampled = F.grid_sample(window, grid, padding_mode="border", align_corners=False)
    return F.avg_pool2d(sampled, samples // size)[0].round_().clamp_(0, 255).to(torch.uint8)
