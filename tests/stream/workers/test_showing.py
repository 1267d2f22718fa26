"""What a worker shows the page, and what the supervisor collects of it, over real connections."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

from stream.errors import ConfigError
from stream.messages import VerdictMessage
from stream.page.board import GRID_WIDTH, SINGLE_WIDTH, Board, Measured
from stream.page.feed import Feed, LiveBoard
from stream.workers.page import Gallery
from stream.workers.showing import Showing
from stream.workers.shown import (
    FROM_WORKER,
    TO_WORKER,
    Answered,
    LookKept,
    NewsTold,
    PictureMade,
    Wanted,
    packed,
    unpacked,
)
from tests.stream.running import RUN, WAIT_S, Run, config_of, wait_until
from trt_engines.manifest import load_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    from stream.workers.page import Link
    from stream.workers.shown import FromWorker

MANY = 20  # frames, or messages


class Supervisor:
    """Stands for the supervisor: reads only what a test asks for."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.heard: list[FromWorker] = []

    def hear(self) -> tuple[FromWorker, bytes]:
        assert self._connection.poll(WAIT_S)
        header, behind = unpacked(self._connection.recv_bytes())
        self.heard.append(FROM_WORKER.validate_json(header))
        return self.heard[-1], behind

    def hear_until(self, what: Callable[[], object]) -> None:
        while not what():
            self.hear()

    def want(self, *views: tuple[str, int]) -> None:
        self._connection.send_bytes(packed(TO_WORKER.dump_json(Wanted([*views]))))

    def pictures(self) -> list[PictureMade]:
        return [said for said in self.heard if isinstance(said, PictureMade)]

    def news(self, kind: str) -> list[Any]:
        told = [said.news for said in self.heard if isinstance(said, NewsTold)]
        return [json.loads(text) for news in told for of, text in news if of == kind]

    def verdicts(self) -> list[str]:
        return [alert["event"]["id"] for alert in self.news("alert") if "verdict" in alert]

    def looks(self) -> list[str]:
        return [said.event_id for said in self.heard if isinstance(said, LookKept)]


class Shown(NamedTuple):
    run: Run
    board: LiveBoard
    supervisor: Supervisor


@pytest.fixture
def shown(open_analyser, two_faces, tiny_engine) -> Iterator[Shown]:
    """A pipeline with a camera `door`, shown to a supervisor as a worker does."""
    looped = {"id": "door", "uri": str(two_faces), "loop": True, "realtime": True}
    config = config_of(looped, decode={"analyse_fps": 25}, fuse={"publish_every_s": 0})
    board: LiveBoard = Board(RUN)
    run = Run(config, open_analyser(), Feed(board, load_manifest(tiny_engine).input))
    ours, theirs = multiprocessing.Pipe()
    with ours, run.running(), Showing(board, tiny_engine, theirs):
        yield Shown(run, board, Supervisor(ours))
        ours.close()
    theirs.close()


def test_nothing_is_made_of_what_nobody_looks_at(shown):
    supervisor = shown.supervisor
    supervisor.hear_until(lambda: supervisor.verdicts() and len(supervisor.news("score")) > MANY)
    assert supervisor.pictures() == []
    assert shown.board.frames_after(0) == []  # nor kept
    assert not any(told.measured for told in supervisor.heard if isinstance(told, NewsTold))

    supervisor.want(("", GRID_WIDTH))
    supervisor.hear_until(supervisor.pictures)
    supervisor.hear_until(lambda: any(t.measured for t in supervisor.heard if hasattr(t, "news")))
    supervisor.want(("door", SINGLE_WIDTH), ("elsewhere", GRID_WIDTH))
    wait_until(lambda: shown.board.widths("door") == {SINGLE_WIDTH})
    supervisor.hear_until(lambda: supervisor.pictures()[-1].width == SINGLE_WIDTH)
    supervisor.want()
    wait_until(lambda: shown.board.widths("door") == set())
    made = -1
    while made != len(supervisor.pictures()):  # one may be on its way
        made, scores = len(supervisor.pictures()), len(supervisor.news("score"))
        supervisor.hear_until(lambda n=scores: len(supervisor.news("score")) > n + MANY)
    assert shown.board.frames_after(0) == []


def test_a_supervisor_that_does_not_listen_holds_up_no_analysis_and_misses_no_verdict(shown):
    shown.supervisor.want(("", SINGLE_WIDTH))
    wait_until(lambda: shown.board.widths("door") == {SINGLE_WIDTH})
    began = len(shown.run.stamps)
    shown.run.wait_for(lambda: len(shown.run.stamps) > began + 4 * MANY)  # more than a pipe holds
    verdicts = [m.event.id for m in shown.run.messages if isinstance(m, VerdictMessage)]
    shown.supervisor.hear_until(lambda: {*verdicts} <= {*shown.supervisor.verdicts()})
    shown.supervisor.hear_until(lambda: {*verdicts} <= {*shown.supervisor.looks()})
    assert len(shown.supervisor.pictures()) < 3 * MANY  # the others were overtaken


# --- what the supervisor collects ---


def status(source: str, state: str, ts: str) -> tuple[str, str]:
    message = {"source": {"id": source}, "status": {"state": state}, "ts": ts}
    return "status", json.dumps({"message": message})


