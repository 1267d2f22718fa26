"""What cameras cost that mostly show nobody, how many are held, and how soon a face is noticed.

`python -m benchmarks.idle` runs, with `decode.idle` off and on,

- cameras that show nobody: what one costs;
- ever more cameras that show a face for 6 s of each minute, one after the other, with a key frame
  every 2 s: how many this machine holds;
- RTSP cameras with key frames 1, 2 and 10 s apart, to which somebody comes 0, 1 and 3 s before one:
  how long from then until the first score.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np
import yaml

from benchmarks.cameras import MOST_DROPPED, SLOWEST_P95_MS
from benchmarks.clips import Scene, write_clip
from benchmarks.record import ROOT, circumstances, command_line, save
from benchmarks.rtsp_camera import RtspCamera

if TYPE_CHECKING:
    from collections.abc import Sequence

MODES: Final = ("off", "keyframes")
IN_TURN: Final = 6  # clips; of each minute's periods of 10 s, each shows a face in another one
COMES_AT_S: Final = 7.0  # of each 30 s, and stays until 20
VISITS_APART_S: Final = 30.0
MESSAGES: Final = "messages.jsonl"
KEY_FRAMES_S: Final = (1, 2, 10)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--cameras", type=int, multiple=True, default=(20, 40, 60), show_default=True)
@click.option("--seconds", type=float, default=75, show_default=True, help="Of each run.")
def main(cameras: tuple[int, ...], seconds: float) -> None:
    """Compare cameras that may sleep with cameras that are awake."""
    result: dict[str, Any] = {"command": command_line("benchmarks.idle")} | circumstances()
    with tempfile.TemporaryDirectory(prefix="facewarden-bench-") as name, ExitStack() as switched:
        folder = Path(name)
        result["nobody"] = _nobody(folder, seconds / 3)
        result["mostly_nobody"] = _mostly_nobody(folder, cameras, seconds)
        result["noticed"] = _noticed(folder, seconds, switched)
    click.echo(f"wrote {save('idle', result).relative_to(ROOT)}")


def _nobody(folder: Path, seconds: float) -> list[dict[str, Any]]:
    clip = folder / "nobody.mp4"
    write_clip(clip, 60, [10.0])
    return [_run(folder, [str(clip)] * 4, idle, seconds, after_s=1.0) for idle in MODES]


def _mostly_nobody(folder: Path, cameras: Sequence[int], seconds: float) -> list[dict[str, Any]]:
    clips = []
    for number in range(IN_TURN):
        clip = folder / f"mostly-{number}.mp4"
        write_clip(clip, 60, [4.0 if period == number else 10.0 for period in range(IN_TURN)])
        clips.append(str(clip))
    runs = []
    for n in cameras:
        uris = [clips[i % IN_TURN] for i in range(n)]
        runs.append(_run(folder, uris, "keyframes", seconds, after_s=5.0))
    return runs


def _noticed(folder: Path, seconds: float, switched: ExitStack) -> list[dict[str, Any]]:
    runs = []
    for apart_s in KEY_FRAMES_S:
        clip = folder / f"rtsp-{apart_s}.mp4"
        write_clip(clip, 60, [COMES_AT_S, 0.0, 10.0], Scene(key_frame_s=apart_s))
        url = switched.enter_context(RtspCamera(clip)).url
        for idle in MODES:
            row = _run(folder, [url] * 2, idle, seconds, after_s=2.0)
            said = map(json.loads, (folder / MESSAGES).read_text(encoding="utf-8").splitlines())
            runs.append({"key_frames_apart_s": apart_s} | row | _since_they_came([*said]))
            click.echo(json.dumps(runs[-1]))
    return runs


def _run(
    folder: Path, uris: Sequence[str], idle: str, seconds: float, *, after_s: float
) -> dict[str, Any]:
    """Run a camera for each address, and summarise what it says."""
    load = round(os.getloadavg()[0], 1)
    messages = folder / MESSAGES
    messages.unlink(missing_ok=True)
    camera = {"heartbeat_s": 1} | ({} if "://" in uris[0] else {"realtime": True, "loop": True})
    config = {
        "sources": [{"id": f"cam{i}", "uri": uri, **camera} for i, uri in enumerate(uris)],
        "decode": {"idle": idle, "idle_after_s": after_s},
        "fuse": {"publish_every_s": 0},
        "sinks": [{"kind": "jsonl", "path": str(messages)}],
    }
    path = folder / "idle.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.trial", str(path), str(seconds)]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    used = json.loads(run.stdout)
    said = list(map(json.loads, messages.read_text(encoding="utf-8").splitlines()))
    row = {"idle": idle, "cameras": len(uris), "load": load} | _summary(said)
    row["cpu_ms_per_camera_second"] = round(1000 * used["cores_used"] / len(uris))
    row["mib"] = round(used["largest_rss_mib"])
    click.echo(json.dumps(row))
    return row


def _summary(said: Sequence[dict[str, Any]]) -> dict[str, Any]:
    last = {m["source"]["id"]: m["status"] for m in said if m["event"]["type"] == "source.status"}
    due, dropped = (sum(s[k] for s in last.values()) for k in ("frames_due", "frames_dropped"))
    scores = _scores(said)
    late_ms = [message["latency_ms"] for message in scores]
    p95_ms = float(np.percentile(late_ms, 95)) if late_ms else np.inf
    return {
        "tracks": len({message["track"]["id"] for message in scores}),
        "frames_due": due,
        "frames_dropped": dropped,
        "latency_p95_ms": None if not late_ms else round(p95_ms),
        "held": bool(dropped <= MOST_DROPPED * due and p95_ms <= SLOWEST_P95_MS),
    }


def _scores(said: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [message for message in said if message["event"]["type"] == "track.score"]


def _since_they_came(said: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return how long after somebody came each visit had its first score, seconds, p50 and p95."""
    first: dict[tuple[str, float], float] = {}
    for message in _scores(said):
        visit, since_s = divmod(message["pts_s"] - COMES_AT_S, VISITS_APART_S)
        first.setdefault((message["source"]["id"], visit), since_s + message["latency_ms"] / 1000)
    if not first:
        return {}
    p50, p95 = np.percentile(list(first.values()), [50, 95])
    return {"visits": len(first), "to_first_score_s": [round(p50, 2), round(p95, 2)]}


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.idle")
