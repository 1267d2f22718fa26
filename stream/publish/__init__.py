"""Sinks: messages to where people and programs read them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

from stream.errors import ConfigError, SinkError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stream.config import SinkConfig
    from stream.messages import Lane, OutMessage


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


def open_sinks(
    configs: Sequence[SinkConfig],
    *,
    run: str,
    heartbeat_s: float,
    source_ids: Sequence[str] = (),
    lanes: Sequence[Lane] | None = None,
) -> list[Sink]:
    """Open all sinks, or none.

    Args:
        configs: which, and how.
        run: of the producer, as in its messages.
        heartbeat_s: longest time between two statuses of a source.
        source_ids: of all sources.
        lanes: kinds of messages that will be sent, without statuses; None: those of live sources,
            of which a sink may choose.

    Raises:
        ConfigError: one of them can't be used as configured; those before it are closed.
    """
    with contextlib.ExitStack() as opened:
        sinks = []
        for config in configs:
            sink = open_sink(
                config, run=run, heartbeat_s=heartbeat_s, source_ids=source_ids, lanes=lanes
            )
            opened.callback(_close_after_error, sink)
            sinks.append(sink)
        opened.pop_all()
    return sinks


def open_sink(
    config: SinkConfig,
    *,
    run: str,
    heartbeat_s: float,
    source_ids: Sequence[str] = (),
    lanes: Sequence[Lane] | None = None,
) -> Sink:
    """Open a sink.

    Args:
        config: which, and how.
        run: of the producer, as in its messages.
        heartbeat_s: longest time between two statuses of a source.
        source_ids: of all sources.
        lanes: kinds of messages that will be sent, without statuses; None: those of live sources,
            of which a sink may choose.

    Raises:
        ConfigError: the sink can't be used as configured.
    """
    # Imported here: who reads messages imports stream.publish.redis_client and needs none of it.
    from stream.config import JsonlSinkConfig, RedisSinkConfig, WebhookSinkConfig

    match config:
        case RedisSinkConfig():
            from stream.publish.backlog import LIVE
            from stream.publish.redis_stream import RedisSink

            return RedisSink(
                config,
                run=run,
                heartbeat_s=heartbeat_s,
                source_ids=source_ids,
                lanes=lanes or LIVE,
            )
        case JsonlSinkConfig():
            from stream.publish.jsonl import JsonlSink

            return JsonlSink(config)
        case WebhookSinkConfig():
            try:
                from stream.publish.webhook import WebhookSink
            except ImportError as error:
                raise ConfigError(
                    f"webhooks need the extra `webhook` ({error}): pip install -r "
                    "requirements/webhook.txt"
                ) from None

            return WebhookSink(config, lanes)


def _close_after_error(sink: Sink) -> None:
    with contextlib.suppress(SinkError):  # it has logged that; what matters is the first error
        sink.close()
