"""A private Redis for demos and single machines: a Valkey server on a Unix socket, no TCP."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from stream.errors import ConfigError
from stream.signals import STOP_SIGNALS

if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIX: Final = "facewarden-redis-"
_SOCKET: Final = "redis.sock"
_PROGRAM: Final = Path(__file__).with_name("embedded_server.py")
_LONGEST_FAREWELL_S: Final = 10.0


class EmbeddedServer:
    """A server that lives as long as this process at most, in a folder only this user can enter.

    It keeps nothing on disk: what was not read when it closes is gone. Folders that killed machines
    and processes left are removed first.

    Attributes:
        url: its address.

    Raises:
        ConfigError: it does not start.
    """

    def __init__(self) -> None:
        _sweep()
        try:
            self._folder, lock = _make_folder()
        except OSError as error:
            raise ConfigError(
                "the embedded Redis server needs a folder for temporary files "
                f"({error.strerror}): set TMPDIR to one, or name a Redis of your own"
            ) from error
        self.url = f"unix://{self._folder / _SOCKET}"
        # They come to a whole process group, or by a supervisor to all processes of a service. The
        # server inherits this mask, and can still take what we deliver while we stop.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            # -P: the folder of the program holds modules of ours, not of its.
            self._program = subprocess.Popen(
                [sys.executable, "-P", _PROGRAM, self._folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[lock],  # held until the folder is gone, even if we die before
                text=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(lock)
        atexit.register(self.close)
        assert self._program.stdout is not None
        answer = self._program.stdout.readline().strip()
        if answer != "ready":
            self.close()
            raise ConfigError(
                f"the embedded Redis server does not start ({answer or 'it says nothing'}); name "
                "one of your own"
            )

    def close(self) -> None:
        """Stop the server and remove its folder; a second call does nothing."""
        atexit.unregister(self.close)
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.close()  # tells it to end
        try:
            self._program.wait(_LONGEST_FAREWELL_S)
        except subprocess.TimeoutExpired:
            self._program.kill()
            self._program.wait()
        self._program.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)  # where the program itself was killed


def running_servers() -> list[str]:
    """Return the URLs of this machine's embedded servers that this user may read."""
    return sorted(f"unix://{folder / _SOCKET}" for folder in _folders() if _has_socket(folder))


def _make_folder() -> tuple[Path, int]:
    """Return a new folder, and a file descriptor that holds its lock: it is in use."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        with contextlib.suppress(FileNotFoundError):  # taken for a left one, just before its lock
            lock = _lock(folder)
            if lock is not None:
                return folder, lock


def _lock(folder: Path) -> int | None:
    """Return a file descriptor that holds the lock of a folder, or None: it is in use."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.stat()
    except BaseException as error:
        os.close(fd)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return fd


def _sweep() -> None:
    """Remove this user's folders whose processes are gone."""
    for folder in _folders():
        with contextlib.suppress(OSError):  # another user's, or gone already
            if folder.lstat().st_uid != os.geteuid():
                continue
            lock = _lock(folder)
            if lock is not None:
                if not _answers(folder / _SOCKET):
                    shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _folders() -> Iterator[Path]:
    try:
        yield from Path(tempfile.gettempdir()).glob(f"{_PREFIX}*")
    except OSError:  # there is no temporary folder, so there is nothing in it
        return


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def _has_socket(folder: Path) -> bool:
    try:
        return (folder / _SOCKET).is_socket()
    except PermissionError:  # another user's
        return False
