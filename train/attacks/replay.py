"""Replay: the face on a display, filmed again. Ours, after the physics.

The display's sub-pixels are a Fourier series over the surface. It is evaluated at the centres of
the camera's pixels, with each harmonic weakened by lens and pixel aperture: harmonics beyond the
camera's Nyquist frequency fold back as moire, just as they do on a sensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from train.attacks._pictures import desaturated, resized, to_light
from train.attacks._random_fields import colour_gains, either, log_uniform, ramp, smooth_field
from train.attacks._recapture import Surface, filmed, glare, in_scene, tilted_surface
from train.attacks._samples import LooseCrop, SyntheticAttack
from train.attacks.camera import recompress_jpeg
from train.attacks.spsc import twist

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

_TURN = 2 * np.pi
# Harmonics: cycles per display pixel right and down; amplitudes and phases (turns) of R, G, B.
_LAYOUTS: dict[str, tuple[tuple[float, float, tuple[float, ...], tuple[float, ...]], ...]] = {
    # RGB stripes a third of a pixel wide, rows parted by a gap: 2 sinc(k w).
    "stripes": (
        (1, 0, (1.65, 1.65, 1.65), (0, 1 / 3, 2 / 3)),
        (2, 0, (0.83, 0.83, 0.83), (0, 2 / 3, 1 / 3)),
        (0, 1, (0.47, 0.47, 0.47), (0, 0, 0)),
        (0, 2, (0.38, 0.38, 0.38), (0, 0, 0)),
    ),
    # Diamond matrix: green in every pixel, red and blue taking turns along the diagonals.
    "diamond": (
        (1, 0, (0.7, 1.4, 0.7), (0, 0.25, 0)),
        (0, 1, (0.7, 1.4, 0.7), (0, 0.25, 0)),
        (0.5, 0.5, (0.9, 0.0, 0.9), (0, 0, 0.5)),
        (0.5, -0.5, (0.9, 0.0, 0.9), (0, 0, 0.5)),
    ),
}

_GLARE = {"lamp": (0.05, 0.7), "veil": (0.02, 0.25), "room": (0.01, 0.08)}


def replay(face: LooseCrop, rng: Generator) -> SyntheticAttack:
    """Show the face on a display and film it."""
    size = face.image.shape[0]
    camera = int(log_uniform(rng, 0.75, 1.3) * size)
    note: dict[str, float | str] = {"camera_px": camera}

    shown = _stored(face.image, rng, note)
    moire = either(rng, {"grid": 0.6, "waves": 0.22, "twist": 0.06, "none": 0.12})
    note["moire"] = moire
    if moire == "twist":
        degree, share = log_uniform(rng, 0.0005, 0.005), rng.uniform(0.08, 0.2)
        shown = twist(shown, degree, share)
        note |= {"twist": round(degree, 5), "twist_share": round(share, 3)}

    surface, pose = tilted_surface(rng, camera, tilt=0.08, bend=float(rng.uniform(0, 0.008)))
    note |= pose
    light = _lit(shown, surface, moire, rng, note)
    if rng.random() < (0.8 if moire == "none" else 0.35):
        light = _framed(light, surface, rng, note)
    return SyntheticAttack(filmed(light, size, 1.0, rng, note), "replay", note, None, None)


def on_display(
    image: NDArray[np.uint8], surface: Surface, rng: Generator, note: dict[str, float | str]
) -> NDArray[np.float32]:
    """Return the light (3, N, N) of a picture on a display, where the camera looks at it.

    Args:
        image: (S, S, 3) RGB, the picture.
        surface: what the camera sees of it.
        rng: source of every draw.
        note: receives the parameters.
    """
    moire = either(rng, {"grid": 0.5, "waves": 0.25, "none": 0.25})
    note["moire"] = moire
    return _lit(_stored(image, rng, note), surface, moire, rng, note)


def _lit(
    shown: NDArray[np.uint8],
    surface: Surface,
    moire: str,
    rng: Generator,
    note: dict[str, float | str],
) -> NDArray[np.float32]:
    """The display's light, its sub-pixels or what they fold to, and what its glass mirrors."""
    light = surface.sample(_displayed(to_light(shown), rng, note))
    if moire == "grid":
        light *= _pixel_grid(surface, rng, note)
    elif moire == "waves":
        light *= _waves(surface, rng, note)
    # With no moire something else has to say that this is a display.
    plain = moire == "none"
    if plain or rng.random() < 0.15:
        light *= _flicker(surface.size, rng, note)
    if rng.random() < (0.7 if plain else 0.4):
        light += glare(rng, surface.size, _GLARE, note)
    return light


def _stored(
    image: NDArray[np.uint8], rng: Generator, note: dict[str, float | str]
) -> NDArray[np.uint8]:
    """The picture as it was stored or sent before the display: scaled and compressed once."""
    if rng.random() < 0.4:
        factor = rng.uniform(1.1, 2)
        small = resized(image, int(image.shape[0] / factor), Image.Resampling.BILINEAR)
        image = resized(small, image.shape[0], Image.Resampling.BICUBIC)
        note["stored_scale"] = round(factor, 2)
    if rng.random() < 0.5:
        quality = int(rng.integers(40, 95))
        image = recompress_jpeg(image, quality)
        note["stored_jpeg"] = quality
    return image


