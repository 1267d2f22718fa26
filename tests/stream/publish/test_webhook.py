from __future__ import annotations

import json
import logging
import shutil
import socket
import ssl
import subprocess
import threading
import time
from contextlib import ExitStack

import pytest
import yaml
from click.testing import CliRunner
from standardwebhooks import Webhook

import run_stream
from stream.config import StreamConfig, WebhookSinkConfig
from stream.errors import ConfigError, SinkError
from stream.publish import open_sink
from stream.publish.webhook import is_public, read_address
from stream.workers.supervisor import _own
from tests.stream.publish.receiver import Receiver

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ALERT = "cam1-0a1b2c3d-0-1:verdict:"


@pytest.fixture
def resources():
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def start(resources):
    """Return a function that starts receivers; all are closed in the end."""

    def start_one(**how):
        receiver = Receiver(**how)
        resources.callback(receiver.close)
        return receiver

    return start_one


@pytest.fixture
def open_webhook(resources, tmp_path):
    """Return a function that opens sinks for a port of this machine."""

    def open_one(port, path="/hook", **options):
        known = {"allow_private": True, "allow_http": True, "secret": SECRET, "retry_max_s": 0.5}
        known |= {"spool": tmp_path / "spool", "url": f"http://127.0.0.1:{port}{path}"}
        config = WebhookSinkConfig.model_validate(known | options)
        return open_sink(config, run="0a1b2c3d", heartbeat_s=5)

    return open_one


def test_message_arrives_as_it_is_and_its_signature_holds(start, open_webhook, messages):
    receiver = start()
    sink = open_webhook(receiver.port)
    sink.publish([messages.alert()])
    sink.close()
    ((path, headers, body),) = receiver.requests
    assert path == "/hook"
    assert body.decode() == messages.alert().to_json()
    assert Webhook(SECRET).verify(body, headers) == json.loads(body)
    assert headers["Content-Type"] == "application/json"
    assert headers["Host"] == f"127.0.0.1:{receiver.port}"


def test_signature_of_another_secret_or_body_does_not_hold(start, open_webhook, messages):
    receiver = start()
    sink = open_webhook(receiver.port)
    sink.publish([messages.alert()])
    sink.close()
    ((_, headers, body),) = receiver.requests
    with pytest.raises(Exception, match="No matching signature"):
        Webhook("whsec_" + "A" * 32).verify(body, headers)
    with pytest.raises(Exception, match="No matching signature"):
        Webhook(SECRET).verify(body.replace(b"attack", b"bona_fide"), headers)


def test_verdicts_feed_alerts_and_source_events_are_sent_unless_others_are_named(
    start, open_webhook, messages, tmp_path
):
    everything = [
        messages.score(),
        messages.status(),
        messages.source_alert(),
        messages.feed_alert(),
        messages.alert(),
    ]
    types = []
    for options in ({}, {"messages": ["tracks"]}):
        receiver = start()
        sink = open_webhook(receiver.port, spool=tmp_path / str(receiver.port), **options)
        sink.publish(everything)
        sink.close()
        types.append([json.loads(b)["event"]["type"] for _, _, b in receiver.requests])
    assert types == [["track.verdict", "feed.looped", "source.lost"], ["track.score"]]


def test_what_is_not_taken_is_sent_again_in_order_under_the_same_id(start, open_webhook, messages):
    receiver = start()
    answers = iter([(500, {}), (429, {"Retry-After": "0"}), (307, {"Location": "/other"})])
    receiver.answer = lambda _: next(answers, (200, {}))
    sink = open_webhook(receiver.port)
    sink.publish([messages.alert(ordinal=n) for n in (1, 2)])
    receiver.wait_for(5)
    sink.close()
    assert [json.loads(b)["event"]["id"] for _, _, b in receiver.requests] == [
        *[f"{ALERT}1"] * 4,
        f"{ALERT}2",
    ]
    names = [headers["webhook-id"] for _, headers, _ in receiver.requests]
    assert len(set(names[:4])) == 1
    assert names[3] != names[4]
    assert {path for path, _, _ in receiver.requests} == {"/hook"}  # no redirect was followed
    assert not [name for name in names if "." in name]


