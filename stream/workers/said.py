"""What a worker tells its supervisor, as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from stream.records import SourceHistory


class FailureKind(StrEnum):
    """What a failure of a worker means for all."""

    CONFIG = "config"  # bad configuration
    SINK = "sink"  # messages can't be delivered
    DRAIN = "drain"  # asked to stop, it could not in time
    BUG = "bug"  # of ours; the log has its stack


@dataclass(frozen=True, slots=True)
class Ready:
    """The engines are loaded and the sinks open."""

    what: Literal["ready"] = "ready"


@dataclass(frozen=True, slots=True)
class SourceSaid:
    """A source said something; sent before what it said, and its next frame, goes on."""

    source_id: str
    history: SourceHistory
    life: int  # as told in `Add`: an earlier source of the id may still have something to say
    what: Literal["source"] = "source"


@dataclass(frozen=True, slots=True)
class Counted:
    """Counters since the worker's start."""

    frames_analysed: int
    verdicts: dict[str, int]
    costs: dict[str, float]  # by source, processor seconds per second of its media
    busy_s: float = 0.0  # as in `stream.pipeline.Progress`
    what: Literal["counted"] = "counted"


@dataclass(frozen=True, slots=True)
class Logged:
    """A record of the log."""

    name: str
    level: int
    created: float  # Unix seconds
    text: str
    stack: str | None
    what: Literal["logged"] = "logged"


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker is about to end by an error."""

    kind: FailureKind
    text: str
    what: Literal["failed"] = "failed"


@dataclass(frozen=True, slots=True)
class Done:
    """All of its sources have ended, or it was asked to stop, and everything is delivered."""

    what: Literal["done"] = "done"


Said: TypeAlias = Ready | SourceSaid | Counted | Logged | Failed | Done
SAID: Final[TypeAdapter[Said]] = TypeAdapter(Annotated[Said, Field(discriminator="what")])
