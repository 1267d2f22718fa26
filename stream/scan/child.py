"""One file to frames, in a process that may crash, hang or be killed.

What it says goes through a pipe: JSON, and the pixels of a frame after what is said of it. The
parent believes none of it blindly: there is nothing to unpickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import SecretStr

from stream.config import DecodeConfig, SourceConfig
from stream.decode import open_decoder
from stream.errors import SourceError
from stream.records import SourceCode
from stream.scan.confine import confine
from stream.scan.policy import ScanLimits
from stream.scan.still import read_still

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from stream.records import Frame

_TICK_S: Final = 1.0  # how often it says that it is alive, while no frame is due


class ReadStatus(StrEnum):
    """How reading a file ended."""

    OK = "ok"
    UNREADABLE = "unreadable"  # all or the end of it; what was read before stands
    CRASHED = "crashed"  # the process that read it, each time
    TIMEOUT = "timeout"  # it took too long, or got nowhere
    TOO_LARGE = "too_large"  # in pixels, seconds or memory; what was read before stands


@dataclass(frozen=True, slots=True)
class Task:
    """A file to read."""

    path: bytes  # of the file itself; of an object, where it was fetched to
    source_id: str
    is_still: bool
    follow_links: bool
    known_sha256: str | None  # of the content that is finished already; None: none is
    decode: DecodeConfig
    limits: ScanLimits


class _Ended(Exception):  # noqa: N818 - it is no error of the program
    """Reading ends here, for a reason that people should know."""

    def __init__(self, status: ReadStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def read_file(task: Task, pipe: Connection) -> None:
    """Read a file, and tell the pipe all of it; the whole life of a child process."""
    confine(task.limits)
    status, reason = ReadStatus.OK, None
    try:
        sha256 = _digest(task)
        _tell(pipe, "digest", sha256=sha256)
        if sha256 == task.known_sha256:
            _tell(pipe, "same")
            return
        if task.is_still:
            _read_still(task, pipe)
        else:
            _read_video(task, pipe)
    except _Ended as error:
        status, reason = error.status, str(error)
    except SourceError as error:
        large = error.code is SourceCode.TOO_LARGE
        status = ReadStatus.TOO_LARGE if large else ReadStatus.UNREADABLE
        reason = f"{error.code}: {_without_path(str(error), task.path)}"
    except MemoryError:
        status = ReadStatus.TOO_LARGE
        reason = f"needs more than {task.limits.memory_mb} MiB; raise memory_mb"
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            return
        status, reason = ReadStatus.UNREADABLE, error.strerror or str(error)
    _tell(pipe, "end", status=status, reason=reason)


def _digest(task: Task) -> str:
    """Return the SHA-256 of the file, after a look at what it is."""
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if task.follow_links else os.O_NOFOLLOW)
    with os.fdopen(os.open(task.path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise _Ended(ReadStatus.UNREADABLE, "not a regular file")
        if not status.st_size:
            raise _Ended(ReadStatus.UNREADABLE, "empty")
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_still(task: Task, pipe: Connection) -> None:
    content = _absolute(task.path).read_bytes()
    frame = read_still(content, source_id=task.source_id, max_pixels=task.limits.still_pixels)
    _tell(pipe, "about", description="still")
    _send(pipe, frame, seen=1)


def _read_video(task: Task, pipe: Connection) -> None:
    path = str(_absolute(task.path))
    source = SourceConfig.model_validate(
        {"id": task.source_id, "uri": SecretStr(path), "max_pixels": task.limits.max_pixels}
    )
    told_at = time.monotonic()
    with closing(open_decoder(source, task.decode, session=0)) as decoder:
        _tell(pipe, "about", description=decoder.description)
        frames = iter(decoder.frames())
        try:
            for frame in frames:
                if frame is not None:
                    if frame.stamp.pts_s > task.limits.duration_s:
                        raise _Ended(
                            ReadStatus.TOO_LARGE,
                            f"longer than {task.limits.duration_s:g} s; raise duration_s",
                        )
                    _send(pipe, frame, decoder.frames_seen)
                elif time.monotonic() - told_at < _TICK_S:
                    continue
                else:
                    _tell(pipe, "tick", seen=decoder.frames_seen)
                told_at = time.monotonic()
        finally:
            _tell(pipe, "tick", seen=decoder.frames_seen)


def _send(pipe: Connection, frame: Frame, seen: int) -> None:
    stamp = frame.stamp
    _tell(
        pipe,
        "frame",
        index=stamp.index,
        pts_s=stamp.pts_s,
        width=stamp.width,
        height=stamp.height,
        decoder=stamp.decoder,
        seen=seen,
    )
    # As they are: `Connection` would copy megabytes several times on the way.
    pixels = frame.image.numpy().data.cast("B")
    while pixels:
        pixels = pixels[os.write(pipe.fileno(), pixels) :]


def _tell(pipe: Connection, what: str, **facts: Any) -> None:
    pipe.send_bytes(json.dumps({"what": what, **facts}).encode())


def _absolute(path: bytes) -> Path:
    return Path(os.fsdecode(path)).absolute()  # so that no name reads as an address


def _without_path(text: str, path: bytes) -> str:
    """Return what an error says after the name of its file, which is known."""
    name = str(_absolute(path))
    return text.removeprefix(name).lstrip(": ") if text.startswith(name) else text
