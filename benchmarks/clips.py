"""The clips that measurements run on: one face that moves through a noisy picture, or several.

The face is scikit-image's `astronaut()` (Eileen Collins, by NASA, in the public domain). Noise
keeps the encoder busy, as a camera's sensor does: without it most of the picture would be skipped
blocks, and decoding would look cheaper than it is.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import av
import numpy as np
import skimage.data
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

WIDTH, HEIGHT, FPS = 1280, 720, 25
_PERIOD_S: Final = 10  # of the motion, so that a repetition shows no seam
_BITS_PER_S: Final = 3_000_000
_NOISE: Final = 3.0  # standard deviation, grey levels
_NOISE_PX: Final = 64  # a frame's noise is a random window of a picture so much larger
_HEAD: Final = (148, 30, 298, 200)  # of the portrait: left, top, right, bottom, px


@dataclass(frozen=True, slots=True)
class Scene:
    """What a clip shows: faces that grow with the picture; several stand in a grid."""

    width: int = WIDTH
    height: int = HEIGHT
    faces: int = 1
    key_frame_s: int = 2  # from one to the next

    @property
    def bits_per_s(self) -> float:
        """As cameras are set up: 3 Mbit/s of 1280x720, 5.5 of 1920x1080, 15.6 of 3840x2160."""
        pixels = self.width * self.height / (WIDTH * HEIGHT)
        return float(_BITS_PER_S * pixels**0.75)


ONE_FACE: Final = Scene()


def write_clip(
    path: Path, seconds: int, nobody_s: Sequence[float] = (0.0,), scene: Scene = ONE_FACE
) -> None:
    """Encode a clip as cameras do: H.264, 25 fps, without B-frames; 1280x720 at about 3 Mbit/s.

    A face alone is about 90 px wide and 110 px high, of 720, and never stands still.

    Args:
        path: .mp4, overwritten.
        seconds: rounded up to whole periods of the motion, 10 s, which are encoded once.
        nobody_s: for how long at its beginning each period shows nobody, over and over.
        scene: what else it shows.
    """
    periods = {empty_s: _encoded_period(empty_s, scene) for empty_s in {*nobody_s}}
    with av.open(str(path), "w") as container:
        stream = None
        for repetition in range(math.ceil(seconds / _PERIOD_S)):
            period = periods[nobody_s[repetition % len(nobody_s)]]
            period.seek(0)
            with av.open(period, "r") as source:
                (video,) = source.streams.video
                if stream is None:
                    stream = container.add_stream_from_template(video)
                shift = round(repetition * _PERIOD_S / _time_base(video.time_base))
                for packet in source.demux(video):
                    if packet.pts is None or packet.dts is None:  # the one that empties a decoder
                        continue
                    packet.pts += shift
                    packet.dts += shift
                    packet.stream = stream
                    container.mux(packet)


def face_box(number: int) -> NDArray[np.float32]:
    """Return where the face is in a frame: (4,) x1 y1 x2 y2, px."""
    x, y = _portrait_corner(number, len(skimage.data.astronaut()))  # type: ignore[no-untyped-call]
    return np.array([x + 178, y + 62, x + 268, y + 172], np.float32)


def _portrait_corner(number: int, side: int, scene: Scene = ONE_FACE) -> tuple[int, int]:
    """Return the left and the top of the portrait in a frame, px."""
    turn = 2 * math.pi * number / (_PERIOD_S * FPS)
    scale = scene.height / HEIGHT
    x = round((scene.width - side) / 2 + 250 * scale * math.sin(turn))
    y = round((scene.height - side) / 2 + 60 * scale * math.sin(2 * turn))
    return x, y


def _encoded_period(nobody_s: float, scene: Scene) -> io.BytesIO:
    file = io.BytesIO()
    key_frames = str(scene.key_frame_s * FPS)
    options = {"preset": "superfast", "bf": "0", "g": key_frames, "sc_threshold": "0"}
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = scene.width, scene.height, "yuv420p"
        stream.bit_rate = round(scene.bits_per_s)
        for number, picture in enumerate(_pictures(nobody_s, scene)):
            frame = av.VideoFrame.from_ndarray(picture).reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file


def _pictures(nobody_s: float, scene: Scene) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of one period, (height, width, 3) RGB."""
    width, height = scene.width, scene.height
    random = np.random.default_rng(2026)
    noise = random.normal(0, _NOISE, (height + _NOISE_PX, width + _NOISE_PX, 1))
    grain = np.rint(noise).astype(np.int16)
    down, right = np.mgrid[:height, :width]
    room = (90 + 30 * down // height + 12 * (right // 160 % 2)).astype(np.int16)  # wallpaper
    portrait = _portrait(scene)
    for number in range(_PERIOD_S * FPS):
        picture = np.repeat(room[..., None], 3, axis=2)
        if number >= nobody_s * FPS:
            for x, y in _corners(number, portrait, scene):
                picture[y : y + portrait.shape[0], x : x + portrait.shape[1]] = portrait
        top, left = random.integers(_NOISE_PX, size=2)
        picture += grain[top : top + height, left : left + width]
        yield picture.clip(0, 255).astype(np.uint8)


def _portrait(scene: Scene) -> NDArray[np.uint8]:
    """Return what stands for each face: the whole portrait, or heads that fit into their cells."""
    whole = skimage.data.astronaut()  # type: ignore[no-untyped-call]
    scale = scene.height / HEIGHT
    if scene.faces == 1 and scale == 1:
        return np.asarray(whole, np.uint8)
    left, top, right, bottom = (0, 0, *whole.shape[1::-1]) if scene.faces == 1 else _HEAD
    if scene.faces > 1:
        scale = min(scale, 0.95 * scene.height / _rows(scene) / (bottom - top))
    size = round(scale * (right - left)), round(scale * (bottom - top))
    return np.asarray(Image.fromarray(whole[top:bottom, left:right]).resize(size))


def _rows(scene: Scene) -> int:
    return math.ceil(math.sqrt(scene.faces))


def _corners(number: int, portrait: NDArray[np.uint8], scene: Scene) -> Iterator[tuple[int, int]]:
    """Yield the left and the top of each face in a frame, px; those of a grid sway."""
    height, width = portrait.shape[:2]
    if scene.faces == 1:
        yield _portrait_corner(number, width, scene)
        return
    rows = _rows(scene)
    cell_w, cell_h = scene.width // rows, scene.height // rows
    for face in range(scene.faces):
        turn = 2 * math.pi * (number / (_PERIOD_S * FPS) + face / scene.faces)
        sway = 0.5 + 0.5 * math.sin(turn)
        x, y = face % rows * cell_w, face // rows * cell_h
        yield x + round(sway * (cell_w - width)), y + (cell_h - height) // 2


def _time_base(time_base: Fraction | None) -> Fraction:
    if time_base is None:
        raise ValueError("the encoded stream has no time base")
    return time_base
