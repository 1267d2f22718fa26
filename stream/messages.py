"""Records to JSON: the one home of the schema `facewarden/v1`, which docs/messages.md explains.

`python -m stream.messages > docs/messages.schema.json` writes the JSON Schema. Within v1 the schema
only grows: a field's name, type, unit and meaning never change, and none goes away.
"""

from __future__ import annotations

import json
import re
import sys
import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from stream.records import (
    Alert,
    AttackFamily,
    DetectorScore,
    DriftAlert,
    FeedAlert,
    FeedCondition,
    QualityProblem,
    SourceAlert,
    SourceCode,
    SourceState,
    SourceStatus,
    TrackScore,
    Verdict,
)
from stream.redact import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from stream.records import Message, Sighting, TrackKey

SCHEMA: Final = "facewarden/v1"
_TIMESTAMP: Final = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"


class Lane(StrEnum):
    """Where a message goes; for Redis, the second part of the key."""

    ALERTS = "alerts"  # verdicts that changed; a score is dropped before an alert is
    FEEDS = "feeds"  # attacks on the feed of a source
    SOURCES = "sources"  # sources lost, regained, failed: apart, so that they trim no verdict
    SCANS = "scans"  # what a scan of an archive says of a file
    TRACKS = "tracks"  # scores
    STATUS = "status"  # how a source is doing; only the latest counts


class Part(BaseModel):
    """A JSON object within a message."""

    model_config = ConfigDict(
        frozen=True,
        allow_inf_nan=False,
        serialize_by_alias=True,
        validate_by_name=True,
        json_schema_serialization_defaults_required=True,
    )


class Event(Part):
    """Names a message; one that is sent twice carries the same id both times."""

    id: str
    type: str


class TrackEvent(Event):
    """`track.end` is a track's last message."""

    type: Literal["track.score", "track.end"]


class VerdictEvent(Event):
    """A track's verdict changed."""

    type: Literal["track.verdict"] = "track.verdict"


class SourceEvent(Event):
    """`source.ended` means a failure: not a file that is over, nor a stop on request."""

    type: Literal["source.lost", "source.regained", "source.flapping", "source.ended"]


class FeedEvent(Event):
    """`feed.cleared` says that what an earlier one said is over."""

    type: Literal[
        "feed.frozen",
        "feed.looped",
        "feed.covered",
        "feed.swapped",
        "feed.changed",
        "feed.cleared",
    ]


class StatusEvent(Event):
    """A source's state, on every change and every few seconds."""

    type: Literal["source.status"] = "source.status"


class ScanEvent(Event):
    """A file of an archive was scanned; its id follows from the file's content and the options."""

    type: Literal["scan.result"] = "scan.result"


class DriftEvent(Event):
    """A camera's visits differ from those that its thresholds were learned from, or no longer."""

    type: Literal["camera.drift"] = "camera.drift"


class Source(Part):
    """The camera or file."""

    id: str = Field(description="As configured; never a URL or a path.")
    session: int = Field(ge=0, description="0 at first, +1 with every reconnect.")


class Track(Part):
    """One face, followed through one session of a source."""

    id: str = Field(
        description="Unique across sources and restarts: <source>-<run>-<session>-<number>. "
        "Opaque: compare it, don't take it apart."
    )
    age_s: float = Field(ge=0, description="Media time since the face was first seen, seconds.")
    n_scores: int = Field(
        ge=0, description="Crops scored so far, by the detector that scored most."
    )
    n_effective: float = Field(
        ge=0,
        description="Independent looks those are worth; neighbouring frames say nearly the same.",
    )


class Box(Part):
    """The face: left, top, width, height; x to the right, y down, clipped to the frame."""

    x: float = Field(ge=0, le=1, description="Fraction of the frame's width.")
    y: float = Field(ge=0, le=1, description="Fraction of the frame's height.")
    w: float = Field(ge=0, le=1, description="Fraction of the frame's width.")
    h: float = Field(ge=0, le=1, description="Fraction of the frame's height.")


class FrameSize(Part):
    """The frame that `bbox` and `quality` belong to, as decoded and turned upright."""

    index: int = Field(ge=0, description="0-based, in decode order of the session.")
    w: int = Field(ge=1, description="Pixels.")
    h: int = Field(ge=1, description="Pixels.")


