"""Redis goes away, in each way it can, and comes back. A real server every time."""

from __future__ import annotations

import json
import logging
import os
import signal
import socketserver
import tempfile
import threading
import time
from itertools import pairwise

import pytest

from stream.config import RedisSinkConfig
from stream.errors import SinkError
from stream.messages import Lane
from stream.publish.redis_stream import RedisSink

pytestmark = pytest.mark.redis


class Clock:
    """Stands still unless it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def open_sink(redis_server, tmp_path, clock):
    def open_one(**options):
        options = {
            "url": redis_server.url,
            "spool": tmp_path / "spool",
            "timeout_s": 0.5,
            **options,
        }
        return RedisSink(RedisSinkConfig(**options), run="0a1b2c3d", heartbeat_s=5, clock=clock)

    return open_one


def event_ids(client, lane):
    entries = client.xrange(f"facewarden:{lane}")
    return [json.loads(fields[b"metadata"])["event"]["id"] for _, fields in entries]


def lost(sink):
    return dict(sink.backlog.lost)


NOTHING = {Lane.ALERTS: 0, Lane.FEEDS: 0, Lane.SOURCES: 0, Lane.TRACKS: 0}


def verdicts(numbers):
    return [f"cam1-0a1b2c3d-0-1:verdict:{n}" for n in numbers]


def scores(numbers):
    return [f"cam1-0a1b2c3d-0-1:score:{n}" for n in numbers]


def test_nothing_is_lost_when_the_server_is_killed_under_load_and_comes_back(
    open_sink, redis_server, messages, clock
):
    sink = open_sink()
    before: tuple[list[str], list[str]] = ([], [])
    for step in range(300):
        clock.now += 0.05
        if step == 100:
            before = (
                event_ids(redis_server.client, "alerts"),
                event_ids(redis_server.client, "tracks"),
            )
            redis_server.kill()  # what it held is gone: its own persistence is off
        if step == 200:
            redis_server.restart()
        sink.publish([messages.score(frame=step), messages.alert(ordinal=step), messages.status()])
    sink.close()
    alerts = before[0] + event_ids(redis_server.client, "alerts")
    tracks = before[1] + event_ids(redis_server.client, "tracks")
    assert list(dict.fromkeys(alerts)) == verdicts(range(300))
    assert list(dict.fromkeys(tracks)) == scores(range(300))
    assert redis_server.client.exists("facewarden:status:cam1")
    assert (sink.outages, lost(sink)) == (1, NOTHING)


def test_alerts_wait_on_disk_while_the_server_is_away(open_sink, redis_server, messages, tmp_path):
    sink = open_sink()
    redis_server.kill()
    sink.publish([messages.alert(ordinal=1)])
    sink.publish([messages.alert(ordinal=2)])
    kept = (tmp_path / "spool" / "alerts.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"]["id"] for line in kept] == verdicts([1, 2])
    with pytest.raises(SinkError):
        sink.close()


def test_oldest_scores_beyond_the_limit_are_dropped_counted_and_said(
    open_sink, redis_server, messages, clock, caplog
):
    sink = open_sink(queue_messages=10)
    redis_server.kill()
    for n in range(25):
        sink.publish([messages.score(frame=n), messages.alert(ordinal=n)])
    assert lost(sink) == NOTHING | {Lane.TRACKS: 15}
    redis_server.restart()
    clock.now += 60
    sink.publish([])
    assert event_ids(redis_server.client, "alerts") == verdicts(range(25))
    assert event_ids(redis_server.client, "tracks") == scores(range(15, 25))
    assert (
        "back after 60.0 s: delivered 25 alerts, 0 feed alerts, 0 source events and 10 scores"
        in caplog.text
    )
    assert "0 alerts, 0 feed alerts, 0 source events and 15 scores are lost" in caplog.text
    sink.close()


def test_only_the_latest_status_is_sent_after_an_outage(open_sink, redis_server, messages, clock):
    sink = open_sink()
    redis_server.kill()
    sink.publish([messages.status(after_s=1), messages.status(source="cam2")])
    sink.publish([messages.status(after_s=2)])
    redis_server.restart()
    clock.now += 60
    sink.publish([])
    ts = redis_server.client.hget("facewarden:status:cam1", "ts")
    assert ts == b"2026-09-21T14:13:22.000Z"
    assert redis_server.client.exists("facewarden:status:cam2")
    sink.close()


def test_flood_of_source_events_in_an_outage_and_after_it_pushes_out_no_verdict(
    open_sink, redis_server, messages, clock
):
    sink = open_sink(
        spool_alerts=5, spool_sources=20, queue_messages=30, alerts_maxlen=100, sources_maxlen=100
    )

    def flood(first):
        for n in range(first, first + 1000):
            sink.publish([messages.source_alert(ordinal=n, source=f"cam{n % 7}")])

    sink.publish([messages.alert(ordinal=1)])
    redis_server.kill()
    sink.publish([messages.alert(ordinal=n) for n in range(2, 12)])
    flood(0)
    sink.publish([messages.alert(ordinal=12)])
    redis_server.restart()
    clock.now += 60
    flood(1000)
    sink.close()
    assert event_ids(redis_server.client, "alerts") == verdicts(range(2, 13))
    assert redis_server.client.xlen("facewarden:sources") < 300
    assert sink.backlog.lost[Lane.ALERTS] == 0
    assert sink.backlog.lost[Lane.SOURCES] > 900


def test_feed_alerts_and_source_events_wait_on_disk_too_and_a_later_run_sends_them(
    open_sink, redis_server, messages, tmp_path
):
    sink = open_sink()
    redis_server.kill()
    sink.publish([messages.source_alert(), messages.feed_alert(), messages.alert()])
    with pytest.raises(SinkError, match="1 alerts, 1 feed alerts and 1 source events are kept in"):
        sink.close()
    assert {file.name for file in (tmp_path / "spool").iterdir()} == {
        "alerts.jsonl",
        "feeds.jsonl",
        "sources.jsonl",
    }
    redis_server.restart()
    open_sink().close()
    assert event_ids(redis_server.client, "alerts") == verdicts([1])
    assert event_ids(redis_server.client, "feeds") == ["cam1-0a1b2c3d-0:feed.looped:1"]
    assert event_ids(redis_server.client, "sources") == ["cam1-0a1b2c3d-0:lost:1"]


def test_spools_of_alerts_and_source_events_have_limits_of_their_own(
    open_sink, redis_server, messages
):
    sink = open_sink(spool_alerts=1, spool_sources=3)
    redis_server.kill()
    sink.publish([messages.alert(ordinal=n) for n in range(5)])
    sink.publish([messages.source_alert(ordinal=n) for n in range(5)])
    with pytest.raises(SinkError, match="1 alerts and 3 source events are kept in"):
        sink.close()


def test_sink_gives_up_after_the_limit_and_says_what_is_kept_where(
    open_sink, redis_server, messages, clock, tmp_path
):
    sink = open_sink(outage_limit_s=30)
    redis_server.kill()
    sink.publish([messages.alert(ordinal=1), messages.score()])
    clock.now += 29
    sink.publish([messages.alert(ordinal=2)])
    clock.now += 2
    with pytest.raises(SinkError) as caught:
        sink.publish([messages.alert(ordinal=3)])
    message = str(caught.value)
    spool = tmp_path / "spool"
    assert "away for 31 s (Error" in message
    assert f"3 alerts are kept in {spool}" in message
    assert f"`spool: {spool}`" in message
    sink.close()  # has nothing to add: does not raise again


def test_later_run_sends_first_what_an_earlier_one_kept(open_sink, redis_server, messages, caplog):
    sink = open_sink()
    redis_server.kill()
    sink.publish([messages.alert(ordinal=1), messages.alert(ordinal=2), messages.score()])
    with pytest.raises(SinkError, match=r"2 alerts are kept .* 1 scores are lost"):
        sink.close()
    assert "and 1 scores are lost" in caplog.text
    redis_server.restart()
    later = open_sink()
    assert event_ids(redis_server.client, "alerts") == verdicts([1, 2])
    later.publish([messages.alert(ordinal=3)])
    later.close()
    assert event_ids(redis_server.client, "alerts") == verdicts([1, 2, 3])
    assert (later.sent[Lane.ALERTS], later.outages) == (3, 0)


def test_close_delivers_what_waits_even_before_the_next_attempt_is_due(
    open_sink, redis_server, messages
):
    sink = open_sink()
    redis_server.kill()
    sink.publish([messages.alert(), messages.score()])
    redis_server.restart()
    sink.close()
    assert event_ids(redis_server.client, "alerts") == verdicts([1])
    assert event_ids(redis_server.client, "tracks") == scores([50])


def test_private_spool_stays_when_something_is_left_in_it(
    open_sink, redis_server, messages, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sink = open_sink(spool=None)
    redis_server.kill()
    sink.publish([messages.alert()])
    with pytest.raises(SinkError) as caught:
        sink.close()
    kept = str(caught.value).partition("`spool: ")[2].partition("`")[0]
    redis_server.restart()
    open_sink(spool=kept).close()
    assert event_ids(redis_server.client, "alerts") == verdicts([1])


def test_server_that_is_not_there_at_the_start_is_an_outage(
    open_sink, redis_server, messages, clock, caplog
):
    redis_server.kill()
    sink = open_sink()
    assert "away (Error" in caplog.text
    sink.publish([messages.alert()])
    redis_server.restart()
    clock.now += 1
    sink.publish([])
    assert event_ids(redis_server.client, "alerts") == verdicts([1])
    sink.close()


@pytest.mark.parametrize("state", ["out of memory", "read only"])
def test_server_that_takes_no_writes_at_the_start_is_an_outage(
    open_sink, redis_server, messages, clock, state
):
    take_away = {"out of memory": _out_of_memory, "read only": _read_only}[state]
    give_back = take_away(redis_server.client)
    sink = open_sink()
    sink.publish([messages.alert()])
    give_back()
    clock.now += 60
    sink.publish([])
    assert event_ids(redis_server.client, "alerts") == verdicts([1])
    sink.close()


def test_outage_is_logged_once_and_again_only_for_another_reason(
    open_sink, redis_server, messages, clock, caplog
):
    sink = open_sink()
    redis_server.kill()
    for _ in range(10):
        clock.now += 60
        sink.publish([messages.score()])
    assert caplog.text.count("away") == 1
    redis_server.restart()
    give_back = _out_of_memory(redis_server.client)
    clock.now += 60
    sink.publish([messages.score()])
    assert caplog.text.count("still away: command not allowed when used memory") == 1
    give_back()
    sink.close()


def test_server_is_not_called_back_before_it_took_something(open_sink, redis_server, clock, caplog):
    redis_server.kill()
    sink = open_sink()
    clock.now += 60
    sink.publish([])
    sink.close()
    assert " back " not in caplog.text


def test_frozen_server_does_not_hold_up_publishing_and_loses_nothing(
    open_sink, redis_server, messages, clock
):
    sink = open_sink(timeout_s=0.5)
    pid = redis_server.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        for n in range(200):
            sink.publish([messages.alert(ordinal=n), messages.score(frame=n)])
        # One attempt hangs for 0.5 s. Were each step to try, this would take 100 s.
        assert time.monotonic() - began < 20
    finally:
        os.kill(pid, signal.SIGCONT)
    clock.now += 60
    sink.publish([])
    sink.close()
    alerts = event_ids(redis_server.client, "alerts")
    # The server took the attempt that we gave up on as well: a duplicate, under the same id.
    assert alerts.count(*verdicts([0])) == 2
    assert list(dict.fromkeys(alerts)) == verdicts(range(200))
    assert list(dict.fromkeys(event_ids(redis_server.client, "tracks"))) == scores(range(200))


def test_attempts_become_rarer_up_to_a_cap(messages, clock, tmp_path):
    attempts = []

    class Hangup(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            attempts.append(clock.now)

    with socketserver.TCPServer(("127.0.0.1", 0), Hangup) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        sink = RedisSink(
            RedisSinkConfig(url=f"redis://127.0.0.1:{server.server_address[1]}", spool=tmp_path),
            run="0a1b2c3d",
            heartbeat_s=5,
            clock=clock,
        )
        for _ in range(400):
            clock.now += 0.1
            sink.publish([messages.score()])
        with pytest.raises(SinkError):
            sink.close()
        server.shutdown()
    moments = sorted(set(attempts))
    waits = [round(b - a, 1) for a, b in pairwise(moments)][:-1]
    assert waits == sorted(waits)
    assert 0.1 <= waits[0] <= 0.2
    assert waits[-1] == pytest.approx(5.0, abs=0.11)


def _out_of_memory(client):
    client.config_set("maxmemory", 1)
    return lambda: client.config_set("maxmemory", 0)


def _read_only(client):
    client.replicaof("127.0.0.1", 1)  # as after a failover
    return lambda: client.replicaof("NO", "ONE")


def _user_locked_out(client):
    client.acl_setuser("fw", enabled=True, reset_passwords=True, passwords=["+other"])
    client.client_kill_filter(user="fw", skipme=True)
    return lambda: client.acl_setuser(
        "fw", enabled=True, reset_passwords=True, passwords=["+secret"]
    )


def _permission_withdrawn(client):
    client.acl_setuser("fw", enabled=True, commands=["-xadd"])
    return lambda: client.acl_setuser("fw", enabled=True, commands=["+xadd"])


@pytest.mark.parametrize(
    ("take_away", "says"),
    [
        (_out_of_memory, "maxmemory"),
        (_read_only, "read only"),
        (_user_locked_out, "invalid username-password pair"),
        (_permission_withdrawn, "no permissions to run the 'xadd'"),
    ],
)
def test_refusal_in_mid_run_is_an_outage_with_its_reason_in_the_log(
    open_sink, redis_server, messages, clock, caplog, take_away, says
):
    redis_server.client.acl_setuser(
        "fw", enabled=True, passwords=["+secret"], categories=["+@all"], keys=["*"], channels=["*"]
    )
    sink = open_sink(url=redis_server.url.replace("unix://", "unix://fw:secret@"))
    sink.publish([messages.alert(ordinal=1)])
    give_back = take_away(redis_server.client)
    sink.publish([messages.alert(ordinal=2), messages.score()])
    assert says in caplog.text
    assert "secret" not in caplog.text
    give_back()
    clock.now += 60
    sink.publish([messages.alert(ordinal=3)])
    assert event_ids(redis_server.client, "alerts") == verdicts([1, 2, 3])
    assert event_ids(redis_server.client, "tracks") == scores([50])
    sink.close()


def test_server_that_is_still_loading_is_an_outage(tmp_path, caplog):
    class Loading(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline():
                self.wfile.write(b"-LOADING Redis is loading the dataset in memory\r\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Loading) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"redis://127.0.0.1:{server.server_address[1]}"
        config = RedisSinkConfig(url=url, spool=tmp_path)
        RedisSink(config, run="0a1b2c3d", heartbeat_s=5).close()
        server.shutdown()
    assert "away (Redis is loading the dataset in memory)" in caplog.text


def test_cluster_whose_nodes_send_us_in_circles_is_an_outage(tmp_path, messages, caplog):
    class InCircles(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            moved = f"-MOVED 1 127.0.0.1:{self.request.getsockname()[1]}\r\n".encode()
            while line := self.rfile.readline():
                if line.startswith(b"*"):
                    name = (self.rfile.readline(), self.rfile.readline())[1].upper()
                    known = name in (b"CLIENT\r\n", b"MULTI\r\n")
                    self.wfile.write(b"+OK\r\n" if known else moved)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), InCircles) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"redis://127.0.0.1:{server.server_address[1]}"
        config = RedisSinkConfig(url=url, spool=tmp_path, namespace="{fw}")
        sink = RedisSink(config, run="0a1b2c3d", heartbeat_s=5)
        sink.publish([messages.alert()])
        with pytest.raises(SinkError, match=r"away for .*\(MOVED 1 .*1 alerts are kept"):
            sink.close()
        server.shutdown()


def test_order_is_kept_when_memory_runs_out_in_the_midst_of_a_step(
    open_sink, redis_server, messages, clock
):
    sink = open_sink()
    client = redis_server.client
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 2_000_000)
    while not sink.outages:
        n = sink.sent[Lane.ALERTS]
        sink.publish([messages.alert(ordinal=i) for i in range(n, n + 1200)])
    assert sink.sent[Lane.ALERTS] > 0
    client.config_set("maxmemory", 0)
    clock.now += 60
    sink.publish([])
    sink.close()
    in_redis = event_ids(client, "alerts")
    assert in_redis == verdicts(range(len(in_redis)))
    assert len(in_redis) == sink.sent[Lane.ALERTS]


def test_private_spool_is_made_in_an_outage_and_removed_when_nothing_is_left_in_it(
    open_sink, redis_server, messages, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sink = open_sink(spool=None)
    sink.publish([messages.alert()])
    assert not list(tmp_path.iterdir())  # none is needed until Redis goes away
    redis_server.kill()
    sink.publish([messages.alert(ordinal=2)])
    assert list(tmp_path.glob("facewarden-spool-*"))
    redis_server.restart()
    sink.close()
    assert not list(tmp_path.glob("facewarden-spool-*"))


def test_alerts_are_delivered_while_scores_are_refused(open_sink, redis_server, messages, clock):
    sink = open_sink()
    redis_server.client.set("facewarden:tracks", "somebody's")
    for n in range(3):
        clock.now += 60
        sink.publish([messages.score(frame=n), messages.alert(ordinal=n)])
    assert event_ids(redis_server.client, "alerts") == verdicts(range(3))
    redis_server.client.delete("facewarden:tracks")
    clock.now += 60
    sink.publish([])
    assert event_ids(redis_server.client, "tracks") == scores(range(3))
    sink.close()


def test_channel_that_is_refused_holds_up_nothing_and_is_said_once(
    open_sink, redis_server, messages, caplog
):
    redis_server.client.acl_setuser(
        "fw", enabled=True, nopass=True, categories=["+@all"], keys=["*"], channels=["*"]
    )
    sink = open_sink(url=redis_server.url.replace("unix://", "unix://fw:any@"))
    redis_server.client.acl_setuser("fw", enabled=True, reset_channels=True)
    with caplog.at_level(logging.WARNING):
        for n in range(3):
            sink.publish([messages.alert(ordinal=n)])
    assert event_ids(redis_server.client, "alerts") == verdicts(range(3))
    assert caplog.text.count("PUBLISH fails") == 1
    sink.close()
