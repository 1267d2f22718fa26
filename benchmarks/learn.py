"""What could be learned from the labelled bona fide clips, each group of them taken for a camera.

`python -m benchmarks.learn --data DIR` prints a table: what was seen, the smallest budget that so
short a watch can promise, and the threshold for it. Nothing is chosen by it for anything that
ships.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from scipy.stats import chi2

from benchmarks.record import ROOT
from models import sigmoid
from stream.analyse import open_analyser
from stream.config import DecodeConfig, FuseConfig, SourceConfig, StreamConfig
from stream.learn.bound import CONFIDENCE, WEEK_S, NotEnoughError, threshold_for
from stream.learn.visits import Visits
from stream.records import Frame, TrackScore
from stream.sources import Source
from train.evaluation.clips import load_labelled

if TYPE_CHECKING:
    from stream.analyse import Analyser
    from stream.learn.visits import Visit
    from train.evaluation.clips import LabelledClip

LIST = ROOT / "configs" / "train" / "real_clips.yaml"


@dataclass
class Camera:
    """What was seen of a group of clips."""

    watched_s: float = 0.0
    visits: list[Visit] = field(default_factory=list)

    def add(self, other: Camera) -> None:
        """Take in what was seen of another."""
        self.watched_s += other.watched_s
        self.visits += other.visits


def seen_of(clip: LabelledClip, root: Path, analyser: Analyser) -> Camera:
    """Return the bona fide visits of a clip; where the right half is an attack, the left half's."""
    camera, visits, last_s = Camera(), Visits(), 0.0
    config = SourceConfig.model_validate({"id": Path(clip.path).stem, "uri": str(root / clip.path)})
    for event in Source(config, DecodeConfig(), stop=threading.Event()).events():
        if not isinstance(event, Frame):
            continue
        step = analyser.step([event])
        half_px = event.stamp.width / 2 if clip.right else event.stamp.width
        scores = [r for r in step.records if isinstance(r, TrackScore) and _left(r) < half_px]
        present = {track.key for track in step.tracks.get(config.id, ())}
        camera.visits += visits.see(event.stamp, scores, present)
        last_s = event.stamp.pts_s
    analyser.finish(config.id)
    camera.visits += visits.end()
    camera.watched_s = last_s
    return camera


def _left(score: TrackScore) -> float:
    x1, _, x2, _ = score.sighting.detection.box.tolist()
    return float(x1 + x2) / 2


def line_of(name: str, camera: Camera) -> str:
    """Return a row of the table."""
    peaks = np.array([visit.peak for visit in camera.visits])
    judged = peaks[np.isfinite(peaks)]
    least = float(chi2.ppf(CONFIDENCE, 2)) / 2 / (camera.watched_s / WEEK_S)
    bound = threshold_for(peaks, camera.watched_s, 1.001 * least)
    try:
        threshold_for(peaks, camera.watched_s, 1.0)
        says = "enough"
    except NotEnoughError:
        says = "not enough"
    highest = f"{sigmoid(judged.max()):.3f}" if len(judged) else "-"
    return (
        f"| {name} | {camera.watched_s / 60:.1f} | {len(peaks)} | {len(judged)} | {highest} | "
        f"{says} | {least:.0f} | {sigmoid(bound.threshold):.3f} |"
    )


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of the clips.")
def main(data: Path) -> None:
    """Print the table."""
    options = StreamConfig.model_validate({"sources": [{"id": "any", "uri": "none"}]})
    options = options.model_copy(update={"fuse": FuseConfig(publish_every_s=0.0)})
    groups: dict[str, Camera] = defaultdict(Camera)
    everything = Camera()
    with open_analyser(options) as analyser:
        for clip in load_labelled(LIST).clips:
            if clip.label == "bona_fide":
                seen = seen_of(clip, data, analyser)
                groups[clip.group].add(dataclasses.replace(seen))
                everything.add(seen)
    print("| camera | minutes | visits | judged | highest p | one a week | least budget | enter |")
    print("|---|---|---|---|---|---|---|---|")
    for name, camera in groups.items():
        print(line_of(name, camera))
    print(line_of("all as one", everything))


if __name__ == "__main__":
    main()