class TrackVerdict(Part):
    """What is said of the track."""

    state: Verdict
    p_attack: float | None = Field(
        ge=0,
        le=1,
        description="Fused, calibrated probability that the face is an attack; null before the "
        "first score.",
    )
    method: str = Field(description="Method of the network that p_attack rests on.")
    family: AttackFamily | None = Field(
        description="Kind of attack, as far as the detectors tell; null unless the state is attack."
    )
    reason: QualityProblem | None = Field(description="Why the state is abstain; else null.")


class VerdictChange(TrackVerdict):
    """What is said of the track, and what was said before."""

    previous: Verdict
    threshold: float = Field(ge=0, le=1, description="On p_attack, that applied.")


class Detector(Part):
    """What one detector says of the track."""

    name: str = Field(description="Of its engine, as in producer.models, in the same order.")
    method: str = Field(description="Of its network.")
    family: AttackFamily | None = Field(
        description="Of the attacks it was trained to see; null: both, or unknown."
    )
    p_attack: float | None = Field(
        ge=0,
        le=1,
        description="Its own calibrated probability, fused over its looks; null before the first.",
    )
    n_scores: int = Field(ge=0, description="Crops it scored so far.")
    abstains: QualityProblem | None = Field(
        description="Why it has no say: it could not be shown the face often enough; else null."
    )


class Quality(Part):
    """How well this sighting of the face can be judged."""

    face_px: float = Field(ge=0, description="Longer side of the face, pixels of the frame.")
    sharpness: float = Field(ge=0, le=1, description="0: no detail at the scale of the crop.")
    brightness: float = Field(ge=0, le=1, description="Mean luma of the face.")
    turn: float = Field(ge=0, description="0 frontal, 1 profile.")
    problem: QualityProblem | None = Field(
        description="Why no detector can score this sighting of the face; null if it is fit."
    )


class Status(Part):
    """How a source is doing."""

    state: SourceState
    code: SourceCode = Field(description="Why it is in this state.")
    detail: str = Field(description="One line for people, without addresses; not for programs.")
    changed: bool = Field(description="False in a heartbeat.")
    frames_seen: int = Field(ge=0, description="Decoded by this run, in all sessions.")
    frames_due: int = Field(
        ge=0, description="Selected for analysis, or meant to be and never decoded."
    )
    frames_dropped: int = Field(
        ge=0,
        description="Of those due, dropped: the machine was behind. The sum of the next three.",
    )
    frames_overtaken: int = Field(
        ge=0, description="Of those dropped: a newer frame of the source came before their turn."
    )
    frames_late: int = Field(ge=0, description="Of those dropped: they had waited for too long.")
    frames_undecoded: int = Field(
        ge=0, description="Of those dropped: decoding was behind, and left them out."
    )
    frames_failed: int = Field(ge=0, description="Of those due, not analysed because of an error.")


class Losses(Part):
    """How often a source was lost lately."""

    n: int = Field(ge=0, description="Times, this one included.")
    within_s: float = Field(ge=0, description="Seconds since the first of those times.")


class Feed(Part):
    """What is wrong with the feed of a source, and what it was measured by."""

    condition: FeedCondition = Field(description="In feed.cleared, too: what is over.")
    lasted_s: float = Field(
        ge=0, description="Media time for which it has lasted, or did last; over all sessions."
    )
    measure: float | None = Field(
        description="See docs/messages.md for what each condition is measured by; null: changed."
    )
    limit: float | None = Field(description="That the measure was held against; null: changed.")
    lag_s: float | None = Field(
        ge=0, description="Looped: how long ago the same was shown, media time; else null."
    )
    before: str | None = Field(description="Changed: encoding and size until then; else null.")
    after: str | None = Field(description="Changed: encoding and size since then; else null.")


class ModelId(Part):
    """A network that ran."""

    name: str
    onnx_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Producer(Part):
    """What made the message."""

    version: str = Field(description="Of facewarden.")
    run: str = Field(
        pattern=r"^[0-9a-f]{8}$", description="Differs with every start of the process."
    )
    decoder: str | None = Field(
        description="What made the pixels; null in messages about a source."
    )
    models: tuple[ModelId, ...]


class Envelope(Part):
    """What every message holds."""

    schema_: Literal["facewarden/v1"] = Field(SCHEMA, alias="schema")
    event: Event
    ts: str = Field(
        pattern=_TIMESTAMP,
        json_schema_extra={"format": "date-time"},
        description="ISO 8601, UTC: when the frame reached the process, or the source changed.",
    )
    source: Source
    producer: Producer

    def to_json(self) -> str:
        """Return the message on one line."""
        return self.model_dump_json()


