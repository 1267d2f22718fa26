"""What a bundle holds.

message.json     as it was published
analysis.json    looks, score curve, which frames were analysed (`Analysis`)
config.json      of the run, credentials hidden
producer.json    program, libraries, decoder, digests of all networks (`Producer`)
cut.mkv          the packets around the moment, as they came
crops/           the looks that led to the verdict, and where a detector saw the evidence
manifest.json    with manifest.sig and public_key.pem: the seal
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Final

import numpy as np
from pydantic import BaseModel, Field

from models import file_sha256
from stream import __version__
from stream.records import Verdict
from stream.scan.crops import overlaid, png_of
from trt_engines.manifest import load_manifest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from stream.config import StreamConfig
    from trt_engines.backends import Backend

ANALYSIS: Final = "analysis.json"
CONFIG: Final = "config.json"
CUT: Final = "cut.mkv"
MESSAGE: Final = "message.json"
PRODUCER: Final = "producer.json"
DETECTOR_NETS: Final = ("pnet", "rnet", "onet")


class Part(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """A JSON object of a bundle."""


class Look(Part):
    """One score of one detector."""

    pts_s: float = Field(description="Media time of the frame, seconds.")
    frame: int = Field(description="Its index in the session.")
    detector: int = Field(ge=0, description="In the order of the configuration, from 0.")
    probability: float = Field(ge=0, le=1, description="That the face is an attack.")
    box: tuple[float, float, float, float] = Field(description="x1 y1 x2 y2, px of the frame.")
    crop: str | None = Field(None, description="The picture that was looked at, in the bundle.")


class Fused(Part):
    """What was said of the track at a moment."""

    pts_s: float
    probability: float | None = Field(description="0..1; null before the first look.")
    verdict: Verdict


class AnalysedFrame(Part):
    """A frame that was analysed."""

    index: int
    pts_s: float


class CutFacts(Part):
    """The video of a bundle."""

    starts_s: float = Field(description="Media time of its first picture.")
    packets: int = Field(ge=1)
    is_short: bool = Field(description="Its end is missing: it would have been too large.")


class Analysis(Part):
    """What the analysis saw and said around the moment."""

    source_id: str
    session: int
    track_id: int
    ordinal: int
    first_seen_s: float = Field(description="Media time at which the face was first seen.")
    at_s: float = Field(description="Media time of the verdict.")
    verdict: Verdict
    previous: Verdict
    probability: float | None = Field(description="At the verdict, 0..1.")
    threshold: float
    decoder: str = Field(description="What made the pixels.")
    width: int = Field(description="px of the frame as analysed.")
    height: int = Field(description="px of the frame as analysed.")
    frames: tuple[AnalysedFrame, ...] = Field(description="Analysed, before and after.")
    looks: tuple[Look, ...]
    curve: tuple[Fused, ...]
    cut: CutFacts | None = Field(description="null: no packets were kept.")


class Network(Part):
    """A network that ran."""

    name: str
    manifest_sha256: str
    onnx_sha256: str
    weights_sha256: str | None


class Producer(Part):
    """What made a bundle."""

    version: str
    run: str
    python: str
    machine: str
    libraries: dict[str, str]
    detector: tuple[Network, ...] = Field(description="The networks that find faces.")
    engines: tuple[Network, ...] = Field(description="The attack detectors, in their order.")


def producer(config: StreamConfig, run: str) -> Producer:
    """Return what makes the bundles of a run.

    Raises:
        EngineError: a manifest is missing or damaged.
    """
    from importlib.metadata import version

    nets = [config.detect.engines / f"{net}.manifest.json" for net in DETECTOR_NETS]
    return Producer(
        version=__version__,
        run=run,
        python=platform.python_version(),
        machine=f"{platform.system()} {platform.machine()}",
        libraries={name: version(name) for name in ("av", "numpy", "onnxruntime", "torch")},
        detector=tuple(network(path) for path in nets),
        engines=tuple(network(engine.manifest) for engine in config.score.engines),
    )


def network(manifest_path: Path) -> Network:
    """Return the digests of a network.

    Raises:
        EngineError: its manifest is missing or damaged.
    """
    manifest = load_manifest(manifest_path)
    return Network(
        name=manifest.name,
        manifest_sha256=file_sha256(manifest_path),
        onnx_sha256=manifest.onnx_sha256,
        weights_sha256=manifest.weights_sha256,
    )


def pictures_of(
    looks: Sequence[tuple[Look, Tensor]], detectors: Sequence[Backend]
) -> dict[str, bytes]:
    """Return PNG files of looks, by path: what was looked at and where the evidence was seen.

    Args:
        looks: each names its file, and has its crop, (3, S, S) uint8 RGB.
        detectors: one for each in the configuration; those without an explanation give none.
    """
    files = {}
    for look, crop in looks:
        assert look.crop is not None
        picture = crop.permute(1, 2, 0).contiguous().numpy()
        files[look.crop] = png_of(picture)
        explanation = detectors[look.detector].infer(crop[None]).get("explanation")
        if explanation is not None:
            evidence = explanation[0, 0].numpy()
            stem = look.crop.removesuffix(".png")
            files[f"{stem}-map.png"] = png_of((evidence.clip(0, 1) * 255).astype(np.uint8))
            files[f"{stem}-overlaid.png"] = png_of(overlaid(picture, evidence))
    return files
