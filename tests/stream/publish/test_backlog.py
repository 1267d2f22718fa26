from __future__ import annotations

import json
import tempfile

import pytest

from stream.messages import Lane
from stream.publish.backlog import Backlog

NOTHING = {Lane.ALERTS: 0, Lane.FEEDS: 0, Lane.SOURCES: 0, Lane.TRACKS: 0}


def alert(n, track=None):
    return json.dumps({"track": {"id": f"track {n if track is None else track}"}, "n": n})


def event(n, source=None):
    return json.dumps({"source": {"id": f"source {n if source is None else source}"}, "n": n})


score = alert


def in_order(batch):
    return {lane: [json.loads(m)["n"] for m in batch.get(lane, [])] for lane in NOTHING}


def everything(backlog):
    """Take all that waits, as delivering it would."""
    taken = {lane: [] for lane in NOTHING}
    while backlog:
        batch = backlog.head(500)
        for lane, numbers in in_order(batch).items():
            taken[lane] += numbers
            backlog.drop(lane, len(numbers))
    return taken


@pytest.fixture
def open_backlog(tmp_path):
    opened = []

    def open_one(folder=tmp_path / "spool", *, alerts=2, sources=2, memory=3):
        limits = {Lane.ALERTS: alerts, Lane.SOURCES: sources}
        opened.append(Backlog(folder, spool_limits=limits, memory_limit=memory))
        return opened[-1]

    yield open_one
    for backlog in opened:
        backlog.close()


@pytest.fixture
def backlog(open_backlog):
    return open_backlog()


@pytest.mark.parametrize("keep", [False, True], ids=["in memory", "on disk"])
def test_alerts_leave_before_feed_alerts_before_source_events_before_scores_each_in_order(
    open_backlog, keep
):
    backlog = open_backlog(memory=10)
    for n in range(3):
        backlog.add(Lane.TRACKS, score(n))
        backlog.add(Lane.SOURCES, event(n))
        backlog.add(Lane.ALERTS, alert(n))
    backlog.add(Lane.FEEDS, event(7))
    if keep:
        backlog.keep()
    assert in_order(backlog.head(5)) == {
        Lane.ALERTS: [0, 1, 2],
        Lane.FEEDS: [7],
        Lane.SOURCES: [0],
        Lane.TRACKS: [],
    }
    backlog.drop(Lane.ALERTS, 2)
    backlog.drop(Lane.FEEDS, 1)
    backlog.drop(Lane.SOURCES, 1)
    assert in_order(backlog.head(4)) == {
        Lane.ALERTS: [2],
        Lane.FEEDS: [],
        Lane.SOURCES: [1, 2],
        Lane.TRACKS: [0],
    }


def test_two_messages_about_one_track_or_source_never_leave_together(backlog):
    for n, track in enumerate("aba"):
        backlog.add(Lane.ALERTS, alert(n, track))
        backlog.add(Lane.SOURCES, event(n, track))
    batches = []
    while backlog:
        batch = in_order(backlog.head(500))
        batches.append((batch[Lane.ALERTS], batch[Lane.SOURCES]))
        for lane, numbers in batch.items():
            backlog.drop(lane, len(numbers))
    assert batches == [([0, 1], []), ([2], [0, 1]), ([], [2])]


def test_source_and_its_tracks_may_leave_together(backlog):
    backlog.add(Lane.ALERTS, json.dumps({"track": {"id": "t"}, "source": {"id": "cam"}, "n": 1}))
    backlog.add(Lane.SOURCES, event(1, "cam"))
    backlog.add(Lane.TRACKS, score(1, "t"))
    assert in_order(backlog.head(500)) == {
        Lane.ALERTS: [1],
        Lane.FEEDS: [],
        Lane.SOURCES: [1],
        Lane.TRACKS: [1],
    }


