"""Print: the face on paper, filmed. Physically motivated, ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from train.attacks._pictures import blurred, desaturated, to_light
from train.attacks._random_fields import colour_gains, either, log_uniform, ramp, smooth_field
from train.attacks._recapture import Surface, filmed, glare, in_scene, tilted_surface
from train.attacks._samples import LooseCrop, SyntheticAttack

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

# Screen angles of offset and laser printing, degrees: cyan, magenta, yellow; black alone.
_SCREEN_ANGLES = (15.0, 75.0, 0.0)
_BLACK_ANGLES = (45.0, 45.0, 45.0)
_GLARE = {"lamp": (0.04, 0.4), "veil": (0.04, 0.4)}


def print_attack(face: LooseCrop, rng: Generator) -> SyntheticAttack:
    """Print the face, hold it before a camera and film it."""
    size = face.image.shape[0]
    note: dict[str, float | str] = {}
    bend = float(rng.uniform(0.01, 0.06)) if rng.random() < 0.5 else 0.0
    surface, pose = tilted_surface(rng, size, tilt=0.1, bend=bend)
    note |= pose

    light = on_sheet(face.image, surface, rng, note)
    if rng.random() < (0.7 if note["screen"] == "none" else 0.4):
        light = _held(light, surface, rng, note)
    return SyntheticAttack(filmed(light, size, 1.1, rng, note), "print", note, None, None)


def on_sheet(
    image: NDArray[np.uint8], surface: Surface, rng: Generator, note: dict[str, float | str]
) -> NDArray[np.float32]:
    """Return the light (3, N, N) of a printed picture, where the camera looks at it.

    Args:
        image: (S, S, 3) RGB, the picture.
        surface: what the camera sees of it.
        rng: source of every draw.
        note: receives the parameters.
    """
    ink = surface.sample(_inked(to_light(image), rng, note))
    screen = either(rng, {"halftone": 0.45, "droplets": 0.3, "none": 0.25})
    note["screen"] = screen
    if screen == "halftone":
        ink = _halftone(ink, surface, rng, note)
    elif screen == "droplets":
        ink = _droplets(ink, rng, note)
    if rng.random() < 0.25:
        ink = _streaks(ink, surface, rng, note)
    light = _on_paper(ink, rng, note)
    light *= _lit(surface, rng, note)
    plain = screen == "none"
    if rng.random() < (0.6 if plain else 0.3):
        light += glare(rng, surface.size, _GLARE, note)
    if rng.random() < (0.4 if plain else 0.2):
        light = _creased(light, surface, rng, note)
    return light


def _inked(
    light: NDArray[np.float32], rng: Generator, note: dict[str, float | str]
) -> NDArray[np.float32]:
    """Squeeze the colours into what ink shows: weaker colour, a bent tone curve."""
    gamut, gamma = rng.uniform(0.65, 1.15), np.exp(rng.normal(0.05, 0.2))
    note |= {"gamut": round(gamut, 3), "gamma": round(float(gamma), 3)}
    if rng.random() < 0.04:
        gamut = 0.0  # a black-and-white printer
        note["gamut"] = 0.0
    ink = np.maximum(desaturated(light, gamut), 0) ** np.float32(gamma)
    cross = np.eye(3, dtype=np.float32) + rng.normal(0, 0.03, (3, 3)).astype(np.float32)
    cross /= cross.sum(1, keepdims=True)  # inks are impure, but white stays paper
    inked: NDArray[np.float32] = np.clip((cross @ ink.reshape(3, -1)).reshape(ink.shape), 0, 1)
    return inked


def _halftone(
    ink: NDArray[np.float32],
    surface: Surface,
    rng: Generator,
    note: dict[str, float | str],
) -> NDArray[np.float32]:
    """Break the tone into dots, one rotated screen per ink; `share` is what the camera resolves."""
    pitch, share = log_uniform(rng, 1.6, 4.5), rng.uniform(0.08, 0.65)
    soft = rng.uniform(0.15, 0.6)
    note |= {"pitch_px": round(pitch, 2), "dot_share": round(share, 3), "dot_soft": round(soft, 3)}
    cycles = np.pi * surface.size / 2 / pitch
    turn = rng.uniform(0, 90)
    dots = np.empty_like(ink)
    angles = _SCREEN_ANGLES if note["gamut"] else _BLACK_ANGLES
    for plane, out, angle in zip(ink, dots, angles, strict=True):
        theta = np.deg2rad(angle + turn)
        cos, sin = np.float32(cycles * np.cos(theta)), np.float32(cycles * np.sin(theta))
        level = np.cos(cos * surface.u + sin * surface.v) * np.cos(
            cos * surface.v - sin * surface.u
        )
        # Dots grow with density. Stretched by the softness of their edges, the tone still reaches
        # both ends: no holes in black, no dots on white paper.
        tone = np.float32(1 + soft) * np.sqrt(plane) - np.float32(soft / 2)
        out[:] = np.clip((tone - 0.5 - 0.5 * level) / np.float32(soft) + 0.5, 0, 1)
    return ink + np.float32(share) * (dots - ink) * np.float32(0.6)


def _droplets(
    ink: NDArray[np.float32], rng: Generator, note: dict[str, float | str]
) -> NDArray[np.float32]:
    """Scatter ink-jet droplets: noise per ink, strongest in the mid-tones."""
    size, strength = ink.shape[1], log_uniform(rng, 0.03, 0.2)
    sigma = rng.uniform(0.3, 1.0)
    note |= {"droplets": round(strength, 3), "droplet_px": round(sigma, 2)}
    noise = rng.standard_normal((3, size, size), dtype=np.float32)
    if sigma > 0.45:
        noise = blurred(noise, sigma) * np.float32(2 * sigma)
    mid_tones: NDArray[np.float32] = np.sqrt(np.clip(ink * (1 - ink), 0, 1))
    return ink + np.float32(strength) * noise * mid_tones


def _streaks(
    ink: NDArray[np.float32],
    surface: Surface,
    rng: Generator,
    note: dict[str, float | str],
) -> NDArray[np.float32]:
    """Leave the print head's bands: lines a little lighter or darker, along the sheet."""
    strength, period = log_uniform(rng, 0.02, 0.12), log_uniform(rng, 3, 24)
    note |= {"streaks": round(strength, 3), "streak_px": round(period, 1)}
    profile = rng.standard_normal(max(4, int(surface.size / period)) * 2, dtype=np.float32)
    along = surface.v if rng.random() < 0.7 else surface.u
    place = (along + 1.5) * np.float32(len(profile) / 3)
    return ink * (1 + np.float32(strength) * np.take(profile, place.astype(np.intp), mode="clip"))


