"""Arithmetic on pictures: 8-bit (H, W, 3) RGB, and float32 (3, H, W) in linear light, 0..1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LEVELS = 4096
_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)


def _srgb_to_linear(encoded: NDArray[np.float64]) -> NDArray[np.float32]:
    low = encoded / 12.92
    return np.where(encoded <= 0.04045, low, ((encoded + 0.055) / 1.055) ** 2.4).astype(np.float32)


def _linear_to_srgb(linear: NDArray[np.float64]) -> NDArray[np.uint8]:
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    picture: NDArray[np.uint8] = np.rint(255 * encoded).astype(np.uint8)
    return picture


_TO_LINEAR = _srgb_to_linear(np.arange(256) / 255)
_TO_SRGB = _linear_to_srgb(np.arange(_LEVELS) / (_LEVELS - 1))


def to_light(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the linear light (3, H, W), 0..1, of an sRGB picture (H, W, 3)."""
    return np.take(_TO_LINEAR, np.ascontiguousarray(image.transpose(2, 0, 1)))


def to_picture(light: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the sRGB picture (H, W, 3) of linear light (3, H, W), clipped to 0..1."""
    level = (np.clip(light, 0, 1) * (_LEVELS - 1) + 0.5).astype(np.int16)
    return np.ascontiguousarray(np.take(_TO_SRGB, level).transpose(1, 2, 0))


def blurred(light: NDArray[np.float32], sigma_px: float) -> NDArray[np.float32]:
    """Return light seen through a Gaussian lens."""
    blur = gaussian_filter(light, (0.0, sigma_px, sigma_px), mode="nearest", truncate=2.5)
    return blur.astype(np.float32, copy=False)


def desaturated(light: NDArray[np.float32], saturation: float) -> NDArray[np.float32]:
    """Return light with its colourfulness scaled; 1 leaves it, 0 is grey."""
    matrix = saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * _LUMA
    return (matrix @ light.reshape(3, -1)).reshape(light.shape)


def rounded(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return grey levels as 8-bit ones, clipped to 0..255."""
    picture: NDArray[np.uint8] = (np.clip(values, 0, 255) + np.float32(0.5)).astype(np.uint8)
    return picture


def resized(image: NDArray[np.uint8], size: int, resample: Image.Resampling) -> NDArray[np.uint8]:
    """Return the picture scaled to (size, size, 3)."""
    return np.array(Image.fromarray(image).resize((size, size), resample))


def moved(
    image: NDArray[np.uint8], scale: tuple[float, float], shift: tuple[float, float]
) -> NDArray[np.uint8]:
    """Scale a picture (S, S, 3) about its middle, then shift it; bilinear, black outside.

    Args:
        image: (S, S, 3).
        scale: across and down.
        shift: to the right and down, in sides.
    """
    size = image.shape[0]
    left, top = (size / 2 - size * (0.5 + d) / s for d, s in zip(shift, scale, strict=True))
    transform = (1 / scale[0], 0.0, left, 0.0, 1 / scale[1], top)
    return np.array(
        Image.fromarray(image).transform(
            (size, size), Image.Transform.AFFINE, transform, Image.Resampling.BILINEAR
        )
    )


def sharpened(image: NDArray[np.uint8], alpha: float, lightness: float) -> NDArray[np.uint8]:
    """Mix in a share `alpha` of a 3x3 Laplacian plus `lightness` times the picture.

    A flat region keeps (1 - alpha) + alpha * lightness of its brightness.
    """
    soft = image.astype(np.float32)
    padded = np.pad(soft, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    box_sum = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    keep = np.float32(1 - alpha + alpha * (9 + lightness))
    return rounded(keep * soft - np.float32(alpha) * box_sum)


def hsv_shifted(
    image: NDArray[np.uint8], hue: int, saturation: int = 0, value: int = 0
) -> NDArray[np.uint8]:
    """Shift hue, saturation and value by 8-bit levels; hue wraps round, the others are clipped."""
    hsv = np.array(Image.fromarray(image).convert("HSV"), np.int16)
    hsv += np.array([hue, saturation, value], np.int16)
    hsv[..., 0] %= 256
    levels = np.clip(hsv, 0, 255).astype(np.uint8)
    return np.array(Image.frombytes("HSV", image.shape[1::-1], levels.tobytes()).convert("RGB"))


def blend(
    source: NDArray[np.uint8], target: NDArray[np.uint8], mask: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Return mask * source + (1 - mask) * target, rounded; `target` itself where the mask is 0."""
    weight = mask[..., None]
    mixed = target + weight * (source.astype(np.float32) - target)
    return (mixed + np.float32(0.5)).astype(np.uint8)
