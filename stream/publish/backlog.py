"""Messages that wait for Redis: alerts on disk, or in memory where that fails; scores in memory."""

from __future__ import annotations

import logging
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stream.publish.spool import Spool

log = logging.getLogger(__name__)


class Backlog:
    """Two queues, of alerts and of scores. An alert leaves before any score, and is lost after all.

    Args:
        spool: for alerts.
        limit: messages that may wait in memory, once `keep` is called.

    Attributes:
        alerts_lost: alerts dropped because disk and memory were full, or abandoned.
        scores_lost: scores dropped because memory was full, or abandoned.
    """

    def __init__(self, spool: Spool, limit: int) -> None:
        self.alerts_lost = self.scores_lost = 0
        self._spool = spool
        self._limit = limit
        self._alerts: deque[str] = deque()  # younger than all in the spool
        self._scores: deque[str] = deque()
        self._disk_complaint = ""

    def __len__(self) -> int:
        """Return how many messages wait."""
        return len(self._spool) + len(self._alerts) + len(self._scores)

    def add_alert(self, message: str) -> None:
        """Queue an alert."""
        self._alerts.append(message)

    def add_score(self, message: str) -> None:
        """Queue a score."""
        self._scores.append(message)

    def head(self, count: int) -> tuple[list[str], list[str]]:
        """Return the alerts and scores to send next, oldest first, together at most `count`."""
        alerts = self._spool.head(count)
        alerts += islice(self._alerts, count - len(alerts))
        return alerts, list(islice(self._scores, count - len(alerts)))

    def drop(self, alerts: int, scores: int) -> None:
        """Forget so many of the oldest alerts and scores: they are delivered."""
        spooled = min(alerts, len(self._spool))
        self._spool.drop(spooled)
        for _ in range(alerts - spooled):
            self._alerts.popleft()
        for _ in range(scores):
            self._scores.popleft()

    def keep(self) -> None:
        """Move the alerts to the disk, and drop and count what is too much for the memory."""
        complaint = ""
        try:
            for _ in range(self._spool.append(self._alerts)):
                self._alerts.popleft()
            if self._alerts:
                complaint = "full"
        except OSError as error:
            complaint = error.strerror or type(error).__name__
        if complaint and complaint != self._disk_complaint:
            log.warning("%s: %s; alerts wait in memory", self._spool.path, complaint)
        self._disk_complaint = complaint
        while len(self._alerts) + len(self._scores) > self._limit:
            if self._scores:
                self._scores.popleft()
                self.scores_lost += 1
            else:
                self._alerts.popleft()
                self.alerts_lost += 1

    def abandon(self) -> None:
        """Drop and count what waits in memory; the spool stays."""
        self.alerts_lost += len(self._alerts)
        self.scores_lost += len(self._scores)
        self._alerts.clear()
        self._scores.clear()

    def account(self) -> str:
        """Say what is kept where, and what is lost."""
        says = []
        if self._spool:
            says.append(
                f"{len(self._spool)} alerts are kept in {self._spool.path}: start again with this "
                f"sink's `spool: {self._spool.path.parent}` to send them"
            )
        if self._alerts or self._scores:
            says.append(f"{len(self._alerts)} alerts and {len(self._scores)} scores are in memory")
        says.append(f"{self.alerts_lost} alerts and {self.scores_lost} scores are lost")
        return "; ".join(says)
