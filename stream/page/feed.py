"""What the page shows of a run, in bounded memory: the analysis only notes it here.

A viewer has no queue that could grow: it asks for what is newer than what it has. Of frames that
is the latest of each source, of alerts and scores a short past.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict, deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from models import crop_faces
from stream.messages import Lane, OutMessage, ScoreMessage, StatusMessage, track_id, verdict_id
from stream.records import Alert, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from models import InputSpec
    from stream.analyse import Step
    from stream.records import Frame, Track, TrackKey, TrackScore

MOST_ALERTS: Final = 200
MOST_SCORES: Final = 3000
MOST_LOOKS: Final = 100  # crops behind alerts, 50 to 150 kB each
STATISTICS_S: Final = 10.0  # that latencies and rates are about
_MOST_MEASURED: Final = 4000

Kind = Literal["alert", "score", "status", "statistics"]


@dataclass(frozen=True, slots=True)
class News:
    """Something a viewer is told once."""

    number: int  # grows, over all kinds
    kind: Kind
    text: str  # JSON


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A frame that was scored, and the faces that were seen in it."""

    number: int  # as in `News`
    frame: Frame
    faces: tuple[dict[str, object], ...]  # as the page's script takes them


@dataclass(frozen=True, slots=True)
class _Measured:
    at: float  # monotonic seconds
    source_id: str
    latency_s: float  # from the frame's arrival to the end of its analysis
    stages_s: dict[str, float]  # of the step that it was part of


