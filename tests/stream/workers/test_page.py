"""One page for all workers: real processes that are killed, asked by HTTP as browsers do."""

from __future__ import annotations

import os
import re
import signal
import struct
import threading
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml

from tests.stream.page.asking import SECRET, Visitor, events, parts
from tests.stream.running import wait_until
from tests.stream.workers.test_supervisor import LIVE_X264, Log
from tests.warm_start import WarmStarts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.warm_start import WarmProcess

ROOT = Path(__file__).parents[3]
NETWORKS = ("torch", "onnxruntime")


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmStarts]:
    starts = WarmStarts("stream.workers.supervisor", "stream.workers.page", "stream.page.server")
    yield starts
    starts.close()


class Watcher:
    """Looks at the pictures and hears the news of a page, in two threads, until the page ends."""

    def __init__(self, visitor: Visitor, cookie: str) -> None:
        self.pictures: list[dict[str, Any]] = []
        self.news: list[tuple[str, str, Any]] = []
        self._visitor = visitor
        self._cookie = cookie
        for work in (self._look, self._hear):
            threading.Thread(target=work, daemon=True).start()

    def _look(self) -> None:
        ended = suppress(struct.error, HTTPException, OSError)
        with ended, self._visitor.asked("GET", "/live", cookie=self._cookie) as answer:
            for header, jpeg in parts(answer):
                assert jpeg.startswith(b"\xff\xd8")
                self.pictures.append(header)

    def _hear(self) -> None:
        ended = suppress(HTTPException, OSError)
        with ended, self._visitor.asked("GET", "/events", cookie=self._cookie) as answer:
            for event in events(answer):
                self.news.append(event)

    def sessions(self, source: str) -> set[int]:
        """Return those of which there was a picture with an attacked face."""
        return {
            header["session"]
            for header in self.pictures.copy()
            if header["source"] == source and "attack" in {f["state"] for f in header["faces"]}
        }

    def states(self, source: str) -> list[str]:
        """Return the states of a camera, one after the other."""
        told = [data["message"] for kind, _, data in self.news.copy() if kind == "status"]
        states = [m["status"]["state"] for m in told if m["source"]["id"] == source]
        return [state for n, state in enumerate(states) if n == 0 or states[n - 1] != state]

    def of(self, kind: str) -> list[Any]:
        return [data for of, _, data in self.news.copy() if of == kind]

    def verdicts(self, source: str) -> list[Any]:
        return [a for a in self.of("alert") if "verdict" in a and a["source"]["id"] == source]


