"""Presentation attacks with their surroundings: an instrument in a scene, at 2.7 times a face.

At 1.3 times the face a phone has no bezel and a print no edge. Here the face of one picture is on a
screen, a sheet or a paper mask, and the scene of another is behind it. Ours, after what real
attacks look like; the looks of displays and ink are those of `replay` and `print_attack`.

Places are planes of `x` (right) and `y` (down), (S, S), in units of the face's sides from the
face's centre, so that an instrument of 1.2 x 2 is a phone about a face. Pictures are float32 (3, S,
S) in linear light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from train.attacks._pictures import to_light
from train.attacks._random_fields import colour_gains, either, log_uniform, smooth_field
from train.attacks._recapture import Surface, filmed, glare
from train.attacks._samples import FaceInScene, SyntheticAttack
from train.attacks.print_attack import on_sheet
from train.attacks.replay import on_display

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

    Plane = NDArray[np.float32]
    Note = dict[str, float | str]

_GLARE: Final = {"lamp": (0.03, 0.6), "veil": (0.03, 0.3), "room": (0.01, 0.08)}
_SCREENS: Final = {"phone": 0.5, "tablet": 0.22, "monitor": 0.28}
_SHEETS: Final = {"paper": 0.6, "photo": 0.4}
# From the face's centre to each edge of the picture, in faces: least and most.
_REACH: Final = {
    "phone": (0.55, 1.5),
    "tablet": (0.6, 1.8),
    "monitor": (0.75, 2.6),
    "paper": (0.55, 1.8),
    "photo": (0.55, 1.5),
}
_BEZEL: Final = {"phone": (0.015, 0.1), "tablet": (0.05, 0.2), "monitor": (0.03, 0.25)}
_CORNER: Final = {"phone": (0.05, 0.2), "tablet": (0.03, 0.12), "monitor": (0.0, 0.03)}
_FARAWAY: Final = 9.0  # an edge that nobody sees


class _Edges(NamedTuple):
    """A rectangle on the instrument, in faces from the centre of the face."""

    left: float
    top: float
    right: float
    bottom: float

    def grown(self, by: float | NDArray[np.float64]) -> _Edges:
        """Return it larger by a width, or by one for each edge."""
        left, top, right, bottom = np.broadcast_to(np.asarray(by, float), 4)
        return _Edges(self.left - left, self.top - top, self.right + right, self.bottom + bottom)


def held(kind: str, shown: FaceInScene, behind: FaceInScene, rng: Generator) -> SyntheticAttack:
    """Show a face on an instrument that is held, or stands, in another's scene.

    Args:
        kind: "phone", "tablet", "monitor", "paper" or "photo".
        shown: the face on it.
        behind: the scene.
        rng: source of every draw.
    """
    note: Note = {"instrument": kind}
    x, y = _places(shown)
    where = either(rng, {"over": 0.35, "beside": 0.25, "below": 0.2, "apart": 0.2})
    scale = 1 / log_uniform(rng, 0.45, 1.4)
    offset = rng.normal(0, 0.15, 2)
    if where == "beside":  # whoever holds it is next to it
        offset += (
            np.array([rng.choice([-1, 1]) * rng.uniform(1.1, 2.2), rng.uniform(-0.6, 0.6)]) * scale
        )
    elif where == "below":  # before the chest
        offset += np.array([rng.uniform(-0.3, 0.3), -rng.uniform(0.8, 1.6)]) * scale
    elif where == "apart":  # nobody's head is in sight
        scale *= 1.4
        offset += (
            np.array([rng.choice([-1, 1]) * rng.uniform(1.8, 2.6), rng.uniform(-1, 1)]) * scale
        )
    note |= {"where": where, "scene_scale": round(float(scale), 3)}
    light = _scene(behind, x, y, offset, float(scale))
    if kind in _SCREENS and rng.random() < 0.3:
        light = light * np.float32(log_uniform(rng, 0.3, 1))  # a screen in a dark room
    light = _instrument(light, shown, x, y, kind, 1.0, rng, note)
    return SyntheticAttack(filmed(light, len(x), 1.3, rng, note), kind, note, None, None)


def whole_view(shown: FaceInScene, behind: FaceInScene, rng: Generator) -> SyntheticAttack:
    """Film a display or a sheet so near that no edge of it is seen; nothing is behind."""
    del behind
    kind = either(rng, {"monitor": 0.6, "photo": 0.4})
    note: Note = {"instrument": kind}
    x, y = _places(shown)
    u, v = _turned(x, y, rng, turn=0.06, tilt=0.05)
    light = _looked(shown, u, v, kind, rng, note)
    return SyntheticAttack(filmed(light, len(x), 1.3, rng, note), "whole_view", note, None, None)


def paper_mask(shown: FaceInScene, behind: FaceInScene, rng: Generator) -> SyntheticAttack:
    """Cut a printed face out, and hold or wear it before another's head."""
    note: Note = {"instrument": "mask"}
    x, y = _places(shown)
    scale = float(rng.uniform(0.75, 1.1))
    scene = _scene(behind, x, y, rng.normal(0, 0.04, 2), scale)
    u, v = _turned(x, y, rng, turn=0.12, tilt=0.08)
    bow = float(rng.uniform(0.3, 0.9)) if rng.random() < 0.5 else 0.0
    if bow:  # round a head
        u = np.arcsin(np.clip(u * np.float32(1.3 * bow), -0.98, 0.98)) / np.float32(1.3 * bow)
    sheet = _looked(shown, u, v, "paper" if rng.random() < 0.7 else "photo", rng, note)
    sheet *= _same_brightness(sheet, scene, u, v, rng)
    sheet *= 1 - np.float32(rng.uniform(0, 0.5) * (bow > 0)) * np.clip(1.4 * u, -1, 1) ** 2
    outline, reach = _outline(shown, u, v, rng)
    margin = 0.0 if rng.random() < 0.6 else float(rng.uniform(0.004, 0.05))
    px = float(shown.sides.mean())
    light = _shadowed(scene, outline - np.float32(margin), px, rng)
    paper = np.float32(rng.uniform(0.5, 1.0)) * colour_gains(rng, 0.03)
    paper = paper * np.float32(np.quantile(scene, 0.9))
    light = _over(light, paper, outline - np.float32(margin), px, rng)
    light = _over(light, sheet, outline, px, rng)
    if rng.random() < 0.3:
        light = _eye_holes(light, scene, shown, u, v, px, rng)
    if rng.random() < 0.35:
        light = _fingers(light, u, v, reach.grown(margin), (0.05, 0.1), px, rng)
    return SyntheticAttack(filmed(light, len(x), 1.3, rng, note), "paper_mask", note, None, None)


