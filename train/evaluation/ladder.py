"""Degradations of bona fide footage: a detector must not take a poor camera for an attack.

One thing at a time, in a few rungs. Frames keep their time stamps.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from fractions import Fraction
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import av  # noqa: TID251 - not a source: x264 damages footage as a camera's encoder would
import torch
from torch.nn import functional as F

from train.evaluation.clip_tracks import frames_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from stream.config import DecodeConfig
    from stream.records import Frame, FrameStamp
    from train.evaluation.shipped_sets import Degradation

_LINES: Final = 480  # of the picture that a blur's width is told for
_TICK: Final = Fraction(1, 90_000)
_EVERY_FRAME: Final = 1000.0  # frames a second, more than any clip has


def first_seconds(path: Path, decode: DecodeConfig, seconds: float) -> Iterator[Frame]:
    """Yield the frames that are due of the beginning of a clip.

    Raises:
        TrainError: it is missing.
        SourceError: it can't be read.
    """
    return takewhile(lambda frame: frame.stamp.pts_s < seconds, frames_of(path, decode))


def degraded(
    path: Path, decode: DecodeConfig, seconds: float, how: Degradation, rung: float
) -> Iterator[Frame]:
    """Yield the same frames, degraded.

    Args:
        path: of the clip.
        decode: which frames are due.
        seconds: of the clip, from its start.
        how: what is done; see `LadderRungs`.
        rung: how much of it.

    Raises:
        TrainError: the clip is missing.
        SourceError: it can't be read.
    """
    if how == "bit_rate":
        every_frame = decode.model_copy(update={"analyse_fps": _EVERY_FRAME})
        with tempfile.TemporaryDirectory(prefix="ladder-") as folder:
            stored = Path(folder) / "clip.mkv"
            # Twice over the clip: its frames would not fit into memory.
            stamps = [frame.stamp for frame in first_seconds(path, every_frame, seconds)]
            _encode(first_seconds(path, every_frame, seconds), stamps, stored, rung)
            yield from frames_of(stored, decode)
        return
    for frame in first_seconds(path, decode, seconds):
        image = _changed(frame, how, rung)
        height, width = image.shape[:2]
        yield replace(frame, image=image, stamp=replace(frame.stamp, width=width, height=height))


def _changed(frame: Frame, how: Degradation, rung: float) -> Tensor:
    """Return the degraded picture, (H, W, 3) uint8; `scale` changes its size."""
    signal = frame.image.permute(2, 0, 1)[None].float() / 255
    match how:
        case "blur":
            signal = _blurred(signal, rung * min(signal.shape[-2:]) / _LINES)
        case "scale":
            size = [max(1, round(side * rung)) for side in signal.shape[-2:]]
            signal = F.interpolate(signal, size, mode="bilinear", antialias=True)
        case "noise":
            draw = torch.Generator().manual_seed(frame.stamp.index)
            signal = signal + rung / 255 * torch.randn(signal.shape, generator=draw)
        case "gamma":
            signal = signal**rung
        case "bit_rate":
            raise ValueError("the bit rate is that of a clip, not of a picture")
    return (signal.clamp(0, 1) * 255).round().to(torch.uint8)[0].permute(1, 2, 0).contiguous()


def _blurred(signal: Tensor, sigma: float) -> Tensor:
    """Blur (1, 3, H, W) by a Gaussian, border repeated."""
    reach = max(1, round(3 * sigma))
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).expand(3, 1, 1, -1)
    for turned, pad in ((weights, (reach, reach, 0, 0)), (weights.mT, (0, 0, reach, reach))):
        signal = F.conv2d(F.pad(signal, pad, mode="replicate"), turned, groups=3)
    return signal


def _encode(
    frames: Iterable[Frame], stamps: Sequence[FrameStamp], path: Path, bits_per_pixel: float
) -> None:
    """Store frames with these stamps as H.264 of about a bit rate."""
    width, height = stamps[0].width // 2 * 2, stamps[0].height // 2 * 2
    length_s = stamps[-1].pts_s - stamps[0].pts_s
    fps = (len(stamps) - 1) / length_s if length_s else 25.0
    rate = round(bits_per_pixel * width * height * fps)
    options = {"preset": "veryfast", "maxrate": str(rate), "bufsize": str(rate)}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1001), options=options
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate, stream.gop_size = rate, round(2 * fps)
        stream.codec_context.time_base = _TICK
        stream.codec_context.colorspace = (
            av.video.reformatter.Colorspace.ITU601
        )  # what pictures are converted to
        stream.codec_context.thread_count = 1
        for frame in frames:
            even = frame.image[:height, :width].contiguous().numpy()
            picture = av.VideoFrame.from_ndarray(even, format="rgb24")
            picture.pts, picture.time_base = round(frame.stamp.pts_s / _TICK), _TICK
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
