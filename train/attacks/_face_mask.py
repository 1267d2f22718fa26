"""Where a face is blended: an outline fitted to five landmarks, moved and softened."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from train.attacks._random_fields import pixel_centres

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

    from train.attacks._samples import LooseCrop

# Right halves, from top to bottom: x in half face widths beside the midline, y in eye-to-mouth
# heights below the eyes. The left half mirrors them.
_OUTLINES: dict[str, tuple[tuple[float, float], ...]] = {
    "full_face": (
        (0, -0.95), (0.55, -0.85), (0.92, -0.4), (1, 0.15), (0.95, 0.75), (0.72, 1.3), (0.35, 1.68),
        (0, 1.78),
    ),
    "below_brows": (
        (0, -0.35), (0.5, -0.45), (0.9, -0.3), (1, 0.15), (0.95, 0.75), (0.72, 1.3), (0.35, 1.68),
        (0, 1.78),
    ),
    "inner_face": ((0, -0.3), (0.75, -0.35), (0.82, 0.1), (0.62, 0.7), (0.5, 1.15), (0, 1.35)),
    "lower_face": ((0, 0.35), (0.55, 0.45), (0.9, 0.6), (0.72, 1.3), (0.35, 1.68), (0, 1.78)),
    "mouth": ((0, 0.7), (0.5, 0.8), (0.6, 1.05), (0.4, 1.35), (0, 1.45)),
    "eyes": ((0, -0.3), (0.55, -0.45), (0.9, -0.2), (0.85, 0.2), (0.4, 0.28), (0, 0.2)),
}  # fmt: skip


def face_mask(face: LooseCrop, outline: str, jitter: Generator | None) -> NDArray[np.float32]:
    """Fill an outline of the face.

    Args:
        face: its landmarks place the outline.
        outline: "full_face", "below_brows", "inner_face", "lower_face", "mouth" or "eyes".
        jitter: moves the corners and stretches the whole; None leaves the outline as it is.

    Returns:
        (S, S), 0 or 1.

    Raises:
        ValueError: The landmarks lie outside the picture.
    """
    left, right, nose, mouth_left, mouth_right = face.landmarks
    eyes, mouth = (left + right) / 2, (mouth_left + mouth_right) / 2
    down = mouth - eyes
    # Seen from the side the eyes draw together but the face does not narrow as much.
    width = max(float(np.hypot(*(right - left))), 0.75 * float(np.hypot(*down))) * 1.02
    across = np.array([down[1], -down[0]]) / max(float(np.hypot(*down)), 1e-3)
    # A turned head shows more of the cheek on the side away from the nose.
    lean = float((nose - eyes) @ across) / width
    right_half = _OUTLINES[outline]
    points = np.array([*right_half, *((-x, y) for x, y in right_half[-2:0:-1])])
    if jitter is not None:
        points += jitter.normal(0, 0.05, points.shape)
        points *= jitter.uniform(0.88, 1.08, 2)
    points[:, 0] -= np.clip(lean, -0.5, 0.5) * 0.5
    corners = eyes + points[:, :1] * across * width + points[:, 1:] * down
    size = face.image.shape[0]
    canvas = Image.new("L", (size, size))
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in corners], fill=1)
    mask = np.asarray(canvas).astype(np.float32)
    if not mask.any():
        raise ValueError(f"landmarks must lie in the picture of {size} px, got {face.landmarks}")
    return mask


def warped(
    mask: NDArray[np.float32],
    scale: tuple[float, float],
    shift: tuple[float, float],
    push: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> NDArray[np.float32]:
    """Scale a mask about its middle, shift it, and push its pixels about; 0 outside.

    Args:
        mask: (S, S).
        scale: across and down.
        shift: to the right and down, in sides.
        push: (S, S) displacements to the right and down, in half sides.
    """
    axis = pixel_centres(len(mask))
    x, y = ((axis - np.float32(2 * d)) / np.float32(s) for d, s in zip(shift, scale, strict=True))
    grid = np.stack([x[None, :] + push[0], y[:, None] + push[1]], axis=-1)
    moved = F.grid_sample(
        torch.from_numpy(mask)[None, None], torch.from_numpy(grid)[None], align_corners=False
    )
    return moved[0, 0].numpy()


def kernel_blur(mask: NDArray[np.float32], kernel_px: int, sigma_px: float) -> NDArray[np.float32]:
    """Blur by a Gaussian cut off to a kernel of an odd width."""
    blurred = gaussian_filter(mask, sigma_px, mode="mirror", radius=kernel_px // 2)
    return blurred.astype(np.float32, copy=False)
