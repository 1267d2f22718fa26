"""`make bench`: how many cameras does this machine hold, and how does that compare?

A camera is a file played at its own speed: H.264, 1280x720, 25 frames a second, one face, five
frames a second analysed with the default options. N of them run in one process; N is held if

- at most 0.1 % of the frames due are dropped,
- 95 % of the scores are published within 500 ms of their frame's capture, and
- no camera falls behind by more than 500 ms: a file waits where a camera would not, so a decoder
  that is too slow drops nothing.

Beside it stand what decoding alone reaches, and a naive loop.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.clips import FPS, ONE_FACE, Scene, write_clip
from benchmarks.record import ROOT, circumstances, command_line, save
from benchmarks.stages import decoded_fps, naive_fps, stage_costs
from stream.config import ScoreConfig, load_config

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MOST_DROPPED: Final = 0.001  # of the frames due
SLOWEST_P95_MS: Final = 500.0
FARTHEST_BEHIND_S: Final = 0.5
FIRST_N: Final = 4

_console = Console()


@dataclass(frozen=True, slots=True)
class Plan:
    """How long everything takes, seconds."""

    trial_s: float
    start_up_s: float  # of a trial, left out
    single_s: float  # of each measurement beside the trials
    largest_n: int


FULL: Final = Plan(trial_s=40, start_up_s=10, single_s=8, largest_n=64)
QUICK: Final = Plan(trial_s=8, start_up_s=3, single_s=3, largest_n=4)


@dataclass(frozen=True, slots=True)
class Trial:
    """What one run with N cameras showed, after its start-up."""

    n: int
    held: bool
    frames_due: int
    frames_dropped: int
    scores: int
    latency_p50_ms: float
    latency_p95_ms: float
    behind_s: float  # the slowest camera's media time, behind the clock
    cores_used: float
    largest_rss_mib: float


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="A minute's smoke test; its numbers say little.")
@click.option(
    "--manifest",
    type=click.Path(path_type=Path, exists=True),
    default=ScoreConfig().engines[0].manifest,
    help="The detector's manifest. [default: the shipped one]",
)
@click.option("--auto", is_flag=True, help="Decode and run the networks by `auto`: on a GPU.")
def main(quick: bool, manifest: Path, auto: bool) -> None:
    """Find the largest number of real-time cameras that this machine holds."""
    plan = QUICK if quick else FULL
    manifest = manifest.resolve()
    result: dict[str, Any] = {"command": command_line("benchmarks.cameras")}
    result |= circumstances(manifest)
    threads = sorted({1, result["machine"]["cores"]})
    with tempfile.TemporaryDirectory(prefix="facewarden-bench-") as name:
        bench = TrialFolder(Path(name), manifest, plan, auto=auto)
        with _console.status("decoding alone"):
            decoding = {n: decoded_fps(bench.clip, n, plan.single_s / 2) for n in threads}
        with _console.status("the naive loop"):
            naive = {n: naive_fps(bench.clip, manifest, n, plan.single_s) for n in threads}
        with _console.status("the stages, one by one"):
            config = load_config(bench.write_config(1))
            stages = stage_costs(bench.clip, config, 2 * plan.single_s)
        _show_stages(stages)
        largest = largest_held(bench.held, plan.largest_n)
    analysed = largest * config.decode.analyse_fps
    result |= {
        "options": {**asdict(plan), "analyse_fps": config.decode.analyse_fps},
        "cameras_held": largest,
        "analysed_fps": analysed,
        "decoded_fps_by_threads": {n: round(fps, 1) for n, fps in decoding.items()},
        "share_of_decoding_alone": round(largest * FPS / max(decoding.values()), 3),
        "naive_fps_by_threads": {n: round(fps, 2) for n, fps in naive.items()},
        "analysed_over_naive": round(analysed / max(naive.values()), 2),
        "stages": stages,
        "trials": [asdict(trial) for trial in bench.trials],
    }
    _show(result)
    _console.print(f"wrote {save('cameras', result).relative_to(ROOT)}", highlight=False)


def largest_held(held: Callable[[int], bool], limit: int) -> int:
    """Double until one number is not held, then halve the distance; 0 if not even one is.

    Args:
        held: tries a number of cameras.
        limit: none larger is tried.
    """
    good, bad = 0, FIRST_N
    while held(bad):
        good, bad = bad, 2 * bad
        if bad > limit:
            return good
    while bad - good > 1:
        middle = (good + bad) // 2
        if held(middle):
            good = middle
        else:
            bad = middle
    return good


class TrialFolder:
    """Runs trials in a folder."""

    def __init__(
        self, folder: Path, manifest: Path, plan: Plan, *, auto: bool, scene: Scene = ONE_FACE
    ) -> None:
        self._folder = folder
        self._manifest = manifest
        self._plan = plan
        self._auto = auto
        self.messages = folder / "messages.jsonl"
        self.trials: list[Trial] = []
        self.clip = folder / "clip.mp4"
        with _console.status("encoding the clip"):
            write_clip(self.clip, 60, scene=scene)

    def write_config(self, n: int) -> Path:
        """Write the configuration of a run with so many cameras; return its path."""
        camera = {"uri": str(self.clip), "realtime": True, "loop": True, "heartbeat_s": 1}
        config = {
            "sources": [{"id": f"cam{i}", **camera} for i in range(1, n + 1)],
            "score": {"engines": [{"manifest": str(self._manifest)}]},
            "fuse": {"publish_every_s": 0},  # the latency of every score, not of one a second
            "sinks": [{"kind": "jsonl", "path": str(self.messages)}],
        }
        if self._auto:
            config |= {"backend": "auto", "decode": {"kind": "auto"}}
        path = self._folder / "trial.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path

    def held(self, n: int) -> bool:
        """Run so many cameras for a while, and judge."""
        self.messages.unlink(missing_ok=True)
        arguments = ["-m", "benchmarks.trial", str(self.write_config(n)), str(self._plan.trial_s)]
        with _console.status(f"{n} cameras"):
            command = [sys.executable, *arguments]
            run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
        lines = self.messages.read_text(encoding="utf-8").splitlines()
        messages = [json.loads(line) for line in lines]
        trial = _judged(n, messages, self._plan.start_up_s, json.loads(run.stdout))
        self.trials.append(trial)
        _console.print(_line(trial), highlight=False)
        return trial.held


def _judged(
    n: int, messages: list[dict[str, Any]], start_up_s: float, usage: dict[str, float]
) -> Trial:
    """Judge a run by its messages."""
    begin = min(time_of(message) for message in messages) + start_up_s
    messages = [message for message in messages if time_of(message) >= begin]
    latencies = [m["latency_ms"] for m in messages if m["event"]["type"] == "track.score"]
    spans = [span_of(messages, f"cam{i}") for i in range(1, n + 1)]
    p50, p95 = np.percentile(latencies, [50, 95]) if latencies else (np.inf, np.inf)
    due, dropped = (sum(span[name] for span in spans) for name in ("frames_due", "frames_dropped"))
    behind_s = max(span["seconds"] - span["frames_seen"] / FPS for span in spans)
    return Trial(
        n=n,
        held=bool(
            dropped <= MOST_DROPPED * due
            and p95 <= SLOWEST_P95_MS
            and behind_s <= FARTHEST_BEHIND_S
        ),
        frames_due=due,
        frames_dropped=dropped,
        scores=len(latencies),
        latency_p50_ms=round(float(p50), 1),
        latency_p95_ms=round(float(p95), 1),
        behind_s=round(behind_s, 2),
        cores_used=round(usage["cores_used"], 2),
        largest_rss_mib=round(usage["largest_rss_mib"]),
    )


def span_of(
    messages: Sequence[dict[str, Any]],
    source: str,
    counters: Sequence[str] = ("frames_seen", "frames_due", "frames_dropped"),
) -> dict[str, Any]:
    """Return by how much a source's counters grew between its first and last heartbeat."""
    beats = [
        message
        for message in messages
        if message["event"]["type"] == "source.status"
        and message["source"]["id"] == source
        and message["status"]["state"] == "open"
    ]
    if not beats:
        raise click.ClickException(f"{source} sent no status; the machine is far too slow")
    first, last = beats[0], beats[-1]
    grown = {name: last["status"][name] - first["status"][name] for name in counters}
    return {"seconds": time_of(last) - time_of(first), **grown}


