"""What a replay and a print have in common: light off a flat surface, seen by a camera.

Pictures here are float32 (3, H, W) in linear light, 0..1. Positions on the surface are (H, W)
planes `u` (right) and `v` (down), -1..1 over the crop before the camera was moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.random import Generator
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


def resized(image: NDArray[np.uint8], size: int, resample: Image.Resampling) -> NDArray[np.uint8]:
    """Return the picture scaled to (size, size, 3)."""
    return np.array(Image.fromarray(image).resize((size, size), resample))


def log_uniform(rng: Generator, low: float, high: float) -> float:
    """Draw from [low, high) so that every octave is equally likely."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def either(rng: Generator, shares: Mapping[str, float]) -> str:
    """Draw one key with a chance in proportion to its share."""
    names = list(shares)
    weights = np.array([shares[name] for name in names])
    return names[int(rng.choice(len(names), p=weights / weights.sum()))]


def smooth_field(rng: Generator, size: int, cells: int) -> NDArray[np.float32]:
    """Return (size, size) random hills, about `cells` across, with standard deviation near 1."""
    # White noise enlarged as it is would show its square lattice.
    coarse = gaussian_filter(rng.standard_normal((2 * cells, 2 * cells), dtype=np.float32), 1.0)
    coarse *= np.float32(2 * np.sqrt(np.pi))
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def blurred(light: NDArray[np.float32], sigma_px: float) -> NDArray[np.float32]:
    """Return light seen through a Gaussian lens."""
    blur = gaussian_filter(light, (0.0, sigma_px, sigma_px), mode="nearest", truncate=2.5)
    return blur.astype(np.float32, copy=False)


def desaturated(light: NDArray[np.float32], saturation: float) -> NDArray[np.float32]:
    """Return light with its colourfulness scaled; 1 leaves it, 0 is grey."""
    matrix = saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * _LUMA
    return (matrix @ light.reshape(3, -1)).reshape(light.shape)