def test_nothing_is_lost_while_the_receiver_is_away(start, open_webhook, messages, caplog):
    receiver = start()
    sink = open_webhook(receiver.port)
    sink.publish([messages.alert(ordinal=1)])
    receiver.wait_for(1)
    receiver.close()
    for n in range(2, 30):
        sink.publish([messages.alert(ordinal=n), messages.source_alert(ordinal=n)])
    while "messages wait" not in caplog.text:
        time.sleep(0.005)
    again = start(port=receiver.port)
    again.wait_for(56)
    sink.close()
    assert [i for i in again.ids if "verdict" in i] == [f"{ALERT}{n}" for n in range(2, 30)]
    assert len([i for i in again.ids if "lost" in i]) == 28
    assert "messages wait" in caplog.text
    assert "back after" in caplog.text


def test_alert_overtakes_a_source_event_that_waits_and_neither_is_sent_twice(
    start, open_webhook, messages
):
    receiver = start()
    taken = threading.Event()

    def answer(number):
        if number == 1:
            taken.wait()
        return 200, {}

    receiver.answer = answer
    sink = open_webhook(receiver.port)
    sink.publish([messages.source_alert(ordinal=1)])
    receiver.wait_for(1)
    sink.publish([messages.source_alert(ordinal=2), messages.alert()])
    taken.set()
    receiver.wait_for(3)
    sink.close()
    kinds = [json.loads(b)["event"]["id"].split(":", 1)[1] for _, _, b in receiver.requests]
    assert kinds == ["lost:1", "verdict:1", "lost:2"]


def test_what_waits_at_the_end_lies_in_the_spool_and_a_later_run_sends_it(
    start, open_webhook, messages, unused_port, tmp_path
):
    sink = open_webhook(unused_port)
    sink.publish([messages.alert(ordinal=n) for n in (1, 2)])
    with pytest.raises(SinkError, match=rf"2 alerts are kept in {tmp_path / 'spool'}"):
        sink.close()
    sink.close()  # a second call does nothing
    receiver = start(port=unused_port)
    sink = open_webhook(unused_port)
    receiver.wait_for(2)
    sink.close()
    assert receiver.ids == [f"{ALERT}1", f"{ALERT}2"]


def test_message_lies_in_a_lasting_spool_before_it_is_taken(
    start, open_webhook, messages, tmp_path
):
    receiver = start()
    lay_there = []

    def answer(_):
        lay_there.append((tmp_path / "spool" / "alerts.jsonl").read_text())
        return 200, {}

    receiver.answer = answer
    sink = open_webhook(receiver.port)
    sink.publish([messages.alert()])
    sink.close()
    assert lay_there == [messages.alert().to_json() + "\n"]
    assert (tmp_path / "spool" / "alerts.jsonl").read_text() == ""


def test_message_that_is_refused_again_and_again_does_not_hold_up_the_others(
    start, open_webhook, messages, caplog
):
    receiver = start()
    receiver.answer = lambda number: (400, {}) if number <= 10 else (200, {})
    sink = open_webhook(receiver.port, retry_max_s=0.01)
    sink.publish([messages.alert(ordinal=n) for n in (1, 2)])
    receiver.wait_for(11)
    sink.close()
    assert sink.given_up == 1
    assert sink.sent == 1
    assert f"given up: {ALERT}1" in caplog.text


def test_too_much_for_disk_and_memory_is_dropped_and_counted(
    open_webhook, messages, unused_port, caplog
):
    sink = open_webhook(unused_port, spool_messages=2, queue_messages=3)
    for n in range(9):
        sink.publish([messages.alert(ordinal=n)])
    assert sink.backlog.lost.total() == 4
    assert "4 alerts" in caplog.text
    with pytest.raises(SinkError):
        sink.close()


