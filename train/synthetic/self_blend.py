"""Self-blended images (SBI): Shiohara and Yamasaki, CVPR 2022, arXiv:2204.08376.

A face is blended with a slightly changed copy of itself, so that only the mismatch at and inside the mask gives it away.
Official code: mapooon/SelfBlendedImages (research-only licence; nothing of it is used here).

Differences from the paper: the mask comes from five landmarks (shapes in face coordinates, roughened), not from 81; hue,
saturation and value change by visible amounts; a third source change, a soft blur, was added; the shared post-transform is
left to `train.augment.degrade`, which the caller applies to both pictures with equal generators.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import gaussian_filter

from train.synthetic._recapture import either, resized, smooth_field
from train.synthetic._samples import LooseCrop, SyntheticAttack

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

_STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)
_NOT_ONE = 1e-3  # float blurs of a full mask end this close below 1
# Outlines in face coordinates: x in half face widths right of the midline, y in eye-to-mouth heights below the eyes.
_OUTLINES: dict[str, tuple[tuple[float, float], ...]] = {
    "full_face": (
        (0.0, -0.95), (0.55, -0.85), (0.92, -0.4), (1.0, 0.15), (0.95, 0.75), (0.72, 1.3), (0.35, 1.68),
        (0.0, 1.78), (-0.35, 1.68), (-0.72, 1.3), (-0.95, 0.75), (-1.0, 0.15), (-0.92, -0.4), (-0.55, -0.85),
    ),
    "below_brows": (
        (0.0, -0.35), (0.5, -0.45), (0.9, -0.3), (1.0, 0.15), (0.95, 0.75), (0.72, 1.3), (0.35, 1.68),
        (0.0, 1.78), (-0.35, 1.68), (-0.72, 1.3), (-0.95, 0.75), (-1.0, 0.15), (-0.9, -0.3), (-0.5, -0.45),
    ),
    "inner_face": (
        (0.0, -0.3), (0.75, -0.35), (0.82, 0.1), (0.62, 0.7), (0.5, 1.15), (0.0, 1.35),
        (-0.5, 1.15), (-0.62, 0.7), (-0.82, 0.1), (-0.75, -0.35),
    ),
    "lower_face": (
        (0.0, 0.35), (0.55, 0.45), (0.9, 0.6), (0.72, 1.3), (0.35, 1.68), (0.0, 1.78),
        (-0.35, 1.68), (-0.72, 1.3), (-0.9, 0.6), (-0.55, 0.45),
    ),
    "mouth": ((0.0, 0.7), (0.5, 0.8), (0.6, 1.05), (0.4, 1.35), (0.0, 1.45), (-0.4, 1.35), (-0.6, 1.05), (-0.5, 0.8)),
    "eyes": ((0.0, -0.3), (0.55, -0.45), (0.9, -0.2), (0.85, 0.2), (0.4, 0.28), (0.0, 0.2),
             (-0.4, 0.28), (-0.85, 0.2), (-0.9, -0.2), (-0.55, -0.45)),
}  # fmt: skip
_OUTLINE_SHARES = {
    "full_face": 0.32, "below_brows": 0.22, "inner_face": 0.2, "lower_face": 0.12, "mouth": 0.08, "eyes": 0.06,
}  # fmt: skip


def self_blend(face: LooseCrop, rng: Generator) -> SyntheticAttack:
    """Blend the face with a changed copy of itself; the partner of the same tones is in `reference`."""
    note: dict[str, float | str] = {}
    changed = _changed(face.image, rng, note)
    source, target = changed, face.image
    if rng.random() < 0.5:
        source, target = target, source
        note["changed"] = "target"
    else:
        note["changed"] = "source"
    outline = _outline_mask(face.landmarks, face.image.shape[0], rng, note)
    source, moved = _moved(source, outline, rng, note)
    mask = _blend_mask(_rough(moved, rng), outline, rng, note)
    strength = float(rng.choice(_STRENGTHS))
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
    """Keep what a Gaussian of `kernel_px` (odd) leaves at the mask's maximum: an erosion by its radius."""
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
    result = np.clip(tinted, 0, 255).astype(np.uint8)

    detail = either(rng, {"scale": 0.4, "sharpen": 0.35, "blur": 0.25})
    size = image.shape[0]
    if detail == "scale":
        factor = int(rng.choice([2, 4]))
        small = resized(result, size // factor, Image.Resampling.NEAREST)
        result = resized(small, size, Image.Resampling.BILINEAR)
        amount: float = factor
    elif detail == "sharpen":
        amount = rng.uniform(0.2, 0.5)
        lightness = rng.uniform(0.5, 1)
        soft = result.astype(np.float32)
        edges = 9 * soft - _box_sum(soft) + np.float32(lightness - 1) * soft
        result = np.clip((1 - amount) * soft + amount * edges, 0, 255).astype(np.uint8)
    else:
        amount = rng.uniform(0.6, 1.6)
        result = np.asarray(Image.fromarray(result).filter(ImageFilter.GaussianBlur(amount)))
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


def _box_sum(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sum of each pixel's 3x3 neighbourhood, border repeated."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]


def _outline_mask(
    landmarks: NDArray[np.float32], size: int, rng: Generator, note: dict[str, float | str]
) -> NDArray[np.float32]:
    """Fill one of the outlines, fitted to the landmarks and with its corners moved about."""
    shape = either(rng, _OUTLINE_SHARES)
    note["mask_source"] = f"5_landmarks/{shape}"
    left, right, nose, mouth_left, mouth_right = landmarks
    eyes, mouth = (left + right) / 2, (mouth_left + mouth_right) / 2
    down = mouth - eyes
    # Seen from the side the eyes draw together but the face does not narrow as much.
    width = max(float(np.hypot(*(right - left))), 0.75 * float(np.hypot(*down))) * 1.02
    across = np.array([down[1], -down[0]]) / max(float(np.hypot(*down)), 1e-3)
    # A turned head shows more of the cheek on the side away from the nose.
    lean = float((nose - eyes) @ across) / width
    points = np.array(_OUTLINES[shape]) + rng.normal(0, 0.05, (len(_OUTLINES[shape]), 2))
    points *= rng.uniform(0.88, 1.08, 2)
    points[:, 0] -= np.clip(lean, -0.5, 0.5) * 0.5
    corners = eyes + points[:, :1] * across * width + points[:, 1:] * down
    canvas = Image.new("L", (size, size))
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in corners], fill=1)
    return np.asarray(canvas).astype(np.float32)


