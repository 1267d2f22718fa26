"""The decoder that a source gets when nobody chooses one: on the GPU if that can decode it.

Each source is tried by itself: one that the GPU can't decode is decoded on the CPU, and changes
nothing for the others. DALI is never chosen: it is late by a group of pictures.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from stream.errors import SourceError
from stream.records import SourceCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stream.decode import Decoder
    from stream.records import Frame

log = logging.getLogger(__name__)


class AutoDecoder:
    """A `Decoder` that is the first of two which can decode the source.

    What the first can't decode may show with its first picture; the source is then opened again.
    """

    def __init__(
        self,
        source_id: str,
        *,
        on_gpu: Callable[[], Decoder],
        on_cpu: Callable[[], Decoder],
    ) -> None:
        """Open one.

        Args:
            source_id: for the log.
            on_gpu: opens the source with the decoder that is preferred.
            on_cpu: the same with the other.

        Raises:
            SourceError: it can't be opened, or not decoded by either.
        """
        self._source_id = source_id
        self._on_cpu = on_cpu
        self._closed = False
        self.why = "the GPU can decode it"  # the decoder was chosen
        self._may_fall_back = True
        try:
            self._decoder = on_gpu()
        except SourceError as error:
            self._fall_back(error)

    @property
    def frames_seen(self) -> int:
        """Frames decoded so far, analysed or not."""
        return self._decoder.frames_seen

    @property
    def frames_undecoded(self) -> int:
        """See `Decoder.frames_undecoded`."""
        return self._decoder.frames_undecoded

    @property
    def is_live(self) -> bool:
        """See `Decoder.is_live`."""
        return self._decoder.is_live

    @property
    def is_catching_up(self) -> bool:
        """See `Decoder.is_catching_up`."""
        return self._decoder.is_catching_up

    def set_idle(self, idle: bool) -> None:
        """See `Decoder.set_idle`."""
        self._decoder.set_idle(idle)

    @property
    def description(self) -> str:
        """See `Decoder.description`."""
        return self._decoder.description

    def frames(self) -> Iterator[Frame | None]:
        """Yield the frames that are due, and None for every packet; see `Decoder`."""
        try:
            for frame in self._decoder.frames():
                if frame is not None and self._may_fall_back:
                    self._may_fall_back = False
                    log.info("source %s: decoded by %s", self._source_id, frame.stamp.decoder)
                yield frame
        except SourceError as error:
            if not self._may_fall_back or self._closed:
                raise
            self._decoder.close()
            self._fall_back(error)
            yield from self._decoder.frames()

    def close(self) -> None:
        """Release the socket and the codec; a second call does nothing."""
        self._closed = True
        self._decoder.close()

    def _fall_back(self, error: SourceError) -> None:
        """Take the other decoder, if it was decoding that failed.

        Raises:
            SourceError: this one, if it would be the other's too; or the other's.
        """
        if error.code is not SourceCode.UNSUPPORTED_CODEC:
            raise error
        self._may_fall_back = False
        self.why = str(error)
        self._decoder = self._on_cpu()
        log.info("source %s: decoded by pyav, on the CPU: %s", self._source_id, error)
