"""Scans by real Ray clusters on this machine: one of two workers, and one of the scan's own."""

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
"""
STARTED = "from stream.scan.command import main; main(sys.argv[1:])"


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ray")


@pytest.fixture(scope="module")
def start(warm, tiny_engine, folder):
    """Return the function that starts a scan of `folder/archive`."""

    def started(*arguments, env=None):
        options = ["--engine", "ray", "--model", tiny_engine, "--mode", "full", "--out", "out"]
        code = PROGRAM + STARTED
        return warm.start("-c", code, "archive", *options, *arguments, cwd=folder, env=env)

    return started


@pytest.fixture(scope="module")
def scanned(cluster, start, folder, two_faces, clip):
    """Scan with a file that kills its workers, and one whose worker is killed once."""
    archive = folder / "archive"
    archive.mkdir()
    for name in ("bars.mp4", "kills.mp4", "once.mp4", "\udcff\n.mp4"):
        (archive / name).hardlink_to(clip)
    (archive / "again.mp4").write_bytes(clip.read_bytes())
    (archive / "empty.mkv").touch()
    (archive / "faces.mp4").hardlink_to(two_faces)
    options = ["--ray-address", cluster, "--fail-on", "attack"]
    with start(*options, env=SECRET) as process:
        os.kill(awaited(folder / "pid"), signal.SIGKILL)
        _, log = process.communicate()
    assert process.wait() == 10, log
    (folder / "pid").unlink()
    return folder / "out"


def awaited(path: Path) -> int:
    """Return the process that wrote its number there, once it has."""
    while not path.exists():
        time.sleep(0.05)
    return int(path.read_text())


def by_name(rows):
    return {Path(row["path"]).name: row for row in rows}


def judged(row):
    return {name: value for name, value in row.items() if name not in {"at", "attempts"}}


@pytest.mark.cluster
@pytest.mark.timeout(400)
def test_a_killed_worker_and_a_file_that_kills_its_workers_lose_and_repeat_no_row(
    scanned, read_rows
):
    rows = by_name(read_rows(scanned))
    journal = (scanned / "journal" / "all.jsonl").read_text(encoding="utf-8")
    assert len(journal.splitlines()) == len(rows) == 7
    killed, once = rows["kills.mp4"], rows["once.mp4"]
    assert (killed["status"], killed["attempts"]) == ("crashed", 2)
    assert killed["reason"] == "the worker that scanned it died, 2 times"
    assert (scanned.parent / "kills").read_text() == "xx"
    assert (once["status"], once["attempts"]) == ("ok", 2)


@pytest.mark.cluster
@pytest.mark.timeout(400)
def test_other_rows_pictures_and_report_are_those_of_the_local_engine(
    scanned, scan, folder, read_rows, tmp_path
):
    (tmp_path / "archive").symlink_to(folder / "archive")
    locally = scan("archive/", "--mode", "full").rows
    rows = by_name(read_rows(scanned))
    del locally["kills.mp4"], rows["kills.mp4"]
    assert {n: judged(r) for n, r in rows.items()} == {n: judged(r) for n, r in locally.items()}
    crops = {path.name: path.read_bytes() for path in (tmp_path / "out" / "crops").iterdir()}
    assert crops
    assert {path.name: path.read_bytes() for path in (scanned / "crops").iterdir()} == crops
    assert "data:image" in (scanned / "report.html").read_text(encoding="utf-8")


@pytest.mark.cluster
@pytest.mark.timeout(400)
def test_it_goes_on_where_it_was_and_a_signal_ends_it_with_what_is_finished(
    scanned, start, folder, clip, read_rows
):
    os.utime(folder / "archive" / "again.mp4", (1, 1))
    for name in ("early.mp4", "slow.mp4"):
        (folder / "archive" / name).hardlink_to(clip)
    home = {"HOME": str(folder), "PYTHONPATH": str(ROOT)}
    with start("--readers", 1, env=home) as process:  # a cluster of its own
        worker = awaited(folder / "pid")
        while len((scanned / "journal" / "all.jsonl").read_bytes().splitlines()) < 8:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate()
    assert process.wait() == 1, log
    assert "1 files scanned, 7 known" in log
    rows = read_rows(scanned)
    assert len(rows) == 8
    assert "early.mp4" in by_name(rows)
    while Path(f"/proc/{worker}").exists():
        time.sleep(0.05)
    assert not (folder / ".ray").exists()


def test_without_ray_it_says_what_to_install(warm, clip, tiny_engine, tmp_path):
    code = "import sys; sys.modules['ray'] = None\n" + STARTED
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
