"""Decoders: a source's bytes to frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stream.records import Frame


class Decoder(Protocol):
    """One opened session of one source."""

    def frames(self) -> Iterator[Frame]:
        """Yield the frames that are due for analysis, until the end of the stream.

        Raises:
            SourceError: the stream broke, froze or can't be decoded.
        """
        ...

    @property
    def frames_seen(self) -> int:
        """Frames decoded so far, analysed or not."""
        ...

    def close(self) -> None:
        """Release the socket and the codec; a second call does nothing."""
        ...