class FaceMessage(Envelope):
    """What every message about a track holds."""

    pts_s: float = Field(
        description="Media time of the frame, seconds; never decreases within a session."
    )
    track: Track
    bbox: Box
    frame: FrameSize
    verdict: TrackVerdict
    detectors: tuple[Detector, ...] = Field(description="What each detector says.")
    quality: Quality
    latency_ms: float = Field(
        ge=0,
        description="From ts until the message was made: without the time it waits to be sent, and "
        "without what passed before a camera's packet was read.",
    )


class ScoreMessage(FaceMessage):
    """A track's evidence so far."""

    lane: ClassVar = Lane.TRACKS
    event: TrackEvent


class VerdictMessage(FaceMessage):
    """A track's verdict changed."""

    lane: ClassVar = Lane.ALERTS
    event: VerdictEvent
    verdict: VerdictChange
    evidence: str | None = Field(
        None,
        description="Name of the bundle of evidence that is kept of this; null: none is.",
    )


class SourceMessage(Envelope):
    """A source was lost, came back, comes and goes, or failed for good."""

    lane: ClassVar = Lane.SOURCES
    event: SourceEvent
    status: Status
    losses: Losses


class FeedMessage(Envelope):
    """Something is wrong with the feed of a source, or is over."""

    lane: ClassVar = Lane.FEEDS
    event: FeedEvent
    pts_s: float = Field(
        description="Media time of the frame that settled it, seconds; never decreases within a "
        "session."
    )
    frame: FrameSize
    feed: Feed


class StatusMessage(Envelope):
    """How a source is doing."""

    lane: ClassVar = Lane.STATUS
    event: StatusEvent
    status: Status

    def hash_fields(self) -> dict[str, str]:
        """Return the message without nesting, all values as text: the fields of a Redis hash."""
        return {
            "schema": self.schema_,
            "ts": self.ts,
            "source": self.source.id,
            "session": str(self.source.session),
            "state": self.status.state.value,
            "code": self.status.code.value,
            "detail": self.status.detail,
            "changed": str(self.status.changed).lower(),
            "frames_seen": str(self.status.frames_seen),
            "frames_due": str(self.status.frames_due),
            "frames_dropped": str(self.status.frames_dropped),
            "frames_overtaken": str(self.status.frames_overtaken),
            "frames_late": str(self.status.frames_late),
            "frames_undecoded": str(self.status.frames_undecoded),
            "frames_failed": str(self.status.frames_failed),
            "producer": self.producer.model_dump_json(),
        }


class MeasureDrift(Part):
    """How one measure of the visits differs from what was learned."""

    measure: str = Field(
        description="`score` (log-odds of an attack), `face_px`, `sharpness`, `brightness` or "
        "`turn`: of each visit the mean."
    )
    learned: float = Field(description="Median of the visits that were learned from.")
    lately: float = Field(description="Median of the latest visits.")
    distance: float = Field(
        ge=0, le=1, description="Between the two distributions (Kolmogorov-Smirnov)."
    )
    p_value: float = Field(ge=0, le=1, description="Of such a distance, were they the same.")


class DriftState(Part):
    """What is said of a camera's drift."""

    state: Literal["raised", "cleared"]
    visits: int = Field(ge=1, description="Latest visits that were compared.")
    measures: tuple[MeasureDrift, ...] = Field(description="Those that differ most first.")


class DriftMessage(Envelope):
    """A camera's visits no longer look like those that its thresholds were learned from, or do."""

    lane: ClassVar = Lane.SOURCES
    event: DriftEvent
    drift: DriftState


class ScannedFile(Part):
    """The file of an archive, or the object of a store, that was scanned."""

    path: str = Field(
        description="As named, or below the folder named, odd characters escaped; an object's "
        "address."
    )
    path_hex: str | None = Field(
        description="The bytes of a path that is no plain text, hexadecimal; else null."
    )
    kind: Literal["video", "still"]
    size: int = Field(ge=0, description="Bytes.")
    sha256: str | None = Field(description="Of the content; null: it could not be read.")
    etag: str | None = Field(description="What an object's store calls this content; else null.")


