"""What measuring costs: noting a step of the analysis, and a scrape.

    python -m benchmarks.metrics

Frames and scores are made up, the analysis itself does not run. Processor time.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from prometheus_client import CollectorRegistry, generate_latest

from stream.analyse import Step
from stream.config import StreamConfig
from stream.metrics.measures import Measures
from stream.metrics.standing import Standing
from stream.records import (
    AttackScore,
    FaceDetection,
    FaceQuality,
    Frame,
    FrameStamp,
    Sighting,
    Track,
    TrackKey,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCES = [f"cam{number}" for number in range(100)]
TOGETHER = 8  # frames of one step
STAGES = ("detect", "track_and_crop", "infer", "fuse")


def step_of(sources: list[str]) -> tuple[list[Frame], Step]:
    """Make a step in which each source shows two faces, both scored."""
    frames, step = [], Step(seconds=dict.fromkeys(STAGES, 0.01))
    face = FaceDetection(
        box=np.array([0, 0, 9, 9], np.float32),
        landmarks=np.ones((5, 2), np.float32),
        confidence=0.9,
    )
    quality = FaceQuality(face_px=9, sharpness=0.5, brightness=0.5, turn=0, problem=None)
    for source_id in sources:
        stamp = FrameStamp(
            source_id=source_id,
            session=0,
            index=0,
            pts_s=0.0,
            captured_at=1e9,
            width=16,
            height=16,
            decoder="pyav",
        )
        frames.append(Frame(stamp=stamp, image=torch.zeros(16, 16, 3, dtype=torch.uint8)))
        keys = [TrackKey(source_id=source_id, session=0, track_id=n) for n in range(2)]
        step.tracks[source_id] = tuple(
            Track(key=key, detection=face, first_pts_s=0, pts_s=0, confirmed=True) for key in keys
        )
        for key in keys:
            sighting = Sighting(
                key=key, stamp=stamp, detection=face, first_pts_s=0, quality=quality
            )
            step.scores.append(AttackScore(sighting=sighting, detector=0, probability=0.5))
    return frames, step


def seconds_each(work: Callable[[], object], times: int) -> float:
    """Return the processor time of one call, by the best of five rounds."""
    rounds = []
    for _ in range(5):
        began = time.thread_time()
        for _ in range(times):
            work()
        rounds.append((time.thread_time() - began) / times)
    return min(rounds)


def main() -> None:
    """Print the costs."""
    registry = CollectorRegistry()
    measures = Measures(registry, SOURCES, ["detector"])
    frames, step = step_of(SOURCES[:TOGETHER])
    noting_s = seconds_each(lambda: measures.analysis.watch(frames, step), 500)
    print(f"a step of {TOGETHER} frames and {len(step.scores)} crops: {1e3 * noting_s:.3f} ms")
    sources = [{"id": source_id, "uri": "unused"} for source_id in SOURCES]
    registry.register(Standing(StreamConfig.model_validate({"sources": sources}), []))
    scrape_s = seconds_each(lambda: generate_latest(registry), 3)
    text = generate_latest(registry).decode()
    series = sum(not line.startswith("#") for line in text.splitlines())
    print(
        f"a scrape with {len(SOURCES)} sources: {1e3 * scrape_s:.0f} ms, {series} series, "
        f"{len(text) / 1000:.0f} kB"
    )


if __name__ == "__main__":
    main()
