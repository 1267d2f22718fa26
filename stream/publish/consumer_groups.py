"""How far the readers of the alerts are behind: for who must hear when nobody listens."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError, ResponseError

from stream.messages import Lane
from stream.publish.redis_client import Node, read_address, reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stream.config import RedisSinkConfig

log = logging.getLogger(__name__)

_LONGEST_S: Final = 1.0  # for one reply


@dataclass(frozen=True, slots=True)
class GroupLag:
    """How far a group of consumers is behind on a stream."""

    lane: Lane
    group: str
    entries: int  # not yet handed out, or handed out and not acknowledged


class ConsumerGroups:
    """Asks Redis, over a connection of its own. Not thread-safe.

    It needs `+xinfo|groups` on the streams of alerts and source events; without that permission it
    logs so once, and knows nothing.

    Args:
        config: of a sink with a URL.

    Raises:
        ConfigError: the URL can't be used.
    """

    def __init__(self, config: RedisSinkConfig) -> None:
        assert config.url is not None
        address = read_address(config.url.get_secret_value(), config.ca_file)
        self._node = Node(address, name="facewarden-metrics", timeout_s=_LONGEST_S)
        self._namespace = config.namespace
        self._complaint = ""

    def lags(self) -> list[GroupLag]:
        """Return the groups that are known; none while Redis does not answer."""
        try:
            found = [lag for lane in (Lane.ALERTS, Lane.SOURCES) for lag in self._lags(lane)]
        except RedisError as error:
            if not self._node.follow(error) and (complaint := reason(error)) != self._complaint:
                self._complaint = complaint
                log.warning("the lag of consumer groups is not known: %s", complaint)
            return []
        self._complaint = ""
        return found

    def _lags(self, lane: Lane) -> Iterator[GroupLag]:
        try:
            groups = self._node.client.xinfo_groups(f"{self._namespace}:{lane}")
        except ResponseError as error:
            if reason(error).startswith("no such key"):
                return
            raise
        for group in groups:
            # Redis does not know the lag where entries were deleted, or before version 7.
            unread, pending = group.get("lag") or 0, group["pending"]
            yield GroupLag(lane, group["name"].decode(), unread + pending)

    def close(self) -> None:
        """Close the connection."""
        self._node.close()
