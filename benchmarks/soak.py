"""`make soak`: does a long run leak, and does it lose alerts?

`run_stream.py` watches two real RTSP cameras and publishes to a real Valkey server, from which the
reference consumer reads. Camera B is killed every two minutes and comes back ten seconds later.
Every process is one of its own; what is measured is that of `run_stream.py`.

Exit code 1 if a check fails. A kill -9 of this program itself leaves its children behind.
"""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click
import numpy as np
import psutil
import yaml
from redis import Redis
from rich.console import Console
from rich.table import Table

from benchmarks.clips import write_clip
from benchmarks.record import ROOT, circumstances, command_line, save
from benchmarks.rtsp_camera import RtspCamera
from stream.config import ScoreConfig
from stream.publish.embedded import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

STEADY, KILLED = "cam-a", "cam-b"
NAMESPACE: Final = "facewarden"
CLIP_S: Final = 60
DOWN_S: Final = 10.0  # from a camera's death to its restart
SETTLE_S: Final = 60.0  # no kill so shortly before the end that its return might not be seen
SAMPLE_EVERY_S: Final = 10.0
WARM_S: Final = 120.0  # the figures at this time are compared with those at the end
LONGEST_WAIT_S: Final = 90.0  # for a start, a return, the consumer: on an overloaded machine too

_console = Console()


@dataclass(frozen=True, slots=True)
class Sample:
    """What the main process holds at one moment."""

    at_s: float  # since both cameras were watched
    rss_mib: float
    threads: int
    fds: int
    cpu_percent: float  # of one core, since the sample before


class Check(NamedTuple):
    """A promise, and whether it was kept."""

    name: str
    kept: bool
    found: str


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", type=click.FloatRange(min=0.5), default=30.0, show_default=True)
@click.option("--kill-every-s", type=click.FloatRange(min=80), default=120.0, show_default=True)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path, exists=True),
    default=ScoreConfig().engines[0].manifest,
    help="The detector's manifest. [default: the shipped one]",
)
def main(minutes: float, kill_every_s: float, manifest: Path) -> None:
    """Watch two cameras for a while, one of which keeps dying, and see what is lost or leaks."""
    # So that SIGTERM and a closed terminal end the children, too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    result: dict[str, Any] = {
        "command": command_line("benchmarks.soak"),
        **circumstances(manifest),
        "options": {"minutes": minutes, "kill_every_s": kill_every_s, "down_s": DOWN_S},
    }
    with ExitStack() as resources:
        soak = _Soak(manifest.resolve(), resources)
        samples, kills = soak.watch(minutes * 60, kill_every_s)
        exit_code = soak.stop()
        statuses = {source: soak.status(source) for source in (STEADY, KILLED)}  # they expire
        entries = soak.stream("alerts") + soak.stream("feeds") + soak.stream("sources")
        scores = soak.stream("tracks")
        received = soak.received({entry["event"]["id"] for entry in entries})
        checks = [
            Check("run_stream.py drains and ends", exit_code == 0, f"exit code {exit_code}"),
            Check(
                "each return is a new session",
                [int(status.get("session", -1)) for status in statuses.values()] == [0, kills],
                ", ".join(f"{name}: {s.get('session')}" for name, s in statuses.items()),
            ),
            *_alert_checks(entries, received, kills, soak.dead_letters()),
        ]
        if exit_code != 0:
            _console.print(soak.last_words(), markup=False)
    result |= {
        "kills": kills,
        "sources": {
            source: {
                "sessions": int(status["session"]) + 1,
                **{name: int(status[name]) for name in status if name.startswith("frames_")},
            }
            for source, status in statuses.items()
            if status
        },
        "alerts": dict(Counter(entry["event"]["type"] for entry in entries)),
        "scores": len(scores),
        "latency_ms": _percentiles([score["latency_ms"] for score in scores]),
        "resources": resources_of(samples),
        "checks": [check._asdict() for check in checks],
        "samples": [asdict(sample) for sample in samples],
    }
    _show(result, checks)
    _console.print(f"wrote {save('soak', result).relative_to(ROOT)}", highlight=False)
    sys.exit(0 if all(check.kept for check in checks) else 1)


