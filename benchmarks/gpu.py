"""`make gpu`: what of docs/gpu-status.md works on this machine, row by row.

Runs the tests marked `gpu` and reads from the page which of them prove which row. A row whose
package is missing says so; the others are not held up.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree

import click
import torch

from benchmarks.record import RESULTS, ROOT
from stream.config import ScoreConfig
from trt_engines.backends import OnnxRuntimeConfig, TorchConfig, open_backend
from trt_engines.manifest import load_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from trt_engines.backends import Backend

STATUS: Final = ROOT / "docs" / "gpu-status.md"
_TESTS_S: Final = 600.0  # of the fifteen minutes; the rest is for measurements
_BATCHES: Final = (1, 8, 32)
_RUNS: Final = 50


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one test ended.

    Attributes:
        file: the test's, from the root.
        what: "passed", "failed", or why it was skipped.
    """

    file: str
    what: str


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the page.

    Attributes:
        cells: as written, from the feature to the tests.
        tests: files of the tests that prove it.
    """

    cells: tuple[str, ...]
    tests: tuple[str, ...]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--measure/--no-measure", default=True, help="Measure engines and cameras, too.")
def main(measure: bool) -> None:
    """Run what needs an NVIDIA GPU, and print the table of docs/gpu-status.md with what ran."""
    began = time.monotonic()
    if not torch.cuda.is_available():
        click.echo("torch sees no NVIDIA GPU here; what is missing:\n", err=True)
        subprocess.run([sys.executable, "-m", "trt_engines", "doctor"], cwd=ROOT, check=False)
        raise click.exceptions.Exit(1)
    device = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    head, rows = read_status(STATUS.read_text(encoding="utf-8"))
    outcomes = list(_run_tests())
    lines = [f"{device}, {datetime.now(UTC):%F}", "", *filled(head, rows, outcomes)]
    if measure:
        lines += ["", *_engine_costs()]
    text = "\n".join(lines) + "\n"
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"gpu-{datetime.now(UTC):%F}.md"
    path.write_text(text, encoding="utf-8")
    click.echo(text)
    click.echo(f"wrote {path.relative_to(ROOT)} after {time.monotonic() - began:.0f} s", err=True)
    if measure:
        _measure_cameras()
    if any(outcome.what == "failed" for outcome in outcomes):
        raise click.exceptions.Exit(1)


def read_status(page: str) -> tuple[tuple[str, ...], list[Row]]:
    """Return the table's head, and its rows; the last column names test files."""
    lines = [line for line in page.splitlines() if line.startswith("|")]
    head, _, *body = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    return head, [
        Row(cells, tuple(re.findall(r"`(tests/[\w/]+\.py)`", cells[-1]))) for cells in body
    ]


def filled(head: Sequence[str], rows: Sequence[Row], outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield the lines of the table, with what ran here in place of what never ran."""
    titles = (*head[:3], "ran on this GPU", head[-1])
    yield f"| {' | '.join(titles)} |"
    yield f"|{'---|' * len(titles)}"
    for row in rows:
        cells = (*row.cells[:3], _verdict(row.tests, outcomes), row.cells[-1])
        yield f"| {' | '.join(cells)} |"


def _verdict(tests: Sequence[str], outcomes: Sequence[Outcome]) -> str:
    ends = [outcome.what for outcome in outcomes if outcome.file in tests]
    ran = [what for what in ends if what in {"passed", "failed"}]
    reasons = sorted({what for what in ends if what not in {"passed", "failed"}})
    said = [f"{ran.count('passed')} of {len(ran)} passed"] if ran else []
    said += [f"{sum(what == reason for what in ends)} not run: {reason}" for reason in reasons]
    return "; ".join(said) or "no test"


def read_junit(xml: str) -> Iterator[Outcome]:
    """Yield the outcomes that pytest wrote."""
    for case in ElementTree.fromstring(xml).iter("testcase"):
        file = case.attrib["classname"].replace(".", "/") + ".py"
        skipped = case.find("skipped")
        if skipped is not None:
            yield Outcome(file, skipped.attrib["message"])
        else:
            failed = case.find("failure") is not None or case.find("error") is not None
            yield Outcome(file, "failed" if failed else "passed")


def _run_tests() -> Iterator[Outcome]:
    with tempfile.TemporaryDirectory(prefix="facewarden-gpu-") as folder:
        report = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={report}"]
        try:
            subprocess.run(command, cwd=ROOT, timeout=_TESTS_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise click.ClickException(f"the tests took more than {_TESTS_S:g} s") from error
        yield from read_junit(report.read_text(encoding="utf-8"))


def _engine_costs() -> Iterator[str]:
    """Yield a table: milliseconds per face on this GPU by torch, beside ONNX Runtime on its CPU."""
    columns = [f"batch {n}" for n in _BATCHES]
    yield f"| engine | where | {' | '.join(f'{c}, ms a face' for c in columns)} |"
    yield f"|{'---|' * (len(columns) + 2)}"
    for engine in ScoreConfig().engines:
        spec = load_manifest(engine.manifest).input
        for config, device in ((TorchConfig(device="cuda"), "cuda"), (OnnxRuntimeConfig(), "cpu")):
            backend = open_backend(engine.manifest, config)
            costs = []
            for n in _BATCHES:
                shape = (n, 3, spec.size_px, spec.size_px)
                images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
                costs.append(f"{_seconds(backend, images) / n * 1e3:.3f}")
            backend.close()
            yield f"| {engine.manifest.parent.name} | {device} | {' | '.join(costs)} |"


def _seconds(backend: Backend, images: Tensor) -> float:
    """Return the mean time of a run, after some that warm up."""
    for _ in range(5):
        backend.infer(images)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(_RUNS):
        backend.infer(images)
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / _RUNS


def _measure_cameras() -> None:
    command = [sys.executable, "-m", "benchmarks.cameras", "--quick", "--auto"]
    subprocess.run(command, cwd=ROOT, check=False)


if __name__ == "__main__":
    main()