class Worker:
    """Stands for a worker: says what a test wants said."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery
        self.link: Link
        self.link, self._connection = gallery.connect("worker-1")

    def say(self, said: FromWorker, behind: bytes = b"") -> None:
        self._connection.send_bytes(packed(FROM_WORKER.dump_json(said), behind))

    def told(self) -> tuple[Any, bytes]:
        assert self._connection.poll(WAIT_S)
        header, behind = unpacked(self._connection.recv_bytes())
        return TO_WORKER.validate_json(header), behind

    def has_been_told(self) -> bool:
        return self._connection.poll(0.1)

    def die(self) -> None:
        self._connection.close()
        self._gallery.end(self.link)


@contextmanager
def workers(n: int) -> Iterator[tuple[Gallery, list[Worker]]]:
    gallery = Gallery(RUN)
    made = [Worker(gallery) for _ in range(n)]
    try:
        yield gallery, made
    finally:
        for worker in made:
            if worker.link in gallery._links:
                worker.die()


def test_numbers_grow_on_over_workers_and_their_deaths_and_nothing_is_told_twice():
    with workers(2) as (gallery, (first, second)):
        board = gallery.board
        first.say(NewsTold([("alert", "1"), status("a", "open", "t1")], []))
        wait_until(lambda: len(board.news_after(0)) == 2)
        seen = board.news_after(0)[-1].number
        second.say(NewsTold([("alert", "2")], []))
        wait_until(lambda: [n.text for n in board.news_after(seen)] == ["2"])
        seen = board.news_after(0)[-1].number
        last_words = [str(n) for n in range(100)]
        for word in last_words:
            first.say(NewsTold([("alert", word)], []))
        first.die()
        assert [n.text for n in board.news_after(seen)] == last_words
        seen = board.news_after(0)[-1].number
        successor = Worker(gallery)
        successor.say(NewsTold([("alert", "4")], []))
        wait_until(lambda: [n.text for n in board.news_after(seen)] == ["4"])
        successor.die()


def test_since_when_a_camera_is_lost_stands_whoever_says_it():
    with workers(1) as (gallery, (worker,)):
        worker.say(NewsTold([status("a", "open", "t1"), status("a", "open", "t2")], []))
        wait_until(lambda: gallery.board.news_after(0) != [])
        for state, ts, since in [("open", "t3", "t1"), ("lost", "t4", "t4"), ("lost", "t5", "t4")]:
            gallery.board.take([status("a", state, ts)])
            (news,) = gallery.board.news_after(0)
            assert json.loads(news.text)["since"] == since


def test_pictures_stay_when_a_worker_dies_as_long_as_somebody_looks():
    with workers(1) as (gallery, (worker,)):
        board = gallery.board
        with board.viewed((), GRID_WIDTH):
            worker.say(PictureMade("a", GRID_WIDTH), b"the last")
            wait_until(lambda: board.frames_after(0) != [])
            worker.die()
            with board.viewed(("a",), SINGLE_WIDTH):
                (last,) = board.frames_after(0, (), GRID_WIDTH)
                assert last.picture == b"the last"
                assert board.frames_after(0, ("a",), SINGLE_WIDTH) == []
            board.forget({"a"})
            assert board.frames_after(0) == [last]
        assert board.frames_after(0) == []
        late = Worker(gallery)
        late.say(PictureMade("a", GRID_WIDTH), b"on its way when the last viewer left")
        late.die()
        assert board.frames_after(0) == []


def test_each_worker_hears_what_people_look_at_also_one_that_comes_later():
    with workers(1) as (gallery, (worker,)), gallery.board.viewed(("a", "b"), SINGLE_WIDTH):
        later = Worker(gallery)
        views = [("a", SINGLE_WIDTH), ("b", SINGLE_WIDTH)]
        for each in (worker, later):
            wait_until(lambda each=each: each.told()[0] == Wanted(views))
        later.die()


def test_percentiles_of_a_stage_are_those_of_all_frames_and_not_means_of_workers():
    now = Board[bytes, bytes](RUN)._monotonic()
    fast, slow = [0.001] * 90, [0.1] * 10
    with workers(2) as (gallery, pair):
        for source, worker, times in zip("ab", pair, (fast, slow), strict=True):
            measured = [Measured(now, source, 2 * s, {"detect": s}) for s in times]
            worker.say(NewsTold([], measured))
        wait_until(lambda: len(gallery.board.measured_after(0)) == 100)
        gallery.board.measure()
        (news,) = gallery.board.news_after(0)
    told = json.loads(news.text)
    p50, p95 = np.percentile([1000 * s for s in fast + slow], [50, 95])
    assert told["stages"]["detect"] == {"p50": round(p50, 1), "p95": round(p95, 1)}
    assert (told["sources"]["a"]["p95"], told["sources"]["b"]["p50"]) == (2.0, 200.0)


def test_a_face_is_made_by_another_worker_when_the_one_that_was_asked_dies():
    with workers(3) as (gallery, (silent, dying, other)):

        def work(worker: Worker, answer: bytes | None) -> None:
            while (told := worker.told())[0].what != "ask":
                pass
            assert told[1] == b"pixels"
            if answer is None:
                worker.die()
            else:
                worker.say(Answered(told[0].number), answer)

        dying.say(LookKept("event"), b"pixels")
        other.say(NewsTold([], []))
        wait_until(lambda: dying.link.has_spoken and other.link.has_spoken)
        threads = [
            threading.Thread(target=work, args=args) for args in ((dying, None), (other, b"jpeg"))
        ]
        for thread in threads:
            thread.start()
        assert asyncio.run(gallery.face("event")) == b"jpeg"
        for thread in threads:
            thread.join()
        assert asyncio.run(gallery.evidence("never heard of")) is None
        while silent.has_been_told():  # but not asked: it loads its engines
            assert silent.told()[0] == Wanted([])
        other.die()
        with pytest.raises(ConfigError, match="no worker can make this picture"):
            asyncio.run(gallery.face("event"))
