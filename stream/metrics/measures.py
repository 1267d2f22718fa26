"""The counters, gauges and histograms that a run feeds as it goes.

The analysis thread feeds what it sees of frames and crops; the publish thread what messages say and
what waits in the sinks. Labels are source ids and names of detectors, never addresses or tracks:
what comes and goes without end must not become a series.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal, get_args

import prometheus_client as prometheus

from stream.messages import (
    DriftEvent,
    DriftMessage,
    FaceMessage,
    FeedEvent,
    FeedMessage,
    Lane,
    SourceEvent,
    SourceMessage,
    StatusMessage,
    VerdictEvent,
    VerdictMessage,
)
from stream.publish.redis_stream import RedisSink
from stream.records import AttackFamily, QualityProblem, SourceCode, SourceState, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from prometheus_client import CollectorRegistry

    from stream.analyse import Step
    from stream.messages import OutMessage
    from stream.pipeline import Progress
    from stream.publish import Sink
    from stream.records import Frame, FrameStamp

PREFIX: Final = "facewarden_"
# Bounds of the histograms' buckets.
_STAGE_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_LATENCY_S: Final = (0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
_DECISION_S: Final = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0, 15.0, 30.0)
_CROPS: Final = (1, 2, 4, 8, 16, 32, 64)
_PROBABILITIES: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_LOSSES: Final = tuple(
    code
    for code in SourceCode
    if code not in (SourceCode.OK, SourceCode.END_OF_FILE, SourceCode.STOPPED)
)
_ALERTS: Final = tuple(
    kind
    for event in (VerdictEvent, FeedEvent, SourceEvent, DriftEvent)
    for kind in get_args(event.model_fields["type"].annotation)
)
_LOOK_EVERY_S: Final = 1.0  # at what waits in the sinks


class Measures:
    """All that one process measures.

    Args:
        registry: that is read; None: none, for the values of a worker lie in a shared folder (see
            `stream.metrics.monitor`).
        sources: ids. Their counters stand at 0 from the start, as do those of others from the
            next `tick` on: Prometheus does not take what appears at 1 for an increase.
        detectors: names, in the order of the configuration.

    Attributes:
        analysis: watches the analysis.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None,
        sources: Sequence[str],
        detectors: Sequence[str],
    ) -> None:
        # Else each counter and histogram has a series more, which nobody asks for.
        prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]
        make = _Maker(registry)
        self.analysis = _OfAnalysis(make, detectors)
        self._messages = _OfMessages(make, sources)
        self._redis = _OfRedis(make)

    def tick(self, progress: Progress) -> None:
        """Note what waits, and who is new; to be called about every second, by any one thread."""
        self.analysis.tick(progress)
        for source in progress.watched:
            self._messages.begin(source.id)

    def sink(self, others: Sequence[Sink]) -> Sink:
        """Return what counts messages, to be published to after the other sinks."""
        return _CountingSink(self._messages, self._redis, others)


class _Maker:
    """Makes metrics of one registry."""

    def __init__(self, registry: CollectorRegistry | None) -> None:
        self._registry = registry

    def counter(self, name: str, text: str, *labels: str) -> prometheus.Counter:
        return prometheus.Counter(PREFIX + name, text, labels, registry=self._registry)

    def histogram(
        self, name: str, text: str, *labels: str, buckets: Sequence[float]
    ) -> prometheus.Histogram:
        return prometheus.Histogram(
            PREFIX + name, text, labels, registry=self._registry, buckets=buckets
        )

    def gauge(
        self,
        name: str,
        text: str,
        *labels: str,
        over: Literal["mostrecent", "livemostrecent", "livesum", "livemin", "livemax"],
    ) -> prometheus.Gauge:
        """Make a gauge; `over` says how those of several processes become one."""
        return prometheus.Gauge(
            PREFIX + name, text, labels, registry=self._registry, multiprocess_mode=over
        )