class Scan(Part):
    """How a file was scanned, and how far."""

    status: Literal["ok", "unreadable", "crashed", "timeout", "too_large"]
    reason: str | None = Field(description="Why it is not ok, or what could not be analysed.")
    mode: str = Field(description="keyframes, sample, full, keyframes+sample.")
    fps: float = Field(description="Frames a second of media time that were due at most.")
    seconds: float = Field(ge=0, description="Media time up to the last frame analysed.")
    coverage: float | None = Field(
        ge=0,
        le=1,
        description="Share of the seconds looked at that hold a face fit to be judged.",
    )
    frames_analysed: int = Field(ge=0, description="Frames.")
    run_key: str = Field(description="Digest of all that changes a result: detectors, options.")


class FileResult(Part):
    """What is said of a file."""

    state: Literal["attack", "bona_fide", "undecided", "abstain", "no_face"] = Field(
        description="The gravest that is said of its tracks."
    )
    p_attack: float | None = Field(ge=0, le=1, description="The highest of its tracks.")
    n_tracks: int = Field(ge=0, description="Faces followed and looked at.")
    n_attack: int = Field(ge=0, description="Of those, attacks at some time.")
    n_bona_fide: int = Field(ge=0, description="Of the others, bona fide at the end.")
    n_undecided: int = Field(ge=0, description="Of the others, undecided at the end.")
    n_abstain: int = Field(ge=0, description="Of the others, unfit to be judged.")


class ScannedTrack(Part):
    """One face of a file."""

    number: int = Field(ge=0, description="Within the file.")
    state: Verdict = Field(description="When the track ended.")
    attack_at_s: float | None = Field(
        description="Media time of the first attack verdict, seconds; null: there was none."
    )
    p_attack: float | None = Field(ge=0, le=1, description="At the end.")
    p_highest: float | None = Field(ge=0, le=1, description="The highest that it was.")
    family: AttackFamily | None = Field(description="Kind of attack; null unless it is one.")
    reason: QualityProblem | None = Field(description="Why the state is abstain; else null.")
    n_scores: int = Field(ge=0, description="Crops scored, by the detector that scored most.")
    first_s: float = Field(ge=0, description="Media time of the first sighting, seconds.")
    last_s: float = Field(ge=0, description="Media time of the last look, seconds.")


class ScanMessage(Part):
    """A file of an archive was scanned, to its end or as far as it can be read."""

    lane: ClassVar = Lane.SCANS
    schema_: Literal["facewarden/v1"] = Field(SCHEMA, alias="schema")
    event: ScanEvent
    ts: str = Field(
        pattern=_TIMESTAMP,
        json_schema_extra={"format": "date-time"},
        description="ISO 8601, UTC: when the file was finished.",
    )
    file: ScannedFile
    scan: Scan
    verdict: FileResult
    tracks: tuple[ScannedTrack, ...] = Field(
        description="The likeliest attacks first, twenty at most."
    )
    producer: Producer

    def to_json(self) -> str:
        """Return the message on one line."""
        return self.model_dump_json()


OutMessage: TypeAlias = (
    ScoreMessage
    | VerdictMessage
    | SourceMessage
    | FeedMessage
    | StatusMessage
    | ScanMessage
    | DriftMessage
)

_Face = TypeVar("_Face", bound=FaceMessage)