def _displayed(
    light: NDArray[np.float32], rng: Generator, note: dict[str, float | str]
) -> NDArray[np.float32]:
    """The display's own tone: gamma, gamut, white, brightness, and a black that still glows."""
    gamma, gamut = np.exp(rng.normal(0.05, 0.15)), rng.uniform(0.8, 1.25)
    gains = colour_gains(rng, 0.1)
    exposure, black = np.exp(rng.normal(0, 0.25)), 0.04 * rng.random() ** 3
    note |= {
        "gamma": round(float(gamma), 3),
        "gamut": round(float(gamut), 3),
        "warmth": round(float(np.log(gains[0, 0, 0])), 3),
        "exposure": round(float(exposure), 3),
        "black": round(float(black), 4),
    }
    light = np.maximum(desaturated(light, gamut), 0) ** np.float32(gamma)
    return (np.float32(exposure * (1 - black)) * light + np.float32(black)) * gains


def _pixel_grid(
    surface: Surface, rng: Generator, note: dict[str, float | str]
) -> NDArray[np.float32]:
    layout = either(rng, {"stripes": 0.7, "diamond": 0.3})
    density = log_uniform(rng, 0.22, 2.2)  # display pixels per camera pixel
    lens, aperture = rng.uniform(0.12, 0.45), rng.uniform(0.5, 0.95)
    contrast = log_uniform(rng, 0.2, 1)
    upright = rng.random() < 0.7
    note |= {
        "layout": layout,
        "density": round(density, 4),
        "lens_px": round(lens, 3),
        "aperture": round(aperture, 3),
        "grid_contrast": round(contrast, 3),
        "upright": float(upright),
    }
    cycles = density * surface.size / 2
    u, v = (surface.u, surface.v) if upright else (surface.v, -surface.u)
    u = u + np.float32(rng.uniform(0, 0.003)) * smooth_field(
        rng, surface.size, 3
    )  # lens, bent panel
    start = rng.uniform(0, 1, 2)
    grid = np.ones((3, surface.size, surface.size), np.float32)
    for right, down, amplitudes, phases in _LAYOUTS[layout]:
        frequency = density * float(np.hypot(right, down))  # cycles per camera px
        passed = contrast * abs(np.sinc(aperture * frequency))
        passed *= np.exp(-2 * (np.pi * lens * frequency) ** 2)
        if passed < 0.004:
            continue
        turns = np.float32(right * cycles) * u + np.float32(down * cycles) * v
        # Whole turns carry nothing; without them float32 keeps its precision.
        turns += np.float32(right * start[0] + down * start[1])
        theta = (turns - np.rint(turns)) * np.float32(_TURN)
        cos, sin = np.cos(theta), np.sin(theta)
        for plane, amplitude, phase in zip(grid, amplitudes, phases, strict=True):
            if amplitude:
                plane += np.float32(passed * amplitude * np.cos(_TURN * phase)) * cos
                plane -= np.float32(passed * amplitude * np.sin(_TURN * phase)) * sin
    return np.maximum(grid, np.float32(0.02))


def _waves(surface: Surface, rng: Generator, note: dict[str, float | str]) -> NDArray[np.float32]:
    """Moire after it has folded: two gently curved gratings, their colours out of step."""
    amplitude, count = log_uniform(rng, 0.03, 0.25), int(rng.integers(1, 4))
    note |= {"wave_amplitude": round(amplitude, 3), "waves": count}
    waves = np.ones((3, surface.size, surface.size), np.float32)
    curve = smooth_field(rng, surface.size, 3)
    for _ in range(count):
        cycles, turn = surface.size / log_uniform(rng, 2.5, 40) / 2, rng.uniform(0, np.pi)
        shift = rng.uniform(0, 1) + np.array([0, 1, 2]) * rng.uniform(0, 0.33)
        turns = np.float32(cycles * np.cos(turn)) * surface.u
        turns += np.float32(cycles * np.sin(turn)) * surface.v
        turns += np.float32(rng.uniform(0.1, 0.6)) * curve
        for plane, phase in zip(waves, shift, strict=True):
            theta = np.float32(_TURN) * (turns + np.float32(phase))
            plane += np.float32(amplitude / np.sqrt(count)) * np.cos(theta)
    return waves


def _flicker(size: int, rng: Generator, note: dict[str, float | str]) -> NDArray[np.float32]:
    """Bands across the picture where the camera's shutter and the backlight are out of step."""
    depth, period = rng.uniform(0.05, 0.35), log_uniform(rng, 0.15, 1.5)
    note |= {"flicker": round(depth, 3), "flicker_period": round(period, 3)}
    rows = np.arange(size, dtype=np.float32) / size
    wave = np.sin(np.float32(_TURN) * (rows / np.float32(period) + np.float32(rng.random())))
    sharp = np.tanh(wave * np.float32(rng.uniform(0.5, 4)))
    return (1 + np.float32(depth) * sharp)[:, None] * np.ones((1, size), np.float32)


def _framed(
    light: NDArray[np.float32],
    surface: Surface,
    rng: Generator,
    note: dict[str, float | str],
) -> NDArray[np.float32]:
    """End the display: black rim, bezel, and the place behind."""
    rim, bezel = rng.uniform(0, 0.05), log_uniform(rng, 0.025, 0.3)
    tone = either(rng, {"black": 0.65, "grey": 0.15, "white": 0.2})
    level = {"black": 0.008, "grey": 0.12, "white": 0.6}[tone] * np.exp(rng.normal(0, 0.3))
    note |= {"rim": round(rim, 3), "bezel": tone, "bezel_width": round(bezel, 3)}
    shade = np.float32(0.7) + np.float32(0.6) * ramp(rng, surface.size)
    body = colour_gains(rng, 0.03) * np.float32(level) * shade
    black = np.full((3, 1, 1), 0.004, np.float32)
    return in_scene(light, surface, [(rim, black), (bezel, body)], 0.0, rng, note)
