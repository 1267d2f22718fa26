"""Collects evidence while the stream runs, and writes it where nothing waits for it.

The analysis thread notes what it sees, in memory that is bounded, and says when a verdict has its
seconds of video behind it. A thread of its own makes pictures, cuts the video, signs and writes.
When it can't keep up, bundles are dropped, counted and logged; the analysis never waits.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import OrderedDict, deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from stream.decode.recent import Cut
from stream.errors import StreamError
from stream.evidence.bundle import (
    ANALYSIS,
    CONFIG,
    CUT,
    MESSAGE,
    PRODUCER,
    AnalysedFrame,
    Analysis,
    CutFacts,
    Fused,
    Look,
    pictures_of,
    producer,
)
from stream.evidence.seal import load_private_key, sealed
from stream.evidence.store import Store
from stream.messages import VerdictMessage
from stream.records import Alert
from stream.stack_log import StackLog
from trt_engines.backends import open_backend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from stream.analyse import Step
    from stream.config import EvidenceConfig, StreamConfig
    from stream.decode.recent import RecentPackets
    from stream.messages import MessageWriter, OutMessage
    from stream.records import Frame, FrameStamp, TrackKey, TrackScore
    from stream.sources import Source
    from trt_engines.backends import Backend

log = logging.getLogger(__name__)

MOST_WAITING: Final = 8  # bundles that wait for their last seconds, and as many to be written
MOST_CROPS: Final = 12  # of a bundle, the latest before the verdict
_MOST_TRACKS: Final = 256  # that are remembered; a scene with more forgets those seen longest ago
_MOST_NOTED: Final = 1200  # looks, scores and frames; at 5 a second four minutes
_LATE_S: Final = 5.0  # a source that gives no more frames is waited for so much longer
_POLL_S: Final = 0.5
_PRUNE_EVERY_S: Final = 60.0


@dataclass(slots=True)
class _Track:
    """What is remembered of a track."""

    looks: deque[Look] = field(default_factory=lambda: deque(maxlen=_MOST_NOTED))
    crops: deque[tuple[Look, Tensor]] = field(default_factory=lambda: deque(maxlen=MOST_CROPS))
    curve: deque[Fused] = field(default_factory=lambda: deque(maxlen=_MOST_NOTED))


@dataclass(slots=True, eq=False)
class _Case:
    """A verdict whose bundle is being collected."""

    name: str
    alert: Alert
    cut: Cut
    until_s: float  # media time
    give_up_at: float  # monotonic seconds
    frames: list[AnalysedFrame]
    looks: list[Look]
    crops: list[tuple[Look, Tensor]]
    curve: list[Fused]


class EvidenceKeeper:
    """A `Watcher` that sees what led to a verdict, and a `Sink` that hears what was said of it.

    As `PerSource` it has the latest packets of each source that is watched.

    Args:
        config: of the run; it has `evidence`.
        writer: names the bundles.
        run: as in every message.

    Raises:
        ConfigError: folder or key can't be used.
        EngineError: a manifest is missing or damaged.
    """

    def __init__(self, config: StreamConfig, writer: MessageWriter, run: str) -> None:
        assert config.evidence is not None
        self._options: EvidenceConfig = config.evidence
        self._config = config
        self._recent: dict[str, RecentPackets] = {}  # by source
        self._writer = writer
        self._key = load_private_key(self._options.key)
        self._store = Store(self._options.folder)
        self._producer = producer(config, run).model_dump_json(indent=1).encode()
        self._lock = threading.Lock()  # of what stands here:
        self._tracks: OrderedDict[TrackKey, _Track] = OrderedDict()
        self._frames: dict[str, deque[AnalysedFrame]] = {}
        self._sessions: dict[str, int] = {}
        self._open: list[_Case] = []
        self._dropped = 0
        self._messages: OrderedDict[str, str] = OrderedDict()  # by bundle
        self._heard = threading.Condition()  # of a message
        self._cases: queue.Queue[_Case | None] = queue.Queue(MOST_WAITING)
        self._stacks = StackLog(log)
        self._thread: threading.Thread | None = None  # once there is something to see

    def begin(self, source: Source) -> None:
        """See `stream.pipeline.PerSource`."""
        if source.recent is not None:
            self._recent[source.source_id] = source.recent

    def forget(self, source_id: str) -> None:
        """See `stream.pipeline.PerSource`; bundles of the source are written with what there is."""
        recent = self._recent.pop(source_id, None)
        if recent is not None:
            recent.forget()
        with self._lock:
            self._frames.pop(source_id, None)
            self._sessions.pop(source_id, None)
            for key in [k for k in self._tracks if k.source_id == source_id]:
                del self._tracks[key]
            for case in list(self._open):
                if case.alert.track.sighting.stamp.source_id == source_id:
                    self._open.remove(case)
                    self._hand_over(case)

    def watch(self, frames: Sequence[Frame], step: Step) -> None:
        """Note what a step saw, and which verdicts it made."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="evidence", daemon=True)
            self._thread.start()
        with self._lock:
            for frame in frames:
                if frame.stamp.source_id not in step.failures:
                    self._note_frame(frame.stamp)
            self._note_looks(step)
            for record in step.records:
                if isinstance(record, Alert):
                    self._open_case(record)
                else:
                    self._note_score(record)
            for frame in frames:
                self._close_cases(frame.stamp)

    def publish(self, messages: Sequence[OutMessage]) -> None:
        """Note the messages that name a bundle."""
        named = [m for m in messages if isinstance(m, VerdictMessage) and m.evidence is not None]
        if named:
            with self._heard:
                for message in named:
                    self._messages[message.evidence or ""] = message.to_json()
                while len(self._messages) > 4 * MOST_WAITING:
                    self._messages.popitem(last=False)
                self._heard.notify_all()

    def close(self) -> None:
        """Write what is collected, as it is now; at most for half of the time to drain."""
        if self._thread is None or not self._thread.is_alive():
            return
        with self._lock:
            left, self._open = self._open, []
        for case in left:
            self._hand_over(case)
        deadline = time.monotonic() + self._config.shutdown_s / 2
        while self._thread.is_alive() and time.monotonic() < deadline:
            try:
                self._cases.put(None, timeout=_POLL_S)
            except queue.Full:
                continue
            break
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            log.error("evidence: %d bundles are not written", self._cases.qsize())

    def _note_frame(self, stamp: FrameStamp) -> None:
        source_id = stamp.source_id
        if self._sessions.get(source_id) != stamp.session:
            self._sessions[source_id] = stamp.session
            self._frames[source_id] = deque(maxlen=_MOST_NOTED)
            for key in [k for k in self._tracks if k.source_id == source_id]:
                del self._tracks[key]
        frame = AnalysedFrame(index=stamp.index, pts_s=stamp.pts_s)
        self._frames[source_id].append(frame)
        for case in self._cases_of(stamp):
            case.frames.append(frame)

    def _note_looks(self, step: Step) -> None:
        scores = {(s.sighting.key, s.detector): s.probability for s in step.scores}
        for crop in step.crops:
            key, stamp = crop.sighting.key, crop.sighting.stamp
            x1, y1, x2, y2 = crop.sighting.detection.box.tolist()
            look = Look(
                pts_s=stamp.pts_s,
                frame=stamp.index,
                detector=crop.detector,
                probability=scores[key, crop.detector],
                box=(x1, y1, x2, y2),
            )
            track = self._track(key)
            track.looks.append(look)
            track.crops.append((look, crop.image))
            for case in self._cases_of(stamp):
                if case.alert.track.sighting.key == key:
                    case.looks.append(look)

    def _note_score(self, score: TrackScore) -> None:
        key, stamp = score.sighting.key, score.sighting.stamp
        fused = Fused(pts_s=stamp.pts_s, probability=score.probability, verdict=score.verdict)
        self._track(key).curve.append(fused)
        for case in self._cases_of(stamp):
            if case.alert.track.sighting.key == key:
                case.curve.append(fused)
        if score.ended:
            del self._tracks[key]

    def _track(self, key: TrackKey) -> _Track:
        track = self._tracks.setdefault(key, _Track())
        self._tracks.move_to_end(key)
        while len(self._tracks) > _MOST_TRACKS:
            self._tracks.popitem(last=False)
        return track

    def _open_case(self, alert: Alert) -> None:
        name = self._writer.bundle_of(alert)
        if name is None:
            return
        if len(self._open) >= MOST_WAITING:
            self._drop(name)
            return
        stamp = alert.track.sighting.stamp
        track = self._track(alert.track.sighting.key)
        from_s, until_s = stamp.pts_s - self._options.before_s, stamp.pts_s + self._options.after_s
        self._open.append(
            _Case(
                name=name,
                alert=alert,
                cut=self._cut(stamp.source_id, from_s, until_s),
                until_s=until_s,
                give_up_at=time.monotonic() + self._options.after_s + _LATE_S,
                frames=list(self._frames[stamp.source_id]),
                looks=list(track.looks),
                crops=list(track.crops),
                curve=list(track.curve),
            )
        )

    def _cut(self, source_id: str, from_s: float, until_s: float) -> Cut:
        recent = self._recent.get(source_id)
        if recent is None:  # its packets are not kept
            return Cut(None, until_s, 0, None)
        return recent.cut(from_s, until_s, 2 * self._options.cut_mb * 2**20)

    def _cases_of(self, stamp: FrameStamp) -> list[_Case]:
        return [case for case in self._open if _is_of(case, stamp)]

    def _close_cases(self, stamp: FrameStamp) -> None:
        """Hand over those that have their last seconds, or won't get them."""
        for case in list(self._open):
            own = case.alert.track.sighting.stamp
            if own.source_id != stamp.source_id:
                continue
            if own.session != stamp.session or stamp.pts_s >= case.until_s:
                self._open.remove(case)
                self._hand_over(case)

    def _hand_over(self, case: _Case) -> None:
        try:
            self._cases.put_nowait(case)
        except queue.Full:
            self._drop(case.name)

    def _drop(self, name: str) -> None:
        self._dropped += 1
        log.error(
            "evidence: %s is dropped, %d so far: writing can't keep up with the verdicts",
            name,
            self._dropped,
        )

    def _work(self) -> None:
        """Write bundles until told to end; the whole life of the thread."""
        pruned_at = -_PRUNE_EVERY_S
        with ExitStack() as resources:
            detectors: list[Backend] = []
            while True:
                try:
                    case = self._cases.get(timeout=_POLL_S)
                except queue.Empty:
                    self._give_up()
                else:
                    if case is None:
                        return
                    if not detectors:  # of its own: those of the analysis are busy
                        for engine in self._config.score.engines:
                            detectors.append(open_backend(engine.manifest, self._config.backend))
                            resources.callback(detectors[-1].close)
                    self._try_to_write(case, detectors)
                    pruned_at = -_PRUNE_EVERY_S
                if time.monotonic() - pruned_at >= _PRUNE_EVERY_S:
                    pruned_at = time.monotonic()
                    self._prune()

    def _give_up(self) -> None:
        """Hand over the cases of sources that give no more frames."""
        with self._lock:
            late = [case for case in self._open if case.give_up_at <= time.monotonic()]
            self._open = [case for case in self._open if case not in late]
        for case in late:
            self._hand_over(case)

    def _try_to_write(self, case: _Case, detectors: Sequence[Backend]) -> None:
        began = time.monotonic()
        try:
            path = self._write(case, detectors)
        except Exception as error:
            self._stacks.error("evidence", f"evidence: {case.name} can't be written", error)
        else:
            log.info("evidence: %s, written in %.1f s", path, time.monotonic() - began)

    def _write(self, case: _Case, detectors: Sequence[Backend]) -> str:
        message = self._message(case)
        case.cut.complete.wait(_POLL_S)  # the last packets may be decoded just now
        cut = case.cut.matroska()
        crops = [
            (look.model_copy(update={"crop": f"crops/{number:02}-{look.detector}.png"}), crop)
            for number, (look, crop) in enumerate(case.crops, 1)
        ]
        files = {
            MESSAGE: message.encode(),
            ANALYSIS: _analysis(case, crops).model_dump_json(indent=1).encode(),
            CONFIG: self._config.model_dump_json(indent=1).encode(),
            PRODUCER: self._producer,
            **({} if cut is None else {CUT: cut}),
            **pictures_of(crops, detectors),
        }
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return self._store.put(case.name, sealed(case.name, files, self._key, now)).name

    def _message(self, case: _Case) -> str:
        """Return the message as it was published; it is so at about the time of its verdict."""
        with self._heard:
            if not self._heard.wait_for(lambda: case.name in self._messages, _LATE_S):
                raise StreamError(f"its message was not published within {_LATE_S:g} s")
            return self._messages.pop(case.name)

    def _prune(self) -> None:
        try:
            gone = self._store.prune(
                keep_days=self._options.keep_days, keep_gb=self._options.keep_gb, now=time.time()
            )
        except OSError as error:
            self._stacks.error("prune", "evidence: old bundles can't be deleted", error)
            return
        for name in gone:
            log.info("evidence: %s is deleted: too old, or the oldest of too many", name)


def _is_of(case: _Case, stamp: FrameStamp) -> bool:
    own = case.alert.track.sighting.stamp
    return (own.source_id, own.session) == (stamp.source_id, stamp.session)


def _analysis(case: _Case, crops: Sequence[tuple[Look, Tensor]]) -> Analysis:
    alert, cut = case.alert, case.cut
    sighting = alert.track.sighting
    stamp = sighting.stamp
    named = {(look.frame, look.detector): look for look, _ in crops}
    return Analysis(
        source_id=stamp.source_id,
        session=stamp.session,
        track_id=sighting.key.track_id,
        ordinal=alert.ordinal,
        first_seen_s=sighting.first_pts_s,
        at_s=stamp.pts_s,
        verdict=alert.track.verdict,
        previous=alert.previous,
        probability=alert.track.probability,
        threshold=alert.threshold,
        decoder=stamp.decoder,
        width=stamp.width,
        height=stamp.height,
        frames=tuple(case.frames),
        looks=tuple(named.get((look.frame, look.detector), look) for look in case.looks),
        curve=tuple(case.curve),
        cut=None
        if cut.starts_s is None
        else CutFacts(starts_s=cut.starts_s, packets=len(cut.packets), is_short=cut.is_short),
    )
