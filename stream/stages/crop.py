"""Which faces to score now, and their crops.

A face is looked at when its track is confirmed and was last looked at `interval_s` ago or longer. A
face that fails the quality gate is not scored; it is handed on as rejected, so that a track nobody
can judge ends as "abstain".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from models import crop_faces
from stream.records import FaceCrop, Sighting
from stream.stages.quality import assess

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models import InputSpec
    from stream.config import QualityConfig, ScoreConfig
    from stream.records import Frame, Track, TrackKey, TrackUpdate


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Looks:
    """The faces looked at in one step."""

    crops: tuple[FaceCrop, ...]
    rejected: tuple[Sighting, ...]  # with `quality.problem` set


class Cropper:
    """Remembers when each track was last looked at."""

    def __init__(self, spec: InputSpec, score: ScoreConfig, quality: QualityConfig) -> None:
        self._spec = spec
        self._interval_s = score.interval_s
        self._quality = quality
        self._looked_at: dict[TrackKey, float] = {}

    def crop(self, frames: Sequence[Frame], updates: Sequence[TrackUpdate]) -> Looks:
        """Cut the faces that are due.

        Args:
            frames: one per source.
            updates: the trackers' answers, same order.
        """
        crops: list[FaceCrop] = []
        rejected: list[Sighting] = []
        for frame, update in zip(frames, updates, strict=True):
            for track in update.tracks:
                if not self._is_due(track):
                    continue
                self._looked_at[track.key] = track.pts_s
                sighting = Sighting(
                    key=track.key,
                    stamp=frame.stamp,
                    detection=track.detection,
                    first_pts_s=track.first_pts_s,
                    quality=assess(frame.image, track.detection, self._quality),
                )
                if sighting.quality.problem is None:
                    (image,) = crop_faces(frame.image, track.detection.box[None], self._spec)
                    crops.append(FaceCrop(sighting=sighting, image=image))
                else:
                    rejected.append(sighting)
        return Looks(crops=tuple(crops), rejected=tuple(rejected))

    def forget(self, ended: Sequence[TrackKey]) -> None:
        """Free what is kept of tracks that ended."""
        for key in ended:
            self._looked_at.pop(key, None)

    def _is_due(self, track: Track) -> bool:
        last_pts_s = self._looked_at.get(track.key)
        return track.confirmed and is_due(last_pts_s, track.pts_s, self._interval_s)


def is_due(last_pts_s: float | None, pts_s: float, interval_s: float) -> bool:
    """Return whether a face is due for a look, given when it was last looked at, if ever."""
    # A millisecond of tolerance: media times are multiples of a time base, not of the interval.
    return last_pts_s is None or pts_s - last_pts_s >= interval_s - 1e-3
