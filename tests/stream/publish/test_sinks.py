from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import redis
from pydantic import ValidationError

from stream.config import JsonlSinkConfig, RedisSinkConfig
from stream.errors import ConfigError, SinkError
from stream.messages import Lane
from stream.publish import open_sink, open_sinks
from stream.publish.embedded import running_servers
from stream.publish.jsonl import JsonlSink
from stream.publish.redis_stream import RedisSink

NOTHING = {Lane.FEEDS: 0, Lane.SOURCES: 0, Lane.TRACKS: 0}


@pytest.fixture
def open_redis(redis_server, tmp_path):
    """Open sinks on the real server and close them in the end."""
    sinks = []

    def open_one(source_ids=(), **options):
        options = {"url": redis_server.url, "spool": tmp_path / f"spool{len(sinks)}", **options}
        config = RedisSinkConfig(**options)
        sinks.append(RedisSink(config, run="0a1b2c3d", heartbeat_s=5, source_ids=source_ids))
        return sinks[-1]

    yield open_one
    for sink in sinks:
        sink.close()


def entries(client, key):
    return [json.loads(fields[b"metadata"]) for _, fields in client.xrange(key)]


def monitor_until(monitor, last):
    """Yield what the server does up to some command."""
    for entry in monitor.listen():
        if entry["command"] == last:
            return
        yield entry


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
    assert dict(sink.sent) == {Lane.ALERTS: 2, Lane.FEEDS: 0, Lane.SOURCES: 0, Lane.TRACKS: 3}
    assert sink.outages == 0


@pytest.mark.redis
def test_entry_holds_the_message_in_its_one_field(open_redis, redis_server, messages):
    open_redis().publish([messages.alert()])
    ((_, fields),) = redis_server.client.xrange("facewarden:alerts")
    assert fields == {b"metadata": messages.alert().to_json().encode()}


@pytest.mark.redis
@pytest.mark.parametrize("namespace", ["lobby", "{fw}", "prod.{fw}.eu"])
def test_keys_begin_with_the_namespace(open_redis, redis_server, messages, namespace):
    step = [messages.alert(), messages.feed_alert(), messages.source_alert(), messages.score()]
    open_redis(namespace=namespace).publish([*step, messages.status()])
    keys = {key.decode() for key in redis_server.client.scan_iter()}
    assert keys == {
        f"{namespace}:{rest}" for rest in ("alerts", "feeds", "sources", "tracks", "status:cam1")
    }


@pytest.mark.parametrize("namespace", ["", "a b", "{}", "{a", "a}", "{a}{b}", "*", "-a", "a" * 65])
def test_namespace_that_would_need_quoting_or_is_half_a_hash_tag_is_refused(namespace):
    with pytest.raises(ValidationError):
        RedisSinkConfig(namespace=namespace)


@pytest.mark.redis
def test_verdicts_feed_alerts_and_source_events_lie_in_streams_of_their_own(
    open_redis, redis_server, messages
):
    step = [messages.source_alert(), messages.alert(), messages.feed_alert(), messages.score()]
    open_redis().publish(step)
    for stream, kind in (
        ("alerts", "track.verdict"),
        ("feeds", "feed.looped"),
        ("sources", "source.lost"),
        ("tracks", "track.score"),
    ):
        (message,) = entries(redis_server.client, f"facewarden:{stream}")
        assert message["event"]["type"] == kind


@pytest.mark.redis
def test_plain_subscriber_hears_no_scores_and_no_statuses(open_redis, redis_server, messages):
    with redis_server.client.pubsub() as pubsub:
        pubsub.subscribe("facewarden:alerts")
        assert pubsub.get_message(timeout=5)["type"] == "subscribe"
        heard_ones = [messages.alert(), messages.feed_alert(), messages.source_alert()]
        open_redis().publish([messages.score(), messages.status(), *reversed(heard_ones)])
        heard = [pubsub.get_message(timeout=5)["data"] for _ in heard_ones]
        assert heard == [message.to_json().encode() for message in heard_ones]
        assert pubsub.get_message() is None