def beside(bona_fide: FaceInScene, other: FaceInScene, rng: Generator) -> NDArray[np.uint8]:
    """Put an instrument beside a bona fide face, not over it: it says nothing about the face.

    Args:
        bona_fide: whose picture it is.
        other: shown on the instrument, or only part of it.
        rng: source of every draw.

    Returns:
        (S, S, 3) RGB.
    """
    note: Note = {}
    x, y = _places(bona_fide)
    light = to_light(bona_fide.image)
    for _ in range(int(rng.integers(1, 3))):
        size = log_uniform(rng, 0.15, 0.6)
        towards = rng.uniform(0, 2 * np.pi)
        away = np.array([np.cos(towards), np.sin(towards)])
        away *= (0.65 + 1.7 * size) * rng.uniform(1, 1.4) / np.abs(away).max()
        near_x, near_y = (
            (p - np.float32(a)) / np.float32(size) for p, a in zip((x, y), away, strict=True)
        )
        if rng.random() < 0.6:  # not its face, but what is beside it
            near_x = near_x + np.float32(rng.choice([-1.4, 1.4]))
        kind = either(rng, {**_SCREENS, **_SHEETS})
        light = _instrument(light, other, near_x, near_y, kind, size, rng, note)
    return filmed(light, len(x), 0.5, rng, note)


