"""Self-blended images (SBI): Shiohara and Yamasaki, CVPR 2022, arXiv:2204.08376.

A face is blended with a slightly changed copy of itself: only the mismatch at and inside the mask
gives it away. Official code: mapooon/SelfBlendedImages (research-only licence; none of it is here).

Differences from the paper:
- the mask is an outline in face coordinates fitted to 5 landmarks and roughened, not a hull of 81;
- mouth and eyes may be swapped alone; those small masks are eroded less and never faint;
- hue and saturation change visibly, and a soft blur is a third change of sharpness;
- the crop is 256 px to begin with, so the mask is blurred at that size and not resized in between;
- the shared post-transform is left to `train.augment.degrade`: give it equal generators for both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import gaussian_filter

from train.synthetic._recapture import either, pixel_centres, resized, smooth_field
from train.synthetic._samples import LooseCrop, SyntheticAttack

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

_STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)
_SMALL = frozenset({"mouth", "eyes"})
_NOT_ONE = 1e-3  # float blurs of a full mask end this close below 1
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
_OUTLINE_SHARES = {
    "full_face": 0.32,
    "below_brows": 0.22,
    "inner_face": 0.2,
    "lower_face": 0.12,
    "mouth": 0.08,
    "eyes": 0.06,
}


def self_blend(face: LooseCrop, rng: Generator) -> SyntheticAttack:
    """Blend the face with a changed copy of itself; `reference` is its bona fide partner.

    Raises:
        ValueError: The landmarks lie outside the picture.
    """
    note: dict[str, float | str] = {}
    source, target = _changed(face.image, rng, note), face.image
    note["changed"] = "source"
    if rng.random() < 0.5:
        source, target = target, source
        note["changed"] = "target"
    shape = either(rng, _OUTLINE_SHARES)
    note["mask_source"] = f"5_landmarks/{shape}"
    outline = _outline_mask(_OUTLINES[shape], face, rng)
    source, mask = _moved(source, outline, rng, note)
    # A faint, much eroded mouth would be an attack that nobody can see.
    small = shape in _SMALL
    mask = _blend_mask(mask, outline, 9 if small else 25, rng, note)
    strength = float(rng.choice(_STRENGTHS[2:] if small else _STRENGTHS))
    note["strength"] = strength
    mask *= np.float32(strength)
    return SyntheticAttack(blend(source, target, mask), "sbi", note, mask, target)


def blend(
    source: NDArray[np.uint8], target: NDArray[np.uint8], mask: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Return mask * source + (1 - mask) * target, rounded; `target` itself where the mask is 0."""
    weight = mask[..., None]
    mixed = target + weight * (source.astype(np.float32) - target)
    return (mixed + np.float32(0.5)).astype(np.uint8)


def erode_by_blur(mask: NDArray[np.float32], kernel_px: int) -> NDArray[np.float32]:
    """Keep what a Gaussian of `kernel_px` (odd) leaves at the maximum: an erosion by its radius.

    The mask must be float: rounded to integers, a blur hardly erodes.
    """
    blurred = _kernel_blur(mask, kernel_px, 0.3 * ((kernel_px - 1) * 0.5 - 1) + 0.8)
    peak = blurred.max()
    kept = blurred / peak >= 1 - _NOT_ONE if peak > 0 else np.zeros_like(mask, dtype=bool)
    return kept.astype(np.float32)


