"""`make bench`: how many cameras does this machine hold, and how does that compare?

A camera is a file played at its own speed: H.264, 1280x720, 25 frames a second, one face, five
frames a second analysed with the default options. N of them run in one process; N is held if

- at most 0.1 % of the frames due are dropped,
- 95 % of the scores are published within 500 ms of their frame's capture, and
- no camera falls behind by more than 500 ms: a file waits where a camera would not, so a decoder
  that is too slow drops nothing.

Beside it stand what decoding alone reaches, a naive loop, and, if its packages are installed, how
many cameras a loop of public parts holds by the same rule (`benchmarks.public_loop`).
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.clips import FPS, write_clip
from benchmarks.held import Trial, judged, largest_held, line
from benchmarks.public_loop import INSTALL, SEARCH_EVERY_S, PublicLoop, is_installed
from benchmarks.record import ROOT, circumstances, command_line, save
from benchmarks.stages import decoded_fps, naive_fps, stage_costs
from stream.config import ScoreConfig, load_config

if TYPE_CHECKING:
    from collections.abc import Sequence

FIRST_N: Final = 4

_console = Console(width=120)


@dataclass(frozen=True, slots=True)
class Plan:
    """How long everything takes, seconds."""

    trial_s: float
    start_up_s: float  # of a trial, left out
    single_s: float  # of each measurement beside the trials
    largest_n: int


FULL: Final = Plan(trial_s=40, start_up_s=10, single_s=8, largest_n=64)
QUICK: Final = Plan(trial_s=8, start_up_s=3, single_s=3, largest_n=4)


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
        largest = largest_held(bench.held, first=FIRST_N, limit=plan.largest_n)
        result |= _found(plan, config.decode.analyse_fps, largest, decoding, naive)
        result |= {"stages": stages, "trials": [asdict(trial) for trial in bench.trials]}
        save("cameras", result)  # should what follows fail
        result["public_loop"] = (
            _public_loops(bench.clip, manifest, plan) if is_installed() else f"left out: {INSTALL}"
        )
    _show(result)
    _console.print(f"wrote {save('cameras', result).relative_to(ROOT)}", highlight=False)


def _found(
    plan: Plan,
    analyse_fps: float,
    largest: int,
    decoding: dict[int, float],
    naive: dict[int, float],
) -> dict[str, Any]:
    """Return what was found but for trials and stages; rates are by number of threads."""
    analysed = largest * analyse_fps
    return {
        "options": {**asdict(plan), "analyse_fps": analyse_fps},
        "cameras_held": largest,
        "analysed_fps": analysed,
        "decoded_fps_by_threads": {n: round(fps, 1) for n, fps in decoding.items()},
        "share_of_decoding_alone": round(largest * FPS / max(decoding.values()), 3),
        "naive_fps_by_threads": {n: round(fps, 2) for n, fps in naive.items()},
        "analysed_over_naive": round(analysed / max(naive.values()), 2),
    }


def _public_loops(clip: Path, manifest: Path, plan: Plan) -> list[dict[str, Any]]:
    """Find how many cameras the loop of public parts holds, by how often it searches."""
    found = []
    for every_s in SEARCH_EVERY_S:
        _console.print(f"public parts, a search every {every_s:g} s:", highlight=False)
        loop = PublicLoop(clip, manifest, every_s, plan.trial_s, plan.start_up_s)

        def held(n: int, loop: PublicLoop = loop) -> bool:
            with _console.status(f"{n} cameras"):
                is_held = loop.held(n)
            _console.print(line(loop.trials[-1]), highlight=False)
            return is_held

        largest = largest_held(held, first=FIRST_N, limit=plan.largest_n)
        trials = [asdict(trial) for trial in loop.trials]
        loop_found = {"search_every_s": every_s, "cameras_held": largest}
        found.append(loop_found | {"tracks_a_camera": loop.tracks, "trials": trials})
    return found


class TooSlowError(click.ClickException):
    """The machine is so overloaded that a run says nothing."""


class TrialFolder:
    """Runs trials in a folder."""

    def __init__(
        self, folder: Path, manifest: Path, plan: Plan, *, auto: bool, clip: Path | None = None
    ) -> None:
        """Make the clip of one face, unless one is given."""
        self._folder = folder
        self._manifest = manifest
        self._plan = plan
        self._auto = auto
        self.messages = folder / "messages.jsonl"
        self.trials: list[Trial] = []
        self.clip = clip or folder / "clip.mp4"
        if clip is None:
            with _console.status("encoding the clip"):
                write_clip(self.clip, 60)

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
        times = [str(self._plan.trial_s), str(self._plan.start_up_s)]
        with _console.status(f"{n} cameras"):
            command = [sys.executable, "-m", "benchmarks.trial", str(self.write_config(n)), *times]
            run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
        lines = self.messages.read_text(encoding="utf-8").splitlines()
        messages = [json.loads(line) for line in lines]
        trial = _judged(n, messages, self._plan.start_up_s, json.loads(run.stdout))
        self.trials.append(trial)
        _console.print(line(trial), highlight=False)
        return trial.held


def _judged(
    n: int, messages: list[dict[str, Any]], start_up_s: float, usage: dict[str, float]
) -> Trial:
    """Judge a run by its messages."""
    begin = min(map(time_of, messages), default=0.0) + start_up_s
    messages = [message for message in messages if time_of(message) >= begin]
    spans = []
    with suppress(TooSlowError):
        spans = [span_of(messages, f"cam{i}") for i in range(1, n + 1)]
    behind_s = [span["seconds"] - span["frames_seen"] / FPS for span in spans]
    return judged(
        n,
        due=sum(span["frames_due"] for span in spans),
        dropped=sum(span["frames_dropped"] for span in spans),
        latencies_ms=[m["latency_ms"] for m in messages if m["event"]["type"] == "track.score"],
        behind_s=max(behind_s, default=math.inf),
        **usage,
    )


def span_of(
    messages: Sequence[dict[str, Any]],
    source: str,
    counters: Sequence[str] = ("frames_seen", "frames_due", "frames_dropped"),
    states: Sequence[str] = ("open",),
) -> dict[str, Any]:
    """Return by how much a source's counters grew between its first and last heartbeat.

    Raises:
        TooSlowError: there were no two.
    """
    beats = [
        message
        for message in messages
        if message["event"]["type"] == "source.status"
        and message["source"]["id"] == source
        and message["status"]["state"] in states
    ]
    if len(beats) < 2:
        raise TooSlowError(f"{source} sent no statuses; the machine is far too slow")
    first, last = beats[0], beats[-1]
    grown = {name: last["status"][name] - first["status"][name] for name in counters}
    return {"seconds": time_of(last) - time_of(first), **grown}


def time_of(message: dict[str, Any]) -> float:
    """Return when a frame reached us, or a source changed, Unix seconds."""
    return datetime.fromisoformat(message["ts"]).timestamp()


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
        "cameras held": f"{held} of {FPS} fps, {analyse_fps:g} analysed"
        + _cost(result["trials"], held),
        "CPU time would do for": f"{room:.1f}, if none of it were lost",
        "frames analysed": f"{result['analysed_fps']:g} fps",
        "naive loop": f"{_by_threads(naive)}; ours: {result['analysed_over_naive']:g} times",
        **_public_rows(result["public_loop"], held),
        "frames decoded": f"{held * FPS} fps",
        "decoding alone": f"{_by_threads(decoding)}; ours: {result['share_of_decoding_alone']:.0%}",
    }
    table = Table("", "", title="on this machine")
    for row in rows.items():
        table.add_row(*row)
    _console.print(table)


def _cost(trials: list[dict[str, Any]], held: int) -> str:
    """Return what a camera costs in the trial of the largest number that was held."""
    costs = [t["cpu_ms_per_camera_second"] for t in trials if t["n"] == held]
    return f"; {costs[0]:g} ms a camera and second" if costs else ""


def _public_rows(loops: list[dict[str, Any]] | str, held: int) -> dict[str, str]:
    if isinstance(loops, str):
        return {"public parts": loops}
    rows = {}
    for loop in loops:
        n, every_s = loop["cameras_held"], loop["search_every_s"]
        best = max(loop["trials"], key=lambda trial: (trial["held"], trial["n"]))
        rows[f"public parts, a search every {every_s:g} s"] = (
            f"{n} cameras; ours: {f'{held / n:.2g} times' if n else 'more'}; with {best['n']} "
            f"{best['cpu_ms_per_camera_second']:g} ms a camera and second"
        )
    return rows


def _by_threads(fps: dict[int, float]) -> str:
    return ", ".join(f"{rate:g} fps with {n} threads" for n, rate in fps.items())


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.cameras")