def _instrument(
    scene: Plane,
    shown: FaceInScene,
    x: Plane,
    y: Plane,
    kind: str,
    size: float,
    rng: Generator,
    note: Note,
) -> Plane:
    """Return the scene with an instrument over it; `size` is of its face, in units of x and y."""
    px = float(shown.sides.mean()) * size  # camera pixels per face on the instrument
    turn = 0.06 if kind == "monitor" else 0.15
    u, v = _turned(x, y, rng, turn=turn, tilt=0.08)
    if kind in _SHEETS and rng.random() < 0.6:
        u, v = _bent(u, v, rng)
    light = _looked(shown, u, v, kind, rng, note)
    ends = _Edges(*(-shown.centre / shown.sides), *((len(x) - shown.centre) / shown.sides))
    low, high = _REACH[kind]
    left, top, right, bottom = rng.uniform(low, high, 4)
    if kind == "phone" and rng.random() < 0.7:  # upright
        left, top = rng.uniform(0.55, 1.0), rng.uniform(0.7, 1.5)
        right, bottom = left * rng.uniform(0.85, 1.15), rng.uniform(0.7, 1.5)
    picture = _Edges(
        max(-left, ends.left), max(-top, ends.top), min(right, ends.right), min(bottom, ends.bottom)
    )
    if kind in _SCREENS:
        return _device(scene, light, u, v, picture, kind, px, rng)
    margin = 0.0 if rng.random() < 0.4 else float(rng.uniform(0.02, 0.3))
    sheet = picture.grown(margin * rng.uniform(0.5, 2, 4))
    edge = _rounded(u, v, sheet, 0.06 if rng.random() < 0.2 else 0.0)
    if rng.random() < 0.3:  # torn, or cut by hand
        edge = edge + np.float32(0.012) * smooth_field(rng, len(x), 9)
    white = np.float32(rng.uniform(0.55, 0.95) * np.quantile(scene, 0.9)) * colour_gains(rng, 0.03)
    scene = _shadowed(scene, edge, px, rng)
    scene = _over(scene, white, edge, px, rng)
    scene = _over(scene, light, np.maximum(_rounded(u, v, picture, 0.0), edge), px, rng)
    if rng.random() < 0.55:
        scene = _fingers(scene, u, v, sheet, (0.04, 0.14), px, rng)
    return scene


def _device(
    scene: Plane,
    light: Plane,
    u: Plane,
    v: Plane,
    picture: _Edges,
    kind: str,
    px: float,
    rng: Generator,
) -> Plane:
    """Return the scene with a display over it: body, screen, bars beside the picture, picture."""
    bars = np.zeros(4)
    if rng.random() < 0.3:  # letter box, or an app around the picture
        bars[[1, 3]] = rng.uniform(0, 0.5, 2)
    elif rng.random() < 0.3:
        bars[[0, 2]] = rng.uniform(0, 0.3)
    screen = picture.grown(bars)
    rim = np.full(4, log_uniform(rng, *_BEZEL[kind]))
    if kind == "phone" and rng.random() < 0.4:  # an older one, with a chin
        rim[[1, 3]] += rng.uniform(0.1, 0.35)
    corner = float(rng.uniform(*_CORNER[kind]))
    body = _rounded(u, v, screen.grown(rim), corner)
    tone = {"black": 0.01, "grey": 0.1, "white": 0.6}[
        either(rng, {"black": 0.7, "grey": 0.15, "white": 0.15})
    ]
    around = np.float32(np.quantile(scene, 0.9))
    shell = np.float32(tone * np.exp(rng.normal(0, 0.3))) * around * colour_gains(rng, 0.03)
    shell = shell * (1 + np.float32(0.15) * smooth_field(rng, len(u), 3))
    empty = np.full(
        (3, 1, 1), rng.choice([0.004, 0.01, 0.5, 0.9], p=[0.45, 0.25, 0.15, 0.15]), np.float32
    )
    scene = _shadowed(scene, body, px, rng)
    scene = _over(scene, shell, body, px, rng)
    glass = np.maximum(_rounded(u, v, screen, 0.7 * corner if rng.random() < 0.6 else 0.0), body)
    scene = _over(scene, empty, glass, px, rng)
    scene = _over(scene, light, np.maximum(_rounded(u, v, picture, 0.0), glass), px, rng)
    if kind != "monitor" and rng.random() < 0.55:
        scene = _fingers(scene, u, v, screen.grown(rim), (0.08, 0.2), px, rng)
    return scene