class _OfAnalysis:
    """What the analysis saw; a `stream.pipeline.Watcher`."""

    def __init__(self, make: _Maker, detectors: Sequence[str]) -> None:
        self._detectors = detectors
        self._sessions: dict[str, tuple[int, float]] = {}  # by source: which, and its `_began`
        self._frames = make.counter("frames_analysed", "Frames that were analysed.", "source")
        self._last_frame = make.gauge(
            "source_last_frame_timestamp_seconds",
            "Unix time at which the latest frame that was analysed reached us.",
            "source",
            over="mostrecent",
        )
        self._offset = make.gauge(
            "clock_offset_seconds",
            "How much later the latest frame came than its media time says, since its session "
            "began: grows when a camera's clock is slow or its stream falls behind. Of a file: "
            "without meaning.",
            "source",
            over="livemostrecent",
        )
        self._faces = make.counter("faces_detected", "Faces seen in analysed frames.", "source")
        self._stages = make.histogram(
            "stage_latency_seconds",
            "Time that a stage took for the frames of one step.",
            "stage",
            buckets=_STAGE_S,
        )
        self._crops = make.histogram(
            "batch_size",
            "Crops that one step gave a detector, which may split them.",
            "detector",
            buckets=_CROPS,
        )
        self._inferences = make.counter("inference", "Crops that a detector scored.", "detector")
        self._inbox = make.gauge(
            "inbox_depth", "Frames that wait for the analysis.", "source", over="livemostrecent"
        )

    def watch(self, frames: Sequence[Frame], step: Step) -> None:
        """See `stream.pipeline.Watcher`."""
        for stage, seconds in step.seconds.items():
            self._stages.labels(stage).observe(seconds)
        for frame in frames:
            source_id = frame.stamp.source_id
            if source_id not in step.failures:
                self._frames.labels(source_id).inc()
                self._faces.labels(source_id).inc(len(step.tracks[source_id]))
                self._last_frame.labels(source_id).set(frame.stamp.captured_at)
                self._offset.labels(source_id).set(self._late_s(frame.stamp))
        for number, crops in Counter(score.detector for score in step.scores).items():
            self._inferences.labels(self._detectors[number]).inc(crops)
            self._crops.labels(self._detectors[number]).observe(crops)

    def tick(self, progress: Progress) -> None:
        """Note what waits for the analysis."""
        for source_id, frames in progress.waiting.items():
            self._inbox.labels(source_id).set(frames)

    def _late_s(self, stamp: FrameStamp) -> float:
        began = stamp.captured_at - stamp.pts_s
        known = self._sessions.get(stamp.source_id)
        if known is None or known[0] != stamp.session:
            known = self._sessions[stamp.source_id] = stamp.session, began
        return began - known[1]


class _OfMessages:
    """What messages say."""

    def __init__(self, make: _Maker, sources: Sequence[str]) -> None:
        self._live: dict[str, set[str]] = {}  # by source, ids of tracks
        self._reconnects = make.counter(
            "source_reconnects",
            "Times that a source was lost, to be tried again, or is lost for another reason.",
            "source",
            "code",
        )
        self._stalls = make.counter(
            "source_stalls", "Of these, times that it was connected and gave no picture.", "source"
        )
        self._verdicts = make.counter(
            "verdicts", "Changes of a track's verdict.", "source", "state", "family"
        )
        self._abstains = make.counter("abstain", "Tracks unfit to be judged.", "source", "reason")
        self._alerts = make.counter(
            "alerts", "Messages of verdicts, feeds, and what became of a source.", "source", "type"
        )
        self._tracks = make.gauge(
            "tracks_active", "Tracks that have not ended.", "source", over="livemostrecent"
        )
        self._decision = make.histogram(
            "time_to_decision_seconds",
            "Media time from a face's first sighting to its first attack or bona fide verdict.",
            buckets=_DECISION_S,
        )
        self._scores = make.histogram(
            "p_attack", "Fused probabilities of published scores.", "source", buckets=_PROBABILITIES
        )
        self._latency = make.histogram(
            "e2e_latency_seconds",
            "From a frame's arrival until every sink was given what it says of a track.",
            buckets=_LATENCY_S,
        )
        self._known: set[str] = set()
        for source_id in sources:
            self.begin(source_id)

    def begin(self, source_id: str) -> None:
        """Let the counters of a source stand at 0, unless they count already."""
        if source_id in self._known:
            return
        self._known.add(source_id)
        for code in _LOSSES:
            self._reconnects.labels(source_id, code)
        self._stalls.labels(source_id)
        for state in Verdict:
            for family in AttackFamily if state is Verdict.ATTACK else ("",):
                self._verdicts.labels(source_id, state, family)
        for reason in QualityProblem:
            self._abstains.labels(source_id, reason)
        for kind in _ALERTS:
            self._alerts.labels(source_id, kind)
        self._scores.labels(source_id)

    def count(self, message: OutMessage, now: float) -> None:
        """Count a message; `now` is Unix time."""
        match message:
            case StatusMessage(source=source, status=status):
                if status.changed and status.state is SourceState.LOST:
                    self._reconnects.labels(source.id, status.code).inc()
                    if status.code is SourceCode.FROZEN:
                        self._stalls.labels(source.id).inc()
            case SourceMessage() | FeedMessage() | DriftMessage():
                source, event = message.source, message.event
                self._alerts.labels(source.id, event.type).inc()
            case VerdictMessage():
                self._count_verdict(message)
                self._count_face(message, now)
            case FaceMessage():
                if message.verdict.p_attack is not None:
                    self._scores.labels(message.source.id).observe(message.verdict.p_attack)
                self._count_face(message, now)

    def _count_face(self, message: FaceMessage, now: float) -> None:
        live = self._live.setdefault(message.source.id, set())
        if message.event.type == "track.end":
            live.discard(message.track.id)
        else:
            live.add(message.track.id)
            # A track's end is said of a frame long ago.
            self._latency.observe(max(0.0, now - _unix(message.ts)))
        self._tracks.labels(message.source.id).set(len(live))

    def _count_verdict(self, message: VerdictMessage) -> None:
        verdict, source_id = message.verdict, message.source.id
        self._alerts.labels(source_id, message.event.type).inc()
        self._verdicts.labels(source_id, verdict.state, verdict.family or "").inc()
        if verdict.reason is not None:
            self._abstains.labels(source_id, verdict.reason).inc()
        decided = (Verdict.ATTACK, Verdict.BONA_FIDE)
        if verdict.state in decided and verdict.previous not in decided:
            self._decision.observe(message.track.age_s)


