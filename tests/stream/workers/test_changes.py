"""Sources that change while several processes watch them: real supervisors, real workers.

`steered.py` is the program; what a worker can't hear because it is stopped (SIGSTOP), its death
must not lose.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml

from stream.config import SourceConfig
from stream.records import SourceHistory
from stream.redact import RedactingFilter
from stream.workers.told import Add
from stream.workers.worker import _Link, _Share
from tests.stream.running import config_of
from tests.warm_start import WarmStarts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.warm_start import WarmProcess

ROOT = Path(__file__).parents[3]
LIMIT_S: Final = 120.0  # what takes so long hangs
STARTED = re.compile(r"worker (\d+) \(process (\d+)\): (.*)")
GETS = re.compile(r"worker (\d+): gets source (\S+)")
OPEN: Final = ("open", "ok")
PAUSED: Final = ("paused", "stopped")
STOPPED: Final = ("ended", "stopped")


class Supervised:
    """A program with workers, its log, what it published, and its answers."""

    def __init__(self, process: WarmProcess, path: Path) -> None:
        self.process = process
        self.lines: list[str] = []
        self._path = path
        self._logs = threading.Thread(target=self._read_log, daemon=True)
        self._logs.start()

    def _read_log(self) -> None:
        self.lines.extend(self.process.stderr)

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def tell(self, *what: Any) -> None:
        print(json.dumps(what), file=self.process.stdin, flush=True)

    def answer(self) -> Any:
        return json.loads(self.process.stdout.readline())

    def ask(self, *what: Any) -> Any:
        """Tell it something, and return its answer."""
        self.tell(*what)
        return self.answer()

    def do(self, *what: Any) -> None:
        """Let it do something that it does not refuse."""
        assert (answer := self.ask(*what)) is None, answer

    @property
    def sources(self) -> dict[str, str | None]:
        """The state of each source."""
        found: dict[str, str | None] = self.ask("sources")
        return found

    def until(self, what: Callable[[], Any]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not what():
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def messages(self, source_id: str | None = None) -> list[dict[str, Any]]:
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        messages = [json.loads(line) for line in lines if line.endswith("}")]
        return [m for m in messages if source_id in (None, m["source"]["id"])]

    def statuses(self, source_id: str) -> list[tuple[str, str]]:
        """Return states and codes of all statuses, heartbeats too."""
        said = [m for m in self.messages(source_id) if m["event"]["type"] == "source.status"]
        return [(m["status"]["state"], m["status"]["code"]) for m in said]

    def sessions(self, source_id: str) -> dict[int, list[int]]:
        """Return the indices of the frames with scores, by session."""
        found: dict[int, list[int]] = {}
        for m in self.messages(source_id):
            if m["event"]["type"] == "track.score":
                found.setdefault(m["source"]["session"], []).append(m["frame"]["index"])
        return found

    def until_scored(self, source_id: str, after: int = -1) -> None:
        """Wait for a score of a later session."""
        self.until(lambda: max(self.sessions(source_id), default=-1) > after)

    def pid_of(self, source_id: str) -> int:
        """Return the process that watches a source, by the log."""
        workers: dict[str, int] = {}
        watched: dict[str, int] = {}
        for line in list(self.lines):
            if started := STARTED.search(line):
                workers[started[1]] = int(started[2])
                watched |= dict.fromkeys(started[3].split(", "), int(started[2]))
            elif gets := GETS.search(line):
                watched[gets[2]] = workers.get(gets[1], 0)
        return watched[source_id]

    def close(self) -> None:
        """Kill it if it still runs."""
        self.process.kill()
        self.process.wait()
        self._logs.join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            stream.close()

    def end(self) -> None:
        """Stop it, and check that it ended well."""
        self.process.send_signal(signal.SIGTERM)
        self.wait()

    def wait(self) -> None:
        assert self.process.wait() == 0, self.log
        self._logs.join()
        assert "Traceback" not in self.log


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmStarts]:
    starts = WarmStarts("stream.workers.supervisor", "stream.control")
    yield starts
    starts.close()


@pytest.fixture
def start(
    warm: WarmStarts, tmp_path: Path, tiny_engine: Path
) -> Callable[..., AbstractContextManager[Supervised]]:
    """Start `steered.py`, or another program, over some sources; kill it at the end."""

    @contextmanager
    def run(
        *sources: dict[str, Any], workers: int = 2, program: object = None
    ) -> Iterator[Supervised]:
        path = tmp_path / "messages.jsonl"
        options = {
            "sources": list(sources),
            "score": {"engines": [{"manifest": str(tiny_engine)}]},
            "sinks": [{"kind": "jsonl", "path": str(path)}],
            "fuse": {"publish_every_s": 0},
        }
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(options), encoding="utf-8")
        arguments = (
            ("-m", "tests.stream.workers.steered", config, workers)
            if program is None
            else (program, "--config", config, "--workers", workers, "--metrics", "127.0.0.1:0")
        )
        with warm.start(*arguments, env={"REDIS_URL": ""}) as process:
            supervised = Supervised(process, path)
            try:
                yield supervised
            finally:
                supervised.close()

    return run


@pytest.fixture
def looped(two_faces: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that describes a camera: a clip with faces, without end."""
    return lambda name, **how: {
        "id": name,
        "uri": str(two_faces),
        "loop": True,
        "heartbeat_s": 0.5,
        **how,
    }