class Feed:
    """Watches the analysis and takes its messages, from their threads; any other may read.

    Args:
        run: names the run, as in its messages.
        spec: what the first detector is shown of a face.
        clock: Unix seconds.
        monotonic: seconds that never go back.
    """

    def __init__(
        self,
        run: str,
        spec: InputSpec,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run = run
        self._spec = spec.model_copy(update={"dtype": "uint8"})
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._number = 0
        self._viewers = 0
        self._announce: Callable[[], None] = _nobody_listens
        self._shown: dict[str, Shown] = {}
        self._said: dict[TrackKey, TrackScore] = {}  # of live tracks
        self._alerts: deque[News] = deque(maxlen=MOST_ALERTS)
        self._scores: deque[News] = deque(maxlen=MOST_SCORES)
        self._statuses: dict[str, News] = {}
        self._since: dict[str, tuple[str, str]] = {}  # state of each source, and since when
        self._statistics: News | None = None
        self._looks: OrderedDict[str, Tensor] = OrderedDict()
        self._measured: deque[_Measured] = deque(maxlen=_MOST_MEASURED)

    # --- what the run says ---

    def watch(self, frames: Sequence[Frame], step: Step) -> None:
        """See `stream.pipeline.Watcher`; frames are kept only while somebody looks."""
        now = self._clock()
        with self._lock:
            for record in step.records:
                self._note(record.track if isinstance(record, Alert) else record)
            for alert in step.records:
                if isinstance(alert, Alert):
                    self._keep_look(alert, frames, step)
            for frame in frames:
                stamp = frame.stamp
                if stamp.source_id in step.failures:
                    continue
                latency_s = max(0.0, now - stamp.captured_at)
                self._measured.append(
                    _Measured(self._monotonic(), stamp.source_id, latency_s, step.seconds)
                )
                if self._viewers:
                    faces = tuple(map(self._face, step.tracks.get(stamp.source_id, ())))
                    self._shown[stamp.source_id] = Shown(self._next(), frame, faces)
            announce = self._announce
        announce()

    def publish(self, messages: Sequence[OutMessage]) -> None:
        """See `stream.publish.Sink`."""
        with self._lock:
            for message in messages:
                self._take(message)
            announce = self._announce
        announce()

    def close(self) -> None:
        """See `stream.publish.Sink`."""

    def forget(self, known: set[str]) -> None:
        """Keep what is known of these sources alone."""
        with self._lock:
            for source_id in self._statuses.keys() - known:
                del self._statuses[source_id], self._since[source_id]
            for source_id in self._shown.keys() - known:
                del self._shown[source_id]

    def _note(self, score: TrackScore) -> None:
        if score.ended:
            self._said.pop(score.sighting.key, None)
        else:
            self._said[score.sighting.key] = score

    def _keep_look(self, alert: Alert, frames: Sequence[Frame], step: Step) -> None:
        """Keep what the first detector saw, or would have seen, when the verdict changed."""
        sighting = alert.track.sighting
        crop = next(
            (c.image for c in step.crops if c.sighting.key == sighting.key and c.detector == 0),
            None,
        )
        if crop is None:
            frame = next((f for f in frames if f.stamp == sighting.stamp), None)
            if frame is None:
                return
            (crop,) = crop_faces(frame.image, sighting.detection.box[None], self._spec)
        self._looks[verdict_id(self.run, alert)] = crop
        while len(self._looks) > MOST_LOOKS:
            self._looks.popitem(last=False)

    def _face(self, track: Track) -> dict[str, object]:
        said = self._said.get(track.key)
        return {
            "track": track_id(self.run, track.key),
            "box": [round(float(v), 1) for v in track.detection.box],  # px of the frame
            "state": said.verdict if said else Verdict.UNDECIDED,
            "p": None if said is None or said.probability is None else round(said.probability, 4),
            "family": said.family if said else None,
            "reason": said.problem if said else None,
        }

    def _take(self, message: OutMessage) -> None:
        if isinstance(message, StatusMessage):
            source_id, state = message.source.id, message.status.state
            if self._since.get(source_id, ("", ""))[0] != state:
                self._since[source_id] = state, message.ts
            since = json.dumps(self._since[source_id][1])
            text = f'{{"since": {since}, "message": {message.to_json()}}}'
            self._statuses[source_id] = self._news("status", text)
        elif isinstance(message, ScoreMessage):
            self._scores.append(self._news("score", _point(message)))
        elif message.lane in (Lane.ALERTS, Lane.SOURCES):
            self._alerts.append(self._news("alert", message.to_json()))

    def _news(self, kind: Kind, text: str) -> News:
        return News(self._next(), kind, text)

    def _next(self) -> int:
        self._number += 1
        return self._number

    # --- what viewers ask for ---

    @contextmanager
    def viewed(self) -> Iterator[None]:
        """Keep frames as long as this lasts."""
        with self._lock:
            self._viewers += 1
        try:
            yield
        finally:
            with self._lock:
                self._viewers -= 1
                if not self._viewers:
                    self._shown.clear()

    def tell(self, announce: Callable[[], None] | None) -> None:
        """Call this whenever there is something new, from any thread; None: nobody listens."""
        with self._lock:
            self._announce = announce or _nobody_listens

    def news_after(self, number: int) -> list[News]:
        """Return what is newer, the oldest first."""
        with self._lock:
            latest = [*self._statuses.values(), *filter(None, [self._statistics])]
            newer = [
                *_newer(self._alerts, number),
                *_newer(self._scores, number),
                *(news for news in latest if news.number > number),
            ]
        return sorted(newer, key=lambda news: news.number)

    def frames_after(self, number: int, source_ids: Sequence[str]) -> list[Shown]:
        """Return the latest frame of each source, if it is newer; of all, if none is named."""
        with self._lock:
            return sorted(
                (
                    shown
                    for source_id, shown in self._shown.items()
                    if shown.number > number and (not source_ids or source_id in source_ids)
                ),
                key=lambda shown: shown.number,
            )

    def look_of(self, event_id: str) -> Tensor | None:
        """Return (3, S, S) uint8 RGB, the face behind an alert; None: it is not kept any more."""
        with self._lock:
            return self._looks.get(event_id)

    def measure(self) -> None:
        """Say how fast the analysis was lately."""
        with self._lock:
            begin = self._monotonic() - STATISTICS_S
            while self._measured and self._measured[0].at < begin:
                self._measured.popleft()
            measured = list(self._measured)
        text = json.dumps(_statistics(measured))
        with self._lock:
            self._statistics = self._news("statistics", text)
            announce = self._announce
        announce()


def _nobody_listens() -> None:
    return


def _newer(ring: deque[News], number: int) -> Iterator[News]:
    for news in reversed(ring):
        if news.number <= number:
            return
        yield news


def _point(message: ScoreMessage) -> str:
    """Return what a curve needs of a score."""
    return json.dumps(
        {
            "track": message.track.id,
            "source": message.source.id,
            "ts": message.ts,
            "p": message.verdict.p_attack,
            "state": message.verdict.state,
            "ended": message.event.type == "track.end",
        }
    )


def _statistics(measured: Sequence[_Measured]) -> dict[str, object]:
    """Return latencies and rates over the latest `STATISTICS_S`: ms, and frames a second."""
    by_source: dict[str, list[float]] = {}
    for each in measured:
        by_source.setdefault(each.source_id, []).append(each.latency_s * 1000)
    stages: dict[str, list[float]] = {}
    for each in measured:
        before_s = max(0.0, each.latency_s - sum(each.stages_s.values()))
        for name, seconds in {"before the analysis": before_s, **each.stages_s}.items():
            stages.setdefault(name, []).append(seconds * 1000)
    return {
        "seconds": STATISTICS_S,
        "sources": {
            source_id: {
                "fps": round(len(ms) / STATISTICS_S, 2),
                **_percentiles(ms),
            }
            for source_id, ms in by_source.items()
        },
        "stages": {name.replace("_", " "): _percentiles(ms) for name, ms in stages.items()},
    }


def _percentiles(ms: Sequence[float]) -> dict[str, float]:
    p50, p95 = np.percentile(ms, [50, 95])
    return {"p50": round(float(p50), 1), "p95": round(float(p95), 1)}