class MessageWriter:
    """Turns each record into its message; any thread may, in any order.

    Args:
        run: 8 hexadecimal digits that differ with every start of the process.
        version: of facewarden.
        models: the networks that run.
        clock: Unix seconds.
        evidence: changes to these verdicts have a bundle of evidence, which the message names.
    """

    def __init__(
        self,
        run: str,
        version: str,
        models: Sequence[ModelId],
        clock: Callable[[], float] = time.time,
        evidence: Collection[str] = (),
    ) -> None:
        self._evidence = frozenset(evidence)
        self._producer = Producer(run=run, version=version, decoder=None, models=tuple(models))
        self._producer_by_decoder: dict[str, Producer] = {}
        self._clock = clock

    def write(self, record: Message) -> OutMessage:
        """Return the message that says what a record holds, stamped with its latency until now."""
        match record:
            case TrackScore():
                return self._score(record)
            case Alert():
                return self._verdict(record)
            case SourceStatus():
                return self._status(record)
            case SourceAlert():
                return self._source_alert(record)
            case FeedAlert():
                return self._feed_alert(record)
            case DriftAlert():
                return self._drift(record)

    def _score(self, score: TrackScore) -> ScoreMessage:
        verdict = TrackVerdict(
            state=score.verdict,
            p_attack=_rounded(score.probability),
            method=score.method,
            family=score.family,
            reason=score.problem,
        )
        prefix = self._track_id(score.sighting.key)
        event = (
            TrackEvent(id=f"{prefix}:end", type="track.end")
            if score.ended
            else TrackEvent(id=f"{prefix}:score:{score.sighting.stamp.index}", type="track.score")
        )
        return self._about_face(ScoreMessage, score, event, verdict)

    def _verdict(self, alert: Alert) -> VerdictMessage:
        score = alert.track
        verdict = VerdictChange(
            state=score.verdict,
            p_attack=_rounded(score.probability),
            method=score.method,
            family=score.family,
            reason=score.problem,
            previous=alert.previous,
            threshold=alert.threshold,
        )
        event = VerdictEvent(id=verdict_id(self._producer.run, alert))
        message = self._about_face(VerdictMessage, score, event, verdict)
        return message.model_copy(update={"evidence": self.bundle_of(alert)})

    def bundle_of(self, alert: Alert) -> str | None:
        """Return the name of the bundle of evidence of a change, fit for a file; None: it has none.

        It begins with the time of the frame, UTC, so that names are in the order of time.
        """
        if alert.track.verdict not in self._evidence:
            return None
        sighting = alert.track.sighting
        taken = datetime.fromtimestamp(sighting.stamp.captured_at, UTC)
        return f"{taken:%Y%m%dT%H%M%SZ}-{self._track_id(sighting.key)}-{alert.ordinal}"

    def _about_face(
        self, cls: type[_Face], score: TrackScore, event: Event, verdict: TrackVerdict
    ) -> _Face:
        sighting = score.sighting
        stamp, quality = sighting.stamp, sighting.quality
        return cls(
            event=event,
            ts=_utc(stamp.captured_at),
            source=Source(id=sighting.key.source_id, session=sighting.key.session),
            producer=self._produced_by(stamp.decoder),
            pts_s=round(stamp.pts_s, 3),
            track=Track(
                id=self._track_id(sighting.key),
                age_s=round(stamp.pts_s - sighting.first_pts_s, 3),
                n_scores=score.n_scores,
                n_effective=round(score.n_effective, 3),
            ),
            bbox=_box(sighting),
            frame=FrameSize(index=stamp.index, w=stamp.width, h=stamp.height),
            verdict=verdict,
            detectors=tuple(_detector(each) for each in score.detectors),
            quality=Quality(
                face_px=round(quality.face_px, 1),
                sharpness=round(quality.sharpness, 4),
                brightness=round(quality.brightness, 4),
                turn=round(quality.turn, 4),
                problem=quality.problem,
            ),
            # A wall clock that was set back must not make the latency negative.
            latency_ms=round(max(0.0, self._clock() - stamp.captured_at) * 1000, 1),
        )

    def _status(self, status: SourceStatus) -> StatusMessage:
        return StatusMessage(
            event=StatusEvent(id=f"{self._session_id(status)}:status:{round(status.at * 1000)}"),
            ts=_utc(status.at),
            source=Source(id=status.source_id, session=status.session),
            producer=self._producer,
            status=_report(status),
        )

    def _source_alert(self, alert: SourceAlert) -> SourceMessage:
        status = alert.status
        event_id = f"{self._session_id(status)}:{alert.kind}:{alert.ordinal}"
        return SourceMessage(
            event=SourceEvent.model_validate({"id": event_id, "type": f"source.{alert.kind}"}),
            ts=_utc(status.at),
            source=Source(id=status.source_id, session=status.session),
            producer=self._producer,
            status=_report(status),
            losses=Losses(n=alert.losses, within_s=round(alert.within_s, 1)),
        )

    def _feed_alert(self, alert: FeedAlert) -> FeedMessage:
        stamp = alert.stamp
        kind = f"feed.{'cleared' if alert.cleared else alert.condition}"
        prefix = f"{stamp.source_id}-{self._producer.run}-{stamp.session}"
        return FeedMessage(
            event=FeedEvent.model_validate(
                {"id": f"{prefix}:{kind}:{alert.ordinal}", "type": kind}
            ),
            ts=_utc(stamp.captured_at),
            source=Source(id=stamp.source_id, session=stamp.session),
            producer=self._produced_by(stamp.decoder),
            pts_s=round(stamp.pts_s, 3),
            frame=FrameSize(index=stamp.index, w=stamp.width, h=stamp.height),
            feed=Feed(
                condition=alert.condition,
                lasted_s=round(alert.lasted_s, 3),
                measure=None if alert.measure is None else round(alert.measure, 4),
                limit=alert.limit,
                lag_s=None if alert.lag_s is None else round(alert.lag_s, 2),
                before=alert.before,
                after=alert.after,
            ),
        )

    def _drift(self, alert: DriftAlert) -> DriftMessage:
        session = f"{alert.source_id}-{self._producer.run}-{alert.session}"
        return DriftMessage(
            event=DriftEvent(id=f"{session}:drift:{alert.ordinal}"),
            ts=_utc(alert.at),
            source=Source(id=alert.source_id, session=alert.session),
            producer=self._producer,
            drift=DriftState(
                state="raised" if alert.raised else "cleared",
                visits=alert.visits,
                measures=tuple(
                    MeasureDrift(
                        measure=each.measure,
                        learned=round(each.learned, 4),
                        lately=round(each.lately, 4),
                        distance=round(each.distance, 4),
                        p_value=each.p_value,
                    )
                    for each in alert.drifts
                ),
            ),
        )

    def _track_id(self, key: TrackKey) -> str:
        return track_id(self._producer.run, key)

    def _session_id(self, status: SourceStatus) -> str:
        return f"{status.source_id}-{self._producer.run}-{status.session}"

    def _produced_by(self, decoder: str) -> Producer:
        if decoder not in self._producer_by_decoder:
            self._producer_by_decoder[decoder] = self._producer.model_copy(
                update={"decoder": decoder}
            )
        return self._producer_by_decoder[decoder]