@contextmanager
def page_of(
    warm: WarmStarts, config: dict[str, Any], tmp_path: Path
) -> Iterator[tuple[WarmProcess, Log, Visitor]]:
    """Run two workers with a page."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    arguments = ("--config", path, "--workers", "2")
    with warm.start(ROOT / "run_stream.py", *arguments, env={"REDIS_URL": ""}) as process:
        log = Log(process)
        log.until("page: http://")
        found = re.search(r"page: (http\S+)", log.lines[-1])
        assert found is not None
        yield process, log, Visitor(found[1])


def config_of(faces: Path, engine: Path, tmp_path: Path) -> dict[str, Any]:
    looped = {"uri": str(faces), "loop": True, "realtime": True, "recovered_after_s": 0.2}
    return {
        "sources": [{"id": name, **looped} for name in ("a", "b")],
        "score": {"engines": [{"manifest": str(engine)}]},
        "sinks": [{"kind": "jsonl", "path": str(tmp_path / "messages.jsonl")}],
        "page": {"port": 0, "secret": SECRET},
    }


def test_all_workers_are_seen_on_one_page_and_one_that_dies_is_lost_and_comes_back(
    warm, two_faces, tiny_engine, tmp_path
):
    with page_of(warm, config_of(two_faces, tiny_engine, tmp_path), tmp_path) as (
        process,
        log,
        visitor,
    ):
        log.until("source a: open", "source b: open")
        assert log.pids["a"] != log.pids["b"]
        cookie = visitor.log_in().headers["set-cookie"].partition(";")[0]
        watcher = Watcher(visitor, cookie)
        wait_until(lambda: bool(watcher.sessions("a") and watcher.sessions("b")))
        wait_until(lambda: bool(watcher.verdicts("a") and watcher.verdicts("b")))
        wait_until(lambda: {score["source"] for score in watcher.of("score")} == {"a", "b"})
        wait_until(lambda: any({*s["sources"]} == {"a", "b"} for s in watcher.of("statistics")))
        (*_, measured) = watcher.of("statistics")
        assert measured["stages"]["detect"]["p95"] >= measured["stages"]["detect"]["p50"] > 0
        (alert, *_) = watcher.verdicts("a")

        def picture(name: str) -> tuple[int, str]:
            answer = visitor.ask("GET", f"/alerts/{alert['event']['id']}/{name}.jpg", cookie=cookie)
            return answer.status, answer.text

        face, evidence = picture("face"), picture("evidence")
        assert face[0] == evidence[0] == 200
        assert face != evidence

        last = max(watcher.sessions("a"))
        os.kill(log.pids["a"], signal.SIGKILL)
        wait_until(lambda: "lost" in watcher.states("a"))
        assert picture("face") == face  # by the other worker
        wait_until(lambda: watcher.states("a")[-2:] == ["lost", "open"])
        wait_until(lambda: max(watcher.sessions("a")) > last)
        assert "lost" not in watcher.states("b")
        events_of_a = {a["event"]["type"] for a in watcher.of("alert") if a["source"]["id"] == "a"}
        assert "source.lost" in events_of_a
        numbers = [int(number.partition("-")[2]) for _, number, _ in watcher.news.copy()]
        assert numbers == sorted(set(numbers))

        listed = visitor.ask("GET", "/api/sources", cookie=cookie).json["sources"]
        assert [(s["id"], s["status"]["frames_seen"] > 0) for s in listed] == [
            ("a", True),
            ("b", True),
        ]
        loaded = {Path(m.path).name for m in psutil.Process(process.pid).memory_maps()}
        assert not [name for name in loaded if any(network in name for network in NETWORKS)]
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate()
    assert process.returncode == 0, rest
    assert "Traceback" not in "".join(log.lines) + rest


@pytest.mark.rtsp
def test_a_camera_that_is_added_by_the_page_shows_up_is_paused_and_removed(
    warm, rtsp_camera, write_two_faces, two_faces, tiny_engine, tmp_path
):
    (tmp_path / "camera").mkdir()
    camera = rtsp_camera(write_two_faces(tmp_path / "camera" / "yard.mp4", options=LIVE_X264))
    config = config_of(two_faces, tiny_engine, tmp_path)
    with page_of(warm, config, tmp_path) as (process, log, visitor):
        cookie = visitor.log_in().headers["set-cookie"].partition(";")[0]
        watcher = Watcher(visitor, cookie)
        ours = {"cookie": cookie, "sec_fetch_site": "same-origin"}
        yard = "/api/sources/yard"
        added = visitor.ask("POST", "/api/sources", {"id": "yard", "uri": camera.url}, **ours)
        assert added.status == 201
        wait_until(lambda: bool(watcher.sessions("yard") and watcher.verdicts("yard")))
        assert visitor.ask("POST", f"{yard}/pause", **ours).status == 202
        wait_until(lambda: watcher.states("yard")[-1] == "paused")
        assert visitor.ask("POST", f"{yard}/resume", **ours).status == 202
        wait_until(lambda: len(watcher.sessions("yard")) == 2)
        assert visitor.ask("DELETE", yard, **ours).status == 204
        wait_until(lambda: watcher.states("yard")[-1] == "ended")
        assert visitor.ask("GET", yard, **ours).status == 404
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate()
    assert process.returncode == 0, rest
    assert "Traceback" not in "".join(log.lines) + rest