def time_of(message: dict[str, Any]) -> float:
    """Return when a frame reached us, or a source changed, Unix seconds."""
    return datetime.fromisoformat(message["ts"]).timestamp()


def _line(trial: Trial) -> str:
    return (
        f"{trial.n:3d} cameras {'held    ' if trial.held else 'not held'}: "
        f"{trial.frames_dropped} of {trial.frames_due} dropped, "
        f"latency {trial.latency_p50_ms:g} / {trial.latency_p95_ms:g} ms (p50 / p95 of "
        f"{trial.scores}), {trial.behind_s:.2f} s behind, "
        f"{trial.cores_used:.2f} cores, {trial.largest_rss_mib:g} MiB"
    )


def _show_stages(stages: dict[str, dict[str, float]]) -> None:
    table = Table("stage", "CPU ms", "times a second", "CPU ms a second", title="of one camera")
    for name, cost in stages.items():
        table.add_row(name, *(f"{value:g}" for value in cost.values()))
    table.add_row("sum", "", "", f"{_total_ms(stages):g}")
    _console.print(table)


def _total_ms(stages: dict[str, dict[str, float]]) -> float:
    return round(sum(cost["ms_per_camera_second"] for cost in stages.values()), 1)


def _show(result: dict[str, Any]) -> None:
    decoding, naive = result["decoded_fps_by_threads"], result["naive_fps_by_threads"]
    held, analyse_fps = result["cameras_held"], result["options"]["analyse_fps"]
    room = 1000 * result["machine"]["cores"] / _total_ms(result["stages"])
    rows = {
        "cameras held": f"{held} of {FPS} fps, {analyse_fps:g} analysed",
        "CPU time would do for": f"{room:.1f}, if none of it were lost",
        "frames analysed": f"{result['analysed_fps']:g} fps",
        "naive loop": f"{_by_threads(naive)}; ours: {result['analysed_over_naive']:g} times",
        "frames decoded": f"{held * FPS} fps",
        "decoding alone": f"{_by_threads(decoding)}; ours: {result['share_of_decoding_alone']:.0%}",
    }
    table = Table("", "", title="on this machine")
    for row in rows.items():
        table.add_row(*row)
    _console.print(table)


def _by_threads(fps: dict[int, float]) -> str:
    return ", ".join(f"{rate:g} fps with {n} threads" for n, rate in fps.items())


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.cameras")