def assert_saw_all(run: Supervised, source_id: str) -> None:
    """Check that each session of a looped clip shows what its first showed."""
    sessions = run.sessions(source_id)
    *whole, _ = sessions.values()  # the last was cut off by the end
    assert len(whole) > 1
    assert whole == [whole[0]] * len(whole)
    assert list(sessions) == list(range(len(sessions)))
    assert set(run.statuses(source_id)) == {OPEN, STOPPED}
    assert run.statuses(source_id).count(STOPPED) == 1


def test_sources_come_change_rest_and_go_and_the_others_lose_no_frame_and_no_session(start, looped):
    with start(looped("a"), looped("b")) as run:
        run.until_scored("a")
        run.until_scored("b")
        run.do("add", looped("new"))
        run.until_scored("new")
        assert run.sources.keys() == {"a", "b", "new"}
        last = max(run.sessions("new"))
        run.do("change", looped("new", realtime=True))
        run.until(lambda: STOPPED in run.statuses("new"))
        run.until_scored("new", after=last)
        run.do("pause", "new")
        run.until(lambda: run.sources["new"] == "paused")
        last = max(run.sessions("new"))
        run.do("resume", "new")
        run.until_scored("new", after=last)
        run.do("remove", "new")
        run.until(lambda: run.statuses("new")[-1] == STOPPED)
        assert run.sources.keys() == {"a", "b"}
        run.until_scored("a", after=1)
        run.until_scored("b", after=1)
        run.end()
    assert_saw_all(run, "a")
    assert_saw_all(run, "b")
    ends = [m["track"]["id"] for m in run.messages("new") if m["event"]["type"] == "track.end"]
    assert len(ends) == len(set(ends)) > 1


def test_a_source_that_comes_back_on_another_worker_uses_no_number_twice(start, looped, tmp_path):
    """Worker 1 watches `a` and `c`, worker 2 `b`: once that is gone, it is free for `c`."""
    gone = looped("c", uri=str(tmp_path / "no.mp4"), loop=False)
    with start(looped("a"), looped("b"), looped("c")) as run:
        run.until_scored("c", after=1)
        first = run.pid_of("c")
        assert first == run.pid_of("a")
        run.do("change", gone)
        run.until(lambda: ("ended", "not_found") in run.statuses("c"))
        before = max(run.sessions("c"))
        run.do("remove", "b")
        run.until(lambda: run.statuses("b")[-1] == STOPPED)
        run.do("remove", "c")
        run.do("add", gone)
        run.until(lambda: run.statuses("c").count(("ended", "not_found")) == 2)
        assert run.pid_of("c") == run.pid_of("b") != first
        n_messages = len(run.messages("c"))
        run.do("change", looped("c"))
        run.until_scored("c", after=before)
        run.end()
    alerts = [m["event"]["id"] for m in run.messages("c") if m["event"]["type"] == "source.ended"]
    assert [event_id.rpartition(":")[2] for event_id in alerts] == ["1", "2"]
    later = run.messages("c")[n_messages:]
    again = [m["source"]["session"] for m in later if m["event"]["type"] == "track.score"]
    assert min(again) > before


