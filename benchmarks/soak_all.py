"""`make soak-all`: half an hour with everything on, and everything failing now and then.

`run_stream.py` watches two real RTSP cameras, with feeds watched, evidence kept, metrics scraped, a
viewer at the live page, and sinks to Debian's `redis-server` (AOF), to a webhook and to a file.
Camera B is killed every two minutes; the webhook's receiver refuses for 20 s of each; Redis is
killed twice, for 20 s; the second time the disk of its spool is full as well, where a small file
system can be mounted. What the file holds is the truth: every alert of it must reach the consumer
of Redis and the webhook.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import click
import psutil
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.clips import write_clip
from benchmarks.page import SECRET, hear, see
from benchmarks.record import ROOT, circumstances, command_line, save
from benchmarks.rtsp_camera import RtspCamera
from benchmarks.soak import Check, end, resources_of, sample

KILL_EVERY_S: Final = 120.0
DOWN_S: Final = 10.0
REFUSES_FOR_S: Final = 20.0  # of each KILL_EVERY_S, the webhook's receiver
REDIS_AWAY_S: Final = 20.0
SAMPLE_EVERY_S: Final = 10.0
PATIENCE_S: Final = 60.0
ALERTS: Final = ("track.verdict", "source.", "feed.")  # beginnings of types, `source.status` aside

_console = Console()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", type=click.FloatRange(min=2), default=30.0, show_default=True)
def main(minutes: float) -> None:
    """Run everything at once, and see what is lost or leaks."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    result: dict[str, Any] = {"command": command_line("benchmarks.soak_all")} | circumstances()
    with ExitStack() as ends:
        soak = _Soak(ends)
        soak.watch(60 * minutes)
        exit_code = soak.stop()
        checks = [
            Check("run_stream.py drains and ends", exit_code == 0, f"exit code {exit_code}"),
            *soak.checks(),
        ]
    result |= {
        "minutes": minutes,
        "events": soak.events,
        "alerts": dict(Counter(kind for _, kind in soak.truth)),
        "resources": resources_of(soak.samples),
        "checks": [check._asdict() for check in checks],
        "samples": [asdict(each) for each in soak.samples],
    }
    table = Table("figure", "by 120 s", "at the end", "largest", "slope, per hour")
    for name, figure in result["resources"].items():
        table.add_row(name, *(f"{value:g}" for value in figure.values()))
    _console.print(table)
    table = Table("check", "", "found")
    for check in checks:
        table.add_row(check.name, "kept" if check.kept else "BROKEN", check.found)
    _console.print(table)
    _console.print(f"wrote {save('soak-all', result).relative_to(ROOT)}", highlight=False)
    sys.exit(0 if all(check.kept for check in checks) else 1)


class _Redis:
    """Debian's server on a Unix socket, which forgets nothing when it is killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.url = f"unix://{folder}/redis.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; what it held is there again."""
        options = ["--port", "0", "--unixsocket", f"{self._folder}/redis.sock"]
        kept = ["--dir", str(self._folder), "--appendonly", "yes", "--appendfsync", "always"]
        self._process = subprocess.Popen(
            ["redis-server", *options, *kept], stdout=subprocess.DEVNULL
        )

    def kill(self) -> None:
        """Pull the plug; a second call does nothing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class _Receiver:
    """A webhook's receiver that refuses now and then; counts what it accepted."""

    def __init__(self) -> None:
        self.refuses = False
        self.refused = 0
        self.accepted: Counter[str] = Counter()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if receiver.refuses:
                    receiver.refused += 1
                else:
                    receiver.accepted[body["event"]["id"]] += 1
                self.send_response(503 if receiver.refuses else 204)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


