"""Signals that ask the program to stop.

Imports little: as process 1, the first of a container, the kernel drops every signal that has no
handler, so the handlers are installed before anything that takes time.
"""

from __future__ import annotations

import logging
import signal
import sys
from threading import Event
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import FrameType

log = logging.getLogger(__name__)

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)


class StopSignals:
    """Turns SIGINT, SIGTERM, SIGQUIT and SIGHUP into a request to stop.

    Before `drain_from_now` there is nothing to lose, and a signal ends the program at once, with
    exit code 0. After it, a signal sets `stop` and leaves the rest to who watches it. A SIGHUP that
    the parent process ignores stays ignored: that is what `nohup` does.

    Attributes:
        stop: set by the first signal.
    """

    def __init__(self) -> None:
        self.stop = Event()
        self._draining = False
        for number in STOP_SIGNALS:
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            signal.signal(number, self._receive)

    def drain_from_now(self) -> None:
        """Let signals set `stop` from now on, and no longer end the program."""
        self._draining = True

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.stop.set()
        name = signal.Signals(number).name
        if self._draining:
            log.info("%s: draining", name)
        else:
            log.info("%s: stopped before any source was opened", name)
            sys.exit(0)
