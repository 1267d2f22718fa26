"""Messages as JSON lines, appended to a file."""

from __future__ import annotations

import contextlib
import fcntl
from typing import TYPE_CHECKING

from stream.errors import ConfigError, SinkError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stream.config import JsonlSinkConfig
    from stream.messages import OutMessage


class JsonlSink:
    """Appends one message a line, of every kind; each step is in the file when `publish` returns.

    Several processes may append to the same file.

    Raises:
        ConfigError: the path is a folder, or can't be written.
    """

    def __init__(self, config: JsonlSinkConfig) -> None:
        self._path = config.path
        try:
            # Unbuffered: nothing is left to fail, or to be written twice, after an error.
            self._file = config.path.open("ab", buffering=0)
        except OSError as error:
            raise ConfigError(
                f"{config.path}: can't append messages ({error.strerror}); expected a file in a "
                "folder that exists"
            ) from error

    def publish(self, messages: Sequence[OutMessage]) -> None:
        """Append the messages.

        Raises:
            SinkError: the disk is full or broken. The file ends with the last whole step.
        """
        if not messages:
            return
        lines = [message.to_json() + "\n" for message in messages]
        with self._alone():
            self._append("".join(lines).encode(), len(lines))

    def _append(self, data: bytes, count: int) -> None:
        end = self._file.seek(0, 2) if self._file.seekable() else None
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            if end is not None:
                with contextlib.suppress(OSError):  # what matters is the first error
                    self._file.truncate(end)
            raise SinkError(
                f"{self._path}: can't write ({error.strerror}); {count} messages of this step "
                "are lost: make room and start again"
            ) from error

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from the file: a long write to a pipe comes in pieces."""
        with contextlib.suppress(OSError):  # some file systems know no locks
            fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()
