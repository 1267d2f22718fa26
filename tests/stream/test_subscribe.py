from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import pytest

from stream.errors import ConfigError
from stream.subscribe import Subscription

pytestmark = pytest.mark.redis

ROOT = Path(__file__).parents[2]


@pytest.fixture
def send(redis_server):
    """Append messages with the given event ids, as a producer would."""

    def send(*event_ids, stream="alerts"):
        for event_id in event_ids:
            message = json.dumps({"event": {"id": event_id, "type": "track.verdict"}})
            redis_server.client.xadd(f"facewarden:{stream}", {"metadata": message})

    return send


@pytest.fixture
def subscribe(redis_server):
    def subscribe(consumer="a", **options):
        options = {"from_start": True, "reclaim_s": 0.1, **options}
        return Subscription(redis_server.url, group="siem", consumer=consumer, **options)

    return subscribe


def ids(messages):
    return [message["event"]["id"] for message in messages]


def pending(client, stream="alerts"):
    return client.xpending(f"facewarden:{stream}", "siem")["pending"]


def test_messages_come_in_order_and_are_acknowledged(subscribe, send, redis_server):
    send("1", "2", "3")
    with subscribe() as alerts:
        assert ids(islice(alerts, 3)) == ["1", "2", "3"]
        assert pending(redis_server.client) == 1  # the one in hand
    assert pending(redis_server.client) == 0


def test_new_group_begins_with_what_is_yet_to_come(subscribe, send):
    send("before")
    with subscribe(from_start=False) as alerts:
        send("after")
        assert ids(islice(alerts, 1)) == ["after"]


def test_group_goes_on_where_it_was(subscribe, send):
    send("1", "2")
    with subscribe() as alerts:
        assert ids(islice(alerts, 1)) == ["1"]
    with subscribe() as alerts:
        assert ids(islice(alerts, 1)) == ["2"]


def test_consumers_of_a_group_share_the_messages(subscribe, send):
    send("1", "2", "3", "4")
    with subscribe("a", reclaim_s=60) as one, subscribe("b", reclaim_s=60) as other:
        taken = [ids(islice(alerts, 1))[0] for _ in range(2) for alerts in (one, other)]
    assert sorted(taken) == ["1", "2", "3", "4"]


def test_every_group_gets_all_messages(subscribe, send, redis_server):
    send("1", "2")
    with subscribe() as alerts:
        assert ids(islice(alerts, 2)) == ["1", "2"]
    with Subscription(redis_server.url, group="other", from_start=True) as alerts:
        assert ids(islice(alerts, 2)) == ["1", "2"]


def test_verdicts_feed_alerts_and_source_events_are_read_together_each_in_order(
    subscribe, send, redis_server
):
    send("v1", "v2", "v3")
    send("s1", "s2", stream="sources")
    send("f1", "f2", stream="feeds")
    send("score", stream="tracks")
    with subscribe() as alerts:
        received = ids(islice(alerts, 7))
    assert [i for i in received if i.startswith("v")] == ["v1", "v2", "v3"]
    assert [i for i in received if i.startswith("s")] == ["s1", "s2"]
    assert [i for i in received if i.startswith("f")] == ["f1", "f2"]
    assert pending(redis_server.client) == pending(redis_server.client, "sources") == 0


def test_flood_of_one_stream_does_not_hide_the_other(subscribe, send):
    send(*(f"s{n}" for n in range(50)), stream="sources")
    send("v1")
    with subscribe() as alerts:
        assert "v1" in ids(islice(alerts, 3))


@pytest.mark.parametrize("stream", ["alerts", "sources", "tracks"])
def test_one_stream_alone_is_read_when_named(subscribe, send, redis_server, stream):
    for name in ("alerts", "sources", "tracks"):
        send(f"1 of {name}", f"2 of {name}", stream=name)
    with subscribe(streams=[stream]) as messages:
        assert ids(islice(messages, 2)) == [f"1 of {stream}", f"2 of {stream}"]
    groups = [redis_server.client.xinfo_groups(f"facewarden:{s}") for s in {"alerts", "sources"}]
    assert sum(map(len, groups)) == (0 if stream == "tracks" else 1)


@pytest.mark.parametrize("streams", [[], ["alerts", "alerts"]])
def test_subscription_to_nothing_or_to_a_stream_twice_is_refused(redis_server, streams):
    with pytest.raises(ValueError, match="streams must be named, each once"):
        Subscription(redis_server.url, group="siem", streams=streams)


def test_message_that_came_along_and_was_not_handed_out_comes_to_another_consumer(
    subscribe, send, redis_server
):
    send("v1")
    send("s1", stream="sources")
    with subscribe("a") as alerts:
        (first,) = ids(islice(alerts, 1))
    with subscribe("b", reclaim_s=0) as alerts:
        assert {first, *ids(islice(alerts, 1))} == {"v1", "s1"}
    assert pending(redis_server.client) == pending(redis_server.client, "sources") == 0


