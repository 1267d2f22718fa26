"""The clip that all measurements run on: one face that moves through a noisy picture.

The face is scikit-image's `astronaut()` (Eileen Collins, by NASA, in the public domain). Noise
keeps the encoder busy, as a camera's sensor does: without it most of the picture would be skipped
blocks, and decoding would look cheaper than it is.
"""

from __future__ import annotations

import io
import math
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import av
import numpy as np
import skimage.data

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

WIDTH, HEIGHT, FPS = 1280, 720, 25
_PERIOD_S: Final = 10  # of the motion, so that a repetition shows no seam
_BITS_PER_S: Final = 3_000_000
_NOISE: Final = 3.0  # standard deviation, grey levels
_NOISE_PX: Final = 64  # a frame's noise is a random window of a picture so much larger


def write_clip(path: Path, seconds: int, nobody_s: float = 0.0) -> None:
    """Encode a clip as cameras do: H.264, 1280x720, 25 fps, about 3 Mbit/s, without B-frames.

    The face is about 90 px wide and 110 px high and never stands still.

    Args:
        path: .mp4, overwritten.
        seconds: rounded up to whole periods of the motion: one is encoded, and repeated.
        nobody_s: at the beginning of each period of 10 s, nobody is to be seen for so long.
    """
    period = _encoded_period(nobody_s)
    with av.open(str(path), "w") as container:
        stream = None
        for repetition in range(math.ceil(seconds / _PERIOD_S)):
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


def _portrait_corner(number: int, side: int) -> tuple[int, int]:
    """Return the left and the top of the portrait in a frame, px."""
    turn = 2 * math.pi * number / (_PERIOD_S * FPS)
    x = round((WIDTH - side) / 2 + 250 * math.sin(turn))
    y = round((HEIGHT - side) / 2 + 60 * math.sin(2 * turn))
    return x, y


def _encoded_period(nobody_s: float) -> io.BytesIO:
    file = io.BytesIO()
    options = {"preset": "superfast", "bf": "0", "g": str(2 * FPS), "sc_threshold": "0"}
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.bit_rate = _BITS_PER_S
        for number, picture in enumerate(_pictures(nobody_s)):
            frame = av.VideoFrame.from_ndarray(picture).reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file


def _pictures(nobody_s: float) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of one period, (HEIGHT, WIDTH, 3) RGB."""
    random = np.random.default_rng(2026)
    noise = random.normal(0, _NOISE, (HEIGHT + _NOISE_PX, WIDTH + _NOISE_PX, 1))
    grain = np.rint(noise).astype(np.int16)
    down, right = np.mgrid[:HEIGHT, :WIDTH]
    room = (90 + 30 * down // HEIGHT + 12 * (right // 160 % 2)).astype(np.int16)  # wallpaper
    portrait = skimage.data.astronaut()  # type: ignore[no-untyped-call]
    side = len(portrait)
    for number in range(_PERIOD_S * FPS):
        x, y = _portrait_corner(number, side)
        picture = np.repeat(room[..., None], 3, axis=2)
        if number >= nobody_s * FPS:
            picture[y : y + side, x : x + side] = portrait
        top, left = random.integers(_NOISE_PX, size=2)
        picture += grain[top : top + HEIGHT, left : left + WIDTH]
        yield picture.clip(0, 255).astype(np.uint8)


def _time_base(time_base: Fraction | None) -> Fraction:
    if time_base is None:
        raise ValueError("the encoded stream has no time base")
    return time_base
