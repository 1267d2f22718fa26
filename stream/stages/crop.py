"""Which faces to score now, and their crops.

A detector looks at a face when its track is confirmed and it last did so its interval ago or
longer. A face that fails the quality gate is not scored, nor one whose window the frame hardly
holds; that is handed on as a rejection, so that a track nobody can judge ends as "abstain".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from models import crop_faces
from stream.records import FaceCrop, Rejection, Sighting
from stream.stages.quality import assess, window_problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from models import InputSpec
    from stream.config import QualityConfig
    from stream.records import Frame, Track, TrackKey, TrackUpdate


@dataclass(frozen=True, slots=True)
class View:
    """What one detector is shown of a face, and how often."""

    spec: InputSpec
    interval_s: float  # least media time between two looks at a track


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Looks:
    """The faces looked at in one step."""

    crops: tuple[FaceCrop, ...]
    rejected: tuple[Rejection, ...]


class Cropper:
    """Remembers when each detector last looked at each track.

    Args:
        views: of the detectors, in the order of the configuration.
        quality: which looks are rejected.
    """

    def __init__(self, views: Sequence[View], quality: QualityConfig) -> None:
        # Crops are uint8, whatever a graph converts them to.
        self._specs = [view.spec.model_copy(update={"dtype": "uint8"}) for view in views]
        self._intervals_s = [view.interval_s for view in views]
        self._quality = quality
        self._looked_at: dict[TrackKey, dict[int, float]] = {}  # detector -> media time

    def crop(self, frames: Sequence[Frame], updates: Sequence[TrackUpdate]) -> Looks:
        """Cut the faces that are due.

        Args:
            frames: one per source.
            updates: the trackers' answers, same order.
        """
        crops: list[FaceCrop] = []
        rejected: list[Rejection] = []
        for frame, update in zip(frames, updates, strict=True):
            for track in update.tracks:
                for look in self._look(frame, track):
                    if isinstance(look, FaceCrop):
                        crops.append(look)
                    else:
                        rejected.append(look)
        return Looks(crops=tuple(crops), rejected=tuple(rejected))

    def forget(self, ended: Sequence[TrackKey]) -> None:
        """Free what is kept of tracks that ended."""
        for key in ended:
            self._looked_at.pop(key, None)

    def _look(self, frame: Frame, track: Track) -> Iterator[FaceCrop | Rejection]:
        """Yield what each detector that is due gets of a track's face."""
        due = self._due(track)
        if not due:
            return
        sighting = Sighting(
            key=track.key,
            stamp=frame.stamp,
            detection=track.detection,
            first_pts_s=track.first_pts_s,
            quality=assess(frame.image, track.detection, self._quality),
        )
        box, size = track.detection.box, (frame.stamp.width, frame.stamp.height)
        cut: dict[InputSpec, Tensor] = {}  # detectors that want the same crop share it
        for detector in due:
            spec = self._specs[detector]
            problem = sighting.quality.problem or window_problem(box, spec, size, self._quality)
            if problem is not None:
                yield Rejection(sighting=sighting, detector=detector, problem=problem)
                continue
            if spec not in cut:
                (cut[spec],) = crop_faces(frame.image, box[None], spec)
            yield FaceCrop(sighting=sighting, detector=detector, image=cut[spec])

    def _due(self, track: Track) -> list[int]:
        """Return the detectors that look at a track now, and note that they do."""
        if not track.confirmed:
            return []
        looked_at = self._looked_at.setdefault(track.key, {})
        due = [
            detector
            for detector, interval_s in enumerate(self._intervals_s)
            if is_due(looked_at.get(detector), track.pts_s, interval_s)
        ]
        looked_at |= dict.fromkeys(due, track.pts_s)
        return due


def is_due(last_pts_s: float | None, pts_s: float, interval_s: float) -> bool:
    """Return whether a face is due for a look, given when it was last looked at, if ever."""
    # A millisecond of tolerance: media times are multiples of a time base, not of the interval.
    return last_pts_s is None or pts_s - last_pts_s >= interval_s - 1e-3