def test_message_that_was_held_back_for_too_long_is_left_to_others(subscribe, send):
    send("v1")
    send("s1", stream="sources")
    with subscribe("slow", reclaim_s=0.2) as slow, subscribe("quick", reclaim_s=0.2) as quick:
        ((entry, left_at),) = (next(slow), slow._next)[1]
        while time.monotonic() < left_at:
            time.sleep(0.01)
        quick._reclaim_at = 0
        ids(islice(quick, 2))  # took both over
        send("v2")
        assert ids(islice(slow, 1)) == ["v2"]
    assert entry.stream in ("alerts", "sources")


def test_dead_letters_of_each_stream_lie_beside_it(subscribe, redis_server, send):
    redis_server.client.xadd("facewarden:sources", {"metadata": "{"})
    send("v1")
    send("s1", stream="sources")
    with subscribe() as alerts:
        assert set(ids(islice(alerts, 2))) == {"v1", "s1"}
    assert redis_server.client.xlen("facewarden:sources:dlq") == 1
    assert redis_server.client.xlen("facewarden:alerts:dlq") == 0


def test_message_whose_handler_raised_is_delivered_again(subscribe, send):
    send("1", "2")
    with pytest.raises(ZeroDivisionError), subscribe() as alerts:
        for _ in alerts:
            raise ZeroDivisionError
    with subscribe("b", reclaim_s=0) as alerts:
        assert ids(islice(alerts, 1)) == ["1"]


def test_message_of_a_consumer_that_was_killed_is_taken_over_by_another(
    subscribe, send, redis_server
):
    send("1", "2")
    script = (
        "import os, signal, sys\n"
        "from stream.subscribe import Subscription\n"
        "with Subscription(sys.argv[1], group='siem', from_start=True) as alerts:\n"
        "    next(alerts)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, redis_server.url], check=False, cwd=ROOT)
    with subscribe() as alerts:
        assert sorted(ids(islice(alerts, 2))) == ["1", "2"]
    assert pending(redis_server.client) == 0


def test_message_that_nobody_can_handle_becomes_a_dead_letter(subscribe, send, redis_server):
    send("poison", "good")
    for consumer in "abc":
        with pytest.raises(ZeroDivisionError), subscribe(consumer, reclaim_s=0) as alerts:
            assert ids(islice(alerts, 1)) == ["poison"]
            raise ZeroDivisionError
    with subscribe("d", reclaim_s=0, max_deliveries=3) as alerts:
        assert ids(islice(alerts, 1)) == ["good"]
    ((_, letter),) = redis_server.client.xrange("facewarden:alerts:dlq")
    assert json.loads(letter[b"metadata"])["event"]["id"] == "poison"
    assert letter[b"group"] == b"siem"
    assert letter[b"why"] == b"delivered 3 times, never acknowledged"
    assert pending(redis_server.client) == 0


@pytest.mark.parametrize(
    "fields", [{"metadata": "{"}, {"metadata": "[]"}, {"metadata": "{}"}, {"other": "1"}]
)
def test_entry_that_is_no_message_becomes_a_dead_letter(subscribe, send, redis_server, fields):
    redis_server.client.xadd("facewarden:alerts", fields)
    send("good")
    with subscribe() as alerts:
        assert ids(islice(alerts, 1)) == ["good"]
    ((_, letter),) = redis_server.client.xrange("facewarden:alerts:dlq")
    assert letter[b"why"] == b"not a message"


def test_duplicate_is_skipped_and_acknowledged(subscribe, send, redis_server):
    send("1", "1", "2", "1", "3")
    with subscribe() as alerts:
        assert ids(islice(alerts, 3)) == ["1", "2", "3"]
    assert pending(redis_server.client) == 0


def test_duplicate_is_skipped_by_another_consumer_and_after_a_restart(subscribe, send):
    send("1")
    with subscribe("a") as alerts:
        assert ids(islice(alerts, 1)) == ["1"]
    send("1", "2")
    with subscribe("b") as alerts:
        assert ids(islice(alerts, 1)) == ["2"]


def test_duplicate_of_a_message_that_another_consumer_has_in_hand_is_skipped(subscribe, send):
    send("1", "1", "2")
    with subscribe("a", reclaim_s=60) as one, subscribe("b", reclaim_s=60) as other:
        assert ids(islice(one, 1)) == ["1"]
        assert ids(islice(other, 1)) == ["2"]


def test_ids_of_handled_messages_are_forgotten_after_a_day(subscribe, send, redis_server):
    send("1", "2")
    with subscribe() as alerts:
        assert ids(islice(alerts, 2)) == ["1", "2"]
    for event_id in "12":
        ttl = redis_server.client.ttl(f"facewarden:seen:alerts:siem:{event_id}")
        assert 86_000 < ttl <= 86_400


def test_subscription_goes_on_after_the_server_was_killed_and_came_back_empty(
    subscribe, send, redis_server, caplog
):
    with subscribe(from_start=False) as alerts:
        send("1")
        assert ids(islice(alerts, 1)) == ["1"]
        redis_server.kill()

        def come_back():
            redis_server.restart()
            send("2", "3")

        comeback = threading.Timer(0.3, come_back)
        comeback.start()
        assert ids(islice(alerts, 2)) == ["2", "3"]
        comeback.join()
    assert "away (Error" in caplog.text
    assert "lost group siem" in caplog.text


def test_group_that_was_deleted_is_made_anew_without_handling_anything_twice(
    subscribe, send, redis_server
):
    send("1", "2")
    with subscribe() as alerts:
        assert ids(islice(alerts, 1)) == ["1"]
        redis_server.client.xgroup_destroy("facewarden:alerts", "siem")
        assert ids(islice(alerts, 1)) == ["2"]


def test_stream_that_is_deleted_while_we_wait_does_not_end_the_subscription(
    subscribe, send, redis_server
):
    with subscribe(reclaim_s=60) as alerts:
        deleted = threading.Timer(0.3, redis_server.client.delete, ["facewarden:alerts"])
        deleted.start()
        sent = threading.Timer(1.0, send, ["1"])
        sent.start()
        assert ids(islice(alerts, 1)) == ["1"]
        deleted.join()
        sent.join()


def test_failover_while_we_wait_does_not_end_the_subscription(subscribe, send, redis_server):
    client = redis_server.client

    def fail_over():
        client.replicaof("127.0.0.1", 1)  # Redis unblocks who waits for messages
        client.replicaof("NO", "ONE")
        send("1")

    with subscribe(reclaim_s=60) as alerts:
        failover = threading.Timer(0.5, fail_over)
        failover.start()
        assert ids(islice(alerts, 1)) == ["1"]
        failover.join()


def test_server_that_is_away_at_the_end_does_not_keep_the_subscriber(
    subscribe, send, redis_server, caplog
):
    send("1")
    with subscribe() as alerts:
        next(alerts)
        redis_server.kill()
    assert "will come again" in caplog.text


def test_wrong_password_ends_the_subscription_without_being_told(redis_server):
    url = redis_server.url.replace("unix://", "unix://siem:S3cret@")
    with pytest.raises(ConfigError) as caught, Subscription(url, group="siem"):
        pass
    assert "invalid username-password pair" in str(caught.value)
    assert "S3cret" not in str(caught.value)


def _command(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "stream.subscribe", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "REDIS_URL"},
        **options,
    )


