"""Sinks: messages to where people and programs read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from stream.records import Message


class Sink(Protocol):
    """Where messages go."""

    def publish(self, messages: list[Message]) -> None:
        """Deliver, or keep for later, the messages of one step; returns quickly.

        Raises:
            SinkError: the limits of keeping are reached; nothing more can be delivered.
        """
        ...

    def close(self) -> None:
        """Deliver what is kept, as far as possible, and release the connection."""
        ...
