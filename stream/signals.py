"""Signals that ask the program to stop, or to read its configuration again.

Imports little: as process 1, the first of a container, the kernel drops every signal that has no
handler, so the handlers are installed before anything that takes time.
"""

from __future__ import annotations

import logging
import os
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

    After `reload_on_hang_up` SIGHUP asks for the configuration to be read again instead, unless the
    program's terminal went away: that is what the signal is for.

    Attributes:
        stop: set by the first signal.
        reload: set by each SIGHUP, if that means to reload.
    """

    def __init__(self) -> None:
        self.stop = Event()
        self.reload = Event()
        self._draining = False
        self._reloads = False
        self._had_terminal = _has_terminal()
        for number in STOP_SIGNALS:
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            signal.signal(number, self._receive)

    def drain_from_now(self) -> None:
        """Let signals set `stop` from now on, and no longer end the program."""
        self._draining = True

    def reload_on_hang_up(self, wanted: bool) -> None:
        """Let SIGHUP set `reload` from now on, or again `stop`."""
        self._reloads = wanted

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        hung_up = self._had_terminal and not _has_terminal()
        if number == signal.SIGHUP and self._reloads and not hung_up:
            self.reload.set()
            return
        self.stop.set()
        name = signal.Signals(number).name
        if self._draining:
            log.info("%s: draining", name)
        else:
            log.info("%s: stopped before any source was opened", name)
            sys.exit(0)


def _has_terminal() -> bool:
    """Return whether the process has a controlling terminal that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
