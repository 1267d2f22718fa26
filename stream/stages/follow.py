"""Detection and tracking together: which faces each source shows, and which of them is which.

A whole frame is searched every `detect_every_s`; between, the expected boxes of the live tracks are
refreshed, which costs a sixth. Training data is cut by this very stage (`train/data/prepare.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stream.stages.track import FaceTracker

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from stream.config import TrackConfig
    from stream.records import Frame, FrameStamp, TrackKey, TrackUpdate
    from stream.stages.detect import FaceDetector


@dataclass(slots=True)
class _Session:
    """What is kept of one source since it was last opened."""

    number: int
    tracker: FaceTracker
    searched_at_s: float | None = None  # media time of the last search of the whole frame


class Follower:
    """Finds the faces of many sources and follows each over time."""

    def __init__(
        self, detector: FaceDetector, track: TrackConfig, *, detect_every_s: float
    ) -> None:
        self._detector = detector
        self._track = track
        self._detect_every_s = detect_every_s
        self._sessions: dict[str, _Session] = {}

    def follow(self, frames: Sequence[Frame]) -> tuple[list[TrackUpdate], list[TrackKey]]:
        """Return what each frame, at most one per source, changed, and the tracks of old sessions.

        A frame of a new session of its source ends all tracks of the old one.
        """
        ended = [key for frame in frames for key in self._enter(frame.stamp)]
        expected = [self._expected(frame.stamp) for frame in frames]
        detections = self._detector.detect([frame.image for frame in frames], expected)
        updates = [
            self._sessions[frame.stamp.source_id].tracker.update(frame.stamp.pts_s, found)
            for frame, found in zip(frames, detections, strict=True)
        ]
        return updates, ended

    def finish(self, source_id: str) -> tuple[TrackKey, ...]:
        """End every track of a source that was lost or has ended, and return their keys."""
        session = self._sessions.pop(source_id, None)
        return session.tracker.end() if session else ()

    def _enter(self, stamp: FrameStamp) -> tuple[TrackKey, ...]:
        """Start a tracker at a session's first frame; return the old session's tracks."""
        old = self._sessions.get(stamp.source_id)
        if old is not None and old.number == stamp.session:
            return ()
        tracker = FaceTracker(stamp.source_id, stamp.session, self._track)
        self._sessions[stamp.source_id] = _Session(stamp.session, tracker)
        return old.tracker.end() if old is not None else ()

    def _expected(self, stamp: FrameStamp) -> NDArray[np.float32] | None:
        """Return the boxes to refresh, or None when the whole frame is due for a search."""
        session = self._sessions[stamp.source_id]
        last = session.searched_at_s
        if last is None or stamp.pts_s - last >= self._detect_every_s - 1e-3:
            session.searched_at_s = stamp.pts_s
            return None
        return session.tracker.expected_boxes(stamp.pts_s)