class _Soak:
    """All processes of a run; each ends with `resources`, whatever happens."""

    def __init__(self, manifest: Path, resources: ExitStack) -> None:
        folder = tempfile.TemporaryDirectory(prefix="facewarden-soak-")
        self._folder = Path(resources.enter_context(folder))
        self._log = self._folder / "run_stream.log"
        self._inbox = self._folder / "received.jsonl"
        clip = self._folder / "clip.mp4"
        with _console.status("encoding the clip"):
            write_clip(clip, CLIP_S)
        server = resources.enter_context(closing(EmbeddedServer()))
        self._redis = Redis.from_url(server.url, decode_responses=True)
        resources.callback(self._redis.close)
        cameras = {name: RtspCamera(clip) for name in (STEADY, KILLED)}
        for camera in cameras.values():
            resources.enter_context(camera)
        self._camera = cameras[KILLED]
        group = ["--group", "soak", "--from-start"]
        consumer = ["-m", "stream.subscribe", "--redis", server.url, *group]
        self._consumer = self._child(consumer, resources, stdout=self._inbox)
        self._job = self._child(
            ["run_stream.py", "--config", str(self._config(cameras, manifest, server.url))],
            resources,
            stderr=self._log,
        )

    def watch(self, seconds: float, kill_every_s: float) -> tuple[list[Sample], int]:
        """Kill, revive and sample; return the samples and the number of kills."""
        for source in (STEADY, KILLED):
            self._await_open(source)
        process = psutil.Process(self._job.pid)
        process.cpu_percent()
        samples: list[Sample] = []
        kills = 0
        started = time.monotonic()
        while (now_s := time.monotonic() - started) < seconds:
            if self._job.poll() is not None:
                return samples, kills
            kill_at_s = (kills + 1) * kill_every_s
            revive_at_s = kills * kill_every_s + DOWN_S
            if not self._camera.is_on and now_s >= revive_at_s:
                self._camera.start()
            elif now_s >= kill_at_s and kill_at_s + DOWN_S + SETTLE_S <= seconds:
                self._camera.kill()
                kills += 1
            if now_s >= (len(samples) + 1) * SAMPLE_EVERY_S:
                samples.append(sample(process, now_s))
                _console.print(_line(samples[-1], kills), highlight=False)
            time.sleep(0.2)
        self._await_open(KILLED)
        return samples, kills

    def stop(self) -> int:
        """Ask the main process to drain, and return its exit code."""
        self._job.send_signal(signal.SIGTERM)
        return self._job.wait(LONGEST_WAIT_S)

    def stream(self, name: str) -> list[dict[str, Any]]:
        """Return every message of a Redis stream, oldest first."""
        entries: Any = self._redis.xrange(f"{NAMESPACE}:{name}")
        return [json.loads(fields["metadata"]) for _, fields in entries]

    def received(self, wanted: set[str]) -> list[str]:
        """Wait until the consumer has these event ids, but not for ever; return all it has."""

        def read() -> list[str]:
            lines = self._inbox.read_text(encoding="utf-8").splitlines(keepends=True)
            return [json.loads(line)["event"]["id"] for line in lines if line.endswith("\n")]

        deadline = time.monotonic() + LONGEST_WAIT_S
        while not wanted <= set(read()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return read()

    def dead_letters(self) -> int:
        """Return how many messages the consumer gave up on."""
        keys = (f"{NAMESPACE}:{stream}:dlq" for stream in ("alerts", "feeds", "sources"))
        return sum(int(self._redis.xlen(key)) for key in keys)

    def status(self, source: str) -> dict[str, str]:
        """Return a source's latest status, empty if there is none."""
        status: Any = self._redis.hgetall(f"{NAMESPACE}:status:{source}")
        return dict(status)

    def last_words(self) -> str:
        """Return the end of the main process' log."""
        return "\n".join(self._log.read_text(encoding="utf-8").splitlines()[-30:])

    def _config(self, cameras: dict[str, RtspCamera], manifest: Path, redis_url: str) -> Path:
        path = self._folder / "soak.yaml"
        config = {
            "sources": [{"id": name, "uri": camera.url} for name, camera in cameras.items()],
            "score": {"engines": [{"manifest": str(manifest)}]},
            "sinks": [{"kind": "redis", "url": redis_url, "namespace": NAMESPACE}],
        }
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path

    def _child(
        self,
        arguments: list[str],
        resources: ExitStack,
        *,
        stdout: Path | None = None,
        stderr: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        out, err = (
            resources.enter_context(path.open("wb")) if path else None for path in (stdout, stderr)
        )
        command = [sys.executable, *arguments]
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err)
        resources.callback(end, process)
        return process

    def _await_open(self, source: str) -> None:
        deadline = time.monotonic() + LONGEST_WAIT_S
        while self.status(source).get("state") != "open":
            if self._job.poll() is not None or time.monotonic() > deadline:
                raise click.ClickException(
                    f"{source} is not open, and won't be; run_stream.py says:\n{self.last_words()}"
                )
            time.sleep(0.2)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process, whatever it takes."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def sample(process: psutil.Process, at_s: float) -> Sample:
    """Return what a process holds now."""
    with process.oneshot():
        return Sample(
            at_s=round(at_s, 1),
            rss_mib=round(process.memory_info().rss / 2**20, 1),
            threads=process.num_threads(),
            fds=process.num_fds(),
            cpu_percent=round(process.cpu_percent(), 1),
        )


def _alert_checks(
    entries: Sequence[dict[str, Any]], received: Sequence[str], kills: int, dead_letters: int
) -> list[Check]:
    """Compare the alerts that should be, those in Redis and those that the consumer got.

    Args:
        entries: all verdicts and source events in Redis, oldest first of each.
        received: event ids, as the consumer got them.
        kills: of camera B.
        dead_letters: messages that the consumer gave up on.
    """
    ids = [entry["event"]["id"] for entry in entries]
    of_source: dict[str, list[str]] = {STEADY: [], KILLED: []}
    ordinals: dict[str, list[int]] = defaultdict(list)  # by source, and by track
    for entry, event_id in zip(entries, ids, strict=True):
        kind = entry["event"]["type"]
        if kind.startswith("feed."):  # the clip is a loop, as it says; counted by condition
            continue
        is_verdict = kind == "track.verdict"
        if not is_verdict:
            of_source[entry["source"]["id"]].append(kind)
        name = entry["track"]["id"] if is_verdict else entry["source"]["id"]
        ordinals[name].append(int(event_id.rpartition(":")[2]))
    gaps = sorted(name for name, n in ordinals.items() if n != list(range(1, len(n) + 1)))
    missing, extra = set(ids) - set(received), set(received) - set(ids)
    twice = len(ids) - len(set(ids)), len(received) - len(set(received))
    pairs = ["source.lost", "source.regained"] * kills
    return [
        Check(
            "each kill is one source.lost and one source.regained, in turn",
            of_source[KILLED] == pairs,
            f"{kills} kills; " + _counted(of_source[KILLED]),
        ),
        Check(
            "the camera left alone has no such alert",
            not of_source[STEADY],
            _counted(of_source[STEADY]),
        ),
        Check(
            "the consumer got every alert of the streams, and no other",
            not missing and not extra,
            f"{len(ids)} in the streams, {len(missing)} missing, {len(extra)} unknown",
        ),
        Check(
            "no event id twice",
            twice == (0, 0),
            f"{twice[0]} in the streams, {twice[1]} at the consumer",
        ),
        Check(
            "the ordinals of each source and track count 1, 2, 3...",
            not gaps,
            f"{len(ordinals)} counted; gaps: {', '.join(gaps) or 'none'}",
        ),
        Check("no dead letters", dead_letters == 0, str(dead_letters)),
    ]


def _counted(kinds: Iterable[str]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in sorted(Counter(kinds).items())) or "none"


def resources_of(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Return for each figure: warm, at the end, and the slope over the second half, per hour."""
    if not samples:
        return {}
    warm = [sample for sample in samples if sample.at_s <= WARM_S][-3:]
    half = samples[(len(samples) - 1) // 2 :]
    hours = [sample.at_s / 3600 for sample in half]
    figures = {}
    for name in ("rss_mib", "threads", "fds", "cpu_percent"):
        values = [getattr(sample, name) for sample in half]
        figures[name] = {
            "warm": statistics.median(getattr(sample, name) for sample in warm),
            "end": statistics.median(values[-3:]),
            "largest": max(getattr(sample, name) for sample in samples),
            "slope_per_hour": round(float(np.polyfit(hours, values, 1)[0]), 2),
        }
    return figures


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    points = {"p50": 50, "p95": 95, "p99": 99, "max": 100}
    return {name: round(float(np.percentile(values, q)), 1) for name, q in points.items()}


def _line(sample: Sample, kills: int) -> str:
    return (
        f"{sample.at_s:6.0f} s  {sample.rss_mib:7.1f} MiB  {sample.threads:3d} threads  "
        f"{sample.fds:3d} fds  {sample.cpu_percent:5.1f} % CPU  {kills:2d} kills"
    )


def _show(result: dict[str, Any], checks: Sequence[Check]) -> None:
    columns = ("run_stream.py", f"by {WARM_S:g} s", "at the end", "largest", "slope, per hour")
    table = Table(*columns, title=f"{result['options']['minutes']:g} minutes, two RTSP cameras")
    for name, figure in result["resources"].items():
        table.add_row(name, *(f"{value:g}" for value in figure.values()))
    _console.print(table)
    for source, counts in result["sources"].items():
        _console.print(source, ", ".join(f"{name} {n}" for name, n in counts.items()))
    _console.print("alerts", _counted(Counter(result["alerts"]).elements()))
    _console.print(f"latency of {result['scores']} scores, ms:", result["latency_ms"])
    table = Table("check", "", "found")
    for check in checks:
        table.add_row(check.name, "kept" if check.kept else "BROKEN", check.found)
    _console.print(table)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.soak")
