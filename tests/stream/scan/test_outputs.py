"""Rows on their way out: to the journal, to Redis when it is back, into one result of several."""

from __future__ import annotations

import time
from typing import Any

import pytest
from pydantic import SecretStr

from stream.config import RedisSinkConfig
from stream.scan.child import ReadStatus
from stream.scan.journal import Journal
from stream.scan.outputs import Outputs
from stream.scan.report import write_report
from stream.scan.results import merge_journals, write_results
from stream.scan.rows import FileRow, FileVerdict


def a_row(path: str, at: str = "2026-11-29T10:00:00.000+00:00", **facts: Any) -> FileRow:
    """Return the row of a file that holds no face."""
    values = {name: None for name, field in FileRow.model_fields.items() if field.is_required()}
    counts = [name for name in values if name.startswith(("n_", "frames_"))]
    texts = {"kind": "video", "mode": "sample", "run_key": "k", "version": "1.0.0"}
    known = {"status": ReadStatus.OK, "verdict": FileVerdict.NO_FACE, "attempts": 1}
    numbers = {"seconds": 1.0, "fps": 1.0, "size": 5, "mtime_ns": 7, "models": (), "tracks": ()}
    given = {"path": path, "at": at} | facts
    return FileRow.model_validate(
        values | dict.fromkeys(counts, 0) | texts | known | numbers | given
    )


@pytest.mark.redis
def test_what_redis_missed_is_sent_again_while_the_scan_goes_on(redis_server, tmp_path):
    now = [0.0]
    redis = RedisSinkConfig(
        url=SecretStr(redis_server.url), spool=tmp_path / "spool", timeout_s=0.2
    )
    with (
        Journal(tmp_path / "journal" / "all.jsonl") as journal,
        Outputs(
            *(tmp_path, journal, None),
            sinks=[redis],
            is_whole=False,
            grows=False,
            clock=lambda: now[0],
        ) as outputs,
    ):
        redis_server.kill()
        outputs.add(a_row("clip.mp4", sha256="0" * 64))
        redis_server.restart()
        for _ in range(200):
            now[0] += 1.0
            outputs.refresh()
            if redis_server.client.xlen("facewarden:scans"):
                break
            time.sleep(0.05)
        assert redis_server.client.xlen("facewarden:scans") == 1


def test_a_file_is_known_as_finished_from_the_moment_that_it_is(tmp_path):
    with Journal(tmp_path / "all.jsonl") as journal:
        assert not journal.finished
        journal.append(a_row("clip.mp4"))
        assert journal.finished[b"clip.mp4"].size == 5
        journal.append(a_row("clip.mp4", size=6))
        assert journal.finished[b"clip.mp4"].size == 6


def test_merging_keeps_each_file_once_as_it_was_scanned_last(tmp_path, read_rows):
    later = "2026-11-29T10:00:01.000+00:00"
    folders = [tmp_path / "a", tmp_path / "b"]
    rows = [
        [a_row("x.mp4", later, size=2), a_row("y.mp4", size=1)],
        [a_row("x.mp4", size=1), a_row("y.mp4", later, size=2), a_row("z.mp4", size=1)],
    ]
    for folder, some in zip(folders, rows, strict=True):
        with Journal(folder / "journal" / "all.jsonl") as journal:
            for row in [*some, some[0]]:  # one of them twice: a scan that was cut off
                journal.append(row)
    assert write_results(merge_journals(folders), tmp_path) == 3
    found = [(row["path"], row["size"]) for row in read_rows(tmp_path)]
    assert sorted(found) == [("x.mp4", 2), ("y.mp4", 2), ("z.mp4", 1)]


def test_of_a_file_that_nothing_was_seen_of_the_report_does_not_say_that_it_has_no_face(tmp_path):
    with Journal(tmp_path / "all.jsonl") as journal:
        journal.append(a_row("good.mp4"))
        journal.append(a_row("bad.mp4", status=ReadStatus.UNREADABLE, reason="empty"))
    write_report([tmp_path / "all.jsonl"], tmp_path, None)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Verdicts: 1 no face." in page
    assert "2 files, 0.0 MB" in page
    assert ">not seen<" in page
