"""Simulated digital spoofing clues (SDSC): Huang et al., CVPR 2024 workshops, arXiv:2404.08450.

A light relative of self-blending: a face pasted over a slightly changed copy of itself. Official
code: Xianhua-He/cvpr2024-face-anti-spoofing-challenge (none of it is here).

Differences from the paper:
- the mask is a face outline fitted to 5 landmarks, not the union of a parsing network's labels;
- the bona fide partner is the picture that was pasted over, as in self-blending: the paper takes
  the untouched picture, so that colour alone gives half of its attacks away;
- widths in px are those of a crop of 256 px; other sizes scale them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image
from scipy.interpolate import make_interp_spline

from train.attacks._face_mask import face_mask, kernel_blur, warped
from train.attacks._pictures import blend, hsv_shifted, moved, resized, rounded, sharpened
from train.attacks._samples import LooseCrop, SyntheticAttack

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class _Level:
    """Limits of what is drawn."""

    shuffle: float  # chance of exchanging the colour channels
    hsv: tuple[int, int, int]  # hue in half degrees, saturation and value in grey levels
    tone: float  # contrast, and brightness of full scale
    smallest: float  # scale of the coarsened picture
    sharpen: tuple[float, float]
    stretch: float
    shift: float  # sides
    strengths: tuple[float, ...]


_LEVELS = {
    "minor": _Level(
        0.0, (5, 5, 10), 0.1, 0.35, (0.1, 0.3), 0.02, 0.02, (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)
    ),
    "major": _Level(
        0.03, (9, 9, 20), 0.2, 0.25, (0.2, 0.5), 0.04, 0.04, (0.75, 1.0, 1.0, 1.0)
    ),
}  # fmt: skip
_CONTROL_POINTS = 6  # per axis, of the deformation
_DEFORM_PX, _SOFTEN_SIGMA_PX = 4.0, 3.0  # at 256 px
_OUTLINE = "full_face"


def sdsc(
    face: LooseCrop, rng: Generator, level: Literal["minor", "major"] = "minor"
) -> SyntheticAttack:
    """Paste the face over a copy of itself, one of the two a little changed and moved.

    Raises:
        ValueError: The landmarks lie outside the picture.
    """
    limits = _LEVELS[level]
    note: dict[str, float | str] = {"level": level, "mask_source": f"5_landmarks/{_OUTLINE}"}
    source, target = _changed(face.image, limits, rng, note), face.image
    note["changed"] = "source"
    if rng.random() < 0.5:
        source, target = target, source
        note["changed"] = "target"

    across, down = 1 + rng.uniform(-limits.stretch, limits.stretch, 2)
    dx, dy = rng.uniform(-limits.shift, limits.shift, 2)
    note |= {"stretch_x": across, "stretch_y": down, "shift_x": dx, "shift_y": dy}
    # Two coins, as published: in half of the cases only the picture or only the mask is shifted.
    shifts = [(dx, dy) if shifted else (0.0, 0.0) for shifted in rng.random(2) < 0.5]
    note["shifted"] = " and ".join(
        name for name, shift in zip(("source", "mask"), shifts, strict=True) if any(shift)
    )
    source = moved(source, (across, down), shifts[0])
    mask = face_mask(face, _OUTLINE, jitter=None)
    mask = warped(mask, (across, down), shifts[1], _deformation(len(mask), rng))
    mask = _softened(mask, rng)
    strength = float(rng.choice(limits.strengths))
    note["strength"] = strength
    mask *= np.float32(strength)
    return SyntheticAttack(blend(source, target, mask), "sdsc", _brief(note), mask, target)


def _changed(
    image: NDArray[np.uint8], limits: _Level, rng: Generator, note: dict[str, float | str]
) -> NDArray[np.uint8]:
    """Change colour and sharpness a little; each change is left out about every second time."""
    if rng.random() < limits.shuffle:
        order = rng.permutation(3)
        note["channels"] = "".join("rgb"[i] for i in order)
        image = image[..., order]
    if rng.random() < 0.5:
        hue, saturation, value = (int(rng.integers(-limit, limit + 1)) for limit in limits.hsv)
        note |= {"hue_deg": 2 * hue, "saturation": saturation, "value": value}
        image = hsv_shifted(image, round(hue * 256 / 180), saturation, value)
    if rng.random() < 0.5:
        contrast, brightness = rng.uniform(-limits.tone, limits.tone, 2)
        note |= {"contrast": 1 + contrast, "brightness": brightness}
        image = rounded(
            np.float32(1 + contrast) * image.astype(np.float32) + np.float32(255 * brightness)
        )
    if rng.random() < 0.4:
        scale = rng.uniform(limits.smallest, 0.65)
        note["coarsened"] = scale
        small = resized(image, max(1, round(scale * len(image))), Image.Resampling.NEAREST)
        image = resized(small, len(image), Image.Resampling.NEAREST)
    if rng.random() < 0.5:
        alpha, lightness = rng.uniform(*limits.sharpen), rng.uniform(0.5, 1)
        note |= {"sharpened": alpha, "lightness": lightness}
        image = sharpened(image, alpha, lightness)
    return image


def _deformation(size: int, rng: Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return (S, S) displacements across and down, half sides: a spline through few points."""
    spline = make_interp_spline(np.arange(_CONTROL_POINTS), np.eye(_CONTROL_POINTS), k=3)
    weights = spline(np.linspace(0, _CONTROL_POINTS - 1, size))
    points = rng.normal(0, _DEFORM_PX / 128, (2, _CONTROL_POINTS, _CONTROL_POINTS))
    across, down = (weights @ points @ weights.T).astype(np.float32)
    return across, down


def _softened(mask: NDArray[np.float32], rng: Generator) -> NDArray[np.float32]:
    """Blur twice, by the narrower kernel first or last."""
    unit = len(mask) / 256
    for kernel in rng.permutation([3, 5]):
        width = 2 * round(kernel // 2 * unit) + 1
        mask = kernel_blur(mask, width, _SOFTEN_SIGMA_PX * unit)
    return mask


def _brief(note: dict[str, float | str]) -> dict[str, float | str]:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in note.items()}
