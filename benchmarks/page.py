"""What viewers of the live page cost the analysis.

`python -m benchmarks.page` watches two looped clips of two faces each at 5 frames a second, first
with nobody at the page, then with viewers who take the pictures of all cameras and all news, turn
by turn, so that what else the machine does falls on both. It prints the latencies of the scores,
the processor time that the program used a second, and the memory of the process that serves the
page. With `--workers 2` each clip has a worker, and that process is their supervisor.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np
import psutil
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.record import ROOT, circumstances, command_line, save
from demo.clip import write_clip
from stream.config import ScoreConfig

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET: Final = "known to the benchmark"
WARM_UP_S: Final = 5.0


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--viewers", type=int, default=4, show_default=True)
@click.option("--seconds", type=float, default=20, show_default=True, help="Of each turn.")
@click.option("--turns", type=int, default=2, show_default=True, help="Without and with viewers.")
@click.option("--workers", type=int, default=1, show_default=True, help="As of run_stream.py.")
def main(viewers: int, seconds: float, turns: int, workers: int) -> None:
    """Measure the analysis without and with viewers of the page."""
    manifest = ScoreConfig().engines[0].manifest.resolve()
    result: dict[str, Any] = {"command": command_line("benchmarks.page")} | circumstances(manifest)
    with tempfile.TemporaryDirectory(prefix="facewarden-bench-") as name, ExitStack() as ends:
        messages = Path(name) / "messages.jsonl"
        process, port = _start(Path(name), messages, workers, ends)
        time.sleep(WARM_UP_S)
        runs = [_turn(process, port, n, seconds, messages) for n in (0, viewers) * turns]
    result["summary"] = summary = [_summary(n, runs) for n in (0, viewers)]
    table = Table(*summary[0])
    for row in summary:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
    name = "page" if workers == 1 else "page-workers"
    click.echo(f"wrote {save(name, result).relative_to(ROOT)}")


def _start(
    folder: Path, messages: Path, workers: int, ends: ExitStack
) -> tuple[psutil.Process, int]:
    clip = folder / "clip.mp4"
    write_clip(clip, 10)
    looped = {"uri": str(clip), "loop": True, "realtime": True}
    config = {
        "sources": [{"id": f"cam{n}", **looped} for n in (1, 2)],
        "sinks": [{"kind": "jsonl", "path": str(messages)}],
        "fuse": {"publish_every_s": 0.2},
        "page": {"port": 0, "secret": SECRET},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "run_stream.py", "--config", str(folder / "config.yaml")]
    command += ["--workers", str(workers)]
    program = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    ends.callback(program.wait)
    ends.callback(program.terminate)
    assert program.stderr is not None
    for line in program.stderr:
        if "page: http://" in line:
            port = int(line.rsplit(":", 1)[1])
            break
    else:
        raise RuntimeError("run_stream.py ended before it served the page")
    threading.Thread(target=program.stderr.read, daemon=True).start()  # else it would wait for us
    return psutil.Process(program.pid), port


def _turn(
    process: psutil.Process, port: int, n: int, seconds: float, messages: Path
) -> dict[str, Any]:
    over = threading.Event()
    counts = [0] * n
    readers = [
        threading.Thread(target=work, args=(port, over, number, counts), daemon=True)
        for number in range(n)
        for work in (see, hear)
    ]
    for reader in readers:
        reader.start()
    time.sleep(1)
    known, used_s, own_s = messages.stat().st_size, _used_s(process), _own_s(process)
    began, pictures = time.monotonic(), sum(counts)
    time.sleep(seconds)
    elapsed_s = time.monotonic() - began
    used_s, own_s = _used_s(process) - used_s, _own_s(process) - own_s
    pictures = sum(counts) - pictures
    over.set()
    for reader in readers:
        reader.join()
    with messages.open("rb") as file:
        file.seek(known)
        said = [json.loads(line) for line in file.read().splitlines() if line.endswith(b"}")]
    return {
        "viewers": n,
        "latencies_ms": [m["latency_ms"] for m in said if m["event"]["type"] == "track.score"],
        "cpu_s_per_s": used_s / elapsed_s,
        "server_cpu_s_per_s": own_s / elapsed_s,
        "server_rss_mb": process.memory_info().rss / 1e6,
        "pictures_per_s": pictures / n / elapsed_s if n else 0.0,
    }


def _used_s(process: psutil.Process) -> float:
    """Return the processor time of a process and its workers, seconds."""
    return sum(map(_own_s, [process, *process.children(recursive=True)]))


def _own_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _ask(port: int, path: str, read: Callable[[http.client.HTTPResponse], None]) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", path, headers={"authorization": f"Bearer {SECRET}"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {answer.read().decode()}")
        read(answer)


def see(port: int, over: threading.Event, number: int, counts: list[int]) -> None:
    """Take the live stream as a page does; counts its pictures."""

    def read(answer: http.client.HTTPResponse) -> None:
        while not over.is_set():
            n_json, n_jpeg = np.frombuffer(answer.read(8), ">u4").tolist()
            answer.read(n_json + n_jpeg)
            counts[number] += n_jpeg > 0

    _ask(port, "/live", read)


def hear(port: int, over: threading.Event, _number: int, _counts: list[int]) -> None:
    """Take the news as a page does."""

    def read(answer: http.client.HTTPResponse) -> None:
        while not over.is_set():
            answer.readline()

    _ask(port, "/events", read)


def _summary(n: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    mine = [run for run in runs if run["viewers"] == n]
    latencies = np.concatenate([run["latencies_ms"] for run in mine])
    p50, p95 = np.percentile(latencies, [50, 95])
    return {
        "viewers": n,
        "scores": len(latencies),
        "p50_ms": round(float(p50), 1),
        "p95_ms": round(float(p95), 1),
        **{
            name: round(float(np.mean([run[name] for run in mine])), 3)
            for name in ("cpu_s_per_s", "server_cpu_s_per_s", "server_rss_mb")
        },
        "pictures_per_s": round(float(np.mean([run["pictures_per_s"] for run in mine])), 2),
    }


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.page")
