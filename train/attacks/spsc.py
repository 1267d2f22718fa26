"""Simulated physical spoofing clues (SPSC): Huang et al., CVPR 2024 workshops, arXiv:2404.08450.

Moire stands for a replay, an extreme colour jitter for a print. Official code:
Xianhua-He/cvpr2024-face-anti-spoofing-challenge (none of it is here).

Differences: `twist` rounds where the published code cuts towards zero, and turns about the middle
of pictures that are not square, too (`as_published` restores both).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageEnhance

from train.attacks._pictures import hsv_shifted
from train.attacks._samples import LooseCrop, SyntheticAttack

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

_DEGREES = (0.0005, 0.01)  # radians per px of radius
_JITTER = 0.4
_ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


def moire(face: LooseCrop, rng: Generator) -> SyntheticAttack:
    """Mix the picture with a slightly twisted copy: their interference makes rings."""
    note: dict[str, float | str] = {}
    return SyntheticAttack(_moire(face.image, rng, note), "moire", note, None, None)


def print_jitter(face: LooseCrop, rng: Generator) -> SyntheticAttack:
    """Jitter brightness, contrast, saturation and hue by up to 0.4, in random order."""
    note: dict[str, float | str] = {}
    return SyntheticAttack(_jitter(face.image, rng, note), "print_jitter", note, None, None)


def spsc(face: LooseCrop, rng: Generator) -> SyntheticAttack:
    """Moire, then colour jitter: the physical attack of UniAttackData's protocol 1."""
    note: dict[str, float | str] = {}
    image = _jitter(_moire(face.image, rng, note), rng, note)
    return SyntheticAttack(image, "spsc", note, None, None)


def twist(
    image: NDArray[np.uint8], degree: float, share: float = 0.2, *, as_published: bool = False
) -> NDArray[np.uint8]:
    """Mix in a copy whose pixels are turned by `degree` radians per pixel of radius.

    Args:
        image: (H, W) or (H, W, C).
        degree: Twist, radians per px; 0 leaves the picture as it is.
        share: Weight of the twisted copy, 0..1.
        as_published: Cut indices and result towards zero (not the identity at 0) and turn about
            x = H / 2, y = W / 2.
    """
    height, width = image.shape[:2]
    middle_x, middle_y = (height / 2, width / 2) if as_published else (width / 2, height / 2)
    x = np.arange(width)[None, :] - middle_x
    y = np.arange(height)[:, None] - middle_y
    radius = np.hypot(x, y)
    angle = np.arctan2(y, x) + degree * radius
    xs, ys = middle_x + radius * np.cos(angle), middle_y + radius * np.sin(angle)
    if not as_published:
        xs, ys = np.rint(xs), np.rint(ys)
    columns = np.clip(xs, 0, width - 1).astype(np.intp)
    rows = np.clip(ys, 0, height - 1).astype(np.intp)
    mixed = (1 - share) * image + share * image[rows, columns]
    result: NDArray[np.uint8] = (mixed if as_published else np.rint(mixed)).astype(np.uint8)
    return result


def _moire(
    image: NDArray[np.uint8], rng: Generator, note: dict[str, float | str]
) -> NDArray[np.uint8]:
    degree = note["degree"] = rng.uniform(*_DEGREES)
    return twist(image, degree)


def _jitter(
    image: NDArray[np.uint8], rng: Generator, note: dict[str, float | str]
) -> NDArray[np.uint8]:
    order = [str(name) for name in rng.permutation([*_ENHANCERS, "hue"])]
    note["order"] = " ".join(order)
    for name in order:
        if name == "hue":
            amount = rng.uniform(-_JITTER, _JITTER)  # turns of the colour circle
            image = hsv_shifted(image, int(255 * amount))
        else:
            amount = rng.uniform(1 - _JITTER, 1 + _JITTER)
            image = np.array(_ENHANCERS[name](Image.fromarray(image)).enhance(amount))
        note[name] = amount
    return image