def _looked(shown: FaceInScene, u: Plane, v: Plane, kind: str, rng: Generator, note: Note) -> Plane:
    """Return the light of the picture on an instrument, wherever the camera looks."""
    mirrored = rng.random() < 0.5  # about the face, so that it stays where it is
    surface = _surface_of(shown, -u if mirrored else u, v)
    if kind in _SCREENS:
        return on_display(shown.image, surface, rng, note)
    light = on_sheet(shown.image, surface, rng, note)
    if kind == "photo" and rng.random() < 0.4:
        light = light + glare(rng, len(u), _GLARE, note)
    return light


def _places(face: FaceInScene) -> tuple[Plane, Plane]:
    """Return where each pixel lies, in units of the face's sides from its centre."""
    at = np.arange(len(face.image), dtype=np.float32) + np.float32(0.5)
    (cx, cy), (width, height) = face.centre.astype(np.float32), face.sides.astype(np.float32)
    x, y = np.broadcast_arrays((at[None, :] - cx) / width, (at[:, None] - cy) / height)
    return x, y


def _surface_of(face: FaceInScene, u: Plane, v: Plane) -> Surface:
    """Return the places (in faces) as places of a face's stored picture, -1..1."""
    half = np.float32(len(face.image) / 2)
    (cx, cy), (width, height) = face.centre.astype(np.float32), face.sides.astype(np.float32)
    return Surface((u * width + cx) / half - 1, (v * height + cy) / half - 1)


def _scene(
    behind: FaceInScene, x: Plane, y: Plane, offset: NDArray[np.float64], scale: float
) -> Plane:
    """Return another's picture as background: its face at `offset`, `scale` times as large."""
    dx, dy = np.float32(offset[0]), np.float32(offset[1])
    surface = _surface_of(behind, (x - dx) / np.float32(scale), (y - dy) / np.float32(scale))
    return surface.sample(to_light(behind.image), outside="reflection")


def _turned(x: Plane, y: Plane, rng: Generator, *, turn: float, tilt: float) -> tuple[Plane, Plane]:
    """Return the places on a plane that is turned and tilted about the centre of the face."""
    angle, aspect = rng.normal(0, turn), np.exp(rng.normal(0, 0.05))
    px, py = rng.uniform(-tilt, tilt, 2).astype(np.float32)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    depth = np.maximum(1 + px * x + py * y, np.float32(0.2))
    u: Plane = (cos * x - sin * y) * np.float32(aspect) / depth
    v: Plane = (sin * x + cos * y) / np.float32(aspect) / depth
    return u, v


def _bent(u: Plane, v: Plane, rng: Generator) -> tuple[Plane, Plane]:
    """Return the places on a sheet that is bowed along a random direction."""
    turn, wave = rng.uniform(0, np.pi), np.float32(rng.uniform(0.6, 2.0))
    phase, bend = np.float32(rng.uniform(0, 2 * np.pi)), np.float32(rng.uniform(0, 0.2))
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    push = bend * (np.sin(wave * (cos * u + sin * v) + phase) - np.sin(phase))
    return u + cos * push, v + sin * push