def test_slow_receiver_does_not_hold_up_who_publishes(start, open_webhook, messages):
    receiver = start()
    taken = threading.Event()
    receiver.answer = lambda _: (taken.wait(), (200, {}))[1]
    sink = open_webhook(receiver.port)
    sink.publish([messages.alert(ordinal=1)])
    receiver.wait_for(1)
    for n in range(2, 20):
        sink.publish([messages.alert(ordinal=n)])
    assert len(receiver.requests) == 1
    taken.set()
    receiver.wait_for(19)
    sink.close()


def test_message_that_is_dropped_while_it_is_under_way_costs_no_other(
    start, open_webhook, messages
):
    receiver = start()
    taken = threading.Event()
    receiver.answer = lambda _: (taken.wait(), (200, {}))[1]
    sink = open_webhook(receiver.port, messages=["tracks"], queue_messages=2)
    sink.publish([messages.score(frame=1)])
    receiver.wait_for(1)
    for n in range(2, 6):
        sink.publish([messages.score(frame=n)])
    taken.set()
    receiver.wait_for(3)
    sink.close()
    assert [i.rsplit(":", 1)[1] for i in receiver.ids] == ["1", "4", "5"]
    assert sink.backlog.lost.total() == 3


def test_certificate_is_checked_against_the_name(start, open_webhook, messages, tmp_path, caplog):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1"
    command += " -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    files = {"-keyout": tmp_path / "key.pem", "-out": tmp_path / "cert.pem"}
    options = [str(part) for pair in files.items() for part in pair]
    subprocess.run([*command.split(), *options], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(files["-out"], files["-keyout"])
    receiver = start(tls=tls)
    trusting = {"ca_file": files["-out"], "allow_http": False}
    sink = open_webhook(receiver.port, url=f"https://localhost:{receiver.port}/hook", **trusting)
    sink.publish([messages.alert(ordinal=1)])
    receiver.wait_for(1)
    sink.close()
    for wrong in (
        trusting | {"url": f"https://127.0.0.1:{receiver.port}/"},  # the certificate names another
        {"url": f"https://localhost:{receiver.port}/"},  # signed by nobody known
    ):
        sink = open_webhook(receiver.port, **wrong)
        sink.publish([messages.alert(ordinal=2)])
        with pytest.raises(SinkError):
            sink.close()
    assert receiver.ids == [f"{ALERT}1"]
    assert caplog.text.lower().count("certificate verify failed") == 2


@pytest.mark.parametrize(
    "ip",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0"),
        *("100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fd00::1"),
        *("::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::a00:1", "ff02::1"),
    ],
)
def test_address_that_is_not_public_is_none_to_send_to(ip):
    assert not is_public(ip)


@pytest.mark.parametrize("ip", ["1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_public_address_is_one_to_send_to(ip):
    assert is_public(ip)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]"])
def test_private_address_is_refused_at_the_start_however_it_is_written(open_webhook, host):
    with pytest.raises(ConfigError, match=r"not a public address; .*allow_private"):
        open_webhook(0, url=f"http://{host}:1234/hook", allow_private=False)


def test_name_that_leads_elsewhere_later_is_not_followed_into_a_private_network(
    start, open_webhook, messages, monkeypatch
):
    receiver = start()
    answers = iter(["93.184.216.34"])  # public at the start, then not: DNS rebinding
    resolve = socket.getaddrinfo

    def rebound(host, port, *rest, **how):
        if host != "hook.example":
            return resolve(host, port, *rest, **how)
        ip = next(answers, "127.0.0.1")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebound)
    url = f"http://hook.example:{receiver.port}/"
    sink = open_webhook(receiver.port, url=url, allow_private=False)
    sink.publish([messages.alert()])
    with pytest.raises(SinkError):
        sink.close()
    assert receiver.requests == []


