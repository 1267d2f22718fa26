"""What a replay and a print have in common: light off a flat surface, seen by a camera.

Pictures here are float32 (3, H, W) in linear light, 0..1. Positions on the surface are (H, W)
planes `u` (right) and `v` (down), -1..1 over the crop before the camera was moved. Lengths in px
are pixels of the camera, whatever the size of the crop; other lengths are in half sides of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from train.attacks._pictures import blurred, resized, to_picture
from train.attacks._random_fields import (
    colour_gains,
    either,
    log_uniform,
    pixel_centres,
    ramp,
    smooth_field,
)
from train.attacks.camera import recompress_jpeg

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.random import Generator
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """Where on the shown picture each pixel of the camera looks."""

    u: NDArray[np.float32]  # (N, N)
    v: NDArray[np.float32]  # (N, N)

    @property
    def size(self) -> int:
        """Side of the camera's view, px."""
        return len(self.u)

    def sample(
        self, light: NDArray[np.float32], *, outside: Literal["border", "reflection"] = "border"
    ) -> NDArray[np.float32]:
        """Return (3, N, N): the shown picture, bilinear; outside its border, or itself mirrored."""
        grid = torch.from_numpy(np.stack([self.u, self.v], -1))[None]
        shown = torch.from_numpy(light)[None]
        return F.grid_sample(shown, grid, padding_mode=outside, align_corners=False)[0].numpy()


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


def glare(
    rng: Generator,
    size: int,
    strengths: Mapping[str, tuple[float, float]],
    note: dict[str, float | str],
) -> NDArray[np.float32]:
    """Return (3, size, size): the light that a smooth surface mirrors into the camera.

    Args:
        rng: Source of every draw.
        size: Side of the camera's view, px.
        strengths: Least and greatest strength of "lamp" (or window), "veil" (a bright side) and
            "room" (clouds); the kinds named are equally likely.
        note: Receives the parameters.
    """
    kind = either(rng, dict.fromkeys(strengths, 1.0))
    strength = log_uniform(rng, *strengths[kind])
    if kind == "lamp":
        shape = _highlight(rng, size)
    elif kind == "veil":
        shape = ramp(rng, size)
    else:
        shape = np.maximum(smooth_field(rng, size, int(rng.integers(4, 16))), 0)
    note |= {"glare": kind, "glare_strength": round(strength, 3)}
    return colour_gains(rng, 0.1) * (np.float32(strength) * shape)


def _highlight(rng: Generator, size: int) -> NDArray[np.float32]:
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


def in_scene(
    light: NDArray[np.float32],
    surface: Surface,
    bands: Sequence[tuple[float, NDArray[np.float32]]],
    shadow: float,
    rng: Generator,
    note: dict[str, float | str],
) -> NDArray[np.float32]:
    """End the screen or sheet at one to three sides beyond the face, and show what is behind it.

    Args:
        light: (3, N, N) the picture on the surface.
        surface: What the camera sees of it.
        bands: Around the picture, from inside: width in half sides, and light that broadcasts to
            (3, N, N).
        shadow: Of the device or sheet on what is behind, 0..1.
        rng: Source of every draw.
        note: Receives the parameters.
    """
    sides = rng.permutation(4)[: int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))]
    offsets = rng.uniform(0.52, 0.98, len(sides))
    soft_px = float(rng.uniform(1, 2.5))
    note |= {"edges": len(sides), "edge": round(float(offsets.min()), 3)}
    inside = np.full_like(surface.u, np.inf)  # distance to the nearest edge of the picture
    for side, offset in zip(sides, offsets, strict=True):
        plane = surface.u if side < 2 else surface.v
        inside = np.minimum(inside, np.float32(offset) - (plane if side % 2 else -plane))
    edge = 2 * soft_px / surface.size
    outer = list(accumulate((width for width, _ in bands), initial=0.0))
    seen = _surroundings(rng, light, surface.size)
    seen *= 1 - np.float32(shadow) * _coverage(inside + np.float32(outer[-1] + 0.05), 0.1)
    for (_, colour), width in zip(reversed(bands), reversed(outer[1:]), strict=True):
        seen += _coverage(inside + np.float32(width), edge) * (colour - seen)
    seen += _coverage(inside, edge) * (light - seen)
    return seen


def _coverage(distance: NDArray[np.float32], soft: float) -> NDArray[np.float32]:
    """Return 0..1: how much of each pixel lies inside, for an edge `soft` wide."""
    covered: NDArray[np.float32] = np.clip(distance / np.float32(soft) + np.float32(0.5), 0, 1)
    return covered


def _surroundings(rng: Generator, light: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Return (3, size, size): what is seen beside a held device or sheet."""
    if rng.random() < 0.5:  # the room: colours of the picture itself, far out of focus
        step = max(1, size // 16)
        small = light[:, ::step, ::step]
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


def filmed(
    light: NDArray[np.float32],
    size: int,
    largest_blur_px: float,
    rng: Generator,
    note: dict[str, float | str],
) -> NDArray[np.uint8]:
    """Return the picture (size, size, 3) that the second camera stores.

    Its lens blurs (a point becomes 0.7 px wide or more), its pixels are scaled to `size`, and three
    in ten times it compresses: for most faces the second time, after whoever took the picture.
    """
    sigma = rng.uniform(0.3, largest_blur_px)
    note["blur_px"] = round(sigma, 2)
    if sigma > 0.4:  # below, a pixel's own width blurs more
        light = blurred(light, sigma)
    image = to_picture(light)
    if len(image) != size:
        image = resized(image, size, Image.Resampling.BILINEAR)
    if rng.random() < 0.3:
        quality = int(rng.integers(60, 96))
        note["second_jpeg"] = quality
        image = recompress_jpeg(image, quality)
    return image
