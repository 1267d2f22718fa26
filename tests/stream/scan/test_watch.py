"""Scans that go on with what arrives."""

from __future__ import annotations

import json
import os
import signal
import time

from stream.scan.inputs import Item
from stream.scan.watch import Arrivals


def item(name: str, size: int = 1, mtime_ns: int = 1) -> Item:
    return Item(name.encode(), size, mtime_ns)


def test_a_file_is_ready_once_it_stood_still_and_again_when_it_changed():
    arrivals = Arrivals()
    assert arrivals.ready([item("a", 1)]) == []
    assert arrivals.ready([item("a", 2)]) == []  # still being written
    assert arrivals.ready([item("a", 2)]) == [item("a", 2)]
    assert arrivals.ready([item("a", 2)]) == []
    assert arrivals.ready([item("a", 2, mtime_ns=9)]) == []
    assert arrivals.ready([item("a", 2, mtime_ns=9)]) == [item("a", 2, mtime_ns=9)]


def test_a_renamed_file_is_new_and_one_that_went_and_came_back_is_ready_again():
    arrivals = Arrivals()
    arrivals.ready([item("a.part")])
    assert arrivals.ready([item("a.mp4")]) == []
    assert arrivals.ready([item("a.mp4")]) == [item("a.mp4")]
    assert arrivals.ready([]) == []
    assert arrivals.ready([item("a.mp4")]) == []
    assert arrivals.ready([item("a.mp4")]) == [item("a.mp4")]


def test_what_can_not_be_read_yet_is_passed_over():
    arrivals = Arrivals()
    missing = Item(b"a", 0, 0, "No such file or directory")
    assert arrivals.ready([missing]) == arrivals.ready([missing]) == []


def test_what_arrives_is_scanned_at_once_and_a_signal_ends_it_with_results(
    warm, forking, tiny_engine, clip, two_faces, read_rows, tmp_path
):
    archive, out = tmp_path / "archive", tmp_path / "out"
    archive.mkdir()
    (archive / "first.mp4").write_bytes(clip.read_bytes())
    lines = out / "results.jsonl"
    options = ["--out", out, "--model", tiny_engine, "--mode", "keyframes", "--watch", "0.2"]

    def wait_for(n: int) -> None:
        while not lines.exists() or lines.read_bytes().count(b"\n") < n:
            time.sleep(0.02)

    with warm.start("-c", forking, archive, *options) as process:
        wait_for(1)
        (archive / "growing.mp4").write_bytes(two_faces.read_bytes()[:5000])
        (archive / "gone.mp4").write_bytes(b"x")
        (archive / "gone.mp4").unlink()
        time.sleep(0.1)
        with (archive / "growing.mp4").open("ab") as file:
            file.write(two_faces.read_bytes()[5000:])
        os.rename(archive / "growing.mp4", archive / "grown.mp4")  # noqa: PTH104 - as mv does
        while "grown.mp4" not in lines.read_text():
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate()
    assert process.wait() == 0, log
    rows = {os.path.basename(row["path"]): row for row in read_rows(out)}  # noqa: PTH119
    assert {"first.mp4", "grown.mp4"} <= set(rows)
    assert "gone.mp4" not in rows
    assert rows["grown.mp4"]["status"] == "ok"
    assert rows["grown.mp4"]["size"] == two_faces.stat().st_size
    assert (out / "report.html").exists()
    journal = (out / "journal" / "all.jsonl").read_text().splitlines()
    assert len(journal) >= len(rows) == len({json.loads(line)["path"] for line in journal})