def _rounded(u: Plane, v: Plane, edges: _Edges, corner: float) -> Plane:
    """Return the distance outside a rectangle with round corners, in faces; inside it is < 0."""
    half_u, half_v = (edges.right - edges.left) / 2, (edges.bottom - edges.top) / 2
    corner = min(corner, half_u, half_v)
    across = np.abs(u - np.float32((edges.left + edges.right) / 2)) - np.float32(half_u - corner)
    down = np.abs(v - np.float32((edges.top + edges.bottom) / 2)) - np.float32(half_v - corner)
    outside = np.hypot(np.maximum(across, 0), np.maximum(down, 0))
    distance: Plane = outside + np.minimum(np.maximum(across, down), 0) - np.float32(corner)
    return distance


def _covered(distance: Plane, px: float, soft_px: float) -> Plane:
    """Return 0..1: how much of each pixel lies within an edge that is `soft_px` wide."""
    covered: Plane = np.clip(np.float32(0.5) - distance * np.float32(px / soft_px), 0, 1)
    return covered


def _over(light: Plane, above: Plane, distance: Plane, px: float, rng: Generator) -> Plane:
    """Lay what is within an edge over a picture."""
    covered = _covered(distance, px, float(rng.uniform(1, 2)))
    laid: Plane = light + covered * (above - light)
    return laid


def _shadowed(light: Plane, distance: Plane, px: float, rng: Generator) -> Plane:
    """Return the picture with the shadow of what will lie within an edge, beside that edge."""
    sigma = rng.uniform(1, 8)
    shift = np.rint(rng.normal(0, 0.06, 2) * px).astype(int)
    shade = gaussian_filter(_covered(distance, px, 2.0), sigma, truncate=2.0)
    shade = np.roll(shade, (shift[1], shift[0]), (0, 1))
    return light * (1 - np.float32(rng.uniform(0.05, 0.6)) * shade)


def _fingers(
    light: Plane,
    u: Plane,
    v: Plane,
    edges: _Edges,
    thickness: tuple[float, float],
    px: float,
    rng: Generator,
) -> Plane:
    """Let one to four fingers reach over an edge of the instrument."""
    radius = float(rng.uniform(*thickness))
    side, along = int(rng.integers(4)), rng.uniform(0.2, 0.8)
    slant = rng.normal(0, 0.35)
    skin = np.exp(rng.normal(0, 0.2)) * np.array([0.5, 0.3, 0.22]) * log_uniform(rng, 0.15, 1.5)
    for i in range(int(rng.integers(1, 5))):
        step = along + 2.1 * radius * i / max(edges.bottom - edges.top, 0.1)
        if side < 2:
            base = np.array(
                [(edges.left, edges.right)[side], edges.top + (edges.bottom - edges.top) * step]
            )
            inward = np.array([1.0 - 2 * side, 0.0])
        else:
            base = np.array(
                [
                    edges.left + (edges.right - edges.left) * step,
                    (edges.top, edges.bottom)[side - 2],
                ]
            )
            inward = np.array([0.0, 1.0 - 2 * (side - 2)])
        angle = slant + rng.normal(0, 0.12)
        cos, sin = np.cos(angle), np.sin(angle)
        inward = np.array([cos * inward[0] - sin * inward[1], sin * inward[0] + cos * inward[1]])
        tip, root = (
            base + inward * radius * rng.uniform(1, 4.5),
            base - inward * radius * rng.uniform(4, 14),
        )
        distance = _capsule(u, v, root, tip, radius * rng.uniform(0.85, 1.1))
        light = light * (
            1 - np.float32(0.35) * _covered(distance - np.float32(0.25 * radius), px, radius * px)
        )
        round_ = np.sqrt(np.clip(-distance / np.float32(radius), 0, 1))
        colour = (skin * np.exp(rng.normal(0, 0.08, 3))).astype(np.float32)[:, None, None]
        light = _over(
            light, colour * (np.float32(0.6) + np.float32(0.4) * round_), distance, px, rng
        )
    return light


