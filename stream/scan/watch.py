"""What arrives in folders while a scan goes on.

The folders are listed again and again. Kernels tell of changes on local disks alone: what another
machine writes to a network file system, or puts into an object store, they don't see. Listings do.
"""

from __future__ import annotations

import logging
import queue
import threading
from typing import TYPE_CHECKING, Final

from stream.closing import Closing
from stream.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from stream.scan.inputs import Item, Listing

log = logging.getLogger(__name__)

_PATIENCE_S: Final = 2.0


class Watch(Closing):
    """Lists in a thread of its own; hands out what has stood still from one listing to the next.

    Args:
        list_all: returns what is there now.
        every_s: seconds between two listings.
    """

    def __init__(self, list_all: Callable[[], Listing], every_s: float) -> None:
        self._list_all = list_all
        self._every_s = every_s
        self._stop = threading.Event()
        self._arrived: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._thread.start()

    def arrived(self) -> list[Item]:
        """Return what is ready and was not handed out before in its present state."""
        return [self._arrived.get() for _ in range(self._arrived.qsize())]

    def close(self) -> None:
        """End the thread; a listing that is under way is not awaited for long."""
        self._stop.set()
        self._thread.join(_PATIENCE_S)

    def _watch(self) -> None:
        arrivals = Arrivals()
        complaint = ""
        while True:
            try:
                for item in arrivals.ready(self._list_all().items):
                    self._arrived.put(item)
                complaint = ""
            except ConfigError as error:  # a drive that is away may come back
                if str(error) != complaint:
                    complaint = str(error)
                    log.warning("%s; trying again", error)
            if self._stop.wait(self._every_s):
                return


class Arrivals:
    """Tells from listings in turn what has arrived, and is no longer being written."""

    def __init__(self) -> None:
        self._before: dict[bytes, tuple[object, ...]] = {}  # state in the latest listing
        self._handed_out: dict[bytes, tuple[object, ...]] = {}

    def ready(self, items: Iterable[Item]) -> list[Item]:
        """Take in a listing; return what is as it was in the one before, each state once.

        What can't be read is passed over: it may still come. What is gone is forgotten.
        """
        ready = []
        now: dict[bytes, tuple[object, ...]] = {}
        for item in items:
            if item.problem is not None:
                continue
            state = now[item.path] = item.size, item.mtime_ns, item.etag
            if self._before.get(item.path) == state != self._handed_out.get(item.path):
                ready.append(item)
                self._handed_out[item.path] = state
        self._before = now
        self._handed_out = {p: s for p, s in self._handed_out.items() if p in now}
        return ready
