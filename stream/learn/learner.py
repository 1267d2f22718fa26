"""Watches a camera that shows bona fide faces alone, and chooses its thresholds."""

from __future__ import annotations

import logging
import math
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import numpy as np

from models import sigmoid
from stream.errors import StreamError
from stream.learn.bound import CONFIDENCE, NotEnoughError, threshold_for
from stream.learn.visits import Visits
from stream.learned import MEASURES, Learned, engines_of, settings_sha256
from stream.records import TrackScore
from stream.stages.fuse import highest_probability, leave_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stream.analyse import Step
    from stream.config import StreamConfig
    from stream.learn.visits import Visit
    from stream.records import Frame, FrameStamp

log = logging.getLogger(__name__)

MOST_KEPT: Final = 512  # visits of each measure that a file holds
_LONGEST_STEP_S: Final = 30.0  # between two frames; what is longer was not watched
_REPORT_S: Final = 60.0


class Learner:
    """A `Watcher` of one camera.

    Args:
        config: of the run, with this source alone.
    """

    def __init__(self, config: StreamConfig) -> None:
        (self._source,) = config.sources
        self._config = config
        self._visits = Visits()
        self._seen: list[Visit] = []
        self._last: FrameStamp | None = None
        self._watched_s = 0.0
        self._reported_at = time.monotonic()

    def watch(self, frames: Sequence[Frame], step: Step) -> None:
        """Note the visits of a step."""
        for frame in frames:
            stamp = frame.stamp
            last, self._last = self._last, stamp
            if last is not None and last.session == stamp.session:
                self._watched_s += min(stamp.pts_s - last.pts_s, _LONGEST_STEP_S)
            scores = [record for record in step.records if isinstance(record, TrackScore)]
            present = {track.key for track in step.tracks.get(stamp.source_id, ())}
            self._seen += self._visits.see(stamp, scores, present)
        if time.monotonic() - self._reported_at >= _REPORT_S:
            self._reported_at = time.monotonic()
            log.info("%.0f minutes watched, %d visits", self._watched_s / 60, len(self._seen))

    def learned(self, budget: float) -> Learned:
        """Return what was learned, once the run is over.

        Args:
            budget: false alarms a week, at most.

        Raises:
            StreamError: too little was seen to promise that, or no attack would be found then.
            EngineError: a manifest is missing or damaged.
        """
        self._seen += self._visits.end()
        peaks = np.array([visit.peak for visit in self._seen])
        judged = int(np.isfinite(peaks).sum())
        if self._watched_s <= 0:
            raise StreamError(f"{self._source.id}: nothing was seen; nothing is written")
        found = f"{self._source.id}: {self._watched_s / 60:.0f} minutes, {len(peaks)} visits"
        try:
            bound = threshold_for(peaks, self._watched_s, budget)
        except NotEnoughError as error:
            raise StreamError(f"{found}: not enough: {error}; nothing is written") from None
        enter = math.ceil(float(sigmoid(bound.threshold)) * 1e4) / 1e4
        self._check_reach(enter, found)
        return Learned(
            source_id=self._source.id,
            learned_at=datetime.now(UTC).isoformat(timespec="seconds"),
            engines=engines_of(self._config),
            settings_sha256=settings_sha256(self._config),
            enter=enter,
            leave=leave_of(enter),
            budget=budget,
            confidence=CONFIDENCE,
            at_most=bound.at_most,
            rule=bound.rule,
            watched_s=self._watched_s,
            visits=len(peaks),
            judged=judged,
            highest=float(sigmoid(peaks.max())) if judged else 0.0,
            reference={name: self._values(name) for name in MEASURES},
        )

    def _values(self, name: str) -> tuple[float, ...]:
        """Return a measure of the visits, sorted; of too many, evenly spaced ones."""
        values = sorted(visit.means[name] for visit in self._seen if name in visit.means)
        n = min(len(values), MOST_KEPT)
        return tuple(round(values[i * len(values) // n], 5) for i in range(n))

    def _check_reach(self, enter: float, found: str) -> None:
        for engine in self._config.score.engines:
            every_s = self._config.look_every_s(engine)
            highest = highest_probability(self._config.fuse, every_s) or 0.0
            if enter > highest:
                raise StreamError(
                    f"{found}: to keep the budget an alarm would need a probability of {enter:g}, "
                    f"and a sure attack reaches {highest:.3f} in {self._config.fuse.reach_s:g} s: "
                    "this detector can't keep it with this camera; allow more false alarms "
                    "(--budget), or adapt the engine (python -m train adapt). Nothing is written"
                )
