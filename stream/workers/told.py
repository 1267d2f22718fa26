"""What a supervisor tells its workers.

Pickled, not JSON: the address of a source holds secrets, which a dump as JSON hides. What workers
say is never unpickled: a decoder that went wild may have written it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from stream.config import SourceConfig
    from stream.records import SourceHistory


@dataclass(frozen=True, slots=True)
class Add:
    """Watch this source, too."""

    source: SourceConfig
    life: int  # grows each time that a source is added; comes back in `SourceSaid`
    history: SourceHistory  # where to go on
    is_paused: bool


@dataclass(frozen=True, slots=True)
class Remove:
    """End a source, and forget it."""

    source_id: str


@dataclass(frozen=True, slots=True)
class Pause:
    """Close a source until it is resumed."""

    source_id: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Open a paused source again."""

    source_id: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Drain and end; what comes after it is not obeyed."""


Change: TypeAlias = Add | Remove | Pause | Resume