class _Soak:
    """All processes of a run; each ends with `ends`, whatever happens."""

    def __init__(self, ends: ExitStack) -> None:
        self._folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="facewarden-")))
        self._messages = self._folder / "messages.jsonl"
        self._received = self._folder / "received.jsonl"
        self._log = self._folder / "run_stream.log"
        self._spool = self._folder / "spool"
        self._spool.mkdir()
        self._can_fill = _mounted(self._spool, ends)
        self._page, self._metrics = _free_port(), _free_port()
        clip = self._folder / "clip.mp4"
        write_clip(clip, 60)
        self._redis = _Redis(self._folder)
        self._redis.start()
        ends.callback(self._redis.kill)
        self._receiver = _Receiver()
        ends.callback(self._receiver.server.shutdown)
        cameras = {name: ends.enter_context(RtspCamera(clip)) for name in ("cam-a", "cam-b")}
        self._camera = cameras["cam-b"]
        config = self._config({name: camera.url for name, camera in cameras.items()})
        self._run = self._child(ends, ["run_stream.py", "--config", str(config)], err=self._log)
        consume = ["-m", "stream.subscribe", "--redis", self._redis.url, "--group", "soak"]
        self._consumer = self._child(ends, [*consume, "--from-start"], out=self._received)
        self.samples: list[Any] = []
        self.events: Counter[str] = Counter()
        self.truth: list[tuple[str, str]] = []
        self._pictures = [0]
        self._over = threading.Event()

    def watch(self, seconds: float) -> None:
        """Let things fail in turn, and sample."""
        self._await_page()
        for work in (see, hear):
            threading.Thread(
                target=work, args=(self._page, self._over, 0, self._pictures), daemon=True
            ).start()
        process = psutil.Process(self._run.pid)
        process.cpu_percent()
        outages = [seconds / 3, 2 * seconds / 3]
        began = time.monotonic()
        while (now_s := time.monotonic() - began) < seconds and self._run.poll() is None:
            phase_s = now_s % KILL_EVERY_S
            self._camera_is_on(not (now_s > KILL_EVERY_S and phase_s < DOWN_S))
            # While camera B's loss and return are told.
            self._receiver.refuses = phase_s < REFUSES_FOR_S
            if outages and now_s >= outages[0]:
                outages.pop(0)
                self._lose_redis(fill=not outages)
            if now_s >= (len(self.samples) + 1) * SAMPLE_EVERY_S:
                self.samples.append(sample(process, now_s))
                self._scrape()
                _console.print(asdict(self.samples[-1]), dict(self.events), highlight=False)
            time.sleep(0.2)
        self._camera_is_on(True)
        self._receiver.refuses = False
        time.sleep(min(PATIENCE_S, seconds / 4))  # for what waits

    def stop(self) -> int:
        """Ask for an end; return the exit code."""
        self._over.set()
        self._run.send_signal(signal.SIGTERM)
        code = self._run.wait(PATIENCE_S)
        if code:
            _console.print(self._log.read_text(encoding="utf-8")[-3000:], markup=False)
        self.truth = _alerts(self._messages)
        return code

    def checks(self) -> list[Check]:
        """Compare what should have arrived with what did."""
        wanted = {event_id for event_id, _ in self.truth}
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            received = [event_id for event_id, _ in _alerts(self._received)]
            if wanted <= {*received}:
                break
            time.sleep(0.5)
        hooked = {*self._receiver.accepted}
        names = ("scraped", "scrape failed", "unhealthy")
        scraped, failed, unhealthy = (self.events[name] for name in names)
        return [
            Check(
                "every alert reached the consumer of Redis, once",
                wanted == {*received} and len(received) == len(wanted),
                f"{len(wanted)} alerts, {len(wanted - {*received})} lost, "
                f"{len(received) - len({*received})} twice",
            ),
            Check(
                "every alert reached the webhook",
                wanted <= hooked,
                f"{len(wanted - hooked)} lost; {self._receiver.refused} refused on the way, "
                f"{sum(n > 1 for n in self._receiver.accepted.values())} came twice",
            ),
            Check(
                "metrics and health answered",
                scraped > 0 and not failed and not unhealthy,
                f"{scraped} times; {failed} not, {unhealthy} unhealthy",
            ),
            Check("the viewer saw pictures", self._pictures[0] > 0, f"{self._pictures[0]}"),
            Check(
                "evidence was kept",
                any(self._folder.glob("evidence/*/manifest.json")),
                f"{len([*self._folder.glob('evidence/*/manifest.json')])} bundles",
            ),
        ]

    def _camera_is_on(self, wanted: bool) -> None:
        if wanted and not self._camera.is_on:
            self._camera.start()
        elif not wanted and self._camera.is_on:
            self._camera.kill()
            self.events["camera killed"] += 1

    def _lose_redis(self, *, fill: bool) -> None:
        self._redis.kill()
        self.events["redis killed"] += 1
        filler = self._spool / "filler"
        if fill and self._can_fill:
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            self.events["spool filled"] += 1

        def back() -> None:
            filler.unlink(missing_ok=True)
            self._redis.start()

        threading.Timer(REDIS_AWAY_S, back).start()

    def _scrape(self) -> None:
        try:
            for path in ("metrics", "healthz"):
                with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics}/{path}") as answer:
                    answer.read()
            self.events["scraped"] += 1
        except urllib.error.HTTPError:
            self.events["unhealthy"] += 1
        except OSError:
            self.events["scrape failed"] += 1

    def _config(self, urls: dict[str, str]) -> Path:
        key = self._folder / "evidence.key"
        subprocess.run(
            [sys.executable, "-m", "stream.evidence", "keygen", str(key)], cwd=ROOT, check=True
        )
        hook = f"http://127.0.0.1:{self._receiver.server.server_port}/hook"
        secret = "whsec_" + "c29hayBzb2FrIHNvYWsgc29hayBzb2FrIHNvYWs="
        config = {
            "sources": [{"id": name, "uri": url} for name, url in urls.items()],
            "sinks": [
                {"kind": "jsonl", "path": str(self._messages)},
                {"kind": "redis", "url": self._redis.url, "spool": str(self._spool)},
                {
                    "kind": "webhook", "url": hook, "secret": secret, "allow_http": True,
                    "allow_private": True, "retry_max_s": 5, "close_s": 10,
                },
            ],
            "page": {"port": self._page, "secret": SECRET},
            "metrics": {"port": self._metrics},
            "evidence": {
                "folder": str(self._folder / "evidence"), "key": str(key), "keep_gb": 0.05,
                "verdicts": ["attack", "bona_fide"],
            },
        }  # fmt: skip
        path = self._folder / "soak.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path

    def _child(
        self, ends: ExitStack, arguments: list[str], *, out: Path | None = None,
        err: Path | None = None,
    ) -> subprocess.Popen[bytes]:  # fmt: skip
        files = (ends.enter_context(path.open("wb")) if path else None for path in (out, err))
        stdout, stderr = files
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, stdout=stdout, stderr=stderr
        )
        ends.callback(end, process)
        return process

    def _await_page(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._page), 1):
                return
            if self._run.poll() is not None or time.monotonic() > deadline:
                said = self._log.read_text(encoding="utf-8")[-3000:]
                raise click.ClickException(f"no page; run_stream.py says:\n{said}")
            time.sleep(0.2)


def _alerts(path: Path) -> list[tuple[str, str]]:
    """Return id and type of each alert of a file of messages."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    events = [json.loads(line)["event"] for line in lines if line.endswith("\n")]
    return [
        (event["id"], event["type"])
        for event in events
        if event["type"].startswith(ALERTS) and event["type"] != "source.status"
    ]


def _mounted(folder: Path, ends: ExitStack) -> bool:
    """Put a file system of 128 KiB on a folder; return whether that could be done."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k,mode=0700", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        return False
    ends.callback(subprocess.run, ["umount", str(folder)], check=False)
    return True


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.soak_all")
