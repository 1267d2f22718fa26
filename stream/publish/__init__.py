"""Sinks: messages to where people and programs read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from stream.config import JsonlSinkConfig, RedisSinkConfig

if TYPE_CHECKING:
    from stream.messages import MessageWriter
    from stream.records import Message


class Sink(Protocol):
    """Where messages go. Not thread-safe: one thread publishes."""

    def publish(self, messages: list[Message]) -> None:
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


def open_sink(
    config: RedisSinkConfig | JsonlSinkConfig, writer: MessageWriter, *, heartbeat_s: float
) -> Sink:
    """Open a sink.

    Args:
        config: which, and how.
        writer: says who produces; the sink gets a fresh one of its own.
        heartbeat_s: longest time between two statuses of a source.

    Raises:
        ConfigError: the sink can't be used as configured.
    """
    match config:
        case RedisSinkConfig():
            from stream.publish.redis_stream import RedisSink

            return RedisSink(config, writer.fresh(), heartbeat_s=heartbeat_s)
        case JsonlSinkConfig():
            from stream.publish.jsonl import JsonlSink

            return JsonlSink(config, writer.fresh())
