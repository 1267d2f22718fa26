"""Ends: of what holds engines, files or processes, by a `with` statement, and of the program."""

from __future__ import annotations

import logging
import os
import sys
import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Final, NoReturn, Self

DECODE_THREAD: Final = "decode-"  # begins the name of every thread that decodes a source


class Closing(ABC):
    """Something with a `close`, which the end of a `with` statement calls."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what is held; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def end_process(code: int) -> NoReturn:
    """End this process; at once, if a decoder hangs in a read that does not return.

    Its thread would wake up in an interpreter that is being taken down, and crash the process.

    Args:
        code: exit code.
    """
    if any(thread.name.startswith(DECODE_THREAD) for thread in threading.enumerate()):
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody reads it any more
                stream.flush()
        os._exit(code)
    sys.exit(code)
