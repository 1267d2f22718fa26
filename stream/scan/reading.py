"""The parent's side of `stream.scan.child`: starts a process for a file, listens, ends it.

A thread listens, so that a frame's pixels arrive while others are analysed; it is one frame ahead
at most.
"""

from __future__ import annotations

import concurrent.futures
import math
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from stream.records import Frame, FrameStamp
from stream.redact import printable
from stream.scan.child import ReadStatus, read_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor, Future
    from multiprocessing.context import ForkServerContext

    from stream.scan.child import Task

_LONGEST_TEXT: Final = 65536
_LARGEST_PX: Final = 2**28


class _Said(BaseModel):
    """What a child may say; a frame's pixels follow it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    what: str
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    description: str | None = None
    seen: int = Field(0, ge=0)
    index: int = Field(0, ge=0)
    pts_s: float = Field(0.0, ge=0)
    width: int = Field(0, ge=0, le=_LARGEST_PX)
    height: int = Field(0, ge=0, le=_LARGEST_PX)
    decoder: str = ""
    status: ReadStatus | None = None
    reason: str | None = None


_SAID: Final = TypeAdapter(_Said)


@dataclass(frozen=True, slots=True)
class ReadEnd:
    """How reading ended."""

    status: ReadStatus
    reason: str | None
    may_retry: bool  # it was no answer of the child's own
    is_known: bool = False  # the content is that of before; nothing was read


Heard: TypeAlias = Frame | ReadEnd | None


def reading_context(*more: str) -> ForkServerContext:
    """Return what starts the children: a process that has their imports, and forks for each.

    Args:
        more: modules that it imports beside.
    """
    context = multiprocessing.get_context("forkserver")
    # The main module, too, which each child would import otherwise.
    context.set_forkserver_preload(
        ["__main__", "stream.scan.child", "stream.decode.sampled", *more]
    )
    return context


class Reading:
    """A file that a child process reads.

    Args:
        task: what to read.
        context: starts the process.
        listeners: threads, of which this occupies one until `close`.
        clock: seconds.

    Attributes:
        coming: done as soon as there is something to `take`.
        sha256: of the file, once known.
        description: of what is in it, once known.
        frames_seen: decoded so far, as far as it was told.
    """

    def __init__(
        self,
        task: Task,
        context: ForkServerContext,
        listeners: Executor,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.task = task
        self.sha256: str | None = None
        self.description: str | None = None
        self.frames_seen = 0
        self._clock = clock
        self._listeners = listeners
        self._started_at = self._heard_at = clock()
        self._pipe, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=read_file, args=(task, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.coming: Future[Heard] = listeners.submit(self._hear)

    def take(self) -> Heard:
        """Return what the child said, and listen to the next; wait, if it has said nothing.

        Returns:
            A frame; the end, after which nothing comes; or None for what is kept as an attribute.
        """
        heard = self.coming.result()
        if not isinstance(heard, ReadEnd):
            self.coming = self._listeners.submit(self._hear)
        return heard

    def _hear(self) -> Heard:
        try:
            said = _SAID.validate_json(self._pipe.recv_bytes(_LONGEST_TEXT))
            self._heard_at = self._clock()
            self.frames_seen = max(self.frames_seen, said.seen)
            match said.what:
                case "frame":
                    return self._frame(said)
                case "digest":
                    self.sha256 = said.sha256
                case "about":
                    self.description = printable(said.description or "")[:200]
                case "same":
                    return ReadEnd(ReadStatus.OK, None, may_retry=False, is_known=True)
                case "end":
                    reason = None if said.reason is None else printable(said.reason)[:500]
                    return ReadEnd(said.status or ReadStatus.CRASHED, reason, may_retry=False)
        except EOFError:
            return self._death()
        except (OSError, ValidationError, multiprocessing.BufferTooShort) as error:
            return ReadEnd(ReadStatus.CRASHED, f"said nonsense: {type(error).__name__}", True)
        return None

    def overdue(self) -> ReadEnd | None:
        """Return the end of a child that has gone silent, or has taken too long; else None."""
        limits, now = self.task.limits, self._clock()
        if now - self._started_at > limits.wall_s:
            return ReadEnd(ReadStatus.TIMEOUT, f"not read in {limits.wall_s:g} s (wall_s)", False)
        if now - self._heard_at > limits.silent_s and not self.coming.done():
            reason = f"reading got nowhere for {limits.silent_s:g} s (silent_s)"
            return ReadEnd(ReadStatus.TIMEOUT, reason, may_retry=True)
        return None

    def close(self) -> None:
        """End the child, if it has not ended; a second call does nothing."""
        if not self._pipe.closed:
            self._process.kill()
            concurrent.futures.wait([self.coming])  # the end of the process ends it
            self._process.join()
            self._pipe.close()
            self._process.close()

    def _frame(self, said: _Said) -> Frame:
        image = np.empty((said.height, said.width, 3), np.uint8)
        missing = image.data.cast("B")
        while missing:
            n = os.readv(self._pipe.fileno(), [missing])
            if not n:
                raise EOFError
            missing = missing[n:]
        if not math.isfinite(said.pts_s):
            raise OSError("a time that is none")
        stamp = FrameStamp(
            source_id=self.task.source_id,
            session=0,
            index=said.index,
            pts_s=said.pts_s,
            captured_at=0.0,
            width=said.width,
            height=said.height,
            decoder=printable(said.decoder)[:20],
        )
        return Frame(stamp=stamp, image=torch.from_numpy(image))

    def _death(self) -> ReadEnd:
        """Say why a child ended without a word."""
        self._process.join(5)
        code = self._process.exitcode
        if code == -signal.SIGXCPU:
            limit = self.task.limits.cpu_s
            return ReadEnd(ReadStatus.TIMEOUT, f"more than {limit:g} s of processor (cpu_s)", False)
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return ReadEnd(ReadStatus.CRASHED, f"the process that read it died of {name}", True)
        return ReadEnd(ReadStatus.CRASHED, f"the process that read it ended with code {code}", True)