class _OfRedis:
    """What Redis took, and what waits for it."""

    def __init__(self, make: _Maker) -> None:
        self._known: Counter[tuple[RedisSink, Lane, str]] = Counter()  # as counted so far
        self._known_outages: Counter[RedisSink] = Counter()
        self._published = make.counter(
            "redis_publish",
            "Entries of streams that Redis took, or that are lost.",
            "lane",
            "result",
        )
        self._outages = make.counter("redis_outages", "Times that Redis went away.")
        self._is_up = make.gauge("redis_up", "0 while Redis is away, else 1.", over="livemin")
        self._is_up.set(1)
        self._entries = make.gauge(
            "redis_queue_entries",
            "Messages that wait for Redis, in memory and on disk.",
            "lane",
            over="livesum",
        )
        self._memory = make.gauge(
            "redis_queue_bytes", "Bytes of those in memory.", "lane", over="livesum"
        )
        self._spool = make.gauge("spool_bytes", "Bytes of those on disk.", "lane", over="livesum")
        self._oldest = make.gauge(
            "spool_oldest_age_seconds",
            "Age of the message that has waited for longest; 0: none waits.",
            over="livemax",
        )

    def look(self, sinks: Sequence[RedisSink], now: float) -> None:
        """Take what the sinks tell; `now` is Unix time."""
        for sink in sinks:
            for result, counts in (("sent", sink.sent), ("lost", sink.backlog.lost)):
                for lane, total in counts.items():
                    known = (sink, lane, result)
                    self._published.labels(lane, result).inc(total - self._known[known])
                    self._known[known] = total
            self._outages.inc(sink.outages - self._known_outages[sink])
            self._known_outages[sink] = sink.outages
        if not sinks:
            return
        self._is_up.set(0 if any(sink.is_away for sink in sinks) else 1)
        stocks = [sink.backlog.stock() for sink in sinks]
        oldest = now
        for lane in stocks[0]:
            of_lane = [stock[lane] for stock in stocks]
            self._entries.labels(lane).set(sum(s.entries for s in of_lane))
            self._memory.labels(lane).set(sum(s.memory_bytes for s in of_lane))
            self._spool.labels(lane).set(sum(s.disk_bytes for s in of_lane))
            heads = [_unix(json.loads(s.oldest)["ts"]) for s in of_lane if s.oldest]
            oldest = min([oldest, *heads])
        self._oldest.set(now - oldest)


class _CountingSink:
    """Counts messages, and looks about every second at what waits in the other sinks."""

    def __init__(
        self,
        messages: _OfMessages,
        redis: _OfRedis,
        others: Sequence[Sink],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._messages = messages
        self._redis = redis
        self._redis_sinks = [sink for sink in others if isinstance(sink, RedisSink)]
        self._clock = clock
        self._looked_at = -math.inf

    def publish(self, messages: Sequence[OutMessage]) -> None:
        """Count messages that the other sinks have been given."""
        now = self._clock()
        for message in messages:
            self._messages.count(message, now)
        if abs(now - self._looked_at) >= _LOOK_EVERY_S:  # the wall clock may be set back
            self._redis.look(self._redis_sinks, now)
            self._looked_at = now

    def close(self) -> None:
        """Look a last time at what waits in the other sinks."""
        self._redis.look(self._redis_sinks, self._clock())


def _unix(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()
