"""The straight line: frames in, messages out. No threads, no clock, no I/O.

    follow (detect -> track) -> crop -> batch -> infer -> fuse

Tests, the demo, evaluation and the threads of `stream.pipeline` all call this one method. State
lives in the trackers (one per source session), in the cropper and in the fuser; the end of a track
frees all three.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from stream.closing import Closing
from stream.stages.batch import batches
from stream.stages.crop import Cropper
from stream.stages.detect import open_detector
from stream.stages.follow import Follower
from stream.stages.fuse import Fuser
from stream.stages.infer import open_classifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stream.config import StreamConfig
    from stream.records import Alert, Frame, TrackScore
    from stream.stages.infer import Classifier


class Analyser(Closing):
    """All stages between decoding and publishing."""

    def __init__(
        self, follower: Follower, cropper: Cropper, classifier: Classifier, fuser: Fuser
    ) -> None:
        self._follower = follower
        self._cropper = cropper
        self._classifier = classifier
        self._fuser = fuser
        self._resources = ExitStack()

    def analyse(self, frames: Sequence[Frame]) -> list[TrackScore | Alert]:
        """Return what these frames, at most one per source, let us say."""
        updates, ended = self._follower.follow(frames)
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
        ended = self._follower.finish(source_id)
        self._cropper.forget(ended)
        return self._fuser.update((), (), ended)

    def close(self) -> None:
        """Release the engines."""
        self._resources.close()


def open_analyser(config: StreamConfig) -> Analyser:
    """Load the engines and connect the stages.

    Raises:
        EngineError: an engine is missing, damaged or of the wrong kind.
        ConfigError: a threshold is out of every track's reach.
    """
    with ExitStack() as resources:
        detector = resources.enter_context(open_detector(config.detect, config.backend))
        classifier = resources.enter_context(open_classifier(config.score.manifest, config.backend))
        analyser = Analyser(
            Follower(detector, config.track, detect_every_s=config.detect.detect_every_s),
            Cropper(classifier.input_spec, config.score, config.quality),
            classifier,
            Fuser(
                config.fuse,
                classifier.thresholds,
                classifier.method,
                look_every_s=config.look_every_s,
            ),
        )
        analyser._resources = resources.pop_all()
    return analyser
