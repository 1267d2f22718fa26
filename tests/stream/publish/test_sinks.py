from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from stream.config import JsonlSinkConfig, RedisSinkConfig
from stream.errors import ConfigError, SinkError
from stream.publish import open_sink
from stream.publish.backlog import Backlog
from stream.publish.embedded import EmbeddedServer, running_servers
from stream.publish.jsonl import JsonlSink
from stream.publish.redis_stream import RedisSink
from stream.publish.spool import Spool
from stream.records import SourceCode, SourceState


@pytest.fixture
def open_redis(redis_server, tmp_path):
    """Open sinks on the real server and close them in the end."""
    sinks = []

    def open_one(**options):
        options = {"url": redis_server.url, "spool": tmp_path / "spool", **options}
        sinks.append(RedisSink(RedisSinkConfig(**options), run="0a1b2c3d", heartbeat_s=5))
        return sinks[-1]

    yield open_one
    for sink in sinks:
        sink.close()


@contextmanager
def files_no_larger_than(size):
    """Let writes beyond so many bytes fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def entries(client, key):
    return [json.loads(fields[b"metadata"]) for _, fields in client.xrange(key)]


def event_ids(client, key):
    return [message["event"]["id"] for message in entries(client, key)]


@pytest.mark.redis
def test_alerts_and_scores_lie_in_their_streams_in_order(open_redis, redis_server, messages):
    sink = open_redis()
    sink.publish([messages.score(frame=1), messages.alert(ordinal=1), messages.score(frame=2)])
    sink.publish([messages.alert(ordinal=2), messages.score(frame=3, ended=True)])
    prefix = "cam1-0a1b2c3d-0-1"
    assert event_ids(redis_server.client, "facewarden:alerts") == [
        f"{prefix}:verdict:1",
        f"{prefix}:verdict:2",
    ]
    assert event_ids(redis_server.client, "facewarden:tracks") == [
        f"{prefix}:score:1",
        f"{prefix}:score:2",
        f"{prefix}:end",
    ]
    assert (sink.alerts_sent, sink.scores_sent, sink.outages) == (2, 3, 0)


@pytest.mark.redis
def test_entry_holds_the_message_in_its_one_field(open_redis, redis_server, messages):
    open_redis().publish([messages.alert()])
    ((_, fields),) = redis_server.client.xrange("facewarden:alerts")
    assert fields == {b"metadata": messages.alert().to_json().encode()}


@pytest.mark.redis
def test_keys_begin_with_the_namespace(open_redis, redis_server, messages):
    open_redis(namespace="lobby").publish([messages.alert(), messages.score(), messages.status()])
    keys = {key.decode() for key in redis_server.client.scan_iter()}
    assert keys == {"lobby:alerts", "lobby:tracks", "lobby:status:cam1"}


@pytest.mark.redis
def test_plain_subscriber_hears_alerts_only(open_redis, redis_server, messages):
    with redis_server.client.pubsub() as pubsub:
        pubsub.subscribe("facewarden:alerts")
        assert pubsub.get_message(timeout=5)["type"] == "subscribe"
        open_redis().publish([messages.score(), messages.status(), messages.alert()])
        heard = pubsub.get_message(timeout=5)
        assert heard["data"] == messages.alert().to_json().encode()
        assert pubsub.get_message() is None


@pytest.mark.redis
def test_status_hash_expires_after_three_heartbeats(open_redis, redis_server, messages):
    open_redis().publish([messages.status()])
    found = redis_server.client.hgetall("facewarden:status:cam1")
    assert {k.decode(): v.decode() for k, v in found.items()} == (messages.status().hash_fields())
    assert 14 <= redis_server.client.ttl("facewarden:status:cam1") <= 15


@pytest.mark.redis
def test_lost_source_is_both_a_status_and_an_alert(open_redis, redis_server, messages):
    open_redis().publish(
        [messages.status(SourceState.LOST, SourceCode.FROZEN), messages.source_alert()]
    )
    assert redis_server.client.hget("facewarden:status:cam1", "code") == b"frozen"
    (alert,) = entries(redis_server.client, "facewarden:alerts")
    assert alert["event"]["type"] == "source.lost"


@pytest.mark.redis
def test_streams_are_trimmed_to_about_their_length(open_redis, redis_server, messages):
    sink = open_redis(alerts_maxlen=200, tracks_maxlen=100)
    for step in range(50):
        sink.publish([messages.score(frame=20 * step + i) for i in range(20)])
        sink.publish([messages.alert(ordinal=20 * step + i) for i in range(20)])
    # Redis trims whole nodes of stream-node-max-entries, 100 by default.
    assert 100 <= redis_server.client.xlen("facewarden:tracks") <= 200
    assert 200 <= redis_server.client.xlen("facewarden:alerts") <= 300


@pytest.mark.redis
def test_connection_bears_the_name_of_the_run(open_redis, redis_server):
    open_redis()
    assert "facewarden-0a1b2c3d" in {c["name"] for c in redis_server.client.client_list()}


@pytest.mark.redis
def test_opening_a_sink_writes_nothing(open_redis, redis_server):
    open_redis()
    assert redis_server.client.keys() == []


@pytest.mark.redis
def test_sink_without_a_url_brings_its_own_server(messages):
    sink = open_sink(RedisSinkConfig(), run="0a1b2c3d", heartbeat_s=5)
    assert isinstance(sink, RedisSink)
    try:
        with redis.Redis.from_url(sink.address) as client:
            assert client.config_get("port")["port"] == "0"
            sink.publish([messages.alert()])
            assert client.xlen("facewarden:alerts") == 1
        assert sink.address in running_servers()
    finally:
        sink.close()
    assert sink.address not in running_servers()


@pytest.mark.redis
def test_embedded_server_lies_in_a_folder_for_its_user_alone_and_leaves_nothing():
    with EmbeddedServer() as server:
        folder = Path(server.url.removeprefix("unix://")).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()


@pytest.mark.redis
def test_embedded_server_outlives_ctrl_c_so_that_it_can_take_the_last_messages():
    with EmbeddedServer() as server, redis.Redis.from_url(server.url) as client:
        os.kill(client.info("server")["process_id"], signal.SIGINT)
        assert client.blpop("nothing", timeout=1) is None  # still there after a second
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.redis
def test_embedded_server_ends_with_a_process_that_forgets_to_close_it():
    script = (
        "from stream.publish.embedded import EmbeddedServer\n"
        "import redis\n"
        "server = EmbeddedServer()\n"
        "print(server.url, redis.Redis.from_url(server.url).info('server')['process_id'])\n"
    )
    made = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", script],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    url, pid = made.stdout.split()
    assert not Path(url.removeprefix("unix://")).parent.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


@pytest.mark.redis
def test_sinks_give_the_same_messages_to_all_readers(messages, redis_server, tmp_path):
    config = RedisSinkConfig(url=redis_server.url, spool=tmp_path / "spool")
    file = JsonlSinkConfig(path=tmp_path / "out.jsonl")
    sinks = [open_sink(c, run="0a1b2c3d", heartbeat_s=5) for c in (config, file)]
    step = [messages.alert(ordinal=1), messages.alert(ordinal=2)]
    for sink in sinks:
        sink.publish(step)
        sink.close()
    lines = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert lines == entries(redis_server.client, "facewarden:alerts")


def test_json_lines_hold_every_message_after_what_was_there(messages, tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("{}\n")
    sink = JsonlSink(JsonlSinkConfig(path=path))
    sink.publish([messages.status(), messages.score(), messages.alert()])
    kinds = [
        json.loads(line).get("event", {}).get("type") for line in path.read_text().splitlines()
    ]
    assert kinds == [None, "source.status", "track.score", "track.verdict"]
    sink.close()
    sink.close()


@pytest.mark.parametrize("name", ["", "missing/out.jsonl"])
def test_json_lines_refuse_a_folder_and_a_file_in_a_missing_one(tmp_path, name):
    with pytest.raises(ConfigError, match="expected a file in a folder that exists"):
        JsonlSink(JsonlSinkConfig(path=tmp_path / name))


def test_json_lines_say_that_the_disk_is_full(messages):
    sink = JsonlSink(JsonlSinkConfig(path=Path("/dev/full")))
    with pytest.raises(SinkError, match=r"No space left on device\); 2 messages of this step"):
        sink.publish([messages.score(), messages.alert()])
    sink.close()


def test_json_lines_end_with_a_whole_step_when_the_disk_is_full(messages, tmp_path):
    path = tmp_path / "out.jsonl"
    sink = JsonlSink(JsonlSinkConfig(path=path))
    sink.publish([messages.score()])
    whole = path.read_bytes()
    with files_no_larger_than(len(whole) + 100), pytest.raises(SinkError):
        sink.publish([messages.alert()])
    sink.close()
    assert path.read_bytes() == whole


def test_spool_hands_on_what_an_earlier_process_left_before_it_was_killed(tmp_path):
    script = (
        "import os, pathlib, signal, sys\n"
        "from stream.publish.spool import Spool\n"
        "Spool(pathlib.Path(sys.argv[1]), 10).append(['{\"n\": 1}', '{\"n\": 2}'])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, cwd=root)
    spool = Spool(tmp_path, 10)
    assert spool.append(['{"n": 3}']) == 1
    assert spool.head(10) == ['{"n": 1}', '{"n": 2}', '{"n": 3}']
    spool.close()


def test_spool_passes_over_what_could_not_be_written_in_full(tmp_path, caplog):
    (tmp_path / "alerts.jsonl").write_bytes(b'{"n": 1}\n\0\0\0\n{"n": 2}\n{"n": 3, "long": "er')
    spool = Spool(tmp_path, 10)
    assert spool.head(10) == ['{"n": 1}', '{"n": 2}']
    assert "2 damaged lines" in caplog.text
    spool.append(['{"n": 4}'])
    spool.close()
    spool = Spool(tmp_path, 10)
    assert spool.head(10) == ['{"n": 1}', '{"n": 2}', '{"n": 4}']
    assert "1 damaged lines" in caplog.text  # that in the midst; nothing is left of the other
    spool.close()


def test_spool_is_empty_on_disk_once_all_is_delivered(tmp_path):
    spool = Spool(tmp_path, 10)
    spool.append(["{}", "{}", "{}"])
    spool.drop(2)
    assert len(spool) == 1
    spool.drop(1)
    assert spool.path.read_bytes() == b""
    spool.append(['{"n": 4}'])
    assert spool.head(10) == ['{"n": 4}']
    spool.close()


def test_spool_takes_no_more_than_its_limit(tmp_path):
    spool = Spool(tmp_path, 2)
    assert spool.append(["{}", "{}", "{}"]) == 2
    assert spool.append(["{}"]) == 0
    spool.close()


def test_spool_left_by_a_run_with_a_higher_limit_is_kept_whole(tmp_path):
    (tmp_path / "alerts.jsonl").write_text("{}\n" * 5)
    spool = Spool(tmp_path, 2)
    assert spool.append(["{}"]) == 0
    assert len(spool) == 5
    spool.close()


def test_spool_takes_all_or_nothing_when_the_disk_is_full(tmp_path):
    spool = Spool(tmp_path, 10)
    spool.append(['{"n": 1}'])
    with files_no_larger_than(20), pytest.raises(OSError, match="File too large"):
        spool.append(['{"n": 2}', '{"n": 3}'])
    assert spool.path.read_text() == '{"n": 1}\n'
    assert spool.head(10) == ['{"n": 1}']
    spool.close()


def test_spool_refuses_a_folder_that_another_sink_uses(tmp_path):
    spool = Spool(tmp_path, 10)
    with pytest.raises(ConfigError, match="give each its own"):
        Spool(tmp_path, 10)
    spool.close()
    Spool(tmp_path, 10).close()


def test_spool_refuses_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="expected a folder"):
        Spool(tmp_path / "file" / "spool", 10)


def test_spool_is_readable_by_its_user_alone(tmp_path):
    spool = Spool(tmp_path / "new", 10)
    assert stat.S_IMODE(spool.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(spool.path.parent.stat().st_mode) == 0o700
    spool.close()


@pytest.fixture
def backlog(tmp_path):
    spool = Spool(tmp_path, limit=2)
    yield Backlog(spool, limit=3)
    spool.close()


def test_backlog_sends_alerts_before_scores_and_each_in_order(backlog):
    for n in "12":
        backlog.add_score(f'{{"score": {n}}}')
        backlog.add_alert(f'{{"alert": {n}}}')
    assert backlog.head(3) == (['{"alert": 1}', '{"alert": 2}'], ['{"score": 1}'])
    backlog.keep()
    assert backlog.head(3) == (['{"alert": 1}', '{"alert": 2}'], ['{"score": 1}'])
    backlog.drop(1, 1)
    assert backlog.head(3) == (['{"alert": 2}'], ['{"score": 2}'])


def test_backlog_drops_the_oldest_scores_and_no_alert_when_memory_is_full(backlog):
    for n in range(5):
        backlog.add_score(f'{{"score": {n}}}')
        backlog.add_alert(f'{{"alert": {n}}}')
    backlog.keep()  # two alerts on disk, three in memory: no room for scores
    assert backlog.head(10) == ([f'{{"alert": {n}}}' for n in range(5)], [])
    assert (backlog.alerts_lost, backlog.scores_lost) == (0, 5)


def test_backlog_drops_the_oldest_alerts_in_memory_when_no_score_is_left(backlog):
    for n in range(7):
        backlog.add_alert(f'{{"alert": {n}}}')
    backlog.keep()
    assert backlog.head(10)[0] == [f'{{"alert": {n}}}' for n in (0, 1, 4, 5, 6)]
    assert backlog.alerts_lost == 2


def test_backlog_keeps_alerts_in_memory_and_in_order_while_the_disk_is_full(backlog, caplog):
    backlog.add_alert('{"alert": 0}')
    with files_no_larger_than(0):
        backlog.keep()
        backlog.keep()
    assert caplog.text.count("alerts wait in memory") == 1
    backlog.add_alert('{"alert": 1}')
    backlog.keep()
    assert backlog.head(10)[0] == ['{"alert": 0}', '{"alert": 1}']
    assert "alerts are kept" in backlog.account()


def test_backlog_says_what_is_kept_and_what_is_lost(backlog):
    for n in range(4):
        backlog.add_score(f'{{"score": {n}}}')
    backlog.add_alert("{}")
    backlog.keep()
    backlog.abandon()
    assert "1 alerts are kept in " in backlog.account()
    assert backlog.account().endswith("0 alerts and 4 scores are lost")
