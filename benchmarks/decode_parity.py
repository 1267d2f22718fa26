"""Pixels and scores by DALI on the CPU against those by PyAV.

    python -m benchmarks.decode_parity CLIP...

Each clip's first 50 pictures are encoded anew, in several matrices and ranges, and decoded both
ways; faces are found in PyAV's pictures, and both ways' crops of them scored by the shipped
detector. Once, DALI's pictures are compared without our change of matrix.
"""

from __future__ import annotations

import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from unittest.mock import patch

import av
import numpy as np
import torch
from av.video.stream import VideoStream

from models import crop_faces
from stream.config import DecodeConfig, DetectConfig, ScoreConfig, SourceConfig
from stream.decode import open_decoder
from stream.decode.colours import from_bt601
from stream.stages.detect import open_detector
from stream.stages.infer import open_classifier
from trt_engines.backends import OnnxRuntimeConfig

if TYPE_CHECKING:
    from stream.records import Frame

N_PICTURES = 50
EVERY = 10  # of them is compared
VP9 = {"g": "25", "crf": "20", "b": "0", "deadline": "realtime", "cpu-used": "6"}
MJPEG = {"huffman": "default", "qmin": "2", "qmax": "4"}


class Form(NamedTuple):
    """How clips are encoded."""

    name: str
    codec: str
    pix_fmt: str
    matrix: int  # AVColorSpace
    color_range: int  # AVColorRange
    options: dict[str, str]


FORMS = (
    Form("VP9, BT.601, limited", "libvpx-vp9", "yuv420p", 5, 1, VP9),
    Form("VP9, BT.709, limited", "libvpx-vp9", "yuv420p", 1, 1, VP9),
    Form("VP9, BT.709, full", "libvpx-vp9", "yuv420p", 1, 2, VP9),
    Form("MJPEG, BT.601, full", "mjpeg", "yuvj420p", 5, 2, MJPEG),
)


def encode(source: Path, target: Path, form: Form) -> None:
    """Encode a clip's first pictures."""
    with av.open(str(source)) as clip, av.open(str(target), "w") as output:
        video: VideoStream | None = None
        for number, picture in enumerate(clip.decode(video=0)):
            if number == N_PICTURES:
                break
            if video is None:
                added = output.add_stream(form.codec, rate=25, options=form.options)
                assert isinstance(added, VideoStream)
                video = added
                video.width, video.height = picture.width // 2 * 2, picture.height // 2 * 2
                video.pix_fmt = form.pix_fmt
                video.codec_context.colorspace = form.matrix
                video.codec_context.color_range = form.color_range
            frame = picture.reformat(format="rgb24").reformat(
                width=video.width,
                height=video.height,
                format=form.pix_fmt,
                dst_colorspace=form.matrix,
                dst_color_range=form.color_range,
            )
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(video.encode(frame))
        assert video is not None
        output.mux(video.encode(None))


def decode(path: Path, kind: str) -> list[Frame]:
    """Return all frames of a clip."""
    source = SourceConfig.model_validate({"id": "clip", "uri": str(path)})
    config = DecodeConfig.model_validate({"kind": kind, "analyse_fps": 1000})
    found = open_decoder(source, config, session=0).frames()
    return [frame for frame in found if frame is not None]


def main() -> None:
    """Print a line per form."""
    torch.set_num_threads(1)
    runtime = OnnxRuntimeConfig()
    classifier = open_classifier(ScoreConfig().engines[0].manifest, runtime)
    detector = open_detector(DetectConfig(), runtime)
    thresholds = classifier.manifest.thresholds
    assert thresholds is not None
    for form, as_it_comes in [(form, False) for form in FORMS] + [(FORMS[1], True)]:
        changed = (lambda rgb, _: rgb) if as_it_comes else from_bt601
        means: list[float] = []
        most: list[float] = []
        pairs: list[tuple[float, float]] = []
        n_frames, are_equal = 0, True
        for clip in map(Path, sys.argv[1:]):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "clip.mkv"
                encode(clip, path, form)
                wanted = decode(path, "pyav")
                with patch("stream.decode.dali_gop.from_bt601", changed):
                    found = decode(path, "dali")
            times = [[(f.stamp.index, f.stamp.pts_s) for f in each] for each in (wanted, found)]
            are_equal &= times[0] == times[1]
            n_frames += len(wanted)
            for ours, theirs in zip(wanted[::EVERY], found[::EVERY], strict=True):
                difference = (ours.image.float() - theirs.image.float()).abs()
                means.append(float(difference.mean()))
                most.append(float(difference.max()))
                (faces,) = detector.detect([ours.image], [None])
                boxes = np.array([f.box for f in faces if f.confidence >= 0.95], np.float32)[:2]
                if len(boxes):
                    spec = classifier.manifest.input
                    scores = [
                        classifier.probabilities(crop_faces(f.image, boxes, spec))
                        for f in (ours, theirs)
                    ]
                    pairs += zip(*scores, strict=True)
        drift = np.array([abs(a - b) for a, b in pairs])
        flips = sum((a >= thresholds.enter) != (b >= thresholds.enter) for a, b in pairs)
        print(
            f"{form.name}{', as it comes' if as_it_comes else ''}: {n_frames} frames, counts and "
            f"times {'equal' if are_equal else 'DIFFERENT'}; levels: mean {np.mean(means):.2f}, "
            f"max {max(most):.0f}; {len(drift)} looks: drift mean {drift.mean():.4f}, max "
            f"{drift.max():.4f}, {flips} over the threshold by one way alone",
            flush=True,
        )


if __name__ == "__main__":
    main()
