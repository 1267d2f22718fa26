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
    from stream.records import FaceDetection, Frame, FrameStamp, TrackKey, TrackUpdate
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
        self,
        detector: FaceDetector,
        track: TrackConfig,
        *,
        detect_every_s: float,
        search_lost: bool = False,
    ) -> None:
        self._detector = detector
        self._track = track
        self._detect_every_s = detect_every_s
        self._search_lost = search_lost
        self._sessions: dict[str, _Session] = {}

    def follow(self, frames: Sequence[Frame]) -> tuple[list[TrackUpdate], list[TrackKey]]:
        """Return what each frame, at most one per source, changed, and the tracks of old sessions.

        A frame of a new session of its source ends all tracks of the old one.
        """
        updates = []
        ended: list[TrackKey] = []
        for frame, faces in zip(frames, self.detect(frames), strict=True):
            update, old = self.track(frame, faces)
            updates.append(update)
            ended += old
        return updates, ended

    def detect(self, frames: Sequence[Frame]) -> list[list[FaceDetection]]:
        """Return the faces of each frame, at most one frame per source; nothing is remembered."""
        expected = [self._expected(frame.stamp) for frame in frames]
        images = [frame.image for frame in frames]
        faces = self._detector.detect(images, expected)
        if self._search_lost:
            lost = [
                number
                for number, (boxes, found) in enumerate(zip(expected, faces, strict=True))
                if boxes is not None and len(found) < max(1, len(boxes))
            ]
            if lost:
                again = self._detector.detect([images[n] for n in lost], [None] * len(lost))
                for number, found in zip(lost, again, strict=True):
                    faces[number] = found
        return faces

    def track(
        self, frame: Frame, faces: Sequence[FaceDetection]
    ) -> tuple[TrackUpdate, tuple[TrackKey, ...]]:
        """Return what the faces of a frame changed, and the tracks of its source's old session."""
        stamp = frame.stamp
        old = self._enter(stamp)
        session = self._sessions[stamp.source_id]
        if self._search_is_due(session, stamp):
            session.searched_at_s = stamp.pts_s
        return session.tracker.update(stamp.pts_s, faces), old

    def tracks_of(self, source_id: str) -> tuple[TrackKey, ...]:
        """Return the keys of a source's live tracks, those not seen just now too."""
        session = self._sessions.get(source_id)
        return session.tracker.live() if session else ()

    def reset(self, source_id: str) -> tuple[TrackKey, ...]:
        """End every track of a source and go on with others; return the keys of those known."""
        session = self._sessions.get(source_id)
        if session is None:
            return ()
        session.searched_at_s = None
        return session.tracker.end()

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
        session = self._sessions.get(stamp.source_id)
        if session is None or self._search_is_due(session, stamp):
            return None
        return session.tracker.expected_boxes(stamp.pts_s)

    def _search_is_due(self, session: _Session, stamp: FrameStamp) -> bool:
        last = session.searched_at_s
        return (
            session.number != stamp.session
            or last is None
            or stamp.pts_s - last >= self._detect_every_s - 1e-3
        )