def _on_paper(
    ink: NDArray[np.float32], rng: Generator, note: dict[str, float | str]
) -> NDArray[np.float32]:
    """Let paper show through: its tint, its fibres and its cloudiness; no ink is quite black."""
    size = ink.shape[1]
    white, grain = rng.uniform(0.75, 0.98), log_uniform(rng, 0.004, 0.05)
    cloud, black = rng.uniform(0, 0.03), 0.003 + 0.06 * rng.random() ** 3
    note |= {"paper_white": round(white, 3), "grain": round(grain, 4), "black": round(black, 4)}
    fibre = rng.standard_normal((size, size), dtype=np.float32)
    fibre = 0.5 * (fibre + np.roll(fibre, 1, int(rng.integers(0, 2)))) * np.float32(1.4)
    texture = 1 + np.float32(grain) * fibre + np.float32(cloud) * smooth_field(rng, size, 24)
    seen = np.float32(1 - black) * ink + np.float32(black)
    return seen * (colour_gains(rng, 0.06) * np.float32(white) * texture)


def _lit(surface: Surface, rng: Generator, note: dict[str, float | str]) -> NDArray[np.float32]:
    """Light a flat sheet: exposure, one-sided fall-off, and the shading of a bend."""
    exposure, fall = np.exp(rng.normal(0.2, 0.25)), rng.uniform(0, 0.4)
    note |= {"exposure": round(float(exposure), 3), "fall_off": round(fall, 3)}
    shade = np.float32(exposure) * (1 - np.float32(fall) * ramp(rng, surface.size))
    return shade * colour_gains(rng, 0.1)


def _creased(
    light: NDArray[np.float32],
    surface: Surface,
    rng: Generator,
    note: dict[str, float | str],
) -> NDArray[np.float32]:
    """Fold the sheet once or twice: a thin line, and a step in brightness across it."""
    folds = int(rng.integers(1, 3))
    note["folds"] = folds
    for _ in range(folds):
        turn, offset = rng.uniform(0, np.pi), rng.uniform(-0.6, 0.6)
        step, line = rng.normal(0, 0.07), rng.choice([-1, 1]) * rng.uniform(0.05, 0.3)
        across = np.float32(np.cos(turn)) * surface.u + np.float32(np.sin(turn)) * surface.v
        across -= np.float32(offset)
        width = np.float32(rng.uniform(0.006, 0.016))
        fold = np.float32(line) * np.exp(-((across / width) ** 2))
        light = light * (1 + np.float32(step) * np.tanh(across / (4 * width)) + fold)
    return light


def _held(
    light: NDArray[np.float32],
    surface: Surface,
    rng: Generator,
    note: dict[str, float | str],
) -> NDArray[np.float32]:
    """End the sheet: perhaps a white margin, the cut edge, its shadow, and the place behind."""
    margin = log_uniform(rng, 0.025, 0.25) if rng.random() < 0.6 else 0.0
    note["margin"] = round(margin, 3)
    white = float(np.quantile(light[:, ::8, ::8], 0.97)) * rng.uniform(1, 1.3)
    shade = 1 - np.float32(0.2) * ramp(rng, surface.size)
    paper = np.float32(min(max(white, 0.3), 1.0)) * colour_gains(rng, 0.04) * shade
    return in_scene(light, surface, [(margin, paper)], rng.uniform(0, 0.6), rng, note)
