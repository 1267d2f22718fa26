"""The supervisor's part of the page: one board that collects what the workers show.

It makes no picture and loads no network: a worker does both (`showing.py`). What a worker sends is
read at once and kept in the bounded memory of the board, so no viewer can hold up a worker; what
the supervisor asks of a worker waits in a thread of that worker's own, so no worker can hold up the
supervisor or another.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import threading
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from pydantic import ValidationError

from stream.errors import ConfigError
from stream.page.board import Board
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
    from multiprocessing.connection import Connection

    from stream.page.board import Shown, View
    from stream.workers.shown import FromWorker, ToWorker

_LAST_WORDS_S: Final = 1.0  # for what a worker that has ended sent before
_ANSWER_S: Final = 20.0  # longest wait for a JPEG; the first map of evidence loads a network
_LONGEST: Final = 2**26  # bytes; the news of a full board are a few million
CollectedBoard: TypeAlias = "Board[bytes, bytes]"  # parts of the live stream; pixels of faces


class Gallery:
    """What all workers show, and the connections to them.

    Args:
        run: names the run, as in its messages.

    Attributes:
        board: of all workers; what the supervisor itself says is to be published to it, too.
    """

    def __init__(self, run: str) -> None:
        self.board: CollectedBoard = Board(run)
        self._links: list[Link] = []
        self._numbers = itertools.count(1)
        self._asks = asyncio.Lock()  # one face at a time, of whatever viewer
        self.board.tell_views(self._want)

    def _want(self, views: frozenset[View]) -> None:
        for link in self._links.copy():
            link.want(views)

    def connect(self, name: str) -> tuple[Link, Connection]:
        """Return both ends of a connection to a worker that is about to be started.

        Args:
            name: of the worker.
        """
        ours, theirs = multiprocessing.Pipe()
        link = Link(name, ours, self.board)
        self._links.append(link)
        self.board.tell_views(self._want)  # to this one, too
        return link, theirs

    def end(self, link: Link) -> None:
        """Take in what a worker that has ended, or never began, said last; nothing after that."""
        self._links.remove(link)
        link.end()

    # --- pictures: see `stream.page.app.Pictures` ---

    async def part(self, shown: Shown[bytes], _width: int) -> bytes:
        """See `app.Pictures.part`."""
        return shown.picture

    async def face(self, event_id: str) -> bytes | None:
        """See `app.Pictures.face`.

        Raises:
            ConfigError: no worker can make it now.
        """
        return await self._made("face", event_id)

    async def evidence(self, event_id: str) -> bytes | None:
        """See `app.Pictures.evidence`.

        Raises:
            ConfigError: no worker can make it now.
        """
        return await self._made("evidence", event_id)

    async def _made(self, of: Literal["face", "evidence"], event_id: str) -> bytes | None:
        look = self.board.look_of(event_id)
        if look is None:
            return None
        async with self._asks:
            for link in self._links.copy():
                if link.has_spoken:  # else its engines are being loaded
                    answer = asyncio.wrap_future(link.ask(Asked(next(self._numbers), of), look))
                    with suppress(TimeoutError, EOFError):  # it hangs, or has died
                        return await asyncio.wait_for(answer, _ANSWER_S) or None
        raise ConfigError("no worker can make this picture just now; try again")

    def forget(self) -> None:
        """See `app.Pictures.forget`."""

    def close(self) -> None:
        """See `app.Pictures.close`."""


class Link:
    """The connection to one worker.

    Args:
        name: of the worker.
        connection: both ways.
        board: that is told what the worker shows.

    Attributes:
        has_spoken: whether the worker showed anything yet.
    """

    def __init__(self, name: str, connection: Connection, board: CollectedBoard) -> None:
        self.has_spoken = False
        self._connection = connection
        self._board = board
        self._takes = threading.Lock()
        self._is_over = False
        self._changed = threading.Condition()
        self._wanted: frozenset[View] | None = None  # that the worker does not know yet
        self._asked: tuple[Asked, bytes] | None = None  # that it was not told yet
        self._awaited: tuple[int, Future[bytes]] | None = None
        self._threads = [
            threading.Thread(target=loop, name=f"page-{name}", daemon=True)
            for loop in (self._hear, self._tell)
        ]
        for thread in self._threads:
            thread.start()

    def want(self, views: frozenset[View]) -> None:
        """Tell the worker what people look at; returns at once."""
        with self._changed:
            self._wanted = views
            self._changed.notify()

    def ask(self, asked: Asked, look: bytes) -> Future[bytes]:
        """Ask for a JPEG; returns at once. What was asked before is awaited no longer.

        Returns:
            What becomes the JPEG, empty if there is none, or an EOFError if the worker dies.
        """
        answer: Future[bytes] = Future()
        with self._changed:
            self._awaited = asked.number, answer
            self._asked = asked, look
            self._changed.notify()
            if self._is_over:
                self._break_off()
        return answer

    def end(self) -> None:
        """Take in what is left to hear, for a moment, and nothing after that."""
        hearing, telling = self._threads
        hearing.join(_LAST_WORDS_S)
        with self._takes, self._changed:
            self._is_over = True
            self._break_off()
            self._changed.notify()
        telling.join(_LAST_WORDS_S)
        if not (hearing.is_alive() or telling.is_alive()):
            self._connection.close()

    def _break_off(self) -> None:
        if self._awaited is not None:
            with suppress(InvalidStateError):  # nobody waits any more
                self._awaited[1].set_exception(EOFError("the worker has died"))
            self._awaited = None

    def _hear(self) -> None:
        with suppress(OSError, EOFError, ValidationError):
            while True:
                header, behind = unpacked(self._connection.recv_bytes(_LONGEST))
                said = FROM_WORKER.validate_json(header)
                with self._takes:
                    if self._is_over:
                        return
                    self.has_spoken = True
                    self._take(said, behind)

    def _take(self, said: FromWorker, behind: bytes) -> None:
        match said:
            case NewsTold(news=news, measured=measured):
                self._board.measured(measured)
                self._board.take(news)
            case PictureMade(source_id=source_id, width=width):
                self._board.show(source_id, width, behind)
                self._board.announce()
            case LookKept(event_id=event_id):
                self._board.keep_look(event_id, behind)
            case Answered(number=number):
                with self._changed, suppress(InvalidStateError):  # nobody waits any more
                    if self._awaited is not None and self._awaited[0] == number:
                        self._awaited[1].set_result(behind)
                        self._awaited = None

    def _tell(self) -> None:
        with suppress(OSError):
            while True:
                with self._changed:
                    self._changed.wait_for(
                        lambda: self._is_over or self._wanted is not None or self._asked
                    )
                    if self._is_over:
                        return
                    wanted, self._wanted = self._wanted, None
                    asked, self._asked = self._asked, None
                if wanted is not None:
                    self._send(Wanted(sorted(wanted)))
                if asked is not None:
                    self._send(*asked)

    def _send(self, told: ToWorker, behind: bytes = b"") -> None:
        self._connection.send_bytes(packed(TO_WORKER.dump_json(told), behind))
