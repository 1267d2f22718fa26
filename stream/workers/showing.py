"""A worker's part of the page: its board's only viewer, who passes on what it sees.

    analysis, publisher -> Feed -> Board -> Showing  ~~ connection ~~>  `page.py`, the supervisor

News are always passed on. Frames are kept, made into pictures and passed on only of what people
look at, as the supervisor tells. Three threads, which come after the analysis: one tells news, one
makes pictures, one hears the supervisor. Where the connection is slow, they wait, and what they
have not passed on yet is overtaken on the board; the analysis never waits.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from stream.closing import Closing
from stream.page.pictures import Darkroom
from stream.priority import step_back
from stream.workers.shown import (
    FROM_WORKER,
    TO_WORKER,
    Answered,
    Asked,
    LookKept,
    NewsTold,
    PictureMade,
    Wanted,
    packed,
    unpacked,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from pathlib import Path

    from torch import Tensor

    from stream.page.board import View
    from stream.page.feed import LiveBoard
    from stream.workers.shown import FromWorker

log = logging.getLogger(__name__)

_TOGETHER_S: Final = 0.05  # news of so long are told together
_LEAVE_S: Final = 2.0  # for the last news


class Showing(Closing):
    """Passes on what a board shows until it is closed, or the supervisor is gone.

    Args:
        board: of this process.
        manifest: see `Darkroom`.
        connection: to the supervisor, both ways; it ends with this process.
    """

    def __init__(self, board: LiveBoard, manifest: Path, connection: Connection) -> None:
        self._board = board
        self._darkroom = Darkroom(manifest)
        self._connection = connection
        self._sends = threading.Lock()
        self._views: tuple[View, ...] = ()
        self._asked: deque[tuple[Asked, bytes]] = deque()  # the supervisor asks one at a time
        self._news = threading.Event()  # there is something to tell
        self._frames = threading.Event()  # or to make, which somebody looks at
        self._is_over = False
        board.tell(self._wake)
        loops = {"tell": self._tell, "make": self._make, "hear": self._hear}
        self._threads = {
            name: threading.Thread(
                target=self._guard, args=(loop,), name=f"page-{name}", daemon=True
            )
            for name, loop in loops.items()
        }
        for thread in self._threads.values():
            thread.start()

    def close(self) -> None:
        """Pass on the last news, and no picture more."""
        self._is_over = True
        self._news.set()
        self._frames.set()
        for name in ("make", "tell"):
            self._threads[name].join(_LEAVE_S)
        self._board.tell(None)

    def _wake(self) -> None:
        self._news.set()
        if self._views:
            self._frames.set()

    def _guard(self, loop: Callable[[], None]) -> None:
        step_back()
        try:
            loop()
        except (OSError, EOFError):
            return  # the supervisor is gone, on which `worker.py` acts
        except Exception:
            log.exception("page: it shows no more of this worker; the analysis goes on")

    def _send(self, told: FromWorker, behind: bytes = b"") -> None:
        message = packed(FROM_WORKER.dump_json(told), behind)
        with self._sends:
            self._connection.send_bytes(message)

    # --- news ---

    def _tell(self) -> None:
        news = looks = measured = 0  # the latest that was told
        while True:
            self._news.wait()
            self._news.clear()
            is_last = self._is_over
            for number, event_id, look in self._board.looks_after(looks):
                looks = number
                self._send(LookKept(event_id), look.cpu().contiguous().numpy().tobytes())
            newer = self._board.news_after(news)
            times = self._board.measured_after(measured) if self._views else []
            if newer or times:
                news = newer[-1].number if newer else news
                measured = times[-1][0] if times else measured
                self._send(NewsTold([(n.kind, n.text) for n in newer], [of for _, of in times]))
            if is_last:
                return
            time.sleep(_TOGETHER_S)

    # --- pictures ---

    def _make(self) -> None:
        seen = 0
        while not self._is_over:
            self._frames.wait()
            self._frames.clear()
            for shown in self._board.frames_after(seen):
                seen = shown.number
                self._board.let_go(shown)
                for width in self._board.widths(shown.source_id):
                    self._answer()
                    part = self._darkroom.part(shown.picture, width)
                    self._send(PictureMade(shown.source_id, width), part)
            self._answer()

    def _answer(self) -> None:
        while self._asked:
            asked, pixels = self._asked.popleft()
            make = self._darkroom.face if asked.of == "face" else self._darkroom.evidence
            try:
                jpeg = make(_look(pixels))
            except Exception:
                log.exception("page: %s can't be shown", asked.of)
                jpeg = None
            self._send(Answered(asked.number), jpeg or b"")

    # --- the supervisor ---

    def _hear(self) -> None:
        with ExitStack() as ends:
            while True:
                header, behind = unpacked(self._connection.recv_bytes())
                told = TO_WORKER.validate_json(header)
                if isinstance(told, Wanted):
                    before = ends.pop_all()
                    for source_id, width in told.views:
                        ends.enter_context(self._board.viewed([source_id], width))
                    before.close()
                    self._views = tuple(told.views)
                    self._wake()
                else:
                    self._asked.append((told, behind))
                    self._frames.set()


def _look(pixels: bytes) -> Tensor:
    """Return (3, S, S) uint8 RGB."""
    size = math.isqrt(len(pixels) // 3)
    return torch.from_numpy(np.frombuffer(bytearray(pixels), np.uint8).reshape(3, size, size))
