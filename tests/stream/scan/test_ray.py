"""Scans by a real Ray cluster of two workers on this machine."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")

SECRET = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

HEAD = """
import sys, ray
head = ray.init(
    address="local", num_cpus=2, include_dashboard=False, object_store_memory=100_000_000,
    log_to_driver=False, _temp_dir=sys.argv[1], _node_ip_address="127.0.0.1",
)
print(head.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""

# What a file is called says what becomes of the worker that scans it.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from stream.scan import ray_engine

class Misbehaving(ray_engine.FileScanner):
    def scan(self, number, item, known, sender, attempt):
        name = os.path.basename(item.path)
        if name == b"kills.mp4" and attempt <= 2:
            with open("kills", "a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        if name == b"once.mp4" and attempt == 1 or name == b"slow.mp4":
            Path("pid.part").write_text(str(os.getpid()))
            Path("pid.part").rename("pid")
            time.sleep(1000)
        return super().scan(number, item, known, sender, attempt)

ray_engine.FileScanner = Misbehaving
from stream.scan.command import main
main(sys.argv[1:])
"""
TRUE_PROGRAM = "import sys; from stream.scan.command import main; main(sys.argv[1:])"


@pytest.fixture(scope="module")
def cluster():
    folder = tempfile.mkdtemp(prefix="ray-")  # short: sockets in it have long names
    env = {**os.environ, **SECRET, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", HEAD, folder],
        env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as head:  # fmt: skip
        assert head.stdout is not None
        address = head.stdout.readline().strip()
        assert address
        yield address
        head.communicate("")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def start(cluster, warm, tiny_engine, tmp_path):
    """Return the function that starts a scan by the cluster, into `tmp_path/out`."""

    def started(code, *arguments):
        options = ["--engine", "ray", "--ray-address", cluster, "--model", tiny_engine]
        options += ["--out", "out"]
        return warm.start("-c", code, *arguments, *options, cwd=tmp_path, env=SECRET)

    return started


def awaited(path: Path) -> int:
    """Return the process that wrote its number there, once it has."""
    while not path.exists():
        time.sleep(0.05)
    return int(path.read_text())


def by_name(rows):
    return {Path(row["path"]).name: row for row in rows}


def without(row, *names):
    return {name: value for name, value in row.items() if name not in {"at", *names}}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_killed_worker_and_a_file_that_kills_its_workers_lose_and_repeat_no_row(
    scan, start, two_faces, clip, tmp_path, read_rows
):
    archive = tmp_path / "archive"
    archive.mkdir()
    for name in ("bars.mp4", "kills.mp4", "once.mp4", "\udcff\n.mp4"):
        (archive / name).hardlink_to(clip)
    (archive / "faces.mp4").hardlink_to(two_faces)
    (archive / "empty.mkv").touch()
    (archive / "touched.mp4").write_bytes(clip.read_bytes())

    with start(PROGRAM, "archive", "--mode", "full", "--fail-on", "attack") as process:
        os.kill(awaited(tmp_path / "pid"), signal.SIGKILL)
        _, log = process.communicate()
    assert process.wait() == 10, log
    rows = read_rows(tmp_path / "out")
    journal = (tmp_path / "out" / "journal" / "all.jsonl").read_text(encoding="utf-8")
    assert len(journal.splitlines()) == len(rows) == 7, log
    assert (tmp_path / "kills").read_text() == "xx"
    found = by_name(rows)
    killed, once = found.pop("kills.mp4"), found["once.mp4"]
    assert (killed["status"], killed["attempts"]) == ("crashed", 2)
    assert "worker" in killed["reason"]
    assert (once["status"], once["attempts"]) == ("ok", 2)

    locally = scan("archive", "--mode", "full", out=tmp_path / "local")
    same = {name: without(row, "attempts") for name, row in locally.rows.items()}
    del same["kills.mp4"]
    assert {name: without(row, "attempts") for name, row in found.items()} == same
    crops = {path.name: path.read_bytes() for path in (tmp_path / "local" / "crops").iterdir()}
    assert crops
    sent = (tmp_path / "out" / "crops").iterdir()
    assert {path.name: path.read_bytes() for path in sent} == crops
    assert "data:image" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")

    os.utime(archive / "touched.mp4", (1, 1))
    with start(TRUE_PROGRAM, "archive", "--mode", "full") as process:
        _, log = process.communicate()
    assert process.wait() == 0, log
    assert "0 files scanned, 7 known" in log


@pytest.mark.slow
def test_a_signal_ends_the_scan_with_the_results_that_are_there(start, clip, tmp_path, read_rows):
    for name in ("done.mp4", "slow.mp4"):
        (tmp_path / name).hardlink_to(clip)
    options = ["--mode", "keyframes", "--readers", 1]
    with start(PROGRAM, "done.mp4", "slow.mp4", *options) as process:
        worker = awaited(tmp_path / "pid")
        journal = tmp_path / "out" / "journal" / "all.jsonl"
        while not journal.read_bytes():
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate()
    assert process.wait() == 1, log
    assert "run again to go on" in log
    assert [row["path"] for row in read_rows(tmp_path / "out")] == ["done.mp4"]
    while Path(f"/proc/{worker}").exists():
        time.sleep(0.05)


def test_without_ray_it_says_what_to_install(warm, clip, tiny_engine, tmp_path):
    code = f"import sys; sys.modules['ray'] = None\n{TRUE_PROGRAM}"
    options = ["--engine", "ray", "--model", tiny_engine, "--out", "out", "--log-format", "json"]
    with warm.start("-c", code, clip, *options, cwd=tmp_path) as process:
        _, log = process.communicate()
    assert process.wait() == 2
    assert "pip install 'facewarden[ray]'" in json.loads(log.splitlines()[-1])["message"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--ray-address", "head:6379"], "--ray-address goes with --engine ray"),
        (["--engine", "ray", "--watch", "5"], "--watch goes with --engine local"),
        (["--engine", "ray", "--ray-address", "ray://head:10001"], "expected HOST:PORT"),
    ],
)
def test_a_wrong_option_gets_one_line_and_code_2(scan, clip, options, complaint):
    done = scan(clip, *options)
    assert done.code == 2
    assert complaint in done.log.splitlines()[-1]
