"""Starts and ends many short training runs with worker processes, and counts what did not end.

    python -m benchmarks.run_ends --runs 100 --ranks 2

Each run is a process (or two over gloo) that was forked from this one after its imports, so that a
hundred take minutes. It ends in one of these ways, in turn:

- `finish`: all steps are done.
- `fail`: the learning rate is absurd, the loss is no number.
- `term`: SIGTERM to the run's processes, at a random moment.
- `term_all`: SIGTERM to them and to the loader's workers, as SLURM and systemd send it.
- `kill`: SIGKILL to the run's processes; their workers have to end by themselves.

A run has hung if any of its processes, workers too, is left after `--patience-s`.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import psutil
import yaml

import train.__main__ as command
import train.fit.loop  # loads what the runs need before they are forked
import train.release.calibrate  # noqa: F401 - as above
from train.data.smoke_faces import write_smoke_faces
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Sequence

ENDINGS: Final = ("finish", "fail", "term", "term_all", "kill")
_MOMENTS_S: Final = 6.0  # within which the signal comes


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--runs", default=50, show_default=True, help="How many.")
@click.option("--ranks", default=1, show_default=True, help="Processes of each run.")
@click.option("--workers", default=2, show_default=True, help="Loader's processes of each rank.")
@click.option("--ending", "endings", multiple=True, type=click.Choice(ENDINGS), help="Only these.")
@click.option("--patience-s", default=60.0, show_default=True, help="After which a run has hung.")
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
def main(
    runs: int, ranks: int, workers: int, endings: tuple[str, ...], patience_s: float, seed: int
) -> None:
    """Count how runs end; exit with 1 if any hung."""
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    hung = 0
    home = Path(tempfile.mkdtemp())  # no context: the forked runs would leave it, too
    write_smoke_faces(home / "faces")
    for number in range(runs):
        ending = (endings or ENDINGS)[number % len(endings or ENDINGS)]
        run = home / f"run-{number}"
        processes = _started(_recipe(home, ending, workers), run, ranks)
        survivors, codes = _ended(processes, ending, rng.uniform(0, _MOMENTS_S), patience_s)
        hung += bool(survivors)
        counts[f"{ending}: {'hung' if survivors else ' '.join(codes)}"] += 1
        for left in survivors:
            click.echo(f"run {number} ({ending}): left {left}; see {run}.log", err=True)
        shutil.rmtree(run, ignore_errors=True)  # it may hold nothing yet
    if not hung:
        shutil.rmtree(home)
    for outcome, count in sorted(counts.items()):
        click.echo(f"{outcome:30}{count:6}")
    click.echo(f"{runs} runs of {ranks} ranks with {workers} workers each: {hung} hung")
    sys.exit(bool(hung))


def _recipe(home: Path, ending: str, workers: int) -> Path:
    recipe = {
        "method": "lgsc",
        "options": {
            "size_px": 32,
            "decoder_widths": [4] * 5,
            "decoder_norm": "batch",
            "score": "classifier",
        },
        "data": {"prepared": [str(home / "faces")], "bona_fide_per_step": 2, "attacks_per_step": 2},
        "loader": {"kind": "torch", "workers": workers},
        "optimiser": {"kind": "adamw", "learning_rate": 1e30 if ending == "fail" else 0.001},
        "steps": 8 if ending in ("finish", "fail") else 2000,
        "log_every": 4,
        "validate_every": 8,
    }
    path = home / f"{ending}.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def _started(recipe: Path, run: Path, ranks: int) -> list[psutil.Process]:
    """Fork the run's processes, each in a session of its own, its output in a file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            os.setsid()
            log = os.open(f"{run}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if ranks > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                os.environ |= {"WORLD_SIZE": str(ranks)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            _train(recipe, run)
        processes.append(psutil.Process(pid))
    return processes


def _train(recipe: Path, run: Path) -> None:
    """Be `python -m train RECIPE --out RUN`: the interpreter ends as it does there."""
    sys.argv = ["train", str(recipe), "--out", str(run)]
    try:
        command.main()
    except TrainError as error:
        command.log.error("%s", error)
        sys.exit(1)


def _ended(
    processes: Sequence[psutil.Process], ending: str, moment_s: float, patience_s: float
) -> tuple[list[str], list[str]]:
    """End a run; return the processes that are left, and the exit codes of its ranks."""
    family = {*processes}
    if ending not in ("finish", "fail"):
        time.sleep(moment_s)
        for process in processes:
            family |= _children(process)
        number = signal.SIGKILL if ending == "kill" else signal.SIGTERM
        for process in family if ending == "term_all" else processes:
            _send(process, number)
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and any(_runs(p) for p in family):
        for process in processes:
            family |= _children(process)
        time.sleep(0.1)
    left = [f"{p.pid} {'rank' if p in processes else 'worker'}" for p in family if _runs(p)]
    for process in family:
        _send(process, signal.SIGKILL)
    codes = [str(process.wait()) for process in processes]
    return left, codes


def _children(process: psutil.Process) -> set[psutil.Process]:
    try:
        return set(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # it was quicker
        process.send_signal(number)


if __name__ == "__main__":
    main()
