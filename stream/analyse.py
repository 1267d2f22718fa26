"""The straight line: frames in, messages out. No threads, no clock, no I/O.

    detect -> track -> crop -> batch -> infer -> fuse

Tests, the demo, evaluation and the threads of `stream.pipeline` all call this one method. State
lives in the trackers (one per source session), in the cropper and in the fuser; the end of a track
frees all three.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from stream.batch import batches
from stream.crop import Cropper
from stream.detect import open_detector
from stream.fuse import Fuser
from stream.infer import open_classifier
from stream.track import FaceTracker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from stream.config import StreamConfig, TrackConfig
    from stream.detect import FaceDetector
    from stream.infer import Classifier
    from stream.records import Alert, Frame, FrameStamp, TrackKey, TrackScore


@dataclass(slots=True)
class _Session:
    """What is kept of one source since it was last opened."""

    number: int
    tracker: FaceTracker
    searched_at_s: float | None = None  # media time of the last search of the whole frame


class Analyser:
    """All stages between decoding and publishing."""

    def __init__(
        self,
        detector: FaceDetector,
        cropper: Cropper,
        classifier: Classifier,
        fuser: Fuser,
        *,
        track: TrackConfig,
        detect_every_s: float,
    ) -> None:
        self._detector = detector
        self._cropper = cropper
        self._classifier = classifier
        self._fuser = fuser
        self._track_config = track
        self._detect_every_s = detect_every_s
        self._sessions: dict[str, _Session] = {}
        self._resources = ExitStack()

    def analyse(self, frames: Sequence[Frame]) -> list[TrackScore | Alert]:
        """Return what these frames, at most one per source, let us say."""
        ended = [key for frame in frames for key in self._enter_session(frame.stamp)]
        expected = [self._expected(frame.stamp) for frame in frames]
        detections = self._detector.detect([frame.image for frame in frames], expected)
        updates = [
            self._sessions[frame.stamp.source_id].tracker.update(frame.stamp.pts_s, found)
            for frame, found in zip(frames, detections, strict=True)
        ]
        looks = self._cropper.crop(frames, updates)
        scores = [
            score
            for batch in batches(looks.crops, self._classifier.max_batch)
            for score in self._classifier.score(batch)
        ]
        ended += [key for update in updates for key in update.ended]
        self._cropper.forget(ended)
        return self._fuser.update(scores, looks.rejected, ended)

    def finish(self, source_id: str) -> list[TrackScore | Alert]:
        """End every track of a source that was lost or has ended."""
        session = self._sessions.pop(source_id, None)
        ended = session.tracker.end() if session else ()
        self._cropper.forget(ended)
        return self._fuser.update((), (), ended)

    def close(self) -> None:
        """Release the engines."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _enter_session(self, stamp: FrameStamp) -> tuple[TrackKey, ...]:
        """Start a tracker at a session's first frame; return the old session's tracks."""
        old = self._sessions.get(stamp.source_id)
        if old is not None and old.number == stamp.session:
            return ()
        tracker = FaceTracker(stamp.source_id, stamp.session, self._track_config)
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


def open_analyser(config: StreamConfig) -> Analyser:
    """Load the engines and connect the stages.

    Raises:
        EngineError: an engine is missing, damaged or of the wrong kind.
    """
    with ExitStack() as resources:
        detector = resources.enter_context(open_detector(config.detect, config.backend))
        classifier = resources.enter_context(open_classifier(config.score.manifest, config.backend))
        analyser = Analyser(
            detector,
            Cropper(classifier.input_spec, config.score, config.quality),
            classifier,
            Fuser(config.fuse, classifier.thresholds, classifier.method),
            track=config.track,
            detect_every_s=config.detect.detect_every_s,
        )
        analyser._resources = resources.pop_all()
    return analyser
