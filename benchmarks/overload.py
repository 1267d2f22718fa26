"""What becomes of the analysis beyond capacity: the same cameras, and 1.5 and 2 times as many.

`python -m benchmarks.overload --cameras 8` runs so many cameras (`benchmarks.cameras`: clip and
options, a process for each run), then more, and prints what is analysed a second, how late, and
what was left out for which reason. Ratios within one run say more than the numbers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.cameras import Plan, TrialFolder, span_of, time_of
from benchmarks.record import ROOT, circumstances, command_line, save
from stream.config import ScoreConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

START_UP_S: Final = 8.0
TIMES: Final = (1.0, 1.5, 2.0)
REASONS: Final = ("frames_overtaken", "frames_late", "frames_undecoded")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--cameras", type=int, default=8, show_default=True, help="Held by this machine.")
@click.option("--seconds", type=float, default=30, show_default=True, help="Of each run.")
def main(cameras: int, seconds: float) -> None:
    """Overload the machine, and say what it still does."""
    result: dict[str, Any] = {"command": command_line("benchmarks.overload")} | circumstances()
    table = Table("cameras", "load", "due/s", "analysed/s", "p50, p95 ms", *REASONS)
    with tempfile.TemporaryDirectory(prefix="facewarden-bench-") as name:
        manifest = ScoreConfig().engines[0].manifest.resolve()
        trials = TrialFolder(Path(name), manifest, Plan(seconds, START_UP_S, 0, 0), auto=False)
        runs = [_run(trials, round(cameras * times), seconds) for times in TIMES]
    for run in runs:
        table.add_row(*(str(value) for value in run.values()))
    Console().print(table)
    result |= {"runs": runs}
    click.echo(f"wrote {save('overload', result).relative_to(ROOT)}")


def _run(trials: TrialFolder, n: int, seconds: float) -> dict[str, Any]:
    load = round(os.getloadavg()[0], 1)
    trials.messages.unlink(missing_ok=True)
    arguments = [
        "-m",
        "benchmarks.trial",
        str(trials.write_config(n)),
        str(seconds),
        str(START_UP_S),
    ]
    subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    lines = trials.messages.read_text(encoding="utf-8").splitlines()
    return _summary(n, load, [json.loads(line) for line in lines])


def _summary(n: int, load: float, messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    begin = min(map(time_of, messages)) + START_UP_S
    messages = [message for message in messages if time_of(message) >= begin]
    latencies = [m["latency_ms"] for m in messages if m["event"]["type"] == "track.score"]
    p50, p95 = np.percentile(latencies, [50, 95]) if latencies else (np.inf, np.inf)
    counted = ("frames_due", "frames_dropped", *REASONS)
    spans = [span_of(messages, f"cam{i}", counted) for i in range(1, n + 1)]
    a_second = {name: sum(s[name] / s["seconds"] for s in spans) for name in counted}
    return {
        "cameras": n,
        "load": load,
        "due_a_second": round(a_second["frames_due"], 1),
        "analysed_a_second": round(a_second["frames_due"] - a_second["frames_dropped"], 1),
        "latency_ms": f"{p50:.0f}, {p95:.0f}",
        **{name: round(a_second[name], 1) for name in REASONS},
    }


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.overload")
