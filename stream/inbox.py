"""Frames wait here for analysis, and only here are frames dropped."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stream.records import FrameFates

if TYPE_CHECKING:
    from collections.abc import Collection

    from stream.records import Frame


@dataclass(frozen=True, slots=True)
class Taken:
    """What one `take` hands out."""

    frames: tuple[Frame, ...]  # at most one per source
    finished: tuple[str, ...]  # sources whose session ended, all their frames handed out


@dataclass(slots=True)
class _Queue:
    frames: deque[Frame]
    in_hand: bool = False  # a frame was handed out and is not done
    finished: bool = False
    dropped: int = 0
    failed: int = 0
    failing: bool = False


class Inbox:
    """One bounded queue per source; thread-safe.

    `take` gives at most one frame per source, so that a fast camera can't starve another.
    """

    def __init__(self, capacity: int = 2) -> None:
        self._capacity = capacity  # per source; 1080p RGB is 6 MB a frame
        self._queues: dict[str, _Queue] = {}
        self._changed = threading.Condition()
        self._closed = False

    def put(self, frame: Frame, *, wait: bool) -> bool:
        """Add a frame.

        Args:
            frame: of any source.
            wait: True waits for room (files); False drops the source's oldest frame (live).

        Returns:
            False once the inbox is closed: the frame was not taken.
        """
        with self._changed:
            queue = self._queues.setdefault(frame.stamp.source_id, _Queue(deque()))
            # After `finish`, the next session waits until the end of the last one was handed out.
            self._changed.wait_for(
                lambda: (
                    self._closed
                    or not (queue.finished or (wait and len(queue.frames) >= self._capacity))
                )
            )
            if self._closed:
                return False
            if len(queue.frames) >= self._capacity:
                queue.frames.popleft()
                queue.dropped += 1
            queue.frames.append(frame)
            self._changed.notify_all()
            return True

    def finish(self, source_id: str) -> None:
        """Say that a source's session ended after the frames it has put so far."""
        with self._changed:
            if source_id in self._queues:
                self._queues[source_id].finished = True
                self._changed.notify_all()

    def take(self) -> Taken | None:
        """Wait for something to do; None once the inbox is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._has_work())
            if not self._has_work():
                return None
            ready = [queue for queue in self._queues.values() if queue.frames]
            frames = tuple(queue.frames.popleft() for queue in ready)
            for queue in ready:
                queue.in_hand = True
            finished = tuple(
                source_id for source_id, q in self._queues.items() if q.finished and not q.frames
            )
            for source_id in finished:
                self._queues[source_id].finished = False
            self._changed.notify_all()
            return Taken(frames, finished)

    def done(self, taken: Taken, failed: Collection[str]) -> None:
        """Say that frames were analysed.

        Args:
            taken: which.
            failed: the sources among them whose frame could not be analysed.
        """
        with self._changed:
            for frame in taken.frames:
                queue = self._queues[frame.stamp.source_id]
                queue.in_hand = False
                queue.failing = frame.stamp.source_id in failed
                queue.failed += queue.failing
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
            return FrameFates(dropped=queue.dropped, failed=queue.failed, failing=queue.failing)

    def close(self) -> None:
        """Take no more frames; those that wait are still handed out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _has_work(self) -> bool:
        return any(q.frames or q.finished for q in self._queues.values())