def test_command_ends_on_sigint_even_if_its_parent_ignored_it(redis_server):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = _command("--redis", redis_server.url, "--group", "siem", "--from-start")
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        redis_server.client.xadd("facewarden:alerts", {"metadata": "not json"})
        while not redis_server.client.xlen("facewarden:alerts:dlq"):  # it is reading by then
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0


def test_command_that_is_still_importing_ends_on_sigint_without_a_word(redis_server):
    command = [sys.executable, "-X", "importtime", "-m", "stream.subscribe"]
    command += ["--redis", redis_server.url]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        for line in process.stderr:
            if line.endswith(" redis.exceptions\n"):  # one of many that it imports
                process.send_signal(signal.SIGINT)
                break
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in err


def test_command_prints_json_lines_and_ends_cleanly_on_ctrl_c(send, redis_server):
    send("1", "2")
    with _command("--redis", redis_server.url, "--group", "siem", "--from-start") as process:
        assert ids(json.loads(process.stdout.readline()) for _ in range(2)) == ["1", "2"]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (out, err, process.returncode) == ("", "", 0)
    assert redis_server.client.xpending("facewarden:alerts", "siem")["pending"] <= 1


def test_command_without_a_url_says_where_to_find_one():
    with _command() as process:
        out, err = process.communicate(timeout=60)
    assert (out, process.returncode) == ("", 2)
    assert err.startswith("error: --redis is missing; run_stream.py logs the address")
    assert err.count("\n") == 1


def test_command_refuses_what_is_no_url_in_one_line():
    with _command("--redis", "http://fw:S3cret@localhost") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.startswith("error: not a Redis URL")
    assert err.count("\n") == 1
    assert "S3cret" not in err


def test_command_reads_the_streams_that_are_named(send, redis_server):
    for stream in ("alerts", "feeds", "sources", "tracks"):
        send(stream, stream=stream)
    for options, expected in (
        ((), {"alerts", "feeds", "sources"}),
        (("--stream", "sources"), {"sources"}),
        (("--stream", "tracks", "--stream", "alerts"), {"tracks", "alerts"}),
    ):
        group = "-".join(expected)
        command = ("--redis", redis_server.url, "--group", group, "--from-start", *options)
        with _command(*command) as process:
            lines = [json.loads(process.stdout.readline()) for _ in expected]
            process.send_signal(signal.SIGINT)
        assert set(ids(lines)) == expected


def test_consumer_imports_nothing_of_the_analysis():
    script = (
        "import sys, stream.subscribe; print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT
    )
    names = set(done.stdout.split()) - sys.stdlib_module_names
    ours = {name for name in names if not name.startswith("_")}
    assert ours <= {"stream", "redis", "click", "cryptography"}  # redis takes it where it is
