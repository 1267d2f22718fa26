"""How many cameras are held by size of picture and number of faces, and what memory one takes.

`python -m benchmarks.scenes` tries ever fewer or more cameras (`benchmarks.cameras`: what "held"
means, and a process for each trial, here of 14 s) of each scene. Faces grow with the picture; 16
of them sway side by side.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from benchmarks.cameras import Plan, TrialFolder
from benchmarks.clips import Scene
from benchmarks.record import ROOT, circumstances, command_line, save
from stream.config import ScoreConfig

PLAN: Final = Plan(trial_s=14, start_up_s=5, single_s=0, largest_n=64)
# With the number of cameras to begin with.
SCENES: Final = {
    Scene(1280, 720, 1): 10,
    Scene(1280, 720, 4): 6,
    Scene(1280, 720, 16): 3,
    Scene(1920, 1080, 1): 5,
    Scene(1920, 1080, 4): 4,
    Scene(1920, 1080, 16): 2,
    Scene(3840, 2160, 1): 1,
    Scene(3840, 2160, 16): 1,
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--scenes", type=int, default=len(SCENES), show_default=True, help="The first few.")
def main(scenes: int) -> None:
    """Fill the table, and write benchmarks/results/scenes-DATE.json."""
    result: dict[str, Any] = {"command": command_line("benchmarks.scenes")} | circumstances()
    rows = [_row(scene, first) for scene, first in list(SCENES.items())[:scenes]]
    table = Table("picture", "faces", "held", "p95 ms", "cores", "MiB", "MiB a camera more", "load")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=120).print(table)
    click.echo(f"wrote {save('scenes', result | {'scenes': rows}).relative_to(ROOT)}")


def _row(scene: Scene, first: int) -> dict[str, Any]:
    load = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory(prefix="facewarden-bench-") as name:
        manifest = ScoreConfig().engines[0].manifest.resolve()
        trials = TrialFolder(Path(name), manifest, PLAN, auto=False, scene=scene)
        held = _most_held(trials, first)
        trials.held(1)
        alone, best = trials.trials[-1], max(trials.trials, key=lambda trial: trial.n)
    shown = next((trial for trial in trials.trials if trial.n == held), alone)
    more = best.n - alone.n
    return {
        "picture": f"{scene.width}x{scene.height}",
        "faces": scene.faces,
        "held": held,
        "p95_ms": shown.latency_p95_ms,
        "cores": shown.cores_used,
        "mib": shown.largest_rss_mib,
        "mib_a_camera": more and round((best.largest_rss_mib - alone.largest_rss_mib) / more),
        "load": load,
    }


def _most_held(trials: TrialFolder, n: int) -> int:
    """Go up or down by one from a first guess, as long as that is where the limit lies."""
    step = 1 if trials.held(n) else -1
    while 0 < n + step <= PLAN.largest_n:
        n += step
        held = trials.held(n)
        if held is (step < 0):
            return n if held else n - 1
    return n if step > 0 else 0


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.scenes")
