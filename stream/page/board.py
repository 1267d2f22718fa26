"""What there is to see of a run, in bounded memory.

A viewer has no queue that could grow: it asks for what is newer than what it has. Of pictures that
is the latest of each source, of alerts and scores a short past. With workers each has a board, at
which the supervisor is the only viewer, and the supervisor's board is what people see
(`stream/workers/showing.py`). No network is imported here.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, OrderedDict, deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, Literal, TypeAlias, TypeVar

import numpy as np

from stream.messages import Lane, OutMessage, ScoreMessage, StatusMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

GRID_WIDTH: Final = 640  # px, of a picture among others
SINGLE_WIDTH: Final = 1280
MOST_ALERTS: Final = 200
MOST_SCORES: Final = 3000
MOST_LOOKS: Final = 100  # crops behind alerts, 50 to 150 kB each
STATISTICS_S: Final = 10.0  # that latencies and rates are about
_MOST_MEASURED: Final = 20_000

Kind = Literal["alert", "score", "status", "statistics"]
View: TypeAlias = tuple[str, int]  # source, empty: all; and the width of its pictures, px
Picture = TypeVar("Picture")
Look = TypeVar("Look")


@dataclass(frozen=True, slots=True)
class News:
    """Something a viewer is told once."""

    number: int  # grows, over all kinds
    kind: Kind
    text: str  # JSON


@dataclass(frozen=True, slots=True, eq=False)
class Shown(Generic[Picture]):
    """A frame that was scored, and the faces that were seen in it."""

    number: int  # as in `News`
    source_id: str
    width: int | None  # px, that it was made for; None: any can be made of it
    picture: Picture


@dataclass(frozen=True, slots=True)
class Measured:
    """How long one frame took."""

    at: float  # seconds of the machine's monotonic clock, which its processes share
    source_id: str
    latency_s: float  # from the frame's arrival to the end of its analysis
    stages_s: dict[str, float]  # of the step that it was part of


class Board(Generic[Picture, Look]):
    """Keeps what viewers may ask for; any thread may tell it, and ask.

    Args:
        run: names the run, as in its messages.
        monotonic: seconds that never go back.
    """

    def __init__(self, run: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.run = run
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._number = 0
        self._views: Counter[View] = Counter()
        self._tell_views: Callable[[frozenset[View]], None] = _nobody_listens
        self._announce: Callable[[], None] = _nobody_listens
        self._shown: dict[tuple[str, int | None], Shown[Picture]] = {}
        self._alerts: deque[News] = deque(maxlen=MOST_ALERTS)
        self._scores: deque[News] = deque(maxlen=MOST_SCORES)
        self._statuses: dict[str, News] = {}
        self._since: dict[str, tuple[str, str]] = {}  # state of each source, and since when
        self._statistics: News | None = None
        self._looks: OrderedDict[str, tuple[int, Look]] = OrderedDict()
        self._measured: deque[tuple[int, Measured]] = deque(maxlen=_MOST_MEASURED)

    # --- what it is told ---

    def publish(self, messages: Sequence[OutMessage]) -> None:
        """See `stream.publish.Sink`."""
        self.take([news for message in messages if (news := _news_of(message)) is not None])

    def close(self) -> None:
        """See `stream.publish.Sink`."""

    def take(self, news: Iterable[tuple[Kind, str]]) -> None:
        """Keep news, the oldest first: kind and JSON, as in `News`."""
        with self._lock:
            for kind, text in news:
                if kind == "status":
                    self._take_status(text)
                else:
                    ring = self._alerts if kind == "alert" else self._scores
                    ring.append(self._news(kind, text))
        self.announce()

    def _take_status(self, text: str) -> None:
        """Keep a status, and since when the source is in that state."""
        message = json.loads(text)["message"]
        source_id, state = message["source"]["id"], message["status"]["state"]
        if self._since.get(source_id, ("", ""))[0] != state:
            self._since[source_id] = state, message["ts"]
        told = {"since": self._since[source_id][1], "message": message}
        self._statuses[source_id] = self._news("status", json.dumps(told))

    def measured(self, measured: Iterable[Measured]) -> None:
        """Note how long frames took."""
        with self._lock:
            for each in measured:
                self._measured.append((self._next(), each))
            begin = self._monotonic() - STATISTICS_S
            while self._measured and self._measured[0][1].at < begin:
                self._measured.popleft()

    def show(self, source_id: str, width: int | None, picture: Picture) -> None:
        """Keep the latest frame of a source, if somebody looks; see `Shown`."""
        with self._lock:
            if _is_wanted(source_id, width, self._views):
                shown = Shown(self._next(), source_id, width, picture)
                self._shown[source_id, width] = shown

    def keep_look(self, event_id: str, look: Look) -> None:
        """Keep the face behind an alert."""
        with self._lock:
            self._looks[event_id] = self._next(), look
            while len(self._looks) > MOST_LOOKS:
                self._looks.popitem(last=False)

    def forget(self, known: set[str]) -> None:
        """Keep what is known of these sources alone."""
        with self._lock:
            for source_id in self._statuses.keys() - known:
                del self._statuses[source_id], self._since[source_id]
            for key in [key for key in self._shown if key[0] not in known]:
                del self._shown[key]

    def let_go(self, shown: Shown[Picture]) -> None:
        """Keep a frame no longer, unless there is a newer one."""
        key = shown.source_id, shown.width
        with self._lock:
            if self._shown.get(key) is shown:
                del self._shown[key]

    def _news(self, kind: Kind, text: str) -> News:
        return News(self._next(), kind, text)

    def _next(self) -> int:
        self._number += 1
        return self._number

    # --- what viewers ask for ---

    @contextmanager
    def viewed(self, source_ids: Sequence[str], width: int) -> Iterator[None]:
        """Keep frames as long as this lasts; of all sources, if none is named."""
        views = [(source_id, width) for source_id in source_ids or [""]]
        with self._lock:
            self._views.update(views)
            self._say_views()
        try:
            yield
        finally:
            with self._lock:
                self._views.subtract(views)
                self._views = +self._views
                for key in [key for key in self._shown if not _is_wanted(*key, self._views)]:
                    del self._shown[key]
                self._say_views()

    def _say_views(self) -> None:
        self._tell_views(frozenset(self._views))

    def widths(self, source_id: str) -> set[int]:
        """Return the widths of the pictures of a source that somebody looks at, px."""
        with self._lock:
            return {width for of, width in self._views if of in ("", source_id)}

    def tell(self, announce: Callable[[], None] | None) -> None:
        """Call this whenever there is something new, from any thread; None: nobody listens."""
        with self._lock:
            self._announce = announce or _nobody_listens

    def tell_views(self, tell: Callable[[frozenset[View]], None]) -> None:
        """Call this whenever what is looked at changes; it must not ask the board anything."""
        with self._lock:
            self._tell_views = tell
            self._say_views()

    def announce(self) -> None:
        """Wake the viewers: there is something new."""
        with self._lock:
            announce = self._announce
        announce()

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

    def frames_after(
        self, number: int, source_ids: Sequence[str] = (), width: int | None = None
    ) -> list[Shown[Picture]]:
        """Return the latest frame of each source, if it is newer; of all, if none is named.

        Args:
            number: of the latest that is known.
            source_ids: whose.
            width: px, of pictures that are made already; None: any.
        """
        with self._lock:
            return sorted(
                (
                    shown
                    for shown in self._shown.values()
                    if shown.number > number
                    and (width is None or shown.width in (None, width))
                    and (not source_ids or shown.source_id in source_ids)
                ),
                key=lambda shown: shown.number,
            )

    def looks_after(self, number: int) -> list[tuple[int, str, Look]]:
        """Return the newer faces behind alerts, the oldest first: number, event id, face."""
        with self._lock:
            return [
                (of, event_id, look) for event_id, (of, look) in self._looks.items() if of > number
            ]

    def look_of(self, event_id: str) -> Look | None:
        """Return the face behind an alert; None: it is not kept any more."""
        with self._lock:
            return self._looks.get(event_id, (0, None))[1]

    def measured_after(self, number: int) -> list[tuple[int, Measured]]:
        """Return what was measured later, within `STATISTICS_S`, with its numbers."""
        with self._lock:
            return [each for each in self._measured if each[0] > number]

    def measure(self) -> None:
        """Say how fast the analysis was lately."""
        begin = self._monotonic() - STATISTICS_S
        with self._lock:
            measured = [each for _, each in self._measured if each.at >= begin]
        text = json.dumps(_statistics(measured))
        with self._lock:
            self._statistics = self._news("statistics", text)
        self.announce()


def _nobody_listens(*_: object) -> None:
    return


def _is_wanted(source_id: str, width: int | None, views: Mapping[View, int]) -> bool:
    if width is None:
        return any(of in ("", source_id) for of, _ in views)
    return ("", width) in views or (source_id, width) in views


def _newer(ring: deque[News], number: int) -> Iterator[News]:
    for news in reversed(ring):
        if news.number <= number:
            return
        yield news


def _news_of(message: OutMessage) -> tuple[Kind, str] | None:
    """Return what a message says to viewers."""
    if isinstance(message, StatusMessage):
        return "status", f'{{"message": {message.to_json()}}}'
    if isinstance(message, ScoreMessage):
        return "score", _point(message)
    if message.lane in (Lane.ALERTS, Lane.SOURCES):
        return "alert", message.to_json()
    return None


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


def _statistics(measured: Sequence[Measured]) -> dict[str, object]:
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