def _capsule(
    u: Plane, v: Plane, start: NDArray[np.float64], end: NDArray[np.float64], radius: float
) -> Plane:
    """Return the distance outside a line of some thickness with round ends."""
    du, dv = (end - start).astype(np.float32)
    su, sv = start.astype(np.float32)
    along = np.clip(
        ((u - su) * du + (v - sv) * dv) / max(du * du + dv * dv, np.float32(1e-6)), 0, 1
    )
    distance: Plane = np.hypot(u - su - along * du, v - sv - along * dv) - np.float32(radius)
    return distance


def _same_brightness(sheet: Plane, scene: Plane, u: Plane, v: Plane, rng: Generator) -> np.float32:
    """Return the gain that lights a sheet about as the head behind it is lit."""
    inner = (u / np.float32(0.3)) ** 2 + (v / np.float32(0.35)) ** 2 < 1
    if not inner.any():
        return np.float32(1)
    ratio = (scene[:, inner].mean() + 0.01) / (sheet[:, inner].mean() + 0.01)
    gain = np.clip(ratio, 0.3, 3) ** rng.uniform(0.4, 1) * np.exp(rng.normal(0.05, 0.25))
    return np.float32(gain)


def _outline(shown: FaceInScene, u: Plane, v: Plane, rng: Generator) -> tuple[Plane, _Edges]:
    """Return the distance outside a cut-out face, in faces, and about where it ends."""
    points = (shown.landmarks - shown.centre) / shown.sides
    eyes, mouth = points[:2].mean(0), points[3:].mean(0)
    height = max(float(np.linalg.norm(mouth - eyes)), 0.25)
    centre = eyes + 0.42 * (mouth - eyes)
    x, y = u - np.float32(centre[0]), v - np.float32(centre[1])
    half = rng.uniform(0.95, 1.25) * height
    up, down = rng.uniform(0.95, 1.75) * height, rng.uniform(1.05, 1.4) * height
    style = either(rng, {"face": 0.55, "strip": 0.2, "head": 0.25})
    if style == "strip":  # the own hair above it, the own neck below
        wide, low = half * rng.uniform(1, 1.35), down * rng.uniform(1, 1.5)
        distance = _rounded(x, y, _Edges(-wide, -up, wide, low), float(rng.uniform(0, 0.12)))
        half, down = wide, low
    else:
        if style == "head":
            half, up, down = (
                half * rng.uniform(1.15, 1.45),
                up * 1.5,
                down * rng.uniform(1.05, 1.25),
            )
        power = rng.uniform(1.8, 3.0)
        reach = np.where(y < 0, np.float32(up), np.float32(down))
        turn = np.arctan2(y, x)
        radius = (np.abs(np.cos(turn) / half) ** power + np.abs(np.sin(turn) / reach) ** power) ** (
            -1 / power
        )
        for order, size in ((2, 0.02), (3, 0.02), (5, 0.012)):  # by hand
            radius = radius * (
                1 + rng.normal(0, size) * np.cos(order * turn + rng.uniform(0, 2 * np.pi))
            )
        distance = (np.hypot(x, y) - radius).astype(np.float32)
    cx, cy = centre
    return distance, _Edges(cx - half, cy - up, cx + half, cy + down)


def _eye_holes(
    light: Plane,
    scene: Plane,
    shown: FaceInScene,
    u: Plane,
    v: Plane,
    px: float,
    rng: Generator,
) -> Plane:
    """Cut out the eyes, and show what is behind, in the shade."""
    points = (shown.landmarks - shown.centre) / shown.sides
    width, height = rng.uniform(0.05, 0.1), rng.uniform(0.03, 0.06)
    shade = np.float32(rng.uniform(0.1, 0.9))
    for x, y in points[:2]:
        far = np.hypot(
            (u - np.float32(x)) / np.float32(width), (v - np.float32(y)) / np.float32(height)
        )
        light = _over(light, scene * shade, (far - 1) * np.float32(min(width, height)), px, rng)
    return light
