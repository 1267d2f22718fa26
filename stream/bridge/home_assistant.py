"""What Home Assistant is told of a source: one device with a sensor for each thing to know.

https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_OFF_AFTER_S: Final = 60  # of what has no end of its own
# Name, device class and topic of each sensor; whether it goes off by itself.
_SENSORS: Final = {
    "attack": ("Attack", "safety", "attack", True),
    "connectivity": ("Watched", "connectivity", "connectivity", False),
    "frozen": ("Picture frozen", "tamper", "feed/frozen", False),
    "looped": ("Picture looped", "tamper", "feed/looped", False),
    "covered": ("Nothing to see", "tamper", "feed/covered", False),
    "swapped": ("Other scene", "tamper", "feed/swapped", True),
    "changed": ("Other encoding", "tamper", "feed/changed", True),
}


def discovery(
    source_id: str, prefix: str, home_assistant: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield topic and configuration of each sensor of a source.

    Args:
        source_id: as in messages.
        prefix: of our topics.
        home_assistant: of its discovery topics, `homeassistant` unless changed there.
    """
    name = _object_id(f"{prefix}_{source_id}")
    for sensor, (label, device_class, topic, goes_off) in _SENSORS.items():
        config: dict[str, Any] = {
            "name": label,
            "unique_id": f"{name}_{sensor}",
            "device_class": device_class,
            "state_topic": f"{prefix}/{source_id}/{topic}",
            "availability_topic": f"{prefix}/bridge",
            "device": {
                "identifiers": [name],
                "name": source_id,
                "manufacturer": "facewarden",
                "model": "watched source",
            },
        }
        if goes_off:
            config["off_delay"] = _OFF_AFTER_S
        if sensor == "attack":
            config["json_attributes_topic"] = f"{prefix}/{source_id}/alerts"
        yield f"{home_assistant}/binary_sensor/{name}/{sensor}/config", config


def _object_id(text: str) -> str:
    """Return a name of the letters that Home Assistant takes, unlike that of any other text.

    >>> _object_id("facewarden_lobby")
    'facewarden_lobby'
    >>> _object_id("facewarden_lobby.1")
    'facewarden_lobby_1_f5a8a8'
    """
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", text)
    if plain == text:
        return plain
    return f"{plain}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"
