"""How far scores move when a picture's colours or its scaling are taken for others than they are.

    python -m benchmarks.colour_drift CLIP...

Of each clip's first 50 pictures every tenth becomes RGB as streaming makes it, and in other ways;
the same faces, found in ours, are cut from both and scored by every shipped detector.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import av
import numpy as np
import torch
from torch.nn import functional as F

from models import crop_faces
from stream.config import DetectConfig
from stream.decode.colours import Colour, Planes, rgb_of
from stream.decode.on_device import FULL_RANGE
from stream.decode.pyav_packets import matrix_of
from stream.stages.detect import open_detector
from stream.stages.infer import open_classifier
from trt_engines.backends import OnnxRuntimeConfig
from trt_engines.manifest import load_manifest, shipped_engines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from models import InputSpec

N_PICTURES = 50
EVERY = 10
BT601, BT709 = 5, 1


class Way(NamedTuple):
    """How a picture becomes crops."""

    name: str
    rgb: Callable[[Planes, Colour], Tensor]
    spec: Callable[[InputSpec], InputSpec] = lambda spec: spec


def _other_matrix(planes: Planes, colour: Colour) -> Tensor:
    return rgb_of(planes, replace(colour, matrix=BT601 if colour.matrix == BT709 else BT709))


def _other_range(planes: Planes, colour: Colour) -> Tensor:
    return rgb_of(planes, replace(colour, full_range=not colour.full_range))


def _interpolated(left: bool) -> Callable[[Planes, Colour], Tensor]:
    """Return what makes chroma as fine as luma, sited at its left pixels or between them."""

    def rgb(planes: Planes, colour: Colour) -> Tensor:
        height, width = planes.luma.shape
        x = torch.arange(width) + (0.5 if left else 0.0)  # half a pixel of luma to the right
        grid = torch.stack(
            torch.meshgrid(
                (x + 0.5) * (2 / width) - 1,
                (torch.arange(height) + 0.5) * (2 / height) - 1,
                indexing="xy",
            ),
            -1,
        )[None]
        chroma = torch.stack([planes.blue, planes.red])[None].float()
        finer = F.grid_sample(chroma, grid, padding_mode="border", align_corners=False)[0]
        blue, red = finer.round().clamp(0, 255).to(torch.uint8)
        return rgb_of(Planes(planes.luma, blue, red), colour)

    return rgb


def _resized(kind: str) -> Callable[[InputSpec], InputSpec]:
    return lambda spec: spec.model_copy(update={"resize": kind})


WAYS = (
    Way("BT.601 taken for BT.709, or the reverse", _other_matrix),
    Way("limited range taken for full, or the reverse", _other_range),
    Way("chroma interpolated, sited left", _interpolated(left=True)),
    Way("chroma interpolated, sited in the middle", _interpolated(left=False)),
    Way("crops by single samples (bilinear)", rgb_of, _resized("bilinear")),
    Way("crops by means of samples (area)", rgb_of, _resized("area")),
)


def pictures(path: str) -> Iterator[tuple[Planes, Colour]]:
    """Yield some pictures of a clip as planes."""
    with av.open(path) as clip:
        for number, picture in enumerate(clip.decode(video=0)):
            if number == N_PICTURES:
                return
            if number % EVERY or picture.format.name not in {"yuv420p", "yuvj420p"}:
                continue
            planes = (
                torch.frombuffer(bytearray(bytes(plane)), dtype=torch.uint8)
                .view(plane.height, plane.line_size)[:, : plane.width]
                .contiguous()
                for plane in picture.planes
            )
            full = picture.color_range == FULL_RANGE or picture.format.name == "yuvj420p"
            matrix = matrix_of(int(picture.colorspace), picture.height)
            yield Planes(*planes), Colour(matrix, full)


def main() -> None:
    """Print a row per detector and way."""
    torch.set_num_threads(1)
    runtime = OnnxRuntimeConfig()
    detector = open_detector(DetectConfig(), runtime)
    engines = [e.path for e in shipped_engines() if load_manifest(e.path).method is not None]
    print("| detector | way | looks | drift, mean | p95 | max | changed verdicts |")
    print("|---|---|---|---|---|---|---|")
    for path in engines:
        classifier = open_classifier(path, runtime)
        spec, thresholds = classifier.manifest.input, classifier.manifest.thresholds
        assert thresholds is not None
        found: dict[str, list[tuple[float, float]]] = {way.name: [] for way in WAYS}
        for clip in sys.argv[1:]:
            for planes, colour in pictures(clip):
                ours = rgb_of(planes, colour)
                (faces,) = detector.detect([ours], [None])
                boxes = np.array([f.box for f in faces if f.confidence >= 0.95], np.float32)[:2]
                if not len(boxes):
                    continue
                base = classifier.probabilities(crop_faces(ours, boxes, spec))
                for way in WAYS:
                    crops = crop_faces(way.rgb(planes, colour), boxes, way.spec(spec))
                    found[way.name] += zip(base, classifier.probabilities(crops), strict=True)
        for name, pairs in found.items():
            drift = np.array([abs(a - b) for a, b in pairs])
            flips = sum((a >= thresholds.enter) != (b >= thresholds.enter) for a, b in pairs)
            print(
                f"| {path.parent.name} | {name} | {len(drift)} | {drift.mean():.4f} | "
                f"{np.percentile(drift, 95):.4f} | {drift.max():.4f} | {flips} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
