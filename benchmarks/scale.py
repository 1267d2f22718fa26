"""What Ray costs beside the local pool, and what becomes of a scan whose worker is killed.

    python -m benchmarks.scale [--clips 60]

Scans the same archive of small clips (320x180, 50 pictures) with `--engine local` and
`--engine ray`, two files at a time, Ray with a cluster of its own on this machine; then once more
with Ray, and kills one of the two workers in the middle.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click
import psutil

from benchmarks.record import ROOT, circumstances, command_line, save
from benchmarks.scan import _cpu_s, _encode, _picture

SIZE: Final = (320, 180)
PICTURES: Final = 50
_POLL_S: Final = 0.1


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--clips", default=60, show_default=True, help="Files in the archive.")
def main(clips: int) -> None:
    """Measure, and write benchmarks/results/scale-DATE.json."""
    result: dict[str, Any] = {
        "command": command_line("benchmarks.scale"),
        "circumstances": circumstances(None),
    }
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        archive = here / "archive"
        archive.mkdir()
        pictures = (_picture(i, still=True, size=SIZE) for i in range(PICTURES))
        _encode(here / "clip.mp4", pictures, SIZE)
        for number in range(clips):
            (archive / f"{number:05}.mp4").hardlink_to(here / "clip.mp4")
        result["runs"] = [
            _scan(archive, here / f"{number}", engine)
            for number, engine in enumerate(("local", "ray"))
        ]
        result["killed"] = _scan(archive, here / "killed", "ray", kill_after=clips // 2)
    print(json.dumps([*result["runs"], result["killed"]], indent=1))
    print(save("scale", result))


def _scan(
    archive: Path, out: Path, engine: str, *, kill_after: int | None = None
) -> dict[str, Any]:
    """Scan; return the cost, and the time from the first finished file to the last."""
    load = os.getloadavg()[0]
    command = [sys.executable, str(ROOT / "run_stream.py"), "scan", str(archive), "--no-crops"]
    options = ["--engine", engine, "--readers", "2", "--out", str(out)]
    began = time.monotonic()
    process = subprocess.Popen([*command, *options], cwd=ROOT, stdout=subprocess.DEVNULL)
    watched = psutil.Process(process.pid)
    journal = out / "journal" / "all.jsonl"
    cpu_s = 0.0
    killed = None
    while process.poll() is None:
        try:
            cpu_s = max(cpu_s, _cpu_s(watched))
            if kill_after is not None and killed is None and _lines(journal) >= kill_after:
                killed = _lines(journal) if _kill_a_worker(watched) else None
        except psutil.Error:
            pass
        time.sleep(_POLL_S)
    wall_s = time.monotonic() - began
    rows = [json.loads(line) for line in journal.read_text("utf-8").splitlines()]
    times = sorted(datetime.fromisoformat(row["at"]).timestamp() for row in rows)
    return {
        "engine": engine,
        "load_before": round(load, 1),
        "exit_code": process.returncode,
        "rows": len(rows),
        "paths": len({row["path"] for row in rows}),
        "statuses": sorted({row["status"] for row in rows}),
        "second_attempts": sum(row["attempts"] == 2 for row in rows),
        "wall_s": round(wall_s, 1),
        "cpu_s": round(cpu_s, 1),
        "first_to_last_s": round(times[-1] - times[0], 2),
        "s_per_file": round((times[-1] - times[0]) / (len(rows) - 1), 3),
        **({} if kill_after is None else {"killed_after": killed}),
    }


def _lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def _kill_a_worker(driver: psutil.Process) -> bool:
    """Kill one of the actors that scan; return whether one was there."""
    for each in driver.children(recursive=True):
        if "MapWorker" in " ".join(each.cmdline()):
            each.kill()
            return True
    return False


if __name__ == "__main__":
    main()
