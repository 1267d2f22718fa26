"""`make bench-workers`: what do several processes bring, cost and lose?

The same cameras (files of `clips.py`, played at their own speed) are watched by one process and by
several, in turn. Then the worker that watches the first camera is killed again and again, and what
each camera lost is counted.

Files opened together come due together, which is harder than real cameras are: numbers are to be
compared within a run.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np
import psutil
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.cameras import time_of
from benchmarks.clips import write_clip
from benchmarks.held import Used
from benchmarks.record import ROOT, circumstances, command_line, save
from stream.config import DecodeConfig, ScoreConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

ANALYSE_FPS: Final = DecodeConfig().analyse_fps
START_UP_S: Final = 10.0  # of a trial, left out
SPARE_S: Final = 180.0  # of the clip, for starts and waits
_STARTED: Final = re.compile(r"worker (\d+) \(process (\d+)\): (.*)")

_console = Console(width=120)


@dataclass(frozen=True, slots=True)
class Trial:
    """What one run showed, after its start-up."""

    workers: int
    cameras: int
    analysed_fps: float  # of all cameras
    due_fps: float
    dropped: float  # share of the frames due
    latency_p50_ms: float | None  # None: nothing was scored
    latency_p95_ms: float | None
    cores_used: float  # by all processes
    cpu_ms_per_camera_second: float
    stolen_cores: float  # what the host took from this machine meanwhile
    memory_mib: float  # proportional set size of all processes, at the end
    supervisor_cores: float  # by the supervisor alone; 0 without one
    supervisor_mib: float
    load_average: float  # of the machine, at the end


@dataclass(frozen=True, slots=True)
class Losses:
    """What the kills cost one camera."""

    camera: str
    losses: int
    away_s: list[float]  # each time, from the death's status to the next picture's
    sessions: int
    seconds: float  # over which all this was counted
    due: int
    dropped: int  # of those due: the machine was behind
    lost: int  # frames that were not analysed and would have been, dropped ones among them


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--cameras", type=int, multiple=True, default=(8, 14), show_default=True)
@click.option("--workers", type=click.IntRange(min=2), default=2, show_default=True)
@click.option("--seconds", type=float, default=40.0, show_default=True, help="Of a trial.")
@click.option("--kill-every-s", type=float, default=20.0, show_default=True)
@click.option("--kill-for-s", type=float, default=120.0, show_default=True)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path, exists=True),
    default=ScoreConfig().engines[0].manifest,
    help="The detector's manifest. [default: the shipped one]",
)
def main(
    cameras: Sequence[int],
    workers: int,
    seconds: float,
    kill_every_s: float,
    kill_for_s: float,
    manifest: Path,
) -> None:
    """Compare one process with several, and kill one of these again and again."""
    result: dict[str, Any] = {"command": command_line("benchmarks.workers")}
    result |= circumstances(manifest)
    with tempfile.TemporaryDirectory(prefix="facewarden-bench-") as name:
        bench = _Bench(Path(name), manifest.resolve(), max(seconds, kill_for_s + kill_every_s))
        trials = []
        for n in cameras:
            for processes in (1, workers):
                with _console.status(f"{n} cameras, {processes} workers"):
                    trials.append(bench.trial(n, processes, seconds))
                _console.print(trials[-1], highlight=False)
                save("workers", result | {"trials": [asdict(trial) for trial in trials]})
        with _console.status("killing a worker"):
            kills, losses = bench.killed(2 * workers, workers, kill_every_s, kill_for_s)
        _show(trials, kills, losses)
    result |= {
        "options": {"seconds": seconds, "kill_every_s": kill_every_s, "kill_for_s": kill_for_s},
        "trials": [asdict(trial) for trial in trials],
        "kills": kills,
        "losses": [asdict(loss) for loss in losses],
    }
    _console.print(f"wrote {save('workers', result).relative_to(ROOT)}", highlight=False)


def _show(trials: Sequence[Trial], kills: int, losses: Sequence[Losses]) -> None:
    """Print what docs/operate.md has."""
    table = Table(
        *("cameras", "workers", "analysed/s", "dropped", "p50, p95 ms", "cores", "CPU ms", "MiB"),
        *("supervisor", "stolen"),
        title="cameras opened together; CPU ms per camera and second",
    )
    for t in trials:
        supervisor = f"{t.supervisor_cores:g} cores, {t.supervisor_mib:g} MiB"
        table.add_row(
            *(str(t.cameras), str(t.workers), f"{t.analysed_fps:g}", f"{t.dropped:.2%}"),
            f"{t.latency_p50_ms}, {t.latency_p95_ms}",
            *(f"{t.cores_used:.2f}", f"{t.cpu_ms_per_camera_second:g}", f"{t.memory_mib:g}"),
            *(supervisor if t.workers > 1 else "-", f"{t.stolen_cores:.2f}"),
        )
    _console.print(table)
    table = Table(
        *("camera", "times lost", "away, s", "sessions", "frames lost", "of them dropped", "of"),
        title=f"the worker of the first camera killed {kills} times",
    )
    for loss in losses:
        away = ", ".join(f"{s:.1f}" for s in loss.away_s) or "-"
        of = f"{loss.seconds * ANALYSE_FPS:.0f}"
        table.add_row(
            *(loss.camera, str(loss.losses), away, str(loss.sessions), str(loss.lost)),
            *(str(loss.dropped), of),
        )
    _console.print(table)


class Run:
    """A running `run_stream.py`; a thread reads its log."""

    def __init__(self, config: Path, workers: int) -> None:
        command = [
            sys.executable,
            "run_stream.py",
            "--config",
            str(config),
            "--workers",
            str(workers),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "REDIS_URL": ""}
        self.job = subprocess.Popen(
            command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.process = psutil.Process(self.job.pid)
        self.pids: dict[str, int] = {}  # by camera, of the worker that watches it
        self._opened: set[str] = set()
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.job.stderr is not None
        for line in self.job.stderr:
            with self._changed:
                if started := _STARTED.search(line):
                    watched = started[3].split(", ")
                    self.pids |= dict.fromkeys(watched, int(started[2]))
                    self._opened -= set(watched)
                if changed := re.search(r"source (\S+): (open|lost)", line):
                    (self._opened.add if changed[2] == "open" else self._opened.discard)(changed[1])
                self._changed.notify_all()

    def await_open(self, cameras: set[str]) -> None:
        """Wait until these cameras are watched."""
        with self._changed:
            if not self._changed.wait_for(lambda: cameras <= self._opened, timeout=120):
                raise click.ClickException("the cameras do not open")

    def end(self) -> None:
        """Ask it to stop, and wait."""
        self.job.send_signal(signal.SIGTERM)
        if self.job.wait(60):
            raise click.ClickException(f"run_stream.py ended with code {self.job.returncode}")

    def processor_s(self) -> tuple[float, float]:
        """Return what all its processes that live, and it alone, have used, seconds."""
        own = sum(self.process.cpu_times()[:2])
        return own + sum(sum(c.cpu_times()[:2]) for c in self.process.children(True)), own

    def memory_mib(self) -> tuple[float, float]:
        """Return the memory of all its processes, shared pages counted once, and its own."""
        own = self.process.memory_full_info().pss
        others = [child.memory_full_info().pss for child in self.process.children(True)]
        return (own + sum(others)) / 2**20, own / 2**20


class _Bench:
    def __init__(self, folder: Path, manifest: Path, longest_s: float) -> None:
        self._folder = folder
        self._manifest = manifest
        self._messages = folder / "messages.jsonl"
        self._clip = folder / "clip.mp4"
        with _console.status("encoding the clip"):
            # A file that begins anew would count as a session.
            write_clip(self._clip, math.ceil(longest_s + SPARE_S))

    def trial(self, n: int, workers: int, seconds: float) -> Trial:
        """Watch so many cameras for a while."""
        run = Run(self._config(n), workers)
        run.await_open(_names(n))
        time.sleep(START_UP_S)
        used = Used()
        began, (used_s, own_s) = time.time(), run.processor_s()
        time.sleep(seconds)
        now, (used_later_s, own_later_s) = time.time(), run.processor_s()
        stolen_cores = used.cores()["stolen_cores"]
        memory, own = run.memory_mib()
        load = os.getloadavg()[0]
        run.end()
        messages = [m for m in self._read() if began <= time_of(m) <= now]
        spans = [_grown(messages, name) for name in sorted(_names(n))]
        due, dropped = (sum(span[key] for span in spans) for key in ("due", "dropped"))
        latencies = [m["latency_ms"] for m in messages if m["event"]["type"] == "track.score"]
        p50, p95 = (_percentile(latencies, q) for q in (50, 95))
        cores = (used_later_s - used_s) / (now - began)
        supervised = workers > 1
        return Trial(
            workers=workers,
            cameras=n,
            analysed_fps=round(sum((s["due"] - s["dropped"]) / s["seconds"] for s in spans), 1),
            due_fps=round(sum(s["due"] / s["seconds"] for s in spans), 1),
            dropped=round(dropped / due, 4),
            latency_p50_ms=p50,
            latency_p95_ms=p95,
            cores_used=round(cores, 3),
            cpu_ms_per_camera_second=round(1000 * cores / n, 1),
            stolen_cores=round(stolen_cores, 3),
            memory_mib=round(memory),
            supervisor_cores=round((own_later_s - own_s) / (now - began), 4) if supervised else 0,
            supervisor_mib=round(own) if supervised else 0,
            load_average=round(load, 2),
        )

    def killed(
        self, n: int, workers: int, every_s: float, seconds: float
    ) -> tuple[int, list[Losses]]:
        """Kill the worker of the first camera now and then; return how often, and the losses."""
        run = Run(self._config(n), workers)
        run.await_open(_names(n))
        time.sleep(START_UP_S)
        began, kills = time.time(), 0
        while time.time() - began < seconds:
            run.await_open(_names(n))
            time.sleep(1)  # so that what is in the log is published
            os.kill(run.pids["cam01"], signal.SIGKILL)
            kills += 1
            time.sleep(every_s)
        run.await_open(_names(n))
        time.sleep(1)
        run.end()
        messages = [m for m in self._read() if time_of(m) >= began]
        return kills, [_losses(messages, name) for name in sorted(_names(n))]

    def _config(self, n: int) -> Path:
        self._messages.unlink(missing_ok=True)
        camera = {"uri": str(self._clip), "realtime": True, "loop": True, "heartbeat_s": 1}
        config = {
            "sources": [{"id": name, **camera} for name in sorted(_names(n))],
            "score": {"engines": [{"manifest": str(self._manifest)}]},
            "fuse": {"publish_every_s": 0},  # the latency of every score, not of one a second
            "sinks": [{"kind": "jsonl", "path": str(self._messages)}],
        }
        path = self._folder / "trial.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path

    def _read(self) -> list[dict[str, Any]]:
        lines = self._messages.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


def _percentile(values: Sequence[float], q: float) -> float | None:
    return round(float(np.percentile(values, q)), 1) if values else None


def _names(n: int) -> set[str]:
    return {f"cam{number:02}" for number in range(1, n + 1)}


def _statuses(messages: Sequence[dict[str, Any]], camera: str) -> list[dict[str, Any]]:
    return [
        m for m in messages
        if m["event"]["type"] == "source.status" and m["source"]["id"] == camera
    ]  # fmt: skip


def _grown(messages: Sequence[dict[str, Any]], camera: str) -> dict[str, float]:
    """Return by how much a camera's counters grew between its first and last status."""
    first, *_, last = _statuses(messages, camera)
    grown = {
        name: last["status"][f"frames_{name}"] - first["status"][f"frames_{name}"]
        for name in ("due", "dropped")
    }
    return {"seconds": time_of(last) - time_of(first), **grown}


def _losses(messages: Sequence[dict[str, Any]], camera: str) -> Losses:
    away_s, lost_at = [], None
    statuses = _statuses(messages, camera)
    for message in statuses:
        status = message["status"]
        if status["state"] == "lost" and lost_at is None:
            lost_at = time_of(message)
        elif status["state"] == "open" and lost_at is not None:
            away_s.append(round(time_of(message) - lost_at, 2))
            lost_at = None
    grown = _grown(statuses, camera)
    return Losses(
        camera=camera,
        losses=len(away_s),
        away_s=away_s,
        sessions=statuses[-1]["source"]["session"] - statuses[0]["source"]["session"],
        seconds=round(grown["seconds"], 1),
        due=round(grown["due"]),
        dropped=round(grown["dropped"]),
        lost=max(0, round(grown["seconds"] * ANALYSE_FPS - grown["due"] + grown["dropped"])),
    )


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.workers")
