"""The straight line: frames in, records out. No threads, no I/O, a clock only to time the stages.

    follow (detect -> track) -> crop -> batch -> infer -> fuse
    feed (is this what the camera sees?), beside it, for live sources

Tests, the demo, evaluation and the threads of `stream.pipeline` all go this one way. State lives in
the trackers (one per source session), in the cropper and in the fuser; the end of a track frees all
three. What is known of a live source's feed outlives its sessions.

Networks take the frames of all sources together and remember nothing, so an error there is traced
by running them for each source alone. What remembers is run for each source alone anyway. So one
source's frame can spoil that source's tracks, which end, and no others.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeVar

from stream.closing import Closing
from stream.decode import SourceKind, source_kind
from stream.learned import learned_of
from stream.records import Need
from stream.stages.align import Scale
from stream.stages.batch import batches
from stream.stages.crop import Cropper, View
from stream.stages.detect import open_detector
from stream.stages.feed import FeedWatch
from stream.stages.follow import Follower
from stream.stages.fuse import Fuser, attack_detector
from stream.stages.infer import open_classifier
from trt_engines.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from stream.config import SourceConfig, StreamConfig
    from stream.learned import Learned
    from stream.records import (
        Alert,
        AttackScore,
        FaceCrop,
        FaceDetection,
        FeedAlert,
        Frame,
        Rejection,
        Track,
        TrackKey,
        TrackScore,
    )
    from stream.stages.detect import FaceDetector
    from stream.stages.infer import Classifier

log = logging.getLogger(__name__)

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True, slots=True)
class Step:
    """What one frame of each source let us say."""

    records: list[TrackScore | Alert] = field(default_factory=list)
    failures: dict[str, Exception] = field(default_factory=dict)  # by source: its tracks ended
    needs: dict[str, Need] = field(default_factory=dict)  # by source
    feed: list[FeedAlert] = field(default_factory=list)  # of sources that failed, too
    # What was seen on the way, for those that watch; of sources that did not fail:
    tracks: dict[str, tuple[Track, ...]] = field(default_factory=dict)  # by source, in its frame
    crops: list[FaceCrop] = field(default_factory=list)
    scores: list[AttackScore] = field(default_factory=list)  # of these crops
    seconds: dict[str, float] = field(default_factory=dict)  # that each stage took


@dataclass(frozen=True, slots=True)
class _Look:
    """What tracking and cropping made of one source's frame."""

    tracks: tuple[Track, ...]
    crops: tuple[FaceCrop, ...]
    rejected: tuple[Rejection, ...]
    ended: tuple[TrackKey, ...]


class Analyser(Closing):
    """All stages between decoding and publishing."""

    def __init__(
        self,
        follower: Follower,
        cropper: Cropper,
        classifiers: Sequence[Classifier],
        fuser: Fuser,
        feeds: FeedWatch | None = None,
    ) -> None:
        self._follower = follower
        self._cropper = cropper
        self.classifiers = classifiers
        self._fuser = fuser
        self._feeds = feeds
        self._resources = ExitStack()

    def analyse(self, frames: Sequence[Frame]) -> list[TrackScore | Alert]:
        """Return what these frames, at most one per source, let us say.

        Raises:
            Exception: the first error; the tracks of its source have ended.
        """
        step = self.step(frames)
        for error in step.failures.values():
            raise error
        return step.records

    def step(self, frames: Sequence[Frame]) -> Step:
        """Do the same, but let an error that one source's frame causes be that source's alone.

        Raises:
            EngineError: a network can't be run at all.
        """
        by_source = {frame.stamp.source_id: frame for frame in frames}
        step = Step()
        if self._feeds is not None:
            with _timed("feed", step.seconds):
                for source_id, frame in by_source.items():
                    with _blamed(source_id, step.failures):
                        step.feed.extend(self._feeds.look(frame))
        with _timed("detect", step.seconds):
            faces = _together(self._follower.detect, by_source, step.failures)
        looks: dict[str, _Look] = {}
        with _timed("track_and_crop", step.seconds):
            for source_id, detections in faces.items():
                with _blamed(source_id, step.failures):
                    looks[source_id] = self._look(by_source[source_id], detections)
        with _timed("infer", step.seconds):
            scores = _together(self._score, looks, step.failures)
        with _timed("fuse", step.seconds):
            for source_id, scored in scores.items():
                with _blamed(source_id, step.failures):
                    look = looks[source_id]
                    step.records.extend(self._fuser.update(scored, look.rejected, look.ended))
                    step.tracks[source_id] = look.tracks
                    step.crops.extend(look.crops)
                    step.scores.extend(scored)
        for source_id in step.failures:
            step.records.extend(self._reset(source_id))
        for source_id in by_source:
            step.needs[source_id] = self._need(source_id)
        return step

    def _need(self, source_id: str) -> Need:
        """Return what makes the next frame of a source urgent."""
        tracks = self._follower.tracks_of(source_id)
        if not tracks:
            return Need.NOBODY
        return Need.DECIDED if all(map(self._fuser.has_decided, tracks)) else Need.UNDECIDED

    def _look(self, frame: Frame, faces: Sequence[FaceDetection]) -> _Look:
        """Follow the faces of one source's frame, and cut out those that are due."""
        update, old = self._follower.track(frame, faces)
        looks = self._cropper.crop([frame], [update], self._fuser.stands)
        ended = (*old, *update.ended)
        self._cropper.forget(ended)
        return _Look(update.tracks, looks.crops, looks.rejected, ended)

    def _score(self, looks: Sequence[_Look]) -> list[list[AttackScore]]:
        """Return the scores of each look, detector by detector."""
        scores: list[list[AttackScore]] = [[] for _ in looks]
        for number, classifier in enumerate(self.classifiers):
            crops = [[c for c in look.crops if c.detector == number] for look in looks]
            found = (
                score
                for batch in batches(list(chain.from_iterable(crops)), classifier.max_batch)
                for score in classifier.score(batch)
            )
            for of_look, cut in zip(scores, crops, strict=True):
                of_look += islice(found, len(cut))
        return scores

    def _reset(self, source_id: str) -> list[TrackScore | Alert]:
        """End the tracks of a source whose state may be half of this frame, half of the last."""
        ended = sorted({*self._follower.reset(source_id), *self._fuser.tracks_of(source_id)})
        self._cropper.forget(ended)
        return self._fuser.update((), (), ended)

    def finish(self, source_id: str) -> list[TrackScore | Alert]:
        """End every track of a source that was lost or has ended."""
        ended = self._follower.finish(source_id)
        self._cropper.forget(ended)
        return self._fuser.update((), (), ended)

    def begin(self, source: SourceConfig, learned: Learned | None) -> None:
        """Take over what a source brings, before its first frame; one of its id has no tracks.

        Args:
            source: which, and whether its feed is looked at.
            learned: its own thresholds; None: it is judged by those of all.
        """
        self.forget(source.id)
        if learned is not None:
            self._fuser.decide_by(source.id, Scale(learned.enter, learned.leave))
        if self._feeds is not None and _shows_a_feed(source):
            self._feeds.begin(source.id)

    def forget(self, source_id: str) -> None:
        """Let go of a source that was removed, and whose tracks have ended."""
        self._fuser.decide_by(source_id, None)
        if self._feeds is not None:
            self._feeds.forget(source_id)

    def close(self) -> None:
        """Release the engines."""
        self._resources.close()