def _moved(
    source: NDArray[np.uint8],
    mask: NDArray[np.float32],
    rng: Generator,
    note: dict[str, float | str],
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Shift and scale source and mask together."""
    size = source.shape[0]
    dx, dy = rng.uniform(-0.03, 0.03) / 2 * size, rng.uniform(-0.015, 0.015) / 2 * size
    scale = rng.uniform(0.95, 1 / 0.95)
    note |= {"dx_px": round(dx, 2), "dy_px": round(dy, 2), "scale": round(scale, 4)}
    centre = size / 2
    affine = (
        1 / scale, 0.0, centre - (centre + dx) / scale,
        0.0, 1 / scale, centre - (centre + dy) / scale,
    )  # fmt: skip
    picture = Image.fromarray(source)
    moved = picture.transform(
        picture.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR
    )
    mask_moved = Image.fromarray(mask).transform(
        picture.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR
    )
    return np.asarray(moved), np.asarray(mask_moved)


def _rough(mask: NDArray[np.float32], rng: Generator) -> NDArray[np.float32]:
    """Push the mask's edge about by a smooth random field (elastic deformation)."""
    size = mask.shape[0]
    axis = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1
    push = np.float32(rng.uniform(0.005, 0.025))  # standard deviation in half sides
    grid = np.stack(np.broadcast_arrays(axis[None, :], axis[:, None]), -1)
    grid = grid + push * np.stack([smooth_field(rng, size, 14), smooth_field(rng, size, 14)], -1)
    pushed = F.grid_sample(
        torch.from_numpy(mask)[None, None], torch.from_numpy(grid)[None], align_corners=False
    )
    return pushed[0, 0].numpy()


def _blend_mask(
    mask: NDArray[np.float32],
    outline: NDArray[np.float32],
    rng: Generator,
    note: dict[str, float | str],
) -> NDArray[np.float32]:
    """Erode the mask by a blur, then soften it by another; its peak is 1."""
    first, second = 2 * int(rng.integers(2, 13)) + 1, 2 * int(rng.integers(2, 13)) + 1
    sigma = int(rng.integers(5, 46))
    eroded = erode_by_blur(mask, first)
    if not eroded.any():  # a small outline, gone: use it as it was
        eroded, first = outline, 0
    note |= {"erode_px": first, "soften_px": second, "soften_sigma": sigma}
    soft = _kernel_blur(eroded, second, sigma)
    peak = soft.max()
    return soft / peak if peak > 0 else soft
