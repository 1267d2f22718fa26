"""What goes between a worker and the supervisor for the page, over a connection of its own.

A message is a line of JSON and, behind it, bytes: a picture, or the pixels of a face. Pictures must
not delay what the supervisor needs to hear, so none of it goes the way of `said.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from stream.page.board import Kind, Measured, View

# --- from the worker ---


@dataclass(frozen=True, slots=True)
class NewsTold:
    """What is new on the worker's board, the oldest first."""

    news: list[tuple[Kind, str]]
    measured: list[Measured]  # only while somebody looks
    what: Literal["news"] = "news"


@dataclass(frozen=True, slots=True)
class PictureMade:
    """A frame; behind it, a part of the live stream, as it is sent to viewers."""

    source_id: str
    width: int  # px, that was asked for
    what: Literal["picture"] = "picture"


@dataclass(frozen=True, slots=True)
class LookKept:
    """The face behind an alert; behind it, (3, S, S) uint8 RGB."""

    event_id: str
    what: Literal["look"] = "look"


@dataclass(frozen=True, slots=True)
class Answered:
    """What was asked for by `Asked`; behind it, a JPEG, or nothing if there is none."""

    number: int
    what: Literal["answer"] = "answer"


# --- from the supervisor ---


@dataclass(frozen=True, slots=True)
class Wanted:
    """What people look at from now on."""

    views: list[View]
    what: Literal["wanted"] = "wanted"


@dataclass(frozen=True, slots=True)
class Asked:
    """Make a JPEG of the face that is behind it, (3, S, S) uint8 RGB."""

    number: int  # names the answer
    of: Literal["face", "evidence"]
    what: Literal["ask"] = "ask"


FromWorker: TypeAlias = NewsTold | PictureMade | LookKept | Answered
ToWorker: TypeAlias = Wanted | Asked
FROM_WORKER: Final[TypeAdapter[FromWorker]] = TypeAdapter(
    Annotated[FromWorker, Field(discriminator="what")]
)
TO_WORKER: Final[TypeAdapter[ToWorker]] = TypeAdapter(
    Annotated[ToWorker, Field(discriminator="what")]
)


def packed(header: bytes, behind: bytes = b"") -> bytes:
    """Return a message as it is sent; JSON has no line ends of its own."""
    return header + b"\n" + behind


def unpacked(message: bytes) -> tuple[bytes, bytes]:
    """Return its JSON, and what is behind it."""
    header, _, behind = message.partition(b"\n")
    return header, behind
