"""Whether a camera still is what its thresholds were learned from.

The mean of each measure in each visit is one value, so looks at one face, which say nearly the
same, count once. The latest `WINDOW` visits are compared with the learned ones by the two-sample
Kolmogorov-Smirnov test, every `STEP` visits, all measures together (Bonferroni).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import numpy as np

from stream.learn.visits import Visits
from stream.learned import MEASURES
from stream.records import Drift, DriftAlert, TrackScore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import ArrayLike

    from stream.analyse import Step
    from stream.learn.visits import Visit
    from stream.records import Frame
    from stream.sources import Source

log = logging.getLogger(__name__)

WINDOW: Final = 60  # visits
STEP: Final = 20
RAISED_BELOW: Final = 1e-4  # p-value of the test of all measures
CLEARED_ABOVE: Final = 0.05
_LEAST: Final = 20  # visits that have a measure, for it to be compared


class Monitor:
    """Compares the visits of one camera with the learned ones; memory is bounded."""

    def __init__(self, reference: Mapping[str, ArrayLike]) -> None:
        self._reference = {
            name: np.asarray(reference.get(name, ()), np.float64) for name in MEASURES
        }
        self._latest: deque[Visit] = deque(maxlen=WINDOW)
        self._since = 0  # visits since the latest test
        self.raised = False

    @property
    def visits(self) -> int:
        """Visits that are compared."""
        return len(self._latest)

    def add(self, visit: Visit) -> tuple[Drift, ...] | None:
        """Take in a visit; return how the measures differ, if what is said of that changes."""
        self._latest.append(visit)
        self._since += 1
        if len(self._latest) < WINDOW or self._since < STEP:
            return None
        self._since = 0
        drifts = self._compared()
        p_value = min((len(drifts) * drift.p_value for drift in drifts), default=1.0)
        if self.raised and p_value > CLEARED_ABOVE:
            self.raised = False
            return drifts
        if not self.raised and p_value < RAISED_BELOW:
            self.raised = True
            return drifts
        return None

    def _compared(self) -> tuple[Drift, ...]:
        from scipy.stats import ks_2samp  # loads for a second; most runs have learned nothing

        drifts = []
        for name, learned in self._reference.items():
            lately = np.array([v.means[name] for v in self._latest if name in v.means])
            if min(len(lately), len(learned)) < _LEAST:
                continue
            test = ks_2samp(learned, lately)
            drifts.append(
                Drift(
                    measure=name,
                    learned=float(np.median(learned)),
                    lately=float(np.median(lately)),
                    distance=float(test.statistic),
                    p_value=float(test.pvalue),
                )
            )
        return tuple(sorted(drifts, key=lambda drift: drift.p_value))


class DriftWatcher:
    """A `Watcher` of all sources that have learned something; as `PerSource` it knows which.

    Args:
        clock: Unix seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._visits: dict[str, Visits] = {}
        self._monitors: dict[str, Monitor] = {}
        self._ordinals: dict[str, int] = {}

    def begin(self, source: Source) -> None:
        """See `stream.pipeline.PerSource`."""
        if source.learned is not None:
            self._visits[source.source_id] = Visits()
            self._monitors[source.source_id] = Monitor(source.learned.reference)
            self._ordinals[source.source_id] = 0

    def forget(self, source_id: str) -> None:
        """See `stream.pipeline.PerSource`."""
        for each in (self._visits, self._monitors, self._ordinals):
            each.pop(source_id, None)

    def watch(self, frames: Sequence[Frame], step: Step) -> list[DriftAlert]:
        """Note the visits of a step; return what changed."""
        alerts = []
        for frame in frames:
            source_id = frame.stamp.source_id
            if source_id not in self._visits or source_id in step.failures:
                continue
            scores = [
                record
                for record in step.records
                if isinstance(record, TrackScore) and record.sighting.key.source_id == source_id
            ]
            present = {track.key for track in step.tracks.get(source_id, ())}
            for visit in self._visits[source_id].see(frame.stamp, scores, present):
                alert = self._compare(source_id, frame.stamp.session, visit)
                if alert is not None:
                    alerts.append(alert)
        return alerts

    def _compare(self, source_id: str, session: int, visit: Visit) -> DriftAlert | None:
        monitor = self._monitors[source_id]
        drifts = monitor.add(visit)
        if drifts is None:
            return None
        self._ordinals[source_id] += 1
        log.log(
            logging.WARNING if monitor.raised else logging.INFO,
            "source %s: its visits %s those that its thresholds were learned from: %s",
            source_id,
            "no longer look like" if monitor.raised else "look again like",
            ", ".join(f"{d.measure} {d.learned:.3g}, now {d.lately:.3g}" for d in drifts),
        )
        return DriftAlert(
            source_id=source_id,
            session=session,
            at=self._clock(),
            raised=monitor.raised,
            ordinal=self._ordinals[source_id],
            visits=monitor.visits,
            drifts=drifts,
        )
