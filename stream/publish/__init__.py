"""Sinks: messages to where people and programs read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from stream.config import JsonlSinkConfig, RedisSinkConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stream.messages import OutMessage


class Sink(Protocol):
    """Where messages go. Not thread-safe: one thread publishes."""

    def publish(self, messages: Sequence[OutMessage]) -> None:
        """Deliver, or keep for later, the messages of one step; returns quickly.

        Raises:
            SinkError: the limits of keeping are reached; nothing more can be delivered.
        """
        ...

    def close(self) -> None:
        """Deliver what is kept, as far as possible, and release the connection.

        A second call does nothing.

        Raises:
            SinkError: something could not be delivered, and `publish` has not said so already.
        """
        ...


def open_sink(config: RedisSinkConfig | JsonlSinkConfig, *, run: str, heartbeat_s: float) -> Sink:
    """Open a sink.

    Args:
        config: which, and how.
        run: of the producer, as in its messages.
        heartbeat_s: longest time between two statuses of a source.

    Raises:
        ConfigError: the sink can't be used as configured.
    """
    match config:
        case RedisSinkConfig():
            from stream.publish.redis_stream import RedisSink

            return RedisSink(config, run=run, heartbeat_s=heartbeat_s)
        case JsonlSinkConfig():
            from stream.publish.jsonl import JsonlSink

            return JsonlSink(config)