@pytest.mark.redis
def test_status_hash_expires_after_three_heartbeats(open_redis, redis_server, messages):
    open_redis().publish([messages.status()])
    fields = redis_server.client.hgetall("facewarden:status:cam1")
    assert {k.decode(): v.decode() for k, v in fields.items()} == (messages.status().hash_fields())
    assert 14 <= redis_server.client.ttl("facewarden:status:cam1") <= 15


@pytest.mark.redis
def test_streams_are_trimmed_to_about_their_own_length(open_redis, redis_server, messages):
    sink = open_redis(alerts_maxlen=200, sources_maxlen=300, tracks_maxlen=100)
    for step in range(50):
        numbers = range(20 * step, 20 * step + 20)
        sink.publish([messages.score(frame=n, track=n) for n in numbers])
        sink.publish([messages.source_alert(ordinal=n) for n in numbers])
        sink.publish([messages.alert(ordinal=n) for n in numbers])
    # Redis trims whole nodes of stream-node-max-entries, 100 by default.
    assert 100 <= redis_server.client.xlen("facewarden:tracks") <= 200
    assert 200 <= redis_server.client.xlen("facewarden:alerts") <= 300
    assert 300 <= redis_server.client.xlen("facewarden:sources") <= 400


@pytest.mark.redis
def test_two_messages_about_one_track_are_never_sent_together(open_redis, redis_server, messages):
    """So that one which is refused is not overtaken by the next."""
    sink = open_redis()
    batches = []
    send = sink._send

    def note(batch):
        batches.append({lane: len(of_lane) for lane, of_lane in batch.items()})
        return send(batch)

    sink._send = note
    sink.publish([messages.alert(track=t, ordinal=n) for n in (1, 2) for t in range(5)])
    assert batches == [{Lane.ALERTS: 5}, {Lane.ALERTS: 5, **NOTHING}]
    assert redis_server.client.xlen("facewarden:alerts") == 10


@pytest.mark.redis
def test_every_message_is_a_command_by_itself_and_only_statuses_are_transactions(
    open_redis, redis_server, messages
):
    sink = open_redis()
    step = [messages.alert(), messages.source_alert(), messages.score(), messages.status()]
    with redis_server.client.monitor() as monitor:
        sink.publish([*step, messages.alert(track=2), messages.status(source="cam2")])
        redis_server.client.echo("end")
        names = [entry["command"].split()[0] for entry in monitor_until(monitor, "ECHO end")]
    names = [name for name in names if name != "CLIENT"]  # of the connection that echoes
    assert names == (
        ["XADD"] * 4 + ["MULTI", "HSET", "EXPIRE", "HSET", "EXPIRE", "EXEC"] + ["PUBLISH"] * 3
    )


@pytest.mark.redis
def test_connection_bears_the_name_of_the_run(open_redis, redis_server):
    open_redis()
    assert "facewarden-0a1b2c3d" in {c["name"] for c in redis_server.client.client_list()}


@pytest.mark.redis
def test_opening_a_sink_writes_nothing(open_redis, redis_server):
    open_redis()
    assert redis_server.client.keys() == []


@pytest.mark.redis
@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("facewarden:alerts", "stream"),
        ("facewarden:feeds", "stream"),
        ("facewarden:sources", "stream"),
        ("facewarden:tracks", "stream"),
        ("facewarden:status:cam2", "hash"),
    ],
)
def test_key_that_is_something_else_already_is_found_at_the_start_and_named(
    redis_server, tmp_path, key, expected
):
    redis_server.client.set(key, "somebody's")
    config = RedisSinkConfig(url=redis_server.url, spool=tmp_path)
    with pytest.raises(ConfigError, match=f"holds a string under {key}; expected a {expected} "):
        RedisSink(config, run="0a1b2c3d", heartbeat_s=5, source_ids=["cam1", "cam2"])