def colour_gains(rng: Generator, spread: float) -> NDArray[np.float32]:
    """Return (3, 1, 1) gains of a colour cast: warm to cold, and a little green to magenta."""
    warm, green = rng.normal(0, spread), rng.normal(0, spread / 3)
    return np.exp(np.array([warm, green, -warm], np.float32)).reshape(3, 1, 1)


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """Where on the shown picture each pixel of the camera looks."""

    u: NDArray[np.float32]  # (N, N)
    v: NDArray[np.float32]  # (N, N)

    @property
    def size(self) -> int:
        """Side of the camera's view, px."""
        return len(self.u)

    def sample(self, light: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (3, N, N): the shown picture, bilinear, its border repeated outside."""
        grid = torch.from_numpy(np.stack([self.u, self.v], -1))[None]
        shown = torch.from_numpy(light)[None]
        return F.grid_sample(shown, grid, padding_mode="border", align_corners=False)[0].numpy()


def tilted_surface(
    rng: Generator, size: int, *, tilt: float, bend: float
) -> tuple[Surface, dict[str, float | str]]:
    """Hold the picture before the camera: turned, tilted, stretched and, for paper, bent a little.

    Args:
        rng: Source of every draw.
        size: Side of the camera's view, px.
        tilt: Largest perspective and rotation, 0..1 (0.1 is about 6 degrees of rotation).
        bend: Largest displacement by bending, in half sides.
    """
    axis = pixel_centres(size)
    x, y = axis[None, :], axis[:, None]
    angle = rng.uniform(-tilt, tilt)
    px, py = rng.uniform(-tilt, tilt, 2)
    scale = np.exp(rng.uniform(-0.06, 0.06))
    aspect = np.exp(rng.normal(0, 0.03))
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    depth = 1 + np.float32(px) * x + np.float32(py) * y
    u: NDArray[np.float32] = np.float32(cos * aspect) * x - np.float32(sin) * y
    v: NDArray[np.float32] = np.float32(sin) * x + np.float32(cos / aspect) * y
    u /= depth
    v /= depth
    if bend > 0:
        # A slow wave along a random direction: a bowed sheet, or the lens's own distortion.
        turn, wave, phase = rng.uniform(0, 2 * np.pi), rng.uniform(0.7, 2.5), rng.uniform(0, 6.28)
        along = np.float32(np.cos(turn)) * x + np.float32(np.sin(turn)) * y
        push = np.float32(bend) * np.sin(np.float32(wave) * along + np.float32(phase))
        push -= np.float32(bend * np.sin(phase))  # the face stays in the middle
        u += np.float32(np.cos(turn)) * push
        v += np.float32(np.sin(turn)) * push
    drawn = {
        "angle": angle,
        "tilt_x": px,
        "tilt_y": py,
        "scale": scale,
        "aspect": aspect,
        "bend": bend,
    }
    return Surface(u, v), {name: round(float(value), 5) for name, value in drawn.items()}


def pixel_centres(size: int) -> NDArray[np.float32]:
    """Return (size,) where the centres of a row of pixels lie, -1..1 from edge to edge."""
    return (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / size) - 1


def ramp(rng: Generator, size: int) -> NDArray[np.float32]:
    """Return (size, size) light falling off from 1 on a random side to 0 on the other."""
    axis = pixel_centres(size)
    turn = rng.uniform(0, 2 * np.pi)
    reach = 2 * (abs(np.cos(turn)) + abs(np.sin(turn)))
    right, down = np.float32(np.cos(turn) / reach), np.float32(np.sin(turn) / reach)
    return right * axis[None, :] + down * axis[:, None] + np.float32(0.5)


def highlight(rng: Generator, size: int) -> NDArray[np.float32]:
    """Return (size, size), 0..1: the reflection of a lamp, a window or a bright wall."""
    axis = pixel_centres(size)
    turn = rng.uniform(0, np.pi)
    cx, cy = rng.uniform(-0.8, 0.8, 2)
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    dx, dy = axis[None, :] - np.float32(cx), axis[:, None] - np.float32(cy)
    a, b = cos * dx + sin * dy, -sin * dx + cos * dy
    long, short = rng.uniform(0.1, 0.8), rng.uniform(0.05, 0.4)
    if rng.random() < 0.6:  # lamp
        lamp: NDArray[np.float32] = np.exp(
            -((a / np.float32(long)) ** 2) - (b / np.float32(short)) ** 2
        )
        return lamp
    soft = np.float32(rng.uniform(0.02, 0.15))  # window
    inside = np.minimum(np.float32(long) - np.abs(a), np.float32(short) - np.abs(b))
    if rng.random() < 0.5:  # with a bar across
        inside = np.minimum(inside, np.abs(a) - np.float32(0.03))
    window: NDArray[np.float32] = np.clip(inside / soft, 0, 1)
    return window


def surroundings(rng: Generator, light: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Return (3, size, size): what is seen beside a held device or sheet."""
    if rng.random() < 0.5:  # the room: colours of the picture itself, far out of focus
        small = light[:, ::16, ::16]
        pick = rng.integers(0, small.shape[1], (2, 6, 6))
        coarse = 0.5 * (small[:, pick[0], pick[1]] + small.mean((1, 2))[:, None, None])
    else:  # a wall, a desk
        tone = log_uniform(rng, 0.02, 0.7)
        colour = tone * np.exp(rng.normal(0, 0.15, 3)).astype(np.float32)
        coarse = np.repeat(colour[:, None], 36, 1).reshape(3, 6, 6)
    planes = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(plane)).resize(
                (size, size), Image.Resampling.BICUBIC
            )
        )
        for plane in coarse
    ]
    texture = 1 + np.float32(rng.uniform(0, 0.15)) * smooth_field(
        rng, size, int(rng.integers(8, 48))
    )
    shade = np.float32(rng.uniform(0.4, 1)) + ramp(rng, size)
    return (np.stack(planes) * (texture * shade)).astype(np.float32, copy=False)


def inside_sheet(rng: Generator, surface: Surface) -> tuple[NDArray[np.float32], float]:
    """Cut the surface at one to three of its sides, beyond the face.

    Returns:
        (N, N) distance to the nearest cut in camera px, positive inside; and the nearest cut's
        distance from the middle of the face, in half sides.
    """
    sides = rng.permutation(4)[: int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))]
    offsets = rng.uniform(0.52, 0.98, len(sides))
    half = np.float32(surface.size / 2)
    distance = np.full_like(surface.u, np.float32(1e3))
    for side, offset in zip(sides, offsets, strict=True):
        plane = surface.u if side < 2 else surface.v
        signed = plane if side % 2 else -plane
        distance = np.minimum(distance, (np.float32(offset) - signed) * half)
    return distance, float(offsets.min())


def coverage(distance_px: NDArray[np.float32], soft_px: float) -> NDArray[np.float32]:
    """Return 0..1: how much of each pixel lies inside, for an edge `soft_px` wide."""
    covered: NDArray[np.float32] = np.clip(
        distance_px / np.float32(soft_px) + np.float32(0.5), 0, 1
    )
    return covered
