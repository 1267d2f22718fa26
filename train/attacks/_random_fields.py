"""Random numbers and fields that the attack makers draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.random import Generator
    from numpy.typing import NDArray


def log_uniform(rng: Generator, low: float, high: float) -> float:
    """Draw from [low, high) so that every octave is equally likely."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def either(rng: Generator, shares: Mapping[str, float]) -> str:
    """Draw one key with a chance in proportion to its share."""
    names = list(shares)
    weights = np.array([shares[name] for name in names])
    return names[int(rng.choice(len(names), p=weights / weights.sum()))]


def colour_gains(rng: Generator, spread: float) -> NDArray[np.float32]:
    """Return (3, 1, 1) gains of a colour cast: warm to cold, and a little green to magenta."""
    warm, green = rng.normal(0, spread), rng.normal(0, spread / 3)
    return np.exp(np.array([warm, green, -warm], np.float32)).reshape(3, 1, 1)


def pixel_centres(size: int) -> NDArray[np.float32]:
    """Return (size,) where the centres of a row of pixels lie, -1..1 from edge to edge."""
    return (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / size) - 1


def smooth_field(rng: Generator, size: int, cells: int) -> NDArray[np.float32]:
    """Return (size, size) random hills, about `cells` across, with standard deviation near 1."""
    # White noise enlarged as it is would show its square lattice.
    coarse = gaussian_filter(rng.standard_normal((2 * cells, 2 * cells), dtype=np.float32), 1.0)
    coarse *= np.float32(2 * np.sqrt(np.pi))
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def ramp(rng: Generator, size: int) -> NDArray[np.float32]:
    """Return (size, size) light falling off from 1 on a random side to 0 on the other."""
    axis = pixel_centres(size)
    turn = rng.uniform(0, 2 * np.pi)
    reach = 2 * (abs(np.cos(turn)) + abs(np.sin(turn)))
    right, down = np.float32(np.cos(turn) / reach), np.float32(np.sin(turn) / reach)
    return right * axis[None, :] + down * axis[:, None] + np.float32(0.5)
