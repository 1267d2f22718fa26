"""Regions resampled as generators and filters leave them: scaled down and up, smoothed, sharpened.

What the parts of a generated or retouched face have in common is not a seam but texture of another
kind than the camera's. Nothing moves and no colour changes here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter, uniform_filter

from train.attacks._face_mask import face_mask
from train.attacks._pictures import blend, resized, rounded
from train.attacks._random_fields import either, log_uniform
from train.attacks._samples import LooseCrop, SyntheticAttack

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

_REGIONS: Final = {
    "full_face": 0.3,
    "below_brows": 0.15,
    "inner_face": 0.2,
    "lower_face": 0.1,
    "whole_picture": 0.25,
}
_WAYS: Final = {"scaled": 0.35, "sharpened": 0.15, "denoised": 0.2, "median": 0.15, "lattice": 0.15}
_DOWN: Final = {"BOX": 0.4, "BILINEAR": 0.3, "BICUBIC": 0.2, "NEAREST": 0.1}
_UP: Final = {"NEAREST": 0.1, "BILINEAR": 0.35, "BICUBIC": 0.3, "LANCZOS": 0.25}


def restyle(face: LooseCrop, rng: Generator) -> SyntheticAttack:
    """Change the texture of a region of the face, or of all; the partner is the picture itself.

    Raises:
        ValueError: the landmarks lie outside the picture.
    """
    note: dict[str, float | str] = {"way": either(rng, _WAYS), "region": either(rng, _REGIONS)}
    restyled = _restyled(face.image, str(note["way"]), rng, note)
    if note["region"] == "whole_picture":
        return SyntheticAttack(restyled, "restyle", note, None, None)
    outline = face_mask(face, str(note["region"]), rng)
    mask = gaussian_filter(outline, log_uniform(rng, 0.004, 0.05) * len(outline))
    return SyntheticAttack(blend(restyled, face.image, mask), "restyle", note, mask, None)


def _restyled(
    image: NDArray[np.uint8], way: str, rng: Generator, note: dict[str, float | str]
) -> NDArray[np.uint8]:
    levels = image.astype(np.float32)
    size = len(image)
    if way == "scaled":
        small = max(16, round(size * rng.uniform(0.25, 0.7)))
        down, up = either(rng, _DOWN), either(rng, _UP)
        note |= {"small_px": small, "down": down, "up": up}
        return resized(resized(image, small, Image.Resampling[down]), size, Image.Resampling[up])
    if way == "sharpened":
        halo, sigma = rng.uniform(0.6, 2.5), rng.uniform(0.7, 1.8)
        note |= {"halo": round(halo, 3), "sigma_px": round(sigma, 3)}
        return rounded(levels + np.float32(halo) * (levels - _blurred(levels, sigma)))
    if way == "denoised":
        noise = rng.uniform(4, 16)
        note["noise"] = round(noise, 2)
        return rounded(_denoised(levels, int(rng.choice([3, 5, 7])), noise))
    if way == "median":
        window = int(rng.choice([3, 5]))
        note["window_px"] = window
        return np.array(Image.fromarray(image).filter(ImageFilter.MedianFilter(window)))
    period, depth = int(rng.choice([2, 4, 8])), rng.uniform(0.01, 0.05)
    note |= {"period_px": period, "depth": round(depth, 4)}
    return rounded(levels * _lattice(rng, size, period, depth))


def _blurred(levels: NDArray[np.float32], sigma_px: float) -> NDArray[np.float32]:
    return np.asarray(gaussian_filter(levels, (sigma_px, sigma_px, 0), truncate=2.5))


def _denoised(levels: NDArray[np.float32], window_px: int, noise: float) -> NDArray[np.float32]:
    """Wiener's filter: keep detail as far as it exceeds the noise, in grey levels."""
    window = (window_px, window_px, 1)
    mean = uniform_filter(levels, window)
    power = np.clip(uniform_filter(levels**2, window) - mean**2, 0, None)
    kept = np.clip(power - noise**2, 0, None) / (power + np.float32(1e-3))
    return np.asarray(mean + kept * (levels - mean))


def _lattice(rng: Generator, size: int, period: int, depth: float) -> NDArray[np.float32]:
    """Return (size, size, 1) gains with the faint regular pattern of transposed convolutions."""
    tile = rng.normal(0, depth, (period, period))
    repeats = -(-size // period)
    gains: NDArray[np.float32] = np.tile(1 + tile - tile.mean(), (repeats, repeats))[
        :size, :size, None
    ].astype(np.float32)
    return gains
