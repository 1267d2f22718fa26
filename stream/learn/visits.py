"""Tracks to visits: what counts as independent.

The looks at one face say nearly the same, and a face that is lost and found again is two tracks of
one person. So a track that begins where another ended, soon after, goes on with its visit. Two
people who come to one spot right after each other make one visit then: too few is the safe side.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from models import logit
from stream.learned import MEASURES

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from stream.records import FrameStamp, TrackKey, TrackScore

GAP_S: Final = 30.0  # a visit is over when its face was not seen for so long
NEAR: Final = 2.0  # from the last place of a visit, in face sizes: the same place


@dataclass(frozen=True, slots=True)
class Visit:
    """One person before a camera, as far as tracks tell."""

    peak: float  # highest log-odds that a verdict could have rested on; -inf: none could
    means: dict[str, float]  # by measure, of `MEASURES`; `score` is missing without a look


@dataclass(slots=True, eq=False)
class _Open:
    """A visit that may go on."""

    key: TrackKey  # of the latest track
    seen_s: float  # media time, the latest
    centre: tuple[float, float]  # px, the latest
    size_px: float
    peak: float | None = None
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(MEASURES, 0.0))
    n: int = 0
    n_scored: int = 0

    def add(self, score: TrackScore) -> None:
        """Take in what is said of the latest track."""
        sighting = score.sighting
        x1, y1, x2, y2 = sighting.detection.box.tolist()
        self.key, self.seen_s = sighting.key, sighting.stamp.pts_s
        self.centre, self.size_px = ((x1 + x2) / 2, (y1 + y2) / 2), sighting.quality.face_px
        if score.peak is not None:
            self.peak = max(self.peak or 0.0, score.peak)
        if score.ended:
            return  # nothing new was seen
        self.n += 1
        for name in MEASURES[1:]:
            self.sums[name] += getattr(sighting.quality, name)
        if score.probability is not None:
            self.n_scored += 1
            self.sums["score"] += float(logit(score.probability))

    def finished(self) -> Visit:
        """Return the visit."""
        means = {name: self.sums[name] / self.n for name in MEASURES[1:]} if self.n else {}
        if self.n_scored:
            means["score"] = self.sums["score"] / self.n_scored
        return Visit(-np.inf if self.peak is None else float(logit(self.peak)), means)


class Visits:
    """The visits of one source; memory is bounded by those that may go on."""

    def __init__(self) -> None:
        self._session = 0
        self._open: list[_Open] = []

    def see(
        self, stamp: FrameStamp, scores: Sequence[TrackScore], present: Collection[TrackKey]
    ) -> list[Visit]:
        """Take in a frame of the source; return the visits that are over.

        Args:
            stamp: of the frame.
            scores: said of the source's tracks.
            present: tracks that the frame shows.
        """
        over = []
        if stamp.session != self._session:
            over = self.end()
            self._session = stamp.session
        over += [v.finished() for v in self._open if stamp.pts_s - v.seen_s > GAP_S]
        self._open = [v for v in self._open if stamp.pts_s - v.seen_s <= GAP_S]
        for score in scores:
            visit = self._visit_of(score, present)
            if visit is not None:
                visit.add(score)
        return over

    def end(self) -> list[Visit]:
        """Return those that are not over yet, as they are now."""
        left, self._open = self._open, []
        return [visit.finished() for visit in left]

    def _visit_of(self, score: TrackScore, present: Collection[TrackKey]) -> _Open | None:
        """Return the visit that a track belongs to: a new one, if it is seen and nobody's."""
        sighting = score.sighting
        x1, y1, x2, y2 = sighting.detection.box.tolist()
        centre = (x1 + x2) / 2, (y1 + y2) / 2
        for visit in self._open:
            if visit.key == sighting.key:
                return visit
        if score.ended:
            return None  # of a visit that is over
        for visit in self._open:
            if visit.key not in present and _is_near(visit, centre):
                return visit
        self._open.append(
            _Open(sighting.key, sighting.stamp.pts_s, centre, sighting.quality.face_px)
        )
        return self._open[-1]


def _is_near(visit: _Open, centre: tuple[float, float]) -> bool:
    x, y = visit.centre[0] - centre[0], visit.centre[1] - centre[1]
    return bool(np.hypot(x, y) <= NEAR * visit.size_px)
