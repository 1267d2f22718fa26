"""A connection to an MQTT broker that comes back by itself, and tells what the broker took."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion

from stream.closing import Closing
from stream.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from paho.mqtt.reasoncodes import ReasonCode

log = logging.getLogger(__name__)

ONLINE: Final = "online"
OFFLINE: Final = "offline"
_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
_LONGEST_WAIT_S: Final = 30
_KEEPALIVE_S: Final = 20  # a bridge that is cut off is offline after one and a half of this


class BrokerAddress(NamedTuple):
    """Where a broker is, and who we are there."""

    scheme: str
    host: str
    port: int
    username: str | None
    password: str | None

    @property
    def shown(self) -> str:
        """The address without user and password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def read_broker(url: str) -> BrokerAddress:
    """Read the address of a broker; warns when it would send messages in the clear.

    Args:
        url: `mqtt[s]://[user[:password]@]host[:port]`, with `@ / ? # % :` of the user and password
            percent-encoded.

    Raises:
        ConfigError: it is none; the message repeats no part of it.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = None, None
    if (
        parts is None
        or parts.scheme not in _PORTS
        or not parts.hostname
        or parts.path.strip("/")
        or parts.query
        or "#" in url
    ):
        raise ConfigError(
            "not the address of a broker; expected mqtt[s]://[user:password@]host[:port], with "
            "@ / ? # % : of the password percent-encoded"
        )
    username = None if parts.username is None else unquote(parts.username)
    password = None if parts.password is None else unquote(parts.password)
    found = BrokerAddress(
        parts.scheme, parts.hostname, port or _PORTS[parts.scheme], username, password
    )
    if parts.scheme == "mqtt" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        log.warning(
            "%s without TLS: messages and password can be read on the way; use mqtts://",
            found.shown,
        )
    return found


class Broker(Closing):
    """Publishes with MQTT 5, whose acknowledgements say whether a message was taken.

    Any thread may publish. While the broker is away, `publish` waits.

    Args:
        address: of the broker.
        presence: topic that says `online` while we are connected, and `offline` by our last will.
        ca_file: PEM file of the CA that signed the broker's certificate; default: the system's.

    Attributes:
        connections: so far; what is retained may have to be said again after each.
    """

    def __init__(
        self, address: BrokerAddress, *, presence: str, ca_file: Path | None = None
    ) -> None:
        self.connections = 0
        self._address = address
        self._presence = presence
        self._changed = threading.Condition()
        self._taken: dict[int, ReasonCode] = {}  # by message id: what the broker said of it
        self._unawaited: set[int] = set()  # message ids; of the network's thread alone
        self._complaint = ""
        self._client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"facewarden-{socket.gethostname()}-{os.getpid()}",
            protocol=MQTTv5,
        )
        if address.username is not None:
            self._client.username_pw_set(address.username, address.password)
        if address.scheme == "mqtts":
            self._client.tls_set_context(ssl.create_default_context(cafile=ca_file))
        elif ca_file is not None:
            raise ConfigError(f"a CA is for mqtts://, and the broker is {address.shown}")
        self._client.will_set(presence, OFFLINE, qos=1, retain=True)
        self._client.reconnect_delay_set(1, _LONGEST_WAIT_S)
        self._client.on_connect = self._connected
        self._client.on_connect_fail = self._failed
        self._client.on_disconnect = self._disconnected
        self._client.on_publish = self._published
        self._client.connect_async(address.host, address.port, keepalive=_KEEPALIVE_S)
        self._client.loop_start()

    def wait(self) -> None:
        """Wait until the broker has let us in."""
        with self._changed:
            while not self.connections:
                self._changed.wait()

    def publish(self, topic: str, text: str, *, retain: bool = False) -> None:
        """Return when the broker has taken a message, however long that takes.

        Args:
            topic: without wildcards.
            text: of the message.
            retain: the broker keeps it for those who subscribe later.
        """
        wait_s = 1.0
        while True:
            number = self._client.publish(topic, text, qos=1, retain=retain).mid
            with self._changed:
                while number not in self._taken:
                    self._changed.wait()
                said = self._taken.pop(number)
                if not said.is_failure:
                    return
                self._complain(f"it refuses {topic}: {said}")
                self._changed.wait(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def close(self) -> None:
        """Leave without a farewell, so that the broker publishes our last will."""
        self._client.loop_stop()
        sock = self._client.socket()
        if sock is not None:
            sock.close()

    def _connected(
        self, client: Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        if reason.is_failure:
            self._complain(f"it refuses us: {reason}")
            return
        self._unawaited.add(client.publish(self._presence, ONLINE, qos=1, retain=True).mid)
        log.info("connected to %s", self._address.shown)
        with self._changed:
            self.connections += 1
            self._complaint = ""
            self._changed.notify_all()

    def _failed(self, _client: Client, _data: Any) -> None:
        self._complain("it can't be reached")

    def _disconnected(
        self, _client: Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        self._complain(f"away ({reason}): messages wait in Redis")

    def _published(
        self, _client: Client, _data: Any, number: int, reason: ReasonCode, _properties: Any
    ) -> None:
        if number in self._unawaited:
            self._unawaited.remove(number)
            return
        with self._changed:
            self._taken[number] = reason
            self._changed.notify_all()

    def _complain(self, what: str) -> None:
        if what != self._complaint:
            log.warning("%s: %s", self._address.shown, what)
        self._complaint = what
