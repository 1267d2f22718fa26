"""What is finished: one line per file, appended when it is; who is killed loses nothing else."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ValidationError

from stream.closing import Closing
from stream.errors import ConfigError, StreamError
from stream.scan.rows import FileRow

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stream.scan.inputs import Item


@dataclass(frozen=True, slots=True)
class Finished:
    """What must be known of a finished file to see whether it has changed."""

    run_key: str
    size: int
    mtime_ns: int
    sha256: str | None
    etag: str | None

    def may_hold(self, item: Item, run_key: str) -> bool:
        """Return whether a file may be as it was finished, in this way, whatever its time says."""
        return (self.run_key, self.size) == (run_key, item.size)

    def holds(self, item: Item, run_key: str) -> bool:
        """Return whether a file looks unchanged, and was finished in this way."""
        if item.etag is not None:
            is_same = self.etag == item.etag
        else:
            is_same = self.mtime_ns == item.mtime_ns
        return is_same and self.may_hold(item, run_key)


class Journal(Closing):
    """The finished files of one shard; one process at a time holds it.

    Attributes:
        finished: by path, what is known of it.
    """

    def __init__(self, path: Path) -> None:
        """Open or make the file; what a killed process left half-written is cut off.

        Raises:
            ConfigError: another process has it open, or it is damaged or can't be written.
        """
        self._path = path
        self.finished: dict[bytes, Finished] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise ConfigError(f"{path}: can't write the results ({error.strerror})") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._cut()
            for _, row in read_rows(path):
                self._note(row)
        except BlockingIOError:
            self.close()
            raise ConfigError(
                f"{path}: another scan writes there; wait for it, or take another --out"
            ) from None
        except BaseException:
            self.close()
            raise

    def append(self, row: FileRow) -> None:
        """Add a finished file.

        Raises:
            StreamError: the disk is full or broken; nothing of the row is left.
        """
        data = row.model_dump_json().encode() + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            self._file.truncate(end)
            raise StreamError(
                f"{self._path}: can't write ({error.strerror}): make room, and run again"
            ) from error
        self._note(row)

    def close(self) -> None:
        """Let go of the file; a second call does nothing."""
        self._file.close()

    def _note(self, row: FileRow) -> None:
        self.finished[row.raw_path] = Finished(
            row.run_key, row.size, row.mtime_ns, row.sha256, row.etag
        )

    def _cut(self) -> None:
        size = self._file.seek(0, os.SEEK_END)
        end = size
        while end:
            start = max(0, end - 65536)
            self._file.seek(start)
            last = self._file.read(end - start).rfind(b"\n")
            if last >= 0:
                end = start + last + 1
                break
            end = start
        if end < size:
            self._file.truncate(end)


def read_rows(path: Path) -> Iterator[tuple[int, FileRow]]:
    """Yield where each row of a journal begins, and the row; a half-written last one is left out.

    Raises:
        ConfigError: a line is no row.
    """
    with path.open("rb") as file:
        at = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield at, FileRow.model_validate_json(line)
            except ValidationError as error:
                raise ConfigError(
                    f"{path}: line {number} is no result of this version; take another --out"
                ) from error
            at += len(line)