def test_a_source_that_is_paused_when_its_worker_dies_stays_paused_until_it_is_resumed(
    start, looped
):
    with start(looped("a"), looped("b"), workers=1) as run:
        run.until_scored("a")
        worker = run.pid_of("a")
        os.kill(worker, signal.SIGSTOP)  # so that it never hears of the pause
        run.do("pause", "a")
        os.kill(worker, signal.SIGKILL)
        run.until(lambda: run.statuses("a")[-1] == PAUSED)
        run.until(lambda: run.pid_of("b") != worker)
        run.until_scored("b", after=max(run.sessions("b"), default=-1))
        n_heartbeats = len(run.statuses("a"))
        run.until(lambda: len(run.statuses("a")) > n_heartbeats + 2)  # by the new worker
        before = run.statuses("a")
        paused = before.index(PAUSED)
        assert set(before[:paused]) == {OPEN}
        assert set(before[paused:]) == {PAUSED}
        last = max(run.sessions("a"))
        run.do("resume", "a")
        run.until_scored("a", after=last)
        run.end()


def test_what_a_dying_worker_never_heard_of_is_done_by_the_next(start, looped):
    with start(looped("a"), looped("gone"), workers=1) as run:
        run.until_scored("a")
        run.until_scored("gone")
        worker = run.pid_of("a")
        os.kill(worker, signal.SIGSTOP)
        run.do("remove", "gone")
        run.do("add", looped("new"))
        run.do("add", looped("rests"))
        run.do("pause", "rests")
        run.do("add", looped("regretted"))
        run.do("remove", "regretted")
        os.kill(worker, signal.SIGKILL)
        run.until_scored("new")
        run.until(lambda: run.statuses("rests")[-1:] == [PAUSED])
        run.until(lambda: run.statuses("gone")[-1] == STOPPED)
        assert run.sources.keys() == {"a", "new", "rests"}
        run.end()
    assert ("lost", "worker_failed") in run.statuses("a")
    assert ("lost", "worker_failed") not in run.statuses("gone")
    assert set(run.statuses("rests")) == {PAUSED, STOPPED}
    assert run.messages("regretted") == []


def test_sources_change_while_nobody_watches_them(start, looped):
    """The worker has died, and the next is a while away."""
    with start(looped("a"), looped("b"), looped("c"), workers=1) as run:
        run.until_scored("c")
        worker = run.pid_of("c")
        os.kill(worker, signal.SIGKILL)
        run.until(lambda: "was killed by SIGKILL" in run.log)
        run.do("remove", "a")
        run.do("pause", "b")
        run.do("pause", "c")
        run.do("resume", "c")
        run.until(lambda: run.statuses("a")[-1] == STOPPED)
        last = max(run.sessions("c"))
        run.until_scored("c", after=last)
        run.until(lambda: run.statuses("b")[-1] == PAUSED)
        run.end()
    assert run.statuses("a").count(STOPPED) == 1


def test_the_run_goes_on_without_any_source_and_any_worker_and_takes_others(start, looped):
    with start(looped("a"), workers=1) as run:
        run.until_scored("a")
        worker = run.pid_of("a")
        run.do("remove", "a")
        run.until(lambda: run.statuses("a")[-1] == STOPPED)
        assert run.sources == {}
        os.kill(worker, signal.SIGKILL)  # it waited for sources
        run.until(lambda: "it had no source" in run.log)
        run.do("add", looped("b"))
        run.until_scored("b")
        assert run.pid_of("b") != worker
        run.end()


