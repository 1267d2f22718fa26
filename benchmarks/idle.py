"""What cameras cost that mostly show nobody, how many are held, and how soon a face is noticed.

`python -m benchmarks.idle` has three parts:

- `nobody`: cameras that show nobody, with `decode.idle` off and on: what one costs;
- `mostly`: cameras that show a face for 6 s of each minute, at six different times, with a key
  frame every 2 s: how many this machine holds, and how long it takes from the first key frame with
  the face to the first score;
- `noticed`: RTSP cameras with key frames 1, 2 and 10 s apart, to which somebody comes 0, 1 and 3 s
  before one, with `decode.idle` off and on: how long it takes from then, and from that key frame.

A number of cameras is held here if at most 0.1 % of the frames due are dropped and 95 % of the
scores come within 500 ms. A decoder that falls behind leaves due frames out, which are dropped.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.cameras import TooSlowError, span_of, time_of
from benchmarks.clips import ONE_FACE, Scene, write_clip
from benchmarks.held import MOST_DROPPED, SLOWEST_P95_MS, largest_held
from benchmarks.record import ROOT, circumstances, command_line, kept, save
from benchmarks.rtsp_camera import RtspCamera
from benchmarks.workers import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PARTS: Final = ("nobody", "mostly", "noticed")
MODES: Final = ("off", "keyframes")
START_UP_S: Final = 15.0  # of each run, left out: all cameras are awake then
SPARE_S: Final = 30.0
MOST_CAMERAS: Final = 120
NEAR_ENOUGH: Final = 2  # cameras, of the largest number that is held
NOBODY_CAMERAS: Final = 4
IN_TURN: Final = 6  # clips; of each minute's periods of 10 s, each shows a face in another one
SHOWN_AFTER_S: Final = 4.0  # of such a period, on a key frame
RTSP_CAMERAS: Final = 4
COMES_AT_S: Final = 7.0  # of each 30 s, and stays until 20
VISITS_APART_S: Final = 30.0
KEY_FRAMES_S: Final = (1, 2, 10)
MESSAGES: Final = "messages.jsonl"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--part", type=click.Choice(PARTS), multiple=True, help="Measure this part alone.")
@click.option(
    "--cameras",
    type=int,
    multiple=True,
    help="Of `mostly`: try these numbers. [default: search, from 60]",
)
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True)
@click.option(
    "--idle-after-s", type=float, default=5.0, show_default=True, help="Of `mostly`, as in decode."
)
@click.option(
    "--seconds", type=float, default=90, show_default=True, help="Of a run, with 15 of start-up."
)
def main(
    part: tuple[str, ...],
    cameras: tuple[int, ...],
    workers: int,
    idle_after_s: float,
    seconds: float,
) -> None:
    """Compare cameras that may sleep with cameras that are awake."""
    result = kept("idle") | {"command": command_line("benchmarks.idle")} | circumstances()
    with tempfile.TemporaryDirectory(prefix="facewarden-bench-") as name, ExitStack() as switched:
        bench = _Bench(Path(name), seconds, workers)
        measure: dict[str, Callable[[], list[dict[str, Any]]]] = {
            "nobody": partial(_nobody, bench),
            "mostly": partial(_mostly, bench, cameras, idle_after_s),
            "noticed": partial(_noticed, bench, switched),
        }
        for each in part or PARTS:
            result[each] = measure[each]()
            path = save("idle", result)
    _show([row for each in part or PARTS for row in result[each]])
    click.echo(f"wrote {path.relative_to(ROOT)}")


@dataclass(frozen=True, slots=True)
class _Bench:
    """Runs cameras."""

    folder: Path
    seconds: float  # of each run
    workers: int

    def run(
        self, uris: Sequence[str], idle: str, after_s: float
    ) -> tuple[dict[str, Any], list[dict[str, Any]], float]:
        """Run a camera for each address.

        Returns:
            A summary without the start-up, all that was said, and when the start-up was over.
        """
        load = round(os.getloadavg()[0], 1)
        messages = self.folder / MESSAGES
        messages.unlink(missing_ok=True)
        camera: dict[str, Any] = {"heartbeat_s": 1}
        if "://" not in uris[0]:
            camera |= {"realtime": True, "loop": True}
        names = [f"cam{i}" for i in range(len(uris))]
        config = {
            "sources": [{"id": n, "uri": u, **camera} for n, u in zip(names, uris, strict=True)],
            "decode": {"idle": idle, "idle_after_s": after_s},
            "fuse": {"publish_every_s": 0},
            "sinks": [{"kind": "jsonl", "path": str(messages)}],
        }
        path = self.folder / "idle.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        used = self._alone(path) if self.workers == 1 else self._by_workers(path, set(names))
        said = [json.loads(each) for each in messages.read_text(encoding="utf-8").splitlines()]
        begin = min(map(time_of, said)) + START_UP_S
        row = {"idle": idle, "cameras": len(uris), "workers": self.workers, "load_before": load}
        row |= _summary([m for m in said if time_of(m) >= begin], names)
        row["cpu_ms_per_camera_second"] = round(1000 * used["cores_used"] / len(uris), 1)
        row["cores_used"] = round(used["cores_used"], 2)
        row["mib"] = round(used["largest_rss_mib"])
        return row, said, begin

    def write_clip(self, name: str, nobody_s: Sequence[float], scene: Scene = ONE_FACE) -> Path:
        """Write a clip that is longer than a run: a new session would find the camera awake."""
        clip = self.folder / name
        write_clip(clip, math.ceil(self.seconds + SPARE_S), nobody_s, scene)
        return clip

    def _alone(self, config: Path) -> dict[str, float]:
        arguments = [str(config), str(self.seconds), str(START_UP_S)]
        command = [sys.executable, "-m", "benchmarks.trial", *arguments]
        run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
        used: dict[str, float] = json.loads(run.stdout)
        return used

    def _by_workers(self, config: Path, names: set[str]) -> dict[str, float]:
        run = Run(config, self.workers)
        run.await_open(names)
        time.sleep(START_UP_S)
        began_s, (used_s, _) = time.monotonic(), run.processor_s()
        time.sleep(self.seconds - START_UP_S)
        cores = (run.processor_s()[0] - used_s) / (time.monotonic() - began_s)
        memory_mib, _ = run.memory_mib()
        run.end()
        return {"cores_used": cores, "largest_rss_mib": memory_mib}


def _nobody(bench: _Bench) -> list[dict[str, Any]]:
    """Let cameras sleep, and not."""
    clip = bench.write_clip("nobody.mp4", [10.0])
    rows = []
    for idle in MODES:
        row, *_ = bench.run([str(clip)] * NOBODY_CAMERAS, idle, after_s=1.0)
        rows.append(_told("nobody", row))
    return rows


def _mostly(bench: _Bench, cameras: Sequence[int], after_s: float) -> list[dict[str, Any]]:
    """Find how many cameras are held of those that mostly show nobody, or try some numbers."""
    clips = []
    for number in range(IN_TURN):
        nobody_s = [SHOWN_AFTER_S if period == number else 10.0 for period in range(IN_TURN)]
        clips.append(str(bench.write_clip(f"mostly-{number}.mp4", nobody_s)))
    rows: list[dict[str, Any]] = []

    def held(n: int) -> bool:
        uris = [clips[i % IN_TURN] for i in range(n)]
        row, said, begin = bench.run(uris, "keyframes", after_s)
        row |= {"idle_after_s": after_s, **_since_key_frames(said, begin)}
        rows.append(_told("mostly nobody, key frames 2 s apart", row))
        return bool(row["held"])

    if cameras:
        for n in cameras:
            held(n)
    else:
        largest_held(held, first=60, limit=MOST_CAMERAS, step=NEAR_ENOUGH)
    return rows


def _noticed(bench: _Bench, switched: ExitStack) -> list[dict[str, Any]]:
    """Let somebody come to cameras that sleep, and to cameras that do not."""
    rows = []
    for apart_s in KEY_FRAMES_S:
        visits = (COMES_AT_S, 0.0, 10.0)
        clip = bench.write_clip(f"rtsp-{apart_s}.mp4", visits, Scene(key_frame_s=apart_s))
        url = switched.enter_context(RtspCamera(clip)).url
        for idle in MODES:
            row, said, _ = bench.run([url] * RTSP_CAMERAS, idle, after_s=2.0)
            row |= {"key_frames_apart_s": apart_s, **_since_they_came(said, apart_s)}
            rows.append(_told(f"RTSP, key frames {apart_s} s apart", row))
    return rows


def _told(what: str, row: dict[str, Any]) -> dict[str, Any]:
    """Print a run, so that something is there if the next ones fail."""
    click.echo(json.dumps({"what": what} | row))
    return {"what": what} | row


def _summary(said: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    counters = ("frames_due", "frames_dropped")
    try:
        spans = [span_of(said, name, counters, states=("open", "idle")) for name in names]
    except TooSlowError:
        return {"held": False}
    due, dropped = (sum(span[counter] for span in spans) for counter in counters)
    late_ms = [message["latency_ms"] for message in _scores(said)]
    p95_ms = float(np.percentile(late_ms, 95)) if late_ms else 0.0
    beats = [m["status"]["state"] for m in said if m["event"]["type"] == "source.status"]
    return {
        "asleep": round(beats.count("idle") / len(beats), 2),  # share of the statuses
        "tracks": len({message["track"]["id"] for message in _scores(said)}),
        "frames_due": due,
        "frames_dropped": dropped,
        "latency_p95_ms": round(p95_ms) if late_ms else None,
        "held": bool(dropped <= MOST_DROPPED * due and p95_ms <= SLOWEST_P95_MS),
    }


def _scores(said: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [message for message in said if message["event"]["type"] == "track.score"]


def _since_key_frames(said: Sequence[dict[str, Any]], begin: float) -> dict[str, Any]:
    """Return how long after the first key frame with the face each visit had its first score.

    Visits are left out whose first score came before `begin`.
    """
    first: dict[tuple[str, float], tuple[float, float]] = {}  # when, and how long after
    for message in _scores(said):
        camera = message["source"]["id"]
        shown_s = int(camera.removeprefix("cam")) % IN_TURN * 10.0 + SHOWN_AFTER_S
        visit, since_s = divmod(message["pts_s"] - shown_s, 60.0)
        late_s = message["latency_ms"] / 1000
        first.setdefault((camera, visit), (time_of(message), since_s + late_s))
    return _quantiles("from_key_frame_s", [s for at, s in first.values() if at >= begin])


def _since_they_came(said: Sequence[dict[str, Any]], apart_s: int) -> dict[str, Any]:
    """Return how long after somebody came, and after the next key frame, the first score was there.

    The first visit of each camera is left out: it falls asleep after that.
    """
    first: dict[tuple[str, float], float] = {}
    for message in _scores(said):
        visit, since_s = divmod(message["pts_s"] - COMES_AT_S, VISITS_APART_S)
        if visit >= 1:
            when_s = since_s + message["latency_ms"] / 1000
            first.setdefault((message["source"]["id"], visit), when_s)
    key_frame_s = math.ceil(COMES_AT_S / apart_s) * apart_s - COMES_AT_S
    return _quantiles("from_coming_s", [*first.values()]) | _quantiles(
        "from_key_frame_s", [since_s - key_frame_s for since_s in first.values()]
    )


def _quantiles(name: str, values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {"visits": 0}
    return {"visits": len(values), name: np.percentile(values, [50, 95]).round(2).tolist()}


def _show(rows: Sequence[dict[str, Any]]) -> None:
    columns = {
        "what": "cameras that show", "idle": "idle", "cameras": "n", "asleep": "asleep",
        "held": "held", "frames_dropped": "dropped", "frames_due": "due",
        "latency_p95_ms": "p95 ms", "cpu_ms_per_camera_second": "CPU ms", "mib": "MiB",
        "visits": "visits", "from_coming_s": "s from coming",
        "from_key_frame_s": "s from key frame",
    }  # fmt: skip
    table = Table(*columns.values(), title="p50, p95; CPU ms per camera and second")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    Console(width=150).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(f"{each:.2f}" for each in value) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.idle")