@pytest.mark.parametrize("line", ["{}", '{"track": 1}', '{"track": {"id": [1]}}'])
def test_spooled_line_that_is_no_message_of_ours_leaves_in_its_turn(open_backlog, tmp_path, line):
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "alerts.jsonl").write_text(f"{line}\n{line}\n{alert(1)}\n")
    backlog = open_backlog()
    sent = []
    while backlog:
        batch = backlog.head(500)[Lane.ALERTS]
        sent += batch
        backlog.drop(Lane.ALERTS, len(batch))
    assert sent == [line, line, alert(1)]


def test_oldest_scores_are_dropped_and_no_alert_or_event_when_memory_is_full(backlog):
    for n in range(3):
        backlog.add(Lane.TRACKS, score(n))
        backlog.add(Lane.SOURCES, event(n))
        backlog.add(Lane.ALERTS, alert(n))
    backlog.keep()  # two alerts and two events on disk, three messages in memory
    assert everything(backlog) == {
        Lane.ALERTS: [0, 1, 2],
        Lane.FEEDS: [],
        Lane.SOURCES: [0, 1, 2],
        Lane.TRACKS: [2],
    }
    assert backlog.lost == NOTHING | {Lane.TRACKS: 2}


def test_oldest_alerts_in_memory_are_dropped_when_nothing_else_is_left(backlog):
    for n in range(7):
        backlog.add(Lane.ALERTS, alert(n))
    backlog.keep()
    assert everything(backlog)[Lane.ALERTS] == [0, 1, 4, 5, 6]
    assert backlog.lost == NOTHING | {Lane.ALERTS: 2}


@pytest.mark.parametrize("disk", ["works", "full", "none"])
def test_flood_of_source_events_never_pushes_out_an_alert(
    open_backlog, disk, files_no_larger_than, monkeypatch, tmp_path
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    backlog = open_backlog(None) if disk == "none" else open_backlog()
    keep = backlog.keep
    with files_no_larger_than(0 if disk == "full" else 10**6):
        for n in range(3):
            backlog.add(Lane.ALERTS, alert(n))
            for i in range(100):
                backlog.add(Lane.SOURCES, event(100 * n + i))
            keep()
    assert backlog.lost[Lane.ALERTS] == 0
    taken = everything(backlog)
    assert taken[Lane.ALERTS] == [0, 1, 2]
    assert backlog.lost[Lane.SOURCES] == 300 - len(taken[Lane.SOURCES])


def test_alerts_wait_in_memory_and_in_order_while_the_disk_is_full(
    backlog, caplog, files_no_larger_than
):
    backlog.add(Lane.ALERTS, alert(0))
    with files_no_larger_than(0):
        backlog.keep()
        backlog.keep()
    assert caplog.text.count("alerts wait in memory: ") == 1
    assert "File too large" in caplog.text
    backlog.add(Lane.ALERTS, alert(1))
    backlog.keep()
    assert "2 alerts are kept" in backlog.account()
    assert everything(backlog)[Lane.ALERTS] == [0, 1]


def test_alerts_wait_in_memory_where_there_is_no_place_for_files_and_the_option_is_named(
    open_backlog, caplog, monkeypatch, tmp_path
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    backlog = open_backlog(None)
    backlog.add(Lane.ALERTS, alert(0))
    backlog.keep()
    assert "name one that lasts with this sink's `spool`" in caplog.text
    assert everything(backlog)[Lane.ALERTS] == [0]


def test_account_says_what_is_kept_and_what_is_lost(backlog, tmp_path):
    for n in range(4):
        backlog.add(Lane.TRACKS, score(n))
    backlog.add(Lane.ALERTS, alert(0))
    backlog.add(Lane.SOURCES, event(0))
    backlog.keep()
    backlog.abandon()
    kept, loss = backlog.account().rsplit("; ", 1)
    assert kept.startswith(f"1 alerts and 1 source events are kept in {tmp_path / 'spool'}: ")
    assert loss == "0 alerts, 0 feed alerts, 0 source events and 4 scores are lost"
