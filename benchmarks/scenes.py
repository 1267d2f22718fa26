"""How many cameras are held by size of picture and number of faces, and what one costs.

`python -m benchmarks.scenes` does for each of nine scenes what `make bench` does for one, in
shorter trials: cameras held (`benchmarks.held`), processor time by stage, and the memory of one
camera more. Faces grow with the picture; several sway side by side, each in a cell of its own.
"""

from __future__ import annotations

import math
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from benchmarks.cameras import Plan, TrialFolder
from benchmarks.clips import Scene, write_clip
from benchmarks.held import most_between
from benchmarks.record import ROOT, circumstances, command_line, save
from benchmarks.stages import DECODE, stage_costs
from stream.config import ScoreConfig, load_config

PLAN: Final = Plan(trial_s=14, start_up_s=5, single_s=0, largest_n=64)
CLIP_S: Final = 30  # longer than a trial
STAGES_S: Final = 6.0  # of media time
SIZES: Final = ((1280, 720), (1920, 1080), (3840, 2160))
FACES: Final = (1, 4, 16)
SCENES: Final = [Scene(*size, faces) for size in SIZES for faces in FACES]
# A camera alone costs more than one of many, and no machine's processors are ever all at work.
_MORE_THAN_EVER: Final = 1.3
_STAGES: Final = {
    "decode": (DECODE,),
    "search": ("detect: search",),
    "refresh": ("detect: refresh",),
    "classify": ("classify",),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--only", metavar="WxHxFACES", multiple=True, help="This scene alone, as 1920x1080x4; several."
)
def main(only: tuple[str, ...]) -> None:
    """Fill the table, and write benchmarks/results/scenes-DATE.json."""
    scenes = [scene for scene in SCENES if not only or _name(scene) in only]
    if not scenes:
        raise click.UsageError(f"--only takes {', '.join(map(_name, SCENES))}")
    result: dict[str, Any] = {"command": command_line("benchmarks.scenes")} | circumstances()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="facewarden-bench-") as name:
        clips = {scene: Path(name) / f"{_name(scene)}.mp4" for scene in scenes}
        _encode(clips)
        for scene in scenes:
            rows.append(_row(scene, clips[scene], Path(name)))
            path = save("scenes", result | {"options": asdict(PLAN), "scenes": rows})
            clips[scene].unlink()
    _show(rows)
    click.echo(f"wrote {path.relative_to(ROOT)}")


def _name(scene: Scene) -> str:
    return f"{scene.width}x{scene.height}x{scene.faces}"


def _encode(clips: dict[Scene, Path]) -> None:
    """Write all clips, the largest first, on all processors."""
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        done = [
            pool.submit(write_clip, path, CLIP_S, scene=scene)
            for scene, path in reversed(clips.items())
        ]
        for each in done:
            each.result()


def _row(scene: Scene, clip: Path, folder: Path) -> dict[str, Any]:
    click.echo(f"{_name(scene)}:")
    load = round(os.getloadavg()[0], 1)
    manifest = ScoreConfig().engines[0].manifest.resolve()
    trials = TrialFolder(folder, manifest, PLAN, auto=False, clip=clip)
    held = _most_held(trials)
    by_n = {trial.n: trial for trial in trials.trials}
    alone, shown = by_n[1], by_n[max(held, 1)]
    many = shown if held > 1 else by_n[2]
    stages = stage_costs(clip, load_config(trials.write_config(1)), STAGES_S)
    return {
        "picture": f"{scene.width}x{scene.height}",
        "faces": scene.faces,
        "cameras_held": held,
        "load_before": load,
        "mib_a_camera": round((many.largest_rss_mib - alone.largest_rss_mib) / (many.n - 1)),
        "trial": asdict(shown),  # of the largest number that was held
        "stages": stages,
        "trials": [asdict(trial) for trial in trials.trials],
    }


def _most_held(trials: TrialFolder) -> int:
    """Halve the distance between what is held and what can't be, by what one camera costs."""
    good = int(trials.held(1))
    cost = trials.trials[0].cpu_ms_per_camera_second / 1000 / len(os.sched_getaffinity(0))
    bad = min(max(3, 2 + math.floor(_MORE_THAN_EVER / cost)), PLAN.largest_n) if good else 1
    if not good:
        trials.held(2)  # for its memory
    return most_between(trials.held, good, bad)


def _show(rows: list[dict[str, Any]]) -> None:
    """Print what docs/operate.md has: processor time in ms per camera and second."""
    heads = ("picture", "faces", "held", "p95 ms", "cores", "CPU ms", *_STAGES, "rest", "MiB")
    table = Table(*heads)
    for row in rows:
        trial = row["trial"]
        costs = {name: cost["ms_per_camera_second"] for name, cost in row["stages"].items()}
        named = [sum(costs.get(stage, 0.0) for stage in stages) for stages in _STAGES.values()]
        shown = (
            *(row["picture"], row["faces"], row["cameras_held"], trial["latency_p95_ms"]),
            *(trial["cores_used"], trial["cpu_ms_per_camera_second"]),
            *(round(cost, 1) for cost in (*named, sum(costs.values()) - sum(named))),
            row["mib_a_camera"],
        )
        table.add_row(*map(str, shown))
    Console(width=120).print(table)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.scenes")
