"""What a camera costs that shows nobody, and how soon one that slept has a score.

`python -m benchmarks.idle` runs cameras that show nobody, decoded in full and at their key frames
alone, then cameras that show a face for 3 s of every 10, from the middle of a group of pictures on:
two seconds of group, asleep after 1 s without a track.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import yaml

from benchmarks.clips import write_clip
from benchmarks.record import ROOT, circumstances, command_line, save

NOBODY_S: Final = 7.0  # of each 10; key frames are at whole multiples of 2


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--cameras", type=int, default=4, show_default=True)
@click.option("--seconds", type=float, default=25, show_default=True, help="Of each run.")
def main(cameras: int, seconds: float) -> None:
    """Compare idle cameras with awake ones."""
    result: dict[str, Any] = {"command": command_line("benchmarks.idle")} | circumstances()
    with tempfile.TemporaryDirectory(prefix="facewarden-bench-") as name:
        folder = Path(name)
        write_clip(folder / "nobody.mp4", 60, nobody_s=10)
        write_clip(folder / "guest.mp4", 60, nobody_s=NOBODY_S)
        runs = {
            f"{clip}, {idle}": _run(folder, clip, idle, cameras, seconds)
            for clip, idle in (("nobody", "off"), ("nobody", "keyframes"))
        }
        runs |= {"guest, " + i: _run(folder, "guest", i, 2, 60) for i in ("off", "keyframes")}
    click.echo(json.dumps(runs, indent=1))
    click.echo(f"wrote {save('idle', result | {'runs': runs}).relative_to(ROOT)}")


def _run(folder: Path, clip: str, idle: str, n: int, seconds: float) -> dict[str, Any]:
    load = round(os.getloadavg()[0], 1)
    messages = folder / "messages.jsonl"
    messages.unlink(missing_ok=True)
    camera = {"uri": str(folder / f"{clip}.mp4"), "realtime": True, "loop": True}
    config = {
        "sources": [{"id": f"cam{i}", **camera} for i in range(n)],
        "decode": {"idle": idle, "idle_after_s": 1.0},
        "sinks": [{"kind": "jsonl", "path": str(messages)}],
    }
    path = folder / "idle.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.trial", str(path), str(seconds)]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    cores = json.loads(run.stdout)["cores_used"]
    first: dict[str, float] = {}  # by track: from its first frame to its first score, seconds
    for line in messages.read_text(encoding="utf-8").splitlines():
        said = json.loads(line)
        if said["event"]["type"] == "track.score":
            since_s = said["track"]["age_s"] + said["latency_ms"] / 1000
            first.setdefault(said["track"]["id"], since_s)
    p50, p95 = np.percentile(list(first.values()), [50, 95]) if first else (np.nan, np.nan)
    return {
        "cameras": n,
        "load": load,
        "cpu_ms_per_camera_second": round(1000 * cores / n),
        "tracks": len(first),
        "first_frame_to_first_score_s": f"p50 {p50:.2f}, p95 {p95:.2f}",
    }


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.idle")
