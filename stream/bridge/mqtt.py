"""Messages to MQTT topics, and to Home Assistant by its discovery.

```
<prefix>/bridge                     online, offline (last will); retained
<prefix>/<source>/alerts            verdicts, as JSON
<prefix>/<source>/feeds             attacks on the feed and their ends, as JSON
<prefix>/<source>/sources           lost, regained, flapping, ended, as JSON
<prefix>/<source>/attack            ON with each verdict `attack`
<prefix>/<source>/connectivity      ON while the source is watched, else OFF; retained
<prefix>/<source>/feed/<condition>  ON, and OFF at its end; retained if it has an end
```
"""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from stream.bridge.home_assistant import discovery
from stream.publish.redis_client import Node, reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stream.bridge.broker import Broker
    from stream.publish.redis_client import RedisAddress

log = logging.getLogger(__name__)

MOMENTS: Final = ("swapped", "changed")  # conditions of a feed without an end
_KINDS: Final = {"track": "alerts", "feed": "feeds", "source": "sources"}
_UP: Final = (b"open", b"idle")
_LOOK_EVERY_S: Final = 5.0
_TIMEOUT_S: Final = 5.0


class MqttBridge:
    """Says on MQTT what messages and statuses say.

    Args:
        broker: that publishes.
        prefix: of all topics.
        home_assistant: prefix of Home Assistant's discovery; None: it is told nothing.
    """

    def __init__(
        self, broker: Broker, *, prefix: str = "facewarden", home_assistant: str | None = None
    ) -> None:
        self._broker = broker
        self._prefix = prefix
        self._home_assistant = home_assistant
        self._announced: dict[str, int] = {}  # by source: in which connection
        self._connectivity: dict[str, tuple[int, str]] = {}  # the same, and what was said
        self._lock = threading.Lock()

    def pass_on(self, message: Mapping[str, Any]) -> None:
        """Publish a message about a source; returns when the broker has all of it."""
        source_id = message["source"]["id"]
        self.announce(source_id)
        topic = f"{self._prefix}/{source_id}"
        kind = _KINDS.get(message["event"]["type"].partition(".")[0])
        if kind is None:
            return  # of a later version
        self._broker.publish(f"{topic}/{kind}", json.dumps(message, ensure_ascii=False))
        if kind == "alerts" and message["verdict"]["state"] == "attack":
            self._broker.publish(f"{topic}/attack", "ON")
        elif kind == "feeds":
            condition = message["feed"]["condition"]
            state = "OFF" if message["event"]["type"] == "feed.cleared" else "ON"
            retain = condition not in MOMENTS
            self._broker.publish(f"{topic}/feed/{condition}", state, retain=retain)

    def announce(self, source_id: str) -> None:
        """Tell Home Assistant of a source, once per connection."""
        with self._lock:
            connection = self._broker.connections
            if self._home_assistant is None or self._announced.get(source_id) == connection:
                return
            self._announced[source_id] = connection
        for topic, config in discovery(source_id, self._prefix, self._home_assistant):
            self._broker.publish(topic, json.dumps(config), retain=True)

    def say_connectivity(self, states: Mapping[str, bytes | None]) -> None:
        """Publish which sources are watched, where that changed or the connection is a new one.

        Args:
            states: of the status hashes, by source; None: the hash is gone.
        """
        for source_id, state in states.items():
            self.announce(source_id)
            says = self._broker.connections, "ON" if state in _UP else "OFF"
            if self._connectivity.get(source_id) != says:
                topic = f"{self._prefix}/{source_id}/connectivity"
                self._broker.publish(topic, says[1], retain=True)
                self._connectivity[source_id] = says


class StatusWatch:
    """Reads the status hashes every few seconds, in a thread, and tells the bridge.

    Args:
        bridge: is told.
        address: of Redis.
        namespace: first part of all keys.
    """

    def __init__(self, bridge: MqttBridge, address: RedisAddress, namespace: str) -> None:
        self._bridge = bridge
        self._node = Node(address, name="facewarden-bridge", timeout_s=_TIMEOUT_S)
        self._prefix = f"{namespace}:status:"
        self._known: set[str] = set()
        threading.Thread(target=self._run, name="statuses", daemon=True).start()

    def look(self) -> None:
        """Look once.

        Raises:
            RedisError: Redis is away, or refuses us.
        """
        pattern = f"{_escaped(self._prefix)}*"
        keys: Iterable[bytes] = self._node.client.scan_iter(match=pattern, count=1000)
        self._known.update(key.decode().removeprefix(self._prefix) for key in keys)
        states: dict[str, Any] = {
            source_id: self._node.client.hget(self._prefix + source_id, "state")
            for source_id in sorted(self._known)
        }
        self._bridge.say_connectivity(states)

    def _run(self) -> None:
        complaint = ""
        while True:
            try:
                self.look()
                complaint = ""
            except RedisError as error:
                if not self._node.follow(error):
                    self._node.start_over()
                if (why := reason(error)) != complaint:
                    log.warning("statuses can't be read (%s): trying again", why)
                complaint = why
            time.sleep(_LOOK_EVERY_S)


def _escaped(text: str) -> str:
    """Return a pattern of Redis that matches a namespace alone; none holds others of its signs."""
    return text.replace("{", "[{]").replace("}", "[}]")
