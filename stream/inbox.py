"""Frames wait here for analysis, and only here are decoded frames dropped.

Which frames are taken when not all can be is `stream.turns`' to say.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from stream.records import DropReason, FrameFates, Need
from stream.turns import Candidate, chosen

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from stream.records import Frame

LATE_S: Final = 1.0  # a live frame that waited longer is not analysed


@dataclass(frozen=True, slots=True)
class Taken:
    """What one `take` hands out."""

    frames: tuple[Frame, ...]  # at most one per source
    finished: tuple[str, ...]  # sources whose session ended, all their frames handed out
    left: tuple[str, ...] = ()  # of these, sources of which nothing more comes


@dataclass(frozen=True, slots=True)
class _Waiting:
    frame: Frame
    since: float
    may_drop: bool


@dataclass(slots=True)
class _Queue:
    looked_at: float  # when a frame was last taken; at first, when the first came
    looks: int = 0  # frames taken
    frames: deque[_Waiting] = field(default_factory=deque)
    in_hand: bool = False  # a frame was handed out and is not done
    finished: bool = False
    leaving: bool = False  # it is forgotten when its end is done
    dropped: Counter[DropReason] = field(default_factory=Counter)
    failed: int = 0
    failing: bool = False
    need: Need = Need.NOBODY

    def drop(self, reason: DropReason) -> None:
        """Leave out the oldest frame."""
        self.frames.popleft()
        self.dropped[reason] += 1


class Inbox:
    """One bounded queue per source; thread-safe.

    `take` gives at most one frame per source, so that a fast camera can't starve another.
    """

    def __init__(self, capacity: int = 2, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._capacity = capacity  # per source; 1080p RGB is 6 MB a frame
        self._monotonic = monotonic
        self._queues: dict[str, _Queue] = {}
        self._changed = threading.Condition()
        self._closed = False

    def put(self, frame: Frame, *, wait: bool) -> bool:
        """Add a frame.

        Args:
            frame: of any source.
            wait: True waits for room, and the frame is never dropped (files); False drops the
                source's oldest frame (live), if it may be dropped, and else waits, too.

        Returns:
            False once the inbox is closed, or the source leaves: the frame was not taken.
        """
        with self._changed:
            source_id = frame.stamp.source_id
            # After `finish`, the next session waits until the end of the last one was handed out.
            self._changed.wait_for(
                lambda: self._refuses(source_id) or self._has_room(source_id, wait=wait)
            )
            if self._refuses(source_id):
                return False
            queue = self._queues.setdefault(source_id, _Queue(self._monotonic()))
            if self._is_full(queue):
                queue.drop(DropReason.OVERTAKEN)
            queue.frames.append(_Waiting(frame, self._monotonic(), may_drop=not wait))
            self._changed.notify_all()
            return True

    def finish(self, source_id: str) -> None:
        """Say that a source's session ended after the frames it has put so far."""
        with self._changed:
            if source_id in self._queues:
                self._queues[source_id].finished = True
                self._changed.notify_all()

    def leave(self, source_id: str) -> None:
        """Say once that nothing more comes from a source, which may not have put any frame.

        Its end is handed out after its last frame; when that is done, it is forgotten.
        """
        with self._changed:
            queue = self._queues.setdefault(source_id, _Queue(self._monotonic()))
            queue.finished = queue.leaving = True
            self._changed.notify_all()

    def knows(self, source_id: str) -> bool:
        """Return whether a source has put frames, or leaves, and was not forgotten."""
        with self._changed:
            return source_id in self._queues

    def take(self, at_most: int | None = None) -> Taken | None:
        """Wait for something to do; None once the inbox is closed and empty.

        Args:
            at_most: frames of so many sources, chosen by `stream.turns`; None: of all.
        """
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._closed or self._has_work())
                self._drop_late()
                if self._has_work():
                    break
                if self._closed:
                    return None
            now = self._monotonic()
            ready = [
                Candidate(source_id, queue.need, now - queue.looked_at, queue.looks)
                for source_id, queue in self._queues.items()
                if queue.frames
            ]
            frames = []
            is_busy = at_most is not None and len(ready) > at_most
            for source_id in chosen(ready, at_most or len(ready)):
                queue = self._queues[source_id]
                while is_busy and len(queue.frames) > 1 and queue.frames[0].may_drop:
                    queue.drop(DropReason.OVERTAKEN)
                frames.append(queue.frames.popleft().frame)
                queue.in_hand, queue.looked_at = True, now
                queue.looks += 1
            finished = tuple(
                source_id for source_id, q in self._queues.items() if q.finished and not q.frames
            )
            for source_id in finished:
                queue = self._queues[source_id]
                queue.finished = False
                queue.need = Need.NOBODY
            left = tuple(source_id for source_id in finished if self._queues[source_id].leaving)
            self._changed.notify_all()
            return Taken(tuple(frames), finished, left)

    def done(
        self, taken: Taken, failed: Collection[str], needs: Mapping[str, Need] | None = None
    ) -> None:
        """Say that frames were analysed, and that what ended was dealt with.

        Args:
            taken: which.
            failed: the sources among them whose frame could not be analysed.
            needs: what the frames showed, by source; default: nobody.
        """
        with self._changed:
            for frame in taken.frames:
                source_id = frame.stamp.source_id
                queue = self._queues[source_id]
                queue.in_hand = False
                queue.failing = source_id in failed
                queue.failed += queue.failing
                queue.need = (needs or {}).get(source_id, Need.NOBODY)
            for source_id in taken.left:
                del self._queues[source_id]
            self._changed.notify_all()

    def fates(self, source_id: str, *, settled: bool = False) -> FrameFates:
        """Return what became of the frames of a source.

        Args:
            source_id: which.
            settled: wait until each that was put is dropped or done, or the inbox is closed.
        """
        with self._changed:
            queue = self._queues.get(source_id)
            if queue is None:
                return FrameFates()
            if settled:
                self._changed.wait_for(lambda: self._closed or not (queue.frames or queue.in_hand))
            return FrameFates(
                overtaken=queue.dropped[DropReason.OVERTAKEN],
                late=queue.dropped[DropReason.LATE],
                failed=queue.failed,
                failing=queue.failing,
                occupied=queue.need is not Need.NOBODY,
            )

    def waiting(self) -> dict[str, int]:
        """Return how many frames of each source wait."""
        with self._changed:
            return {source_id: len(queue.frames) for source_id, queue in self._queues.items()}

    def close(self) -> None:
        """Take no more frames; those that wait are still handed out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _has_work(self) -> bool:
        return any(q.frames or q.finished for q in self._queues.values())

    def _is_full(self, queue: _Queue) -> bool:
        return len(queue.frames) >= self._capacity

    def _has_room(self, source_id: str, *, wait: bool) -> bool:
        queue = self._queues.get(source_id)
        if queue is None:
            return True
        blocks = self._is_full(queue) and (wait or not queue.frames[0].may_drop)
        return not (queue.finished or blocks)

    def _refuses(self, source_id: str) -> bool:
        queue = self._queues.get(source_id)
        return self._closed or (queue is not None and queue.leaving)

    def _drop_late(self) -> None:
        """Leave out the live frames that have waited for too long."""
        latest = self._monotonic() - LATE_S
        for queue in self._queues.values():
            while queue.frames and queue.frames[0].may_drop and queue.frames[0].since < latest:
                queue.drop(DropReason.LATE)
