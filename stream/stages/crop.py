"""Which faces to score now, and their crops.

A detector looks at a face when its track is confirmed and it last did so its interval ago or
longer. The interval doubles with every look at a face that keeps its place and whose verdict stands
(decision 58), and is the shortest again as soon as one of the two is over. A face that fails the
quality gate is not scored, nor one whose window the frame hardly holds; that is handed on as a
rejection, so that a track nobody can judge ends as "abstain".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from models import crop_faces
from stream.records import FaceCrop, Rejection, Sighting
from stream.stages.quality import assess, window_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from models import InputSpec
    from stream.config import QualityConfig
    from stream.records import Frame, Track, TrackKey, TrackUpdate

STILL: Final = 0.1  # of the face's size: a side of its box that moved farther did move


@dataclass(frozen=True, slots=True)
class View:
    """What one detector is shown of a face, and how often."""

    spec: InputSpec
    interval_s: float  # least media time between two looks at a track
    still_interval_s: float = 0.0  # to which that grows; less than `interval_s`: it does not


@dataclass(frozen=True, slots=True, eq=False)
class _Look:
    """The latest look of a detector at a track."""

    pts_s: float
    interval_s: float  # to the next, while nothing changes
    box: NDArray[np.float32]


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
        self._views = views
        self._quality = quality
        self._looks: dict[TrackKey, dict[int, _Look]] = {}  # by detector

    def crop(
        self,
        frames: Sequence[Frame],
        updates: Sequence[TrackUpdate],
        stands: Callable[[TrackKey], bool] = lambda _: False,
    ) -> Looks:
        """Cut the faces that are due.

        Args:
            frames: one per source.
            updates: the trackers' answers, same order.
            stands: whether a track has a verdict that its latest scores agree with.
        """
        crops: list[FaceCrop] = []
        rejected: list[Rejection] = []
        for frame, update in zip(frames, updates, strict=True):
            for track in update.tracks:
                for look in self._look(frame, track, stands):
                    if isinstance(look, FaceCrop):
                        crops.append(look)
                    else:
                        rejected.append(look)
        return Looks(crops=tuple(crops), rejected=tuple(rejected))

    def forget(self, ended: Sequence[TrackKey]) -> None:
        """Free what is kept of tracks that ended."""
        for key in ended:
            self._looks.pop(key, None)

    def _look(
        self, frame: Frame, track: Track, stands: Callable[[TrackKey], bool]
    ) -> Iterator[FaceCrop | Rejection]:
        """Yield what each detector that is due gets of a track's face."""
        due = self._due(track, stands)
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

    def _due(self, track: Track, stands: Callable[[TrackKey], bool]) -> list[int]:
        """Return the detectors that look at a track now, and note that they do."""
        if not track.confirmed:
            return []
        looks = self._looks.setdefault(track.key, {})
        box = track.detection.box
        due = []
        for detector, view in enumerate(self._views):
            last = looks.get(detector)
            calm = last is not None and keeps_its_place(last.box, box) and stands(track.key)
            interval_s = last.interval_s if last is not None and calm else view.interval_s
            if last is None or is_due(last.pts_s, track.pts_s, interval_s):
                longer_s = min(2 * interval_s, view.still_interval_s) if calm else 0.0
                looks[detector] = _Look(track.pts_s, max(longer_s, view.interval_s), box)
                due.append(detector)
        return due


def keeps_its_place(before: NDArray[np.float32], now: NDArray[np.float32]) -> bool:
    """Return whether no side of a box, x1 y1 x2 y2, moved by more than `STILL` of its size."""
    size_px = max(before[2] - before[0], before[3] - before[1])
    return bool(np.abs(now - before).max() <= STILL * size_px)


def is_due(last_pts_s: float | None, pts_s: float, interval_s: float) -> bool:
    """Return whether a face is due for a look, given when it was last looked at, if ever."""
    # A millisecond of tolerance: media times are multiples of a time base, not of the interval.
    return last_pts_s is None or pts_s - last_pts_s >= interval_s - 1e-3
