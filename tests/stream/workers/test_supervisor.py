"""`run_stream.py --workers`: real processes that are killed, real cameras, a real Redis.

A crash is a signal from the test: what a decoder's bug does to its process is the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml

from stream.config import RedisSinkConfig, StreamConfig
from stream.messages import Lane
from stream.publish.backlog import Backlog
from stream.publish.embedded import running_servers
from stream.workers.supervisor import _send_left
from tests.warm_start import WarmStarts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.warm_start import WarmProcess

ROOT = Path(__file__).parents[3]
LIMIT_S = 120.0  # what takes so long hangs
STARTED = re.compile(r"worker (\d+) \(process (\d+)\): (.*)")
LIVE_X264 = {"preset": "ultrafast", "g": "25", "sc_threshold": "0", "threads": "1"}


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmStarts]:
    starts = WarmStarts("stream.workers.supervisor", "stream.publish.redis_stream", "rich.live")
    yield starts
    starts.close()


@pytest.fixture
def running(warm: WarmStarts) -> Callable[..., WarmProcess]:
    """Start the program; as a context it is killed at the end if it still runs."""
    return lambda *arguments: warm.start(ROOT / "run_stream.py", *arguments, env={"REDIS_URL": ""})


class Log:
    """The log of a running supervisor, read as far as was asked for."""

    def __init__(self, process: WarmProcess) -> None:
        self._process = process
        self.lines: list[str] = []
        self.pids: dict[str, int] = {}  # by source, of the process that watches it

    def until(self, *texts: str) -> None:
        """Read on until each text has come, in any order."""
        missing = set(texts)
        for line in self._process.stderr:
            self.lines.append(line)
            if started := STARTED.search(line):
                self.pids |= dict.fromkeys(started[3].split(", "), int(started[2]))
            missing = {text for text in missing if text not in line}
            if not missing:
                return
        raise AssertionError(f"ended without {missing}:\n{''.join(self.lines)}")

    def sources_of(self, pid: int) -> set[str]:
        return {source for source, of in self.pids.items() if of == pid}


def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + LIMIT_S
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, f"process {pid} lives on"
            time.sleep(0.05)


def wait_for_session(server: Any, session: str, *sources: str) -> None:
    """Wait until sources have said that they are open; their log says it a moment before."""
    deadline = time.monotonic() + LIMIT_S
    for source in sources:
        while True:
            status = server.client.hgetall(f"facewarden:status:{source}")
            if (status.get(b"state"), status.get(b"session")) == (b"open", session.encode()):
                break
            assert time.monotonic() < deadline, f"{source}: no session {session}, but {status}"
            time.sleep(0.02)


def read(server: Any, lane: str) -> list[dict[str, Any]]:
    entries = server.client.xrange(f"facewarden:{lane}")
    return [json.loads(fields[b"metadata"]) for _, fields in entries]


@pytest.mark.rtsp
@pytest.mark.redis
def test_killed_workers_cost_the_others_nothing_and_a_source_to_blame_ends_alone(
    running, rtsp_camera, camera_clip, write_two_faces, tiny_engine, redis_server, tmp_path
):
    """Worker 1 watches `a` and `bad`, worker 2 `b`; whatever watches `bad` is killed."""
    (tmp_path / "clips").mkdir()
    faces = write_two_faces(tmp_path / "clips" / "faces.mp4", options=LIVE_X264)
    shutil.copy(camera_clip, tmp_path / "clips" / "empty.mp4")
    with_faces = rtsp_camera(faces).url
    empty = with_faces.replace("faces.mp4", "empty.mp4")
    cameras = {"a": empty, "b": with_faces, "bad": empty}
    how = {"recovered_after_s": 0.2, "retry_max_s": 0.5, "heartbeat_s": 20}
    config = tmp_path / "config.yaml"
    options = {
        "sources": [{"id": name, "uri": url, **how} for name, url in cameras.items()],
        "score": {"engines": [{"manifest": str(tiny_engine)}]},
        "sinks": [{"kind": "redis", "url": redis_server.url, "spool": str(tmp_path / "spool")}],
        "fuse": {"publish_every_s": 0},
        "decode": {"analyse_fps": 2},
    }
    config.write_text(yaml.safe_dump(options), encoding="utf-8")
    with running("--config", config, "--workers", "2") as process:
        log = Log(process)
        log.until("source a: open", "source b: open", "source bad: open")
        assert log.sources_of(log.pids["bad"]) == {"a", "bad"}
        watches_b = log.pids["b"]
        wait_for_session(redis_server, "0", "a", "b", "bad")
        for session in ("1", "2"):  # at first it is not known whose fault it is
            os.kill(log.pids["bad"], signal.SIGKILL)
            log.until("source a: open", "source bad: open")
            wait_for_session(redis_server, session, "a", "bad")
            assert log.sources_of(log.pids["bad"]) == {"a", "bad"}
        os.kill(log.pids["bad"], signal.SIGSEGV)
        log.until("was killed by SIGSEGV, death 3")
        log.until("source a: open", "source bad: open")
        wait_for_session(redis_server, "3", "a", "bad")
        assert log.sources_of(log.pids["bad"]) == {"bad"}
        os.kill(log.pids["bad"], signal.SIGSEGV)
        log.until("in 8 s worker")  # it waits ever longer, alone
        status = redis_server.client.hgetall("facewarden:status:bad")
        assert (status[b"state"], status[b"code"]) == (b"lost", b"worker_failed")
        assert status[b"detail"] == b"its worker was killed by SIGSEGV"
        assert log.pids["b"] == watches_b
        deadline = time.monotonic() + LIMIT_S
        while ("a", "source.regained") not in {
            (e["source"]["id"], e["event"]["type"]) for e in read(redis_server, "sources")
        }:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate()
    assert process.returncode == 0, "".join(log.lines) + rest
    assert "Traceback" not in "".join(log.lines) + rest

    for source, session in {"a": b"3", "b": b"0", "bad": b"3"}.items():
        status = redis_server.client.hgetall(f"facewarden:status:{source}")
        assert (status[b"state"], status[b"code"]) == (b"ended", b"stopped")
        assert status[b"session"] == session
    events = read(redis_server, "sources")
    assert {event["source"]["id"] for event in events} == {"a", "bad"}
    for source, losses in (("a", 3), ("bad", 4)):
        ids = [e["event"]["id"] for e in events if e["source"]["id"] == source]
        ordinals = [int(i.rpartition(":")[2]) for i in ids]
        assert ordinals == sorted(set(ordinals))
        assert sum(":lost:" in i or ":flapping:" in i for i in ids) <= losses
    scores = [m for m in read(redis_server, "tracks") if m["event"]["type"] == "track.score"]
    assert {m["source"]["id"] for m in scores} == {"b"}  # the others show no face
    indices = [m["frame"]["index"] for m in scores]
    assert indices == sorted(indices)
    assert {m["source"]["session"] for m in scores} == {0}
    assert len({m["producer"]["run"] for m in scores + events}) == 1


@pytest.mark.redis
def test_workers_write_one_log_use_one_embedded_server_and_end_with_their_supervisor(
    running, clip, tiny_engine, tmp_path
):
    config = tmp_path / "config.yaml"
    sources = [
        {"id": name, "uri": str(clip), "loop": True, "realtime": True} for name in ("a", "b")
    ]
    path = tmp_path / "messages.jsonl"
    options = {
        "sources": sources,
        "sinks": [{"kind": "jsonl", "path": str(path)}, {"kind": "redis"}],
        "shutdown_s": 20,
    }
    config.write_text(yaml.safe_dump(options), encoding="utf-8")
    before = set(running_servers())
    arguments = ("--config", config, "--model", tiny_engine, "--log-format", "json")
    with running(*arguments, "--workers", "2") as process:
        log = Log(process)
        log.until("source a: open", "source b: open")
        assert len(set(running_servers()) - before) == 1
        workers = set(log.pids.values())
        assert len(workers) == 2
        for pid in workers:
            os.kill(pid, signal.SIGTERM)  # as a service manager does to all; they obey another
        process.kill()
        for pid in workers:
            wait_for_end(pid)
    messages = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    stopped = {m["source"]["id"] for m in messages if m.get("status", {}).get("code") == "stopped"}
    assert stopped == {"a", "b"}  # they drained
    records = [json.loads(line) for line in log.lines]
    opened = {r["message"][:14]: r["worker"] for r in records if ": open" in r["message"]}
    assert opened == {"source a: open": 1, "source b: open": 2}
    (summary,) = (r["message"] for r in records if "workers on" in r["message"])
    assert summary.startswith("2 workers on ")


def test_workers_read_files_to_their_ends_and_one_worker_is_spared_where_there_is_no_source(
    running, clip, two_faces, tiny_engine, tmp_path
):
    path = tmp_path / "messages.jsonl"
    sources = [f"a={clip}", f"b={two_faces}", f"gone={tmp_path / 'no.mp4'}"]
    with running(
        *sources, "--model", tiny_engine, "--sink", f"jsonl:{path}", "--workers", "9"
    ) as p:
        _, log = p.communicate()
    assert p.returncode == 1, log
    assert "3 workers on" in log
    assert log.splitlines()[-1].endswith("1 of 3 sources failed: gone (not_found)")
    assert "25 frames analysed; verdicts: 1 attack, 1 bona_fide" in log or (
        "25 frames analysed; verdicts: 1 bona_fide, 1 attack" in log
    )
    messages = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    ends = {m["source"]["id"] for m in messages if m.get("status", {}).get("state") == "ended"}
    assert ends == {"a", "b", "gone"}


def test_an_engine_that_can_not_be_used_ends_all_with_one_line_and_code_2(running, clip, tmp_path):
    missing = tmp_path / "no.manifest.json"
    with running(f"a={clip}", f"b={clip}", "--model", missing, "--workers", "2") as process:
        _, log = process.communicate()
    assert process.returncode == 2
    (line,) = log.splitlines()
    assert "can't read the engine's manifest" in line


@pytest.mark.redis
def test_what_more_workers_of_an_earlier_run_kept_is_sent(redis_server, messages, tmp_path):
    limits = {Lane.ALERTS: 10, Lane.SOURCES: 10}
    for number in (1, 7):
        folder = tmp_path / "spool" / f"worker-{number}"
        kept = Backlog(folder, spool_limits=limits, memory_limit=10)
        kept.add(Lane.ALERTS, messages.alert(track=number).to_json())
        kept.keep()
        kept.close()
    sink = RedisSinkConfig(url=redis_server.url, spool=tmp_path / "spool")
    config = StreamConfig(sources=({"id": "cam", "uri": "clip.mp4"},), sinks=(sink,))
    _send_left(config, {1, 2}, "0a1b2c3d")
    assert [m["track"]["id"][-1] for m in read(redis_server, "alerts")] == ["7"]


def test_a_shard_without_a_camera_waits_to_be_stopped(running):
    with running("cam=rtsp://camera/1", "--shard", "0/1000000") as process:
        log = Log(process)
        log.until("no source falls to this shard")
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 0


@pytest.mark.parametrize("workers", ["0", "-1", "many"])
def test_a_number_of_workers_that_is_none_is_refused(running, workers):
    with running("clip.mp4", f"--workers={workers}") as process:
        _, log = process.communicate()
    assert process.returncode == 2
    assert f"expected 1, 2, 3... or auto, found '{workers}'" in log
