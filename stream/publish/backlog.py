"""Messages that wait for a receiver: scores in memory, all others on disk."""

from __future__ import annotations

import json
import logging
from collections import Counter, deque
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Final

from stream.errors import ConfigError
from stream.messages import Lane
from stream.publish.spool import Spool, SpoolFolder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

log = logging.getLogger(__name__)

# In the order in which they leave; lost, if something must be, in the opposite one.
_NOUNS: Final = {
    Lane.ALERTS: "alerts",
    Lane.FEEDS: "feed alerts",
    Lane.SOURCES: "source events",
    Lane.SCANS: "scan results",
    Lane.TRACKS: "scores",
}


LIVE: Final = (Lane.ALERTS, Lane.FEEDS, Lane.SOURCES, Lane.TRACKS)


@dataclass(frozen=True, slots=True)
class Stock:
    """What waits of one kind of messages."""

    entries: int  # in memory and on disk
    memory_bytes: int  # of those in memory
    disk_bytes: int  # of the file that holds the others, which shrinks when all are delivered
    oldest: str | None  # the message that has waited for longest


class Backlog:
    """A queue for each kind of message, each with limits of its own.

    An alert leaves before any feed alert, that before any source event, that before any score; they
    are lost, if they must be, in the opposite order. So a flood of one kind can't push out what
    matters more.

    Args:
        folder: of the spools; None for a private one, made when first needed.
        spool_limits: messages of each kind that may wait on disk.
        memory_limit: messages that may wait in memory, once `keep` is called.
        lanes: the kinds there are, in the order in which they leave.

    Attributes:
        lost: by kind, messages that were dropped because disk and memory were full, or abandoned.

    Raises:
        ConfigError: the folder can't be used.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        spool_limits: Mapping[Lane, int],
        memory_limit: int,
        lanes: Sequence[Lane] = LIVE,
    ) -> None:
        self.lost = Counter(dict.fromkeys(lanes, 0))
        self._lanes = lanes
        self._memory_limit = memory_limit
        self._folder = SpoolFolder(folder)
        self._spools: dict[Lane, Spool] = {}
        self._memory: dict[Lane, deque[str]] = {lane: deque() for lane in lanes}
        self._complaint = ""
        try:
            for lane, limit in spool_limits.items():
                self._spools[lane] = Spool(self._folder, f"{lane}.jsonl", limit)
        except ConfigError:
            self.close()
            raise

    def __len__(self) -> int:
        """Return how many messages wait."""
        return sum(self._waiting(lane) for lane in self._lanes)

    def add(self, lane: Lane, message: str) -> None:
        """Queue a message."""
        self._memory[lane].append(message)

    def head(self, count: int) -> dict[Lane, list[str]]:
        """Return the messages to send next, by kind, oldest first, at most `count`.

        No two of one kind are about the same track or source: whichever of them is refused, none
        overtakes another that it belongs behind. No kind is in it while one before it has more.
        """
        batch: dict[Lane, list[str]] = {}
        for lane in self._lanes:
            batch[lane] = self._independent(lane, count)
            count -= len(batch[lane])
            if len(batch[lane]) < self._waiting(lane):
                break
        return batch

    def first(self, lane: Lane) -> str | None:
        """Return the oldest message of a kind, if one waits."""
        return next(self._oldest_first(lane), None)

    def drop(self, lane: Lane, count: int) -> None:
        """Forget so many of the oldest messages of a kind: they are delivered."""
        spool = self._spools.get(lane)
        if spool is not None:
            spooled = min(count, len(spool))
            spool.drop(spooled)
            count -= spooled
        for _ in range(count):
            self._memory[lane].popleft()

    def keep(self) -> None:
        """Move what may be spooled to the disk; drop and count what is too much for the memory."""
        complaints = [self._spool(lane) for lane in self._spools]
        complaint = "; ".join(filter(None, complaints))
        if complaint and complaint != self._complaint:
            log.warning("%s", complaint)
        self._complaint = complaint
        excess = sum(map(len, self._memory.values())) - self._memory_limit
        for lane in reversed(self._lanes):
            dropped = min(max(excess, 0), len(self._memory[lane]))
            for _ in range(dropped):
                self._memory[lane].popleft()
            self.lost[lane] += dropped
            excess -= dropped

    def abandon(self) -> None:
        """Drop and count what waits in memory; the spools stay."""
        for lane, messages in self._memory.items():
            self.lost[lane] += len(messages)
            messages.clear()

    def account(self) -> str:
        """Say what is kept where, and what is lost."""
        says = []
        kept = {lane: len(spool) for lane, spool in self._spools.items() if spool}
        if kept:
            says.append(
                f"{counted(kept)} are kept in {self._folder.path}: start again with this sink's "
                f"`spool: {self._folder.path}` to send them"
            )
        waiting = {lane: len(messages) for lane, messages in self._memory.items() if messages}
        if waiting:
            says.append(f"{counted(waiting)} are in memory")
        says.append(f"{counted(self.lost)} are lost")
        return "; ".join(says)

    def stock(self) -> dict[Lane, Stock]:
        """Return what waits, by kind."""
        return {
            lane: Stock(
                entries=self._waiting(lane),
                memory_bytes=sum(len(message.encode()) for message in self._memory[lane]),
                disk_bytes=spool.size if (spool := self._spools.get(lane)) else 0,
                oldest=next(self._oldest_first(lane), None),
            )
            for lane in self._lanes
        }

    def close(self) -> None:
        """Release the files; what waits on disk stays there."""
        for spool in self._spools.values():
            spool.close()
        self._folder.close()

    def _waiting(self, lane: Lane) -> int:
        return len(self._spools.get(lane, ())) + len(self._memory[lane])

    def _independent(self, lane: Lane, count: int) -> list[str]:
        batch: list[str] = []
        subjects = set()
        for message in self._oldest_first(lane):
            subject = _subject(message)
            if len(batch) == count or subject in subjects:
                break
            batch.append(message)
            subjects.add(subject)
        return batch

    def _oldest_first(self, lane: Lane) -> Iterator[str]:
        return chain(self._spools.get(lane, ()), self._memory[lane])

    def _spool(self, lane: Lane) -> str:
        """Move messages of a kind to the disk, and return what prevents it."""
        spool, messages = self._spools[lane], self._memory[lane]
        noun = _NOUNS[lane]
        try:
            for _ in range(spool.append(messages)):
                messages.popleft()
        except ConfigError as error:
            return f"{noun} wait in memory: {error}"
        except OSError as error:
            if spool.path is None:
                return (
                    f"{noun} wait in memory: no folder for temporary files ({error.strerror}); "
                    "name one that lasts with this sink's `spool`"
                )
            return f"{noun} wait in memory: {spool.path}: {error.strerror or type(error).__name__}"
        return f"{noun} wait in memory: {spool.path}: full" if messages else ""


def counted(messages: Mapping[Lane, int]) -> str:
    """Say how many messages of each kind.

    >>> counted({Lane.ALERTS: 2, Lane.TRACKS: 1})
    '2 alerts and 1 scores'
    """
    *first, last = [f"{messages[lane]} {noun}" for lane, noun in _NOUNS.items() if lane in messages]
    return f"{', '.join(first)} and {last}" if first else last


def event_id(message: str) -> str:
    """Return the id of a message's event."""
    return str(json.loads(message)["event"]["id"])


def _subject(message: str) -> str | None:
    """Return the id of the track, else of the source, else of the event, of a message."""
    parts = json.loads(message)
    about = parts.get("track") or parts.get("source") or parts.get("event")
    return str(about.get("id")) if isinstance(about, dict) else None
