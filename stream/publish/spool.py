"""Messages that wait on disk while a receiver is away."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import stat
import tempfile
from collections import deque
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stream.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

log = logging.getLogger(__name__)


class SpoolFolder:
    """Where the spools of one sink lie: a folder that lasts, or a private one.

    Args:
        path: made if missing; one process at a time may use it. None: a private folder under the
            system's temporary folder, made when something must be kept, and gone with `close` if
            nothing is left in it.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._is_private = path is None

    def open(self, name: str) -> int:
        """Open a file in the folder for this process alone, made if missing.

        Raises:
            ConfigError: the folder or the file can't be used: not ours alone to write, a symbolic
                link, in use by another process.
            OSError: there is nowhere to make a private folder.
        """
        if self.path is None:
            self.path = Path(tempfile.mkdtemp(prefix="facewarden-spool-"))
            log.warning("%s: made to keep messages", self.path)
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise self._refusal(error) from error
        try:
            self._insist_on_ours(self.path, os.fstat(folder))
            fd = os.open(
                name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder
            )
            os.fsync(folder)  # the file's name is to be as durable as its content
        except OSError as error:
            raise self._refusal(error, name) from error
        finally:
            os.close(folder)
        try:
            self._check_file(name, fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def close(self) -> None:
        """Remove a private folder in whose files nothing is left."""
        if self._is_private and self.path is not None:
            with contextlib.suppress(FileNotFoundError):  # somebody tidied up
                if not any(file.stat().st_size for file in self.path.iterdir()):
                    shutil.rmtree(self.path)

    def _check_file(self, name: str, fd: int) -> None:
        """Refuse a file that others put there, may write, or use; let nobody else read it."""
        assert self.path is not None
        facts = os.fstat(fd)
        path = self.path / name
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
            raise ConfigError(f"spool {path}: expected a file of its own, without a second name")
        self._insist_on_ours(path, facts)
        os.fchmod(fd, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"spool {self.path}: another process keeps its messages there; give each its own"
            ) from None

    @staticmethod
    def _insist_on_ours(path: Path, facts: os.stat_result) -> None:
        """Refuse what another user owns or may write: it could lead us elsewhere."""
        if facts.st_uid != os.geteuid():
            raise ConfigError(
                f"spool {path}: belongs to user {facts.st_uid}; expected one of user "
                f"{os.geteuid()}, who runs this: chown it, or name another folder"
            )
        if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigError(
                f"spool {path}: others may write it (mode {stat.S_IMODE(facts.st_mode):o}); "
                "chmod go-w, or name another folder"
            )

    def _refusal(self, error: OSError, name: str = "") -> ConfigError:
        assert self.path is not None
        path = self.path / name
        why = "it is a symbolic link" if path.is_symlink() else error.strerror
        return ConfigError(
            f"spool {path}: can't keep messages there ({why}); expected a folder that this "
            "process may write"
        )


class _Line(NamedTuple):
    offset: int
    length: int  # bytes, without the line feed


class Spool:
    """A queue of messages in one file, one a line, that outlives the process.

    What an earlier process left comes first. The file shrinks only when all of it is delivered: a
    crash before that repeats messages, and loses none.

    Args:
        folder: where the file lies. In one that lasts it is opened now, since an earlier process
            may have left something; in a private one with the first `append`.
        name: of the file.
        limit: messages that may wait.

    Raises:
        ConfigError: the folder can't be used, or another process uses it.
    """

    def __init__(self, folder: SpoolFolder, name: str, limit: int) -> None:
        self._folder = folder
        self._name = name
        self._limit = limit
        self._lines: deque[_Line] = deque()
        self._end = 0  # of the last whole line
        self._fd: int | None = None
        if folder.path is not None:
            self._open()

    @property
    def path(self) -> Path | None:
        """The file, if there is one."""
        return None if self._folder.path is None else self._folder.path / self._name

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._end

    def __len__(self) -> int:
        """Return how many messages wait."""
        return len(self._lines)

    def append(self, messages: Iterable[str]) -> int:
        """Add messages and wait until they are on the disk.

        Returns:
            How many were taken: the first ones; fewer than given where the limit is reached.

        Raises:
            ConfigError: a private folder was made and can't be used.
            OSError: the disk is full or broken, or there is no place for a private folder; none
                was taken.
        """
        taken = [m.encode() for m in islice(messages, max(0, self._limit - len(self)))]
        if not taken:
            return 0
        fd = self._open()
        try:
            data = b"".join(line + b"\n" for line in taken)
            offset = self._end
            while data:
                written = os.pwrite(fd, data, offset)
                data, offset = data[written:], offset + written
            os.fsync(fd)
        except OSError:
            with contextlib.suppress(OSError):  # half a line is cut by the next process too
                os.ftruncate(fd, self._end)
            raise
        for line in taken:
            self._lines.append(_Line(self._end, len(line)))
            self._end += len(line) + 1
        return len(taken)

    def __iter__(self) -> Iterator[str]:
        """Yield the messages, that which has waited longest first."""
        for line in self._lines:
            assert self._fd is not None
            yield os.pread(self._fd, line.length, line.offset).decode()

    def drop(self, count: int) -> None:
        """Forget the first `count` messages: they are delivered."""
        for _ in range(count):
            self._lines.popleft()
        if count and not self._lines and self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.fsync(self._fd)
            self._end = 0

    def close(self) -> None:
        """Release the file; what waits stays in it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> int:
        if self._fd is None:
            self._fd = self._folder.open(self._name)
            self._recover(self._fd)
        return self._fd

    def _recover(self, fd: int) -> None:
        """Index what an earlier process left, passing over what it could not finish writing."""
        damaged = 0
        with os.fdopen(os.dup(fd), "rb") as file:
            for line in file:
                if line.endswith(b"\n") and _is_message(line):
                    self._lines.append(_Line(self._end, len(line) - 1))
                else:
                    damaged += 1
                if line.endswith(b"\n"):
                    self._end += len(line)
        os.ftruncate(fd, self._end)
        if damaged:
            log.warning("%s: %d damaged lines are passed over", self.path, damaged)


def _is_message(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
