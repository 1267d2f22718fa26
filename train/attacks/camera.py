"""What cameras and links do to a picture, drawn alike for bona fide faces and attacks.

A detector must not learn that attacks are dull, dark, soft or compressed (the first experiment did:
low contrast, black lift and weak colour gave "attacks" on plain office video). So every such change
is here, with one distribution for both classes.
"""

from __future__ import annotations

import io
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import av  # noqa: TID251 - not a source: x264 damages training pictures as a camera's encoder would
import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_SHRINK = (
    Image.Resampling.BOX,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.NEAREST,
)
_ENLARGE = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)


def degrade(
    image: NDArray[np.uint8], rng: Generator, *, mirror: bool = True, severest: float = 1.0
) -> NDArray[np.uint8]:
    """Film the picture with a random camera: flip, lens, light, sensor, tone curve, codec, scaler.

    No draw depends on the pixels, so two pictures of one size given equal generators change alike.
    The flip mirrors landmarks too: cut the face by a box that is centred in the picture, or let
    the augmentation flip.

    Args:
        image: (S, S, 3) RGB, S even.
        rng: Source of every draw.
        mirror: Flip half of the pictures.
        severest: The worst camera, 0..1; tone is not tied to it.

    Returns:
        A new picture of the same shape.
    """
    size = image.shape[0]
    # One severity for all steps: a good camera is good in everything, and few pictures are ruined.
    severity = severest * float(rng.beta(1.1, 1.8))
    if rng.random() < 0.5 and mirror:
        image = np.ascontiguousarray(image[:, ::-1])
    small = size
    if rng.random() < 0.25 + 0.5 * severity:
        factor = 1 + 3 * severity * rng.random()
        small = max(32, 2 * round(size / factor / 2))
    if small != size:
        shrink = _SHRINK[int(rng.choice(4, p=[0.3, 0.35, 0.3, 0.05]))]
        image = np.asarray(Image.fromarray(image).resize((small, small), shrink))

    signal = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32)
    signal *= np.float32(1 / 255)
    signal = _through_lens(signal, severity, rng)
    signal = _onto_sensor(signal, severity, rng)
    signal = _developed(signal, severity, rng)
    image = (np.clip(signal, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)

    if rng.random() < 0.3:
        image = recompress_h264(
            image, int(rng.integers(18, 27 + round(12 * severity))), rng.integers(-2, 3, 2)
        )
    if rng.random() < 0.4:
        image = recompress_jpeg(image, int(rng.integers(95 - round(65 * severity) - 10, 96)))
    if small != size:
        enlarge = _ENLARGE[int(rng.choice(3, p=[0.5, 0.4, 0.1]))]
        image = np.asarray(Image.fromarray(image).resize((size, size), enlarge))
    return np.array(image, order="C")  # a picture from PIL is read-only


def recompress_jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """Return the picture after JPEG at `quality`, 1..95."""
    stored = io.BytesIO()
    Image.fromarray(image).save(stored, "JPEG", quality=quality)
    return np.array(Image.open(stored))


def recompress_h264(
    image: NDArray[np.uint8], crf: int, motion_px: NDArray[np.integer]
) -> NDArray[np.uint8]:
    """Return the picture as the last of three frames of H.264.

    It is predicted from the ones before, as almost all frames of a stream are.

    Args:
        image: (H, W, 3) RGB, H and W even.
        crf: Rate factor of x264, 0..51; 18 is hard to see, 35 is blocky.
        motion_px: (2,) shift to the right and down from frame to frame.
    """
    height, width = image.shape[:2]
    encoder = av.VideoCodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base = Fraction(1, 25)
    encoder.thread_count = 1
    encoder.options = {"preset": "superfast", "tune": "zerolatency", "crf": str(crf)}
    decoder = av.VideoCodecContext.create("h264", "r")
    decoder.thread_count = 1
    packets = []
    for index in range(3):
        shift = (2 - index) * motion_px
        frame = av.VideoFrame.from_ndarray(
            np.roll(image, (shift[1], shift[0]), (0, 1)), format="rgb24"
        )
        frame.pts = index
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    frames = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
    return cast("NDArray[np.uint8]", frames[-1].to_ndarray(format="rgb24"))


def _through_lens(
    signal: NDArray[np.float32], severity: float, rng: Generator
) -> NDArray[np.float32]:
    """Defocus, motion during the exposure, and dark corners."""
    kind = rng.random()
    if kind < 0.25:
        sigma = 0.3 + 1.6 * severity * rng.random()
        signal = gaussian_filter(signal, (0, sigma, sigma), mode="nearest", truncate=2.5)
    elif kind < 0.37:
        reach, turn = 1 + 5 * severity * rng.random(), rng.uniform(0, np.pi)
        steps = np.linspace(-reach / 2, reach / 2, 2 * int(np.ceil(reach / 2)) + 1)
        shifts = {(round(s * np.sin(turn)), round(s * np.cos(turn))) for s in steps}
        signal = np.mean([_shifted(signal, *shift) for shift in sorted(shifts)], axis=0)
    if rng.random() < 0.2:
        depth, (cx, cy) = 0.5 * severity * rng.random(), rng.uniform(-0.5, 0.5, 2)
        axis = np.linspace(-1, 1, signal.shape[1], dtype=np.float32)
        radius = (axis - np.float32(cx))[None, :] ** 2 + (axis - np.float32(cy))[:, None] ** 2
        signal = signal * (1 - np.float32(depth / 2) * radius)
    return signal


def _shifted(signal: NDArray[np.float32], down: int, right: int) -> NDArray[np.float32]:
    """Shift by whole pixels, border repeated."""
    rows = np.clip(np.arange(signal.shape[1]) - down, 0, signal.shape[1] - 1)
    columns = np.clip(np.arange(signal.shape[2]) - right, 0, signal.shape[2] - 1)
    return signal[:, rows][:, :, columns]


def _onto_sensor(
    signal: NDArray[np.float32], severity: float, rng: Generator
) -> NDArray[np.float32]:
    """Too little light, then noise, then the gain that hides part of it."""
    light = np.exp(-2.5 * severity * rng.random()) if rng.random() < 0.2 else 1.0
    noise = 0.004 + 0.05 * severity * rng.random() ** 1.5
    if light < 1:
        signal = signal * np.float32(light)
        noise *= 0.6
    if light < 1 or rng.random() < 0.5:
        grain = rng.standard_normal(signal.shape, dtype=np.float32)
        if rng.random() < 0.5:  # a camera that smooths colour leaves noise in the brightness only
            colour = np.float32(rng.uniform(0, 0.5))
            grain = (1 - colour) * grain[1] + colour * grain
        signal = signal + np.float32(noise) * grain * np.sqrt(
            np.clip(signal, 0, 1) + np.float32(0.15)
        )
    if light < 1:
        signal = signal * np.float32(light ** -rng.uniform(0.5, 1.0))
    return signal


def _developed(signal: NDArray[np.float32], severity: float, rng: Generator) -> NDArray[np.float32]:
    """White balance, colour, tone curve, black lift and sharpening: the camera's taste.

    Tone is not tied to the severity: a sharp picture of a good camera may be washed out. Its spread
    was chosen so that tone alone hardly tells simulated prints and replays from bona fide faces.
    """
    if rng.random() < 0.6:
        warm, green = rng.normal(0, 0.07), rng.normal(0, 0.03)
        matrix = np.diag(np.exp(np.array([warm, green, -warm], np.float32)))
        grey = rng.random() < 0.03
        saturation = np.float32(0 if grey else min(np.exp(rng.normal(-0.25, 0.35)), 1.3))
        matrix = (saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * _LUMA) @ matrix
        signal = (matrix @ signal.reshape(3, -1)).reshape(signal.shape)
    if rng.random() < 0.4:
        signal = np.clip(signal, 0, None) ** np.float32(np.exp(rng.normal(0, 0.25)))
    if rng.random() < 0.6:
        contrast, brightness = np.exp(rng.normal(-0.15, 0.25)), 0.5 + rng.normal(0, 0.08)
        signal = np.float32(contrast) * (signal - np.float32(0.5)) + np.float32(brightness)
    if rng.random() < 0.3:
        halo, sigma = 0.2 + 1.5 * severity * rng.random(), rng.uniform(0.7, 1.6)
        soft = gaussian_filter(signal, (0, sigma, sigma), mode="nearest", truncate=2.5)
        signal = signal + np.float32(halo) * (signal - soft)
    if rng.random() < 0.5:  # flare, haze, or a cheap sensor's black
        lift = 0.35 * rng.random() ** 1.5
        signal = np.float32(lift) + np.float32(1 - lift) * np.clip(signal, 0, 1)
    return signal
