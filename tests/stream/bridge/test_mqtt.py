"""Against Debian's mosquitto, a real Redis-protocol server, and the bridge as a process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import Queue

import pytest
from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion

from stream.bridge.broker import Broker, read_broker
from stream.bridge.home_assistant import discovery
from stream.bridge.mqtt import MqttBridge, StatusWatch
from stream.config import RedisSinkConfig
from stream.errors import ConfigError
from stream.publish.redis_client import read_address
from stream.publish.redis_stream import RedisSink
from stream.subscribe import Subscription

ROOT = Path(__file__).parents[3]
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(not MOSQUITTO, reason="needs mosquitto: apt-get install mosquitto"),
]


class Mosquitto:
    """A broker that is killed and comes back, empty."""

    def __init__(self, port: int, folder: Path) -> None:
        self.port = port
        self.url = f"mqtt://127.0.0.1:{port}"
        self._config = folder / "mosquitto.conf"
        self.configure()
        self.start()

    def configure(self, *lines: str) -> None:
        always = (f"listener {self.port} 127.0.0.1", "allow_anonymous true", "user root")
        self._config.write_text("\n".join([*always, *lines]))

    def start(self) -> None:
        assert MOSQUITTO is not None
        command = [MOSQUITTO, "-c", str(self._config)]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while True:  # until it listens
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            time.sleep(0.01)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Listener:
    """Hears all topics of a broker, also after its restart."""

    def __init__(self, port: int) -> None:
        self.heard: Queue[tuple[str, str, bool]] = Queue()
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
        self._client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self._client.on_subscribe = lambda *_: self.heard.put(("subscribed", "", False))
        self._client.on_message = lambda _client, _data, m: self.heard.put(
            (m.topic, m.payload.decode(), m.retain)
        )
        self._client.reconnect_delay_set(1, 1)
        self._client.connect_async("127.0.0.1", port)
        self._client.loop_start()
        self.wait_for("subscribed")

    def wait_for(self, topic: str, text: str | None = None) -> tuple[str, str, bool]:
        """Return the next message on a topic; the time limit of the test is the only one."""
        while True:
            heard = self.heard.get()
            if heard[0] == topic and text in (None, heard[1]):
                return heard

    def ids(self, topic: str, last: str) -> list[str]:
        """Return the event ids on a topic, once each, up to some event."""
        found: list[str] = []
        while last not in found:
            found.append(json.loads(self.wait_for(topic)[1])["event"]["id"])
        return list(dict.fromkeys(found))

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def resources():
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def mosquitto(unused_port, tmp_path, resources):
    broker = Mosquitto(unused_port, tmp_path)
    resources.callback(lambda: broker.kill())
    return broker


@pytest.fixture
def listen(mosquitto, resources):
    def start() -> Listener:
        listener = Listener(mosquitto.port)
        resources.callback(listener.close)
        return listener

    return start


@pytest.fixture
def connect(mosquitto, resources):
    """Return a function that makes a bridge within this process."""

    def make(**how) -> tuple[Broker, MqttBridge]:
        broker = Broker(read_broker(mosquitto.url), presence="facewarden/bridge")
        resources.enter_context(broker)
        broker.wait()
        return broker, MqttBridge(broker, **how)

    return make


@pytest.fixture
def start_bridge(mosquitto, redis_server, resources):
    """Return a function that starts the bridge as people do; all are killed in the end."""

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "stream.bridge", "mqtt", "--from-start"]
        environment = {**os.environ, "REDIS_URL": redis_server.url, "MQTT_URL": mosquitto.url}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
        )
        resources.callback(process.communicate)
        resources.callback(process.kill)
        return process

    return start


@pytest.fixture
def sink(redis_server, tmp_path, resources):
    config = RedisSinkConfig(url=redis_server.url, spool=tmp_path / "spool")
    opened = RedisSink(config, run="0a1b2c3d", heartbeat_s=5, source_ids=["cam1"])
    resources.callback(opened.close)
    return opened


def test_each_kind_of_message_goes_to_a_topic_of_its_source(listen, connect, messages):
    listener = listen()
    _, bridge = connect()
    for message in (messages.alert(), messages.feed_alert(), messages.source_alert()):
        bridge.pass_on(json.loads(message.to_json()))
        kind = {"track": "alerts", "feed": "feeds", "source": "sources"}
        topic = f"facewarden/cam1/{kind[message.event.type.split('.')[0]]}"
        _, text, retained = listener.wait_for(topic)
        assert json.loads(text) == json.loads(message.to_json())
        assert not retained


def test_attack_and_feed_alerts_are_switches_that_retain_what_lasts(listen, connect, messages):
    listener = listen()
    _, bridge = connect()
    for message in (
        messages.alert(),
        messages.feed_alert(),
        messages.feed_alert("swapped", ordinal=2, measure=0.5, limit=0.35),
    ):
        bridge.pass_on(json.loads(message.to_json()))
    for topic in ("attack", "feed/looped", "feed/swapped"):
        listener.wait_for(f"facewarden/cam1/{topic}", "ON")
    late = listen()  # hears what is retained, after all of it the end
    bridge.pass_on(json.loads(messages.feed_alert(cleared=True, ordinal=3).to_json()))
    heard = []
    while ("facewarden/cam1/feed/looped", "OFF", False) not in heard:
        heard.append(late.heard.get())
    assert ("facewarden/cam1/feed/looped", "ON", True) in heard
    assert not [topic for topic, *_ in heard if topic.endswith(("attack", "feed/swapped"))]


def test_verdict_that_is_no_attack_switches_nothing(listen, connect, messages):
    listener = listen()
    _, bridge = connect()
    message = json.loads(messages.alert().to_json())
    message["verdict"]["state"] = "bona_fide"
    bridge.pass_on(message)
    bridge.pass_on(json.loads(messages.source_alert().to_json()))
    heard = []
    while "facewarden/cam1/sources" not in heard:
        heard.append(listener.heard.get()[0])
    assert "facewarden/cam1/attack" not in heard


def test_home_assistant_finds_the_sensors_of_a_source_again_after_each_connection(
    listen, connect, mosquitto, messages
):
    listener = listen()
    broker, bridge = connect(home_assistant="homeassistant")
    message = json.loads(messages.source_alert().to_json())
    topic = "homeassistant/binary_sensor/facewarden_cam1/attack/config"
    bridge.pass_on(message)
    config = json.loads(listener.wait_for(topic)[1])
    assert config["state_topic"] == "facewarden/cam1/attack"
    assert config["availability_topic"] == "facewarden/bridge"
    mosquitto.kill()  # it retains nothing
    mosquitto.start()
    while broker.connections < 2:
        time.sleep(0.02)
    bridge.pass_on(message)
    listener.wait_for("subscribed")
    assert json.loads(listener.wait_for(topic)[1]) == config


def test_sensors_of_all_sources_have_names_of_their_own():
    configs = [c for s in ("cam.1", "cam_1", "cam-1") for _, c in discovery(s, "fw", "ha")]
    assert len({config["unique_id"] for config in configs}) == len(configs) == 3 * 7


def test_connectivity_follows_the_status_and_ends_with_it(
    listen, connect, redis_server, sink, messages
):
    listener = listen()
    _, bridge = connect()
    watch = StatusWatch(bridge, read_address(redis_server.url), "facewarden")
    sink.publish([messages.status()])
    watch.look()
    assert listener.wait_for("facewarden/cam1/connectivity")[1] == "ON"
    redis_server.client.delete("facewarden:status:cam1")
    watch.look()
    assert listener.wait_for("facewarden/cam1/connectivity")[1] == "OFF"


def test_bridge_that_is_killed_is_offline_and_goes_on_where_it_was(
    listen, start_bridge, sink, messages
):
    listener = listen()
    first = start_bridge()
    listener.wait_for("facewarden/bridge", "online")
    sink.publish([messages.alert(ordinal=1)])
    listener.wait_for("facewarden/cam1/alerts")
    first.kill()
    listener.wait_for("facewarden/bridge", "offline")
    sink.publish([messages.alert(ordinal=n) for n in range(2, 6)])
    second = start_bridge()
    prefix = "cam1-0a1b2c3d-0-1:verdict"
    found = listener.ids("facewarden/cam1/alerts", f"{prefix}:5")
    assert found[-4:] == [f"{prefix}:{n}" for n in range(2, 6)]
    second.send_signal(signal.SIGTERM)
    listener.wait_for("facewarden/bridge", "offline")
    assert second.wait() == 0


def test_restarts_of_broker_and_redis_lose_nothing(
    listen, start_bridge, mosquitto, redis_server, sink, messages
):
    listener = listen()
    start_bridge()
    listener.wait_for("facewarden/bridge", "online")
    mosquitto.kill()
    sink.publish([messages.alert(ordinal=n) for n in range(1, 4)])
    mosquitto.start()
    listener.wait_for("subscribed")
    prefix = "cam1-0a1b2c3d-0-1:verdict"
    found = listener.ids("facewarden/cam1/alerts", f"{prefix}:3")
    redis_server.kill()  # it forgets all; the sink keeps what it did not take
    sink.publish([messages.alert(ordinal=n) for n in range(4, 7)])
    redis_server.restart()
    while redis_server.client.xlen("facewarden:alerts") < 3:
        sink.publish([])
        time.sleep(0.02)
    found += listener.ids("facewarden/cam1/alerts", f"{prefix}:6")
    assert list(dict.fromkeys(found)) == [f"{prefix}:{n}" for n in range(1, 7)]


def test_message_that_the_broker_refuses_stays_in_redis(
    mosquitto, connect, redis_server, sink, messages, tmp_path, caplog
):
    """MQTT 3.1.1 would not tell us."""
    mosquitto.kill()
    rights = tmp_path / "rights"
    rights.write_text("topic write facewarden/bridge\n")
    mosquitto.configure(f"acl_file {rights}")
    mosquitto.start()
    broker, bridge = connect()
    sink.publish([messages.alert()])
    with Subscription(redis_server.url, group="mqtt", from_start=True) as alerts:
        message = next(alerts)
        broker._complain = _raise
        with pytest.raises(_RefusedError, match="refuses facewarden/cam1/alerts: Not authorized"):
            bridge.pass_on(message)
        assert redis_server.client.xpending("facewarden:alerts", "mqtt")["pending"] == 1


class _RefusedError(Exception):
    pass


def _raise(what: str) -> None:
    raise _RefusedError(what)


@pytest.mark.parametrize(
    "url", ["http://S3cret@host", "mqtt://", "mqtt://host:S3cret", "mqtt://h/S3cret", "S3cret"]
)
def test_address_that_is_no_broker_is_refused_without_being_repeated(url):
    with pytest.raises(ConfigError, match="not the address of a broker") as caught:
        read_broker(url)
    assert "S3cret" not in str(caught.value)


def test_address_of_a_broker_is_shown_without_user_and_password(caplog):
    address = read_broker("mqtts://user:S3cret%2Fword@broker.example")
    assert (address.username, address.password, address.port) == ("user", "S3cret/word", 8883)
    assert address.shown == "mqtts://broker.example:8883"
    assert not caplog.records
    read_broker("mqtt://broker.example")
    assert "without TLS" in caplog.text


def test_bridge_imports_nothing_of_the_analysis():
    script = "import sys, stream.bridge.__main__, stream.bridge.mqtt, stream.bridge.broker; "
    script += "print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert not {"torch", "numpy", "onnxruntime", "av", "pydantic"} & set(done.stdout.split())