def track_id(run: str, key: TrackKey) -> str:
    """Return the id of a track in the messages of a run."""
    return f"{key.source_id}-{run}-{key.session}-{key.track_id}"


def verdict_id(run: str, alert: Alert) -> str:
    """Return the id of the event that an alert is in the messages of a run."""
    return f"{track_id(run, alert.track.sighting.key)}:verdict:{alert.ordinal}"


# A word with a slash that follows no letter or digit (URLs; paths from the root, the home or the
# working folder), or with a slash and a file's suffix. More is hidden rather than less.
_ADDRESS = re.compile(r"\S*(?<!\w)/\S+|\S+/\S*\.\w\S*")


def without_addresses(text: str) -> str:
    """Return a line with its URLs and paths taken out: who reads messages need not know them.

    Sources remove credentials themselves; this is the second lock on that door.

    >>> without_addresses("rtsp://cam-7/live refused the connection, see /var/log/cams/7.log")
    '[address] refused the connection, see [address]'
    """
    return _ADDRESS.sub("[address]", text)


class _UntitledSchema(GenerateJsonSchema):
    """Leaves out the titles, which only repeat the fields' names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of all messages, draft 2020-12."""
    adapter: TypeAdapter[OutMessage] = TypeAdapter(OutMessage)
    body = adapter.json_schema(mode="serialization", schema_generator=_UntitledSchema)
    return {"$schema": _UntitledSchema.schema_dialect, "title": SCHEMA, **body}


def _report(status: SourceStatus) -> Status:
    return Status(
        state=status.state,
        code=status.code,
        detail=printable(without_addresses(status.detail)),
        changed=status.changed,
        frames_seen=status.frames_seen,
        frames_due=status.frames_due,
        frames_dropped=status.frames_dropped,
        frames_overtaken=status.frames_overtaken,
        frames_late=status.frames_late,
        frames_undecoded=status.frames_undecoded,
        frames_failed=status.frames_failed,
    )


def _detector(score: DetectorScore) -> Detector:
    return Detector(
        name=score.name,
        method=score.method,
        family=score.family,
        p_attack=_rounded(score.probability),
        n_scores=score.n_scores,
        abstains=score.problem,
    )


def _rounded(probability: float | None) -> float | None:
    return None if probability is None else round(probability, 6)


def _utc(unix_s: float) -> str:
    text = datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _box(sighting: Sighting) -> Box:
    size = (sighting.stamp.width, sighting.stamp.height) * 2
    left, top, right, bottom = (
        min(max(float(v) / n, 0.0), 1.0) for v, n in zip(sighting.detection.box, size, strict=True)
    )
    return Box(
        x=round(left, 5), y=round(top, 5), w=round(right - left, 5), h=round(bottom - top, 5)
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")