def test_receiver_is_told_the_name_it_was_called_by(start, open_webhook, messages, monkeypatch):
    receiver = start()
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", receiver.port))]
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **how: found if host == "hook.example" else resolve(host, *rest, **how),
    )
    sink = open_webhook(receiver.port, url=f"http://hook.example:{receiver.port}/")
    sink.publish([messages.alert()])
    sink.close()
    ((_, headers, _),) = receiver.requests
    assert headers["Host"] == f"hook.example:{receiver.port}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "http://hook.example/"}, "allow_http"),
        ({"url": "ftp://hook.example/"}, "expected https"),
        ({"url": "https://"}, "expected https"),
        ({"url": "https://user:S3cret@hook.example/"}, "no user"),
        ({"url": "https://hook.example:port/S3cret"}, "taken apart"),
    ],
)
def test_address_that_is_none_is_refused_without_being_repeated(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read_address(WebhookSinkConfig.model_validate(options))
    assert "S3cret" not in str(caught.value)


@pytest.mark.parametrize("secret", ["whsec_S3cret", "no base64!", "whsec_" + "A" * 16])
def test_secret_that_is_none_is_refused_without_being_repeated(open_webhook, secret):
    with pytest.raises(ConfigError, match="openssl rand -base64 32") as caught:
        open_webhook(1, secret=secret)
    assert secret not in str(caught.value)


def test_secret_comes_from_the_environment_where_the_configuration_has_none(
    start, open_webhook, messages, monkeypatch
):
    receiver = start()
    with pytest.raises(ConfigError, match="no secret"):
        open_webhook(receiver.port, secret=None)
    monkeypatch.setenv("FACEWARDEN_WEBHOOK_SECRET", SECRET)
    sink = open_webhook(receiver.port, secret=None)
    sink.publish([messages.alert()])
    sink.close()
    ((_, headers, body),) = receiver.requests
    Webhook(SECRET).verify(body, headers)


def test_neither_token_nor_secret_is_in_a_log(
    start, open_webhook, messages, unused_port, caplog, tmp_path
):
    with caplog.at_level(logging.DEBUG):
        receiver = start()
        for n, port in enumerate((receiver.port, unused_port)):
            sink = open_webhook(port, path="/hook/t0ken?key=t0ken", spool=tmp_path / str(n))
            sink.publish([messages.alert()])
            if port == unused_port:
                with pytest.raises(SinkError):
                    sink.close()
            else:
                sink.close()
    assert receiver.requests[0][0] == "/hook/t0ken?key=t0ken"
    assert "webhook http://127.0.0.1" in caplog.text
    assert "t0ken" not in caplog.text
    assert SECRET.removeprefix("whsec_") not in caplog.text


def test_workers_keep_what_waits_in_folders_of_their_own(tmp_path):
    sink = WebhookSinkConfig.model_validate({"url": "https://hook.example/", "spool": tmp_path})
    assert _own(sink, 2) == sink.model_copy(update={"spool": tmp_path / "worker-2"})


def test_configuration_is_printed_without_token_and_secret(tmp_path):
    config = tmp_path / "cameras.yaml"
    sink = {"kind": "webhook", "url": "https://hook.example/t0ken", "secret": SECRET}
    sources = [{"id": "cam", "uri": "clip.mp4"}]
    config.write_text(yaml.safe_dump({"sources": sources, "sinks": [sink]}))
    done = CliRunner().invoke(run_stream.main, ["--config", str(config), "--check"])
    assert done.exit_code == 0
    assert "kind: webhook" in done.output
    assert "t0ken" not in done.output
    assert SECRET not in done.output


def test_command_line_takes_a_webhook_and_refuses_one_without_an_address():
    options = ["clip.mp4", "--check", "--sink", "webhook:https://hook.example/t0ken"]
    done = CliRunner().invoke(run_stream.main, options)
    assert done.exit_code == 0
    assert "kind: webhook" in done.output
    done = CliRunner().invoke(run_stream.main, ["clip.mp4", "--check", "--sink", "webhook:"])
    assert done.exit_code == 2


def test_every_secret_of_an_address_is_known_to_the_log_filter():
    sink = {"kind": "webhook", "url": "https://hook.example/t0ken?a=b", "secret": SECRET}
    config = StreamConfig.model_validate(
        {"sources": [{"id": "cam", "uri": "clip.mp4"}], "sinks": [sink]}
    )
    assert {"t0ken?a=b", SECRET} <= set(run_stream._secrets(config))