def _kernel_blur(mask: NDArray[np.float32], kernel_px: int, sigma_px: float) -> NDArray[np.float32]:
    blurred = gaussian_filter(mask, sigma_px, mode="mirror", radius=kernel_px // 2)
    return blurred.astype(np.float32, copy=False)


def _changed(
    image: NDArray[np.uint8], rng: Generator, note: dict[str, float | str]
) -> NDArray[np.uint8]:
    """T_s: a small change of colour, then of sharpness."""
    shift = rng.uniform(-20, 20, 3) if rng.random() < 0.3 else np.zeros(3)
    hue, saturation = rng.normal(0, 0.05), rng.uniform(0.8, 1.2)
    contrast, brightness = 1 + rng.uniform(-0.1, 0.1), 255 * rng.uniform(-0.1, 0.1)
    # Hue and saturation turn and stretch the colour plane around grey: one matrix.
    cos, sin = np.cos(hue), np.sin(hue) / np.sqrt(3)
    turn = np.full((3, 3), (1 - cos) / 3) + np.eye(3) * cos
    turn += sin * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    luma = np.tile([0.299, 0.587, 0.114], (3, 1))
    matrix = contrast * (saturation * turn + (1 - saturation) * luma)
    tinted = image.astype(np.float32) @ matrix.T.astype(np.float32)
    tinted += (shift + brightness + 128 * (1 - contrast)).astype(np.float32)
    result = _rounded(tinted)

    detail = either(rng, {"scale": 0.4, "sharpen": 0.35, "blur": 0.25})
    size = image.shape[0]
    if detail == "scale":
        factor = int(rng.choice([2, 4]))
        small = resized(result, size // factor, Image.Resampling.NEAREST)
        result = resized(small, size, Image.Resampling.BILINEAR)
        amount: float = factor
    elif detail == "sharpen":
        amount, lightness = rng.uniform(0.2, 0.5), rng.uniform(0.5, 1)
        result = sharpened(result, amount, lightness)
        note["lightness"] = round(lightness, 3)
    else:
        amount = rng.uniform(0.6, 1.6)
        result = np.array(Image.fromarray(result).filter(ImageFilter.GaussianBlur(amount)))
    note |= {
        "shift": round(float(np.abs(shift).max()), 1),
        "hue": round(float(hue), 4),
        "saturation": round(saturation, 3),
        "contrast": round(contrast, 3),
        "brightness": round(brightness, 1),
        "detail": detail,
        "detail_amount": round(float(amount), 3),
    }
    return result


def sharpened(image: NDArray[np.uint8], alpha: float, lightness: float) -> NDArray[np.uint8]:
    """Mix in a share `alpha` of a 3x3 Laplacian plus `lightness` times the picture.

    A flat region keeps (1 - alpha) + alpha * lightness of its brightness.
    """
    soft = image.astype(np.float32)
    padded = np.pad(soft, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    box_sum = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    keep = np.float32(1 - alpha + alpha * (9 + lightness))
    return _rounded(keep * soft - np.float32(alpha) * box_sum)


def _rounded(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    picture: NDArray[np.uint8] = (np.clip(values, 0, 255) + np.float32(0.5)).astype(np.uint8)
    return picture


def _outline_mask(
    outline: tuple[tuple[float, float], ...], face: LooseCrop, rng: Generator
) -> NDArray[np.float32]:
    """Fill the outline, fitted to the landmarks and with its corners moved about."""
    size = face.image.shape[0]
    left, right, nose, mouth_left, mouth_right = face.landmarks
    eyes, mouth = (left + right) / 2, (mouth_left + mouth_right) / 2
    down = mouth - eyes
    # Seen from the side the eyes draw together but the face does not narrow as much.
    width = max(float(np.hypot(*(right - left))), 0.75 * float(np.hypot(*down))) * 1.02
    across = np.array([down[1], -down[0]]) / max(float(np.hypot(*down)), 1e-3)
    # A turned head shows more of the cheek on the side away from the nose.
    lean = float((nose - eyes) @ across) / width
    left_half = [(-x, y) for x, y in outline[-2:0:-1]]
    points = np.array([*outline, *left_half])
    points += rng.normal(0, 0.05, points.shape)
    points *= rng.uniform(0.88, 1.08, 2)
    points[:, 0] -= np.clip(lean, -0.5, 0.5) * 0.5
    corners = eyes + points[:, :1] * across * width + points[:, 1:] * down
    canvas = Image.new("L", (size, size))
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in corners], fill=1)
    mask = np.asarray(canvas).astype(np.float32)
    if not mask.any():
        raise ValueError(f"landmarks must lie in the picture of {size} px, got {face.landmarks}")
    return mask


def _moved(
    source: NDArray[np.uint8],
    outline: NDArray[np.float32],
    rng: Generator,
    note: dict[str, float | str],
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Shift and scale source and mask together, then push the mask's edge about (elastic)."""
    size = source.shape[0]
    dx, dy = rng.uniform(-0.03, 0.03) / 2, rng.uniform(-0.015, 0.015) / 2  # sides
    scale = rng.uniform(0.95, 1 / 0.95)
    push = np.float32(rng.uniform(0.005, 0.025))  # standard deviation, half sides
    note |= {
        "dx_px": round(dx * size, 2),
        "dy_px": round(dy * size, 2),
        "scale": round(scale, 4),
        "push_px": round(float(push) * size / 2, 2),
    }
    left = size / 2 - size * (0.5 + dx) / scale
    top = size / 2 - size * (0.5 + dy) / scale
    moved = Image.fromarray(source).transform(
        (size, size),
        Image.Transform.AFFINE,
        (1 / scale, 0.0, left, 0.0, 1 / scale, top),
        Image.Resampling.BILINEAR,
    )
    axis = pixel_centres(size)
    x = (axis - np.float32(2 * dx)) / np.float32(scale)
    y = (axis - np.float32(2 * dy)) / np.float32(scale)
    grid = np.stack(
        [
            x[None, :] + push * smooth_field(rng, size, 14),
            y[:, None] + push * smooth_field(rng, size, 14),
        ],
        axis=-1,
    )
    mask = F.grid_sample(
        torch.from_numpy(outline)[None, None], torch.from_numpy(grid)[None], align_corners=False
    )
    return np.asarray(moved), mask[0, 0].numpy()


def _blend_mask(
    mask: NDArray[np.float32],
    outline: NDArray[np.float32],
    largest_px: int,
    rng: Generator,
    note: dict[str, float | str],
) -> NDArray[np.float32]:
    """Erode the mask by a blur, then soften it by another; its peak is 1."""
    first, second = (2 * int(n) + 1 for n in rng.integers(2, (largest_px + 1) // 2, 2))
    sigma = int(rng.integers(5, 46))
    eroded = erode_by_blur(mask, first)
    if not eroded.any():  # a small outline, gone: use it as it was
        eroded, first = outline, 0
    note |= {"erode_px": first, "soften_px": second, "soften_sigma": sigma}
    soft = _kernel_blur(eroded, second, sigma)
    peak = soft.max()
    return soft / peak if peak > 0 else soft