@pytest.mark.redis
def test_keys_that_an_earlier_run_wrote_are_taken_as_they_are(open_redis, messages):
    for _ in range(2):
        open_redis(source_ids=["cam1"]).publish([messages.alert(), messages.status()])


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
@pytest.mark.parametrize("away", [False, True], ids=["Redis is up", "Redis is away"])
def test_sinks_before_one_that_does_not_open_are_closed(redis_server, tmp_path, away):
    if away:
        redis_server.kill()
    first = RedisSinkConfig(url=redis_server.url, spool=tmp_path / "spool")
    with pytest.raises(ConfigError, match="can't append messages"):
        open_sinks([first, JsonlSinkConfig(path=tmp_path)], run="0a1b2c3d", heartbeat_s=5)
    open_sink(first, run="0a1b2c3d", heartbeat_s=5).close()  # the spool is free


@pytest.mark.redis
def test_private_server_and_spool_of_a_sink_before_one_that_does_not_open_are_gone(
    short_folder, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(short_folder))
    configs = [RedisSinkConfig(), JsonlSinkConfig(path=short_folder)]
    with pytest.raises(ConfigError, match="can't append messages"):
        open_sinks(configs, run="0a1b2c3d", heartbeat_s=5)
    assert list(short_folder.iterdir()) == []


def test_error_of_the_sink_that_does_not_open_is_raised_though_another_has_messages_left(
    tmp_path, unused_port, messages
):
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "alerts.jsonl").write_text(messages.alert().to_json() + "\n")
    url = f"redis://127.0.0.1:{unused_port}"
    configs = [
        RedisSinkConfig(url=url, spool=tmp_path / "spool"),
        JsonlSinkConfig(path=tmp_path),
    ]
    with pytest.raises(ConfigError, match="can't append messages"):
        open_sinks(configs, run="0a1b2c3d", heartbeat_s=5)
    kept = (tmp_path / "spool" / "alerts.jsonl").read_text()
    assert kept == messages.alert().to_json() + "\n"


def test_all_sinks_that_open_are_returned_open(tmp_path, messages):
    configs = [JsonlSinkConfig(path=tmp_path / name) for name in "ab"]
    for sink in open_sinks(configs, run="0a1b2c3d", heartbeat_s=5):
        sink.publish([messages.alert()])
        sink.close()
    assert all((tmp_path / name).read_text() for name in "ab")


def test_machine_without_a_folder_for_temporary_files_is_warned_of_at_the_start(
    tmp_path, unused_port, monkeypatch, caplog
):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "missing")])
    config = RedisSinkConfig(url=f"redis://127.0.0.1:{unused_port}")
    RedisSink(config, run="0a1b2c3d", heartbeat_s=5).close()
    assert "messages wait in memory alone; name a folder that lasts with this sink's `spool`" in (
        caplog.text
    )


@pytest.mark.redis
def test_sinks_give_the_same_messages_to_all_readers(messages, redis_server, tmp_path):
    config = RedisSinkConfig(url=redis_server.url, spool=tmp_path / "spool")
    file = JsonlSinkConfig(path=tmp_path / "out.jsonl")
    step = [messages.alert(ordinal=1), messages.alert(ordinal=2)]
    for sink in open_sinks([config, file], run="0a1b2c3d", heartbeat_s=5):
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


def test_json_lines_end_with_a_whole_step_when_the_disk_is_full(
    messages, tmp_path, files_no_larger_than
):
    path = tmp_path / "out.jsonl"
    sink = JsonlSink(JsonlSinkConfig(path=path))
    sink.publish([messages.score()])
    whole = path.read_bytes()
    with files_no_larger_than(len(whole) + 100), pytest.raises(SinkError):
        sink.publish([messages.alert()])
    sink.close()
    assert path.read_bytes() == whole
