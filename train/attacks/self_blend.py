"""Self-blended images (SBI): Shiohara and Yamasaki, CVPR 2022, arXiv:2204.08376.

A face is blended with a slightly changed copy of itself: only the mismatch at and inside the mask
gives it away. Official code: mapooon/SelfBlendedImages (research-only licence; none of it is here).

Differences from the paper:
- the mask is an outline in face coordinates fitted to 5 landmarks and roughened, not a hull of 81;
- mouth and eyes may be swapped alone; those small masks are eroded less and never faint;
- hue and saturation change visibly; soft blur and JPEG are further changes of sharpness, and the
  scales, 1.5 to 4, are resampled by several kernels;
- the shared post-transform is left to `train.attacks.camera.degrade`: give it equal generators for
  both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

from train.attacks._face_mask import face_mask, kernel_blur, warped
from train.attacks._pictures import blend, moved, resized, rounded, sharpened
from train.attacks._random_fields import either, smooth_field
from train.attacks._samples import LooseCrop, SyntheticAttack
from train.attacks.camera import recompress_jpeg

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

_STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)
_DOWN = {"NEAREST": 0.4, "BOX": 0.3, "BICUBIC": 0.3}
_UP = {"BILINEAR": 0.6, "BICUBIC": 0.2, "LANCZOS": 0.2}
_SMALL = frozenset({"mouth", "eyes"})
_NOT_ONE = 1e-3  # float blurs of a full mask end this close below 1
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
    outline = face_mask(face, shape, rng)
    source, mask = _moved(source, outline, rng, note)
    # A faint, much eroded mouth would be an attack that nobody can see.
    small = shape in _SMALL
    mask = _blend_mask(mask, outline, 9 if small else 25, rng, note)
    strength = float(rng.choice(_STRENGTHS[2:] if small else _STRENGTHS))
    note["strength"] = strength
    mask *= np.float32(strength)
    return SyntheticAttack(blend(source, target, mask), "sbi", note, mask, target)


def erode_by_blur(mask: NDArray[np.float32], kernel_px: int) -> NDArray[np.float32]:
    """Keep what a Gaussian of `kernel_px` (odd) leaves at the maximum: an erosion by its radius.

    The mask must be float: rounded to integers, a blur hardly erodes.
    """
    blurred = kernel_blur(mask, kernel_px, 0.3 * ((kernel_px - 1) * 0.5 - 1) + 0.8)
    peak = blurred.max()
    kept = blurred / peak >= 1 - _NOT_ONE if peak > 0 else np.zeros_like(mask, dtype=bool)
    return kept.astype(np.float32)


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
    result = rounded(tinted)

    detail = either(rng, {"scale": 0.4, "sharpen": 0.3, "blur": 0.15, "jpeg": 0.15})
    size = image.shape[0]
    if detail == "scale":
        amount = float(rng.choice([2, 4])) if rng.random() < 0.5 else rng.uniform(1.5, 4)
        down, up = (either(rng, kernels) for kernels in (_DOWN, _UP))
        small = resized(result, round(size / amount), Image.Resampling[down])
        result = resized(small, size, Image.Resampling[up])
        note |= {"down": down, "up": up}
    elif detail == "sharpen":
        amount, lightness = rng.uniform(0.2, 0.5), rng.uniform(0.5, 1)
        result = sharpened(result, amount, lightness)
        note["lightness"] = round(lightness, 3)
    elif detail == "jpeg":
        amount = int(rng.integers(30, 91))
        result = recompress_jpeg(result, int(amount))
    else:
        amount = rng.uniform(0.6, 1.6) * size / 256
        result = np.array(Image.fromarray(result).filter(ImageFilter.GaussianBlur(amount)))
    note |= {
        **{f"shift_{channel}": round(float(s), 1) for channel, s in zip("rgb", shift, strict=True)},
        "hue": round(float(hue), 4),
        "saturation": round(saturation, 3),
        "contrast": round(contrast, 3),
        "brightness": round(brightness, 1),
        "detail": detail,
        "detail_amount": round(float(amount), 3),
    }
    return result


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
    pushes = tuple(push * smooth_field(rng, size, 14) for _ in "xy")
    return (
        moved(source, (scale, scale), (dx, dy)),
        warped(outline, (scale, scale), (dx, dy), (pushes[0], pushes[1])),
    )


def _blend_mask(
    mask: NDArray[np.float32],
    outline: NDArray[np.float32],
    largest_px: int,
    rng: Generator,
    note: dict[str, float | str],
) -> NDArray[np.float32]:
    """Erode the mask by a blur, then soften it by another, all at a drawn size; its peak is 1."""
    first, second = (2 * int(n) + 1 for n in rng.integers(2, (largest_px + 1) // 2, 2))
    sigma = int(rng.integers(5, 46))
    width, height = (int(n) for n in rng.integers(192, 257, 2))
    eroded = erode_by_blur(_scaled(mask, width, height), first)
    if not eroded.any():  # a small outline, gone: use it as it was
        eroded, first = _scaled(outline, width, height), 0
    note |= {"erode_px": first, "soften_px": second, "soften_sigma": sigma}
    note |= {"mask_width": width, "mask_height": height}
    soft = kernel_blur(eroded, second, sigma)
    return np.clip(_scaled(soft / soft.max(), len(mask), len(mask)), 0, 1)


def _scaled(mask: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR))
