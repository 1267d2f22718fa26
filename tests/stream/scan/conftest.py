"""Scans as people run them, with the tiny engine.

- `scan`: runs `run_stream.py scan` and returns exit code, rows and log.
- `read_rows`: reads results.jsonl.
- `warm`, `forking`: start the program by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.warm_start import WarmStarts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# Children are forked from the program itself, not from one that has to import all of it again;
# `test_started_as_people_do` is the true way. What is read goes wrong if its name says so.
FORKING = """
import sys, multiprocessing, os, socket, time
import stream.scan.child, stream.scan.scanner
stream.scan.scanner.reading_context = lambda: multiprocessing.get_context("fork")
opens = stream.scan.child.open_decoder
def misbehaving(source, *more, **how):
    path = source.uri.get_secret_value()
    if "abort" in path:
        os.abort()
    if "hang" in path:
        time.sleep(1000)
    if "burn" in path:
        while True:
            pass
    if "greedy" in path:
        bytearray(2**40)
    if "phone" in path:
        socket.create_connection(("127.0.0.1", 9))
    if "write" in path:
        os.write(os.open(path, os.O_WRONLY | os.O_APPEND), b"more")
    return opens(source, *more, **how)
stream.scan.child.open_decoder = misbehaving
from stream.scan.command import main
main(sys.argv[1:])
"""


class Scanned(NamedTuple):
    code: int
    rows: dict[str, dict[str, Any]]  # by file name
    log: str


@pytest.fixture(scope="session")
def warm() -> Iterator[WarmStarts]:
    starts = WarmStarts(
        *("stream.scan.scanner", "stream.scan.report", "stream.analyse", "pyarrow.parquet"),
        *("stream.decode.sampled", "trt_engines.backends.onnx_session"),
    )
    yield starts
    starts.close()


def _read_rows(out: Path) -> list[dict[str, Any]]:
    text = (out / "results.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="session")
def read_rows() -> Callable[[Path], list[dict[str, Any]]]:
    return _read_rows


@pytest.fixture(scope="session")
def forking() -> str:
    """The program, for `warm`, that starts with its children's imports done."""
    return FORKING


@pytest.fixture
def scan(warm: WarmStarts, tiny_engine: Path, tmp_path: Path) -> Callable[..., Scanned]:
    """Return the function that scans with the tiny engine, into `tmp_path/out` if not told."""

    def run(
        *arguments: object,
        out: Path = tmp_path / "out",
        given: str = "",
        env: Mapping[str, str] | None = None,
    ) -> Scanned:
        options = ["--model", tiny_engine, "--out", out, "--readers", 2]
        with warm.start("-c", FORKING, *arguments, *options, cwd=tmp_path, env=env) as process:
            _, log = process.communicate(given)
        rows = {}
        if (out / "results.jsonl").exists():
            rows = {Path(row["path"]).name: row for row in _read_rows(out)}
        return Scanned(process.wait(), rows, log)

    return run
