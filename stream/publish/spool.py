"""Alerts that wait on disk while Redis is away."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from stream.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

log = logging.getLogger(__name__)


class _Line(NamedTuple):
    offset: int
    length: int  # bytes, without the line feed


class Spool:
    """A queue of messages in `<folder>/alerts.jsonl`, one a line, that outlives the process.

    What an earlier process left comes first. The file shrinks only when all of it is delivered: a
    crash before that repeats messages, and loses none.

    Args:
        folder: made if missing; one process at a time may use it.
        limit: messages that may wait.

    Raises:
        ConfigError: the folder can't be used, or another process uses it.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.path = folder / "alerts.jsonl"
        self._limit = limit
        self._lines: deque[_Line] = deque()
        self._end = 0  # of the last whole line
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            _sync_folder(folder)
        except OSError as error:
            raise ConfigError(
                f"spool {folder}: can't keep alerts there ({error.strerror}); expected a folder "
                "this process may write"
            ) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise ConfigError(
                f"spool {folder}: another process keeps its alerts there; give each its own"
            ) from None
        self._recover()

    def __len__(self) -> int:
        """Return how many messages wait."""
        return len(self._lines)

    def append(self, messages: Iterable[str]) -> int:
        """Add messages and wait until they are on the disk.

        Returns:
            How many were taken: the first ones; fewer than given where the limit is reached.

        Raises:
            OSError: the disk is full or broken; none was taken.
        """
        taken = [m.encode() for m in islice(messages, max(0, self._limit - len(self)))]
        if not taken:
            return 0
        try:
            data = b"".join(line + b"\n" for line in taken)
            offset = self._end
            while data:
                written = os.pwrite(self._fd, data, offset)
                data, offset = data[written:], offset + written
            os.fsync(self._fd)
        except OSError:
            with contextlib.suppress(OSError):  # half a line is cut by the next process too
                os.ftruncate(self._fd, self._end)
            raise
        for line in taken:
            self._lines.append(_Line(self._end, len(line)))
            self._end += len(line) + 1
        return len(taken)

    def head(self, count: int) -> list[str]:
        """Return the messages that have waited longest, at most `count`."""
        return [
            os.pread(self._fd, line.length, line.offset).decode()
            for line in islice(self._lines, count)
        ]

    def drop(self, count: int) -> None:
        """Forget the first `count` messages: they are delivered."""
        for _ in range(count):
            self._lines.popleft()
        if count and not self._lines:
            os.ftruncate(self._fd, 0)
            os.fsync(self._fd)
            self._end = 0

    def close(self) -> None:
        """Release the file; what waits stays in it."""
        os.close(self._fd)

    def _recover(self) -> None:
        """Index what an earlier process left, passing over what it could not finish writing."""
        damaged = 0
        with os.fdopen(os.dup(self._fd), "rb") as file:
            for line in file:
                if line.endswith(b"\n") and _is_message(line):
                    self._lines.append(_Line(self._end, len(line) - 1))
                else:
                    damaged += 1
                if line.endswith(b"\n"):
                    self._end += len(line)
        os.ftruncate(self._fd, self._end)
        if damaged:
            log.warning("%s: %d damaged lines are passed over", self.path, damaged)


def _is_message(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _sync_folder(folder: Path) -> None:
    """Make the file's name as durable as its content."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