def open_analyser(config: StreamConfig, detector: FaceDetector | None = None) -> Analyser:
    """Load the engines and connect the stages.

    Args:
        config: of the stream.
        detector: finds the faces, and stays its owner's to close; None: the one of `config`.

    Raises:
        EngineError: an engine is missing, damaged or of the wrong kind.
        ConfigError: a threshold is out of every track's reach, or what a source learned is of
            other detectors.
    """
    with ExitStack() as resources:
        finder = detector
        if finder is None:
            finder = resources.enter_context(open_detector(config.detect, config.backend))
        classifiers, views, judges = [], [], []
        for engine in config.score.engines:
            classifier = resources.enter_context(open_classifier(engine.manifest, config.backend))
            classifiers.append(classifier)
            interval_s = config.score.interval_of(engine)
            views.append(View(classifier.manifest.input, interval_s, config.score.still_interval_s))
            judges.append(attack_detector(classifier.manifest, config.look_every_s(engine)))
        analyser = Analyser(
            Follower(
                finder,
                config.track,
                detect_every_s=config.detect.detect_every_s,
                search_lost=config.detect.search_lost,
            ),
            Cropper(views, config.quality),
            classifiers,
            Fuser(config.fuse, judges),
            FeedWatch(config.feed) if config.feed.enabled else None,
        )
        for source in config.sources:
            analyser.begin(source, learned_of(source, config))
        analyser._resources = resources.pop_all()
    return analyser


def _shows_a_feed(source: SourceConfig) -> bool:
    """Return whether the feed of a source is looked at: of cameras, and of files played as such."""
    is_live = source.realtime or source_kind(source) is not SourceKind.FILE
    return source.watch_feed and is_live


def _together(
    work: Callable[[Sequence[_In]], Sequence[_Out]],
    items: Mapping[str, _In],
    failures: dict[str, Exception],
) -> dict[str, _Out]:
    """Do work that remembers nothing on all sources' items; if that fails, on each alone."""
    results: dict[str, _Out] = {}
    if not items:
        return results
    try:
        return dict(zip(items, work(list(items.values())), strict=True))
    except EngineError:
        raise
    except Exception as error:
        log.debug("a step of %d sources failed (%r); now each alone", len(items), error)
    for source_id, item in items.items():
        with _blamed(source_id, failures):
            (results[source_id],) = work([item])
    return results


@contextmanager
def _timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    """Note how long a stage took."""
    began = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - began


@contextmanager
def _blamed(source_id: str, failures: dict[str, Exception]) -> Iterator[None]:
    """Note an error as one of a source; an engine that can't run is nobody's fault."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        failures[source_id] = error