def test_a_worker_without_a_source_does_not_keep_a_run_whose_sources_have_all_ended(start, looped):
    with start(looped("a"), looped("b")) as run:
        run.until_scored("a")
        run.until_scored("b")
        run.do("remove", "b")
        run.until(lambda: run.statuses("b")[-1] == STOPPED)
        run.do("change", looped("a", loop=False))
        run.wait()
    assert run.statuses("a")[-1] == ("ended", "end_of_file")


def test_a_worker_that_does_not_listen_holds_up_nobody_and_is_replaced(start, looped):
    with start(looped("a"), looped("b")) as run:
        run.until_scored("a")
        run.until_scored("b")
        deaf = run.pid_of("a")
        os.kill(deaf, signal.SIGSTOP)
        while "was killed by SIGKILL" not in run.log:
            run.do("pause", "a")
            run.do("resume", "a")
        run.until(lambda: run.pid_of("a") != deaf)
        run.until_scored("a", after=max(run.sessions("a")))
        run.until_scored("b", after=1)
        run.end()
    assert_saw_all(run, "b")


def test_what_can_not_be_done_is_refused_with_the_reason_as_with_one_process(start, looped):
    once = looped("once", loop=False)
    with start(looped("a")) as run:
        for what, why in [
            (("add", looped("a")), "used twice: a"),
            (("remove", "b"), "there are: a"),
            (("pause", "b"), "there are: a"),
            (("resume", "b"), "there are: a"),
        ]:
            assert why in run.ask(*what)
        run.do("add", once)
        run.until(lambda: run.statuses("once")[-1:] == [("ended", "end_of_file")])
        # The worker's message is out before the supervisor has heard of it.
        run.until(lambda: "it has ended" in run.ask("pause", "once"))
        run.do("change", {**once, "realtime": True})
        assert "read once, to its end, can't be paused" in run.ask("pause", "once")
        run.end()


def test_a_hang_up_changes_the_sources_of_workers_and_the_new_are_measured(start, looped, tmp_path):
    config = tmp_path / "config.yaml"
    with start(looped("a"), looped("b"), program=ROOT / "run_stream.py") as run:
        run.until_scored("a")
        run.until_scored("b")
        options = yaml.safe_load(config.read_text(encoding="utf-8"))
        sources = [looped("a"), looped("new")]
        config.write_text(yaml.safe_dump(options | {"sources": sources}), encoding="utf-8")
        run.process.send_signal(signal.SIGHUP)
        run.until(lambda: "SIGHUP: added new; removed b" in run.log)
        run.until_scored("new")
        run.until(lambda: run.statuses("b")[-1] == STOPPED)
        config.write_text("sources: [", encoding="utf-8")
        run.process.send_signal(signal.SIGHUP)
        run.until(lambda: "SIGHUP: all stays as it was" in run.log)
        address = re.search(r"http://127\.0\.0\.1:\d+", run.log)
        assert address is not None, run.log
        with urllib.request.urlopen(f"{address[0]}/metrics") as answer:
            metrics = answer.read().decode()
        run.until_scored("a", after=1)
        run.end()
    for name in ("frames_analysed_total", "frames_decoded_total"):
        assert re.search(rf'facewarden_{name}{{source="new"}} [1-9]', metrics), metrics
    assert_saw_all(run, "a")


def test_a_worker_hides_the_password_of_a_source_before_it_is_opened():
    hidden = RedactingFilter(())
    handler = logging.NullHandler()
    handler.addFilter(hidden)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        source = SourceConfig(id="new", uri="rtsp://user:hush-hush@127.0.0.1:9/x")
        share = _Share(config_of({"id": "a", "uri": "clip.mp4"}), _Link(None))
        share.open(Add(source, 1, SourceHistory(), is_paused=False))
    finally:
        root.removeHandler(handler)
    record = logging.makeLogRecord({"msg": "refused hush-hush"})
    hidden.filter(record)
    assert record.getMessage() == "refused ***"
