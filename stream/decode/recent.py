"""The latest packets of a source, kept so that a moment can be shown as it came.

Nothing is encoded anew. They are kept by groups of pictures, since decoding starts at a key frame,
and bounded in seconds and in bytes.
"""

from __future__ import annotations

import io
import logging
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import av

from stream.decode.groups import mux

if TYPE_CHECKING:
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream

log = logging.getLogger(__name__)

# Pictures may be shown so much earlier than those whose packets come before theirs.
_REORDERED_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Kept:
    """A packet of the video."""

    packet: Packet[Stream]
    is_key: bool
    at_s: float  # media time at which its picture is shown, as far as is known


@dataclass(slots=True, eq=False)
class Cut:
    """The packets around a moment; grows until it is complete.

    Attributes:
        starts_s: media time of its first picture, seconds; None: no packets were kept.
        is_short: it lacks packets at its end, for it would have had too many bytes.
    """

    template: VideoStream | None
    until_s: float
    max_bytes: int
    starts_s: float | None
    packets: list[Kept] = field(default_factory=list)
    is_short: bool = False
    complete: threading.Event = field(default_factory=threading.Event)
    _bytes: int = 0

    def take(self, kept: Kept) -> None:
        """Add the next packet of the source, unless it belongs to a later time."""
        self._bytes += kept.packet.size
        if kept.at_s > self.until_s + _REORDERED_S:
            self.complete.set()
        elif self._bytes > self.max_bytes:
            self.is_short = True
            self.complete.set()
        else:
            self.packets.append(kept)

    def matroska(self) -> bytes | None:
        """Return the packets as a file; None if there are none.

        Raises:
            av.FFmpegError: they don't fit into such a file.
        """
        if self.template is None or not self.packets:
            return None
        file = io.BytesIO()
        with av.open(file, "w", format="matroska") as container:
            video = container.add_stream_from_template(self.template, opaque=True)
            mux(
                container,
                video,
                [(kept.packet, kept.is_key) for kept in self.packets],
                [kept.at_s for kept in self.packets],
            )
        return file.getvalue()


class RecentPackets:
    """A bounded memory of one source's packets: its decoder adds to it, any thread may cut.

    Args:
        seconds: of media time that are kept; with the rest of their group of pictures.
        max_bytes: of packets that are kept; groups that don't fit are left out.
    """

    def __init__(self, seconds: float, max_bytes: int) -> None:
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._groups: list[list[Kept]] = []
        self._bytes = 0
        self._cuts: list[Cut] = []
        self._template: VideoStream | None = None
        self._first_s: float | None = None  # of the session's first packet, by its own clock
        self._shift_s = 0.0  # media time minus that clock

    def begin(self, stream: VideoStream) -> None:
        """Start a session; what was kept of another is forgotten."""
        self.end()
        # Of a file that is never written: `stream` goes with its session, and a cut may outlive it.
        holder = av.open(io.BytesIO(), "w", format="matroska")
        try:
            template = holder.add_stream_from_template(stream, opaque=True)
        except (ValueError, av.FFmpegError) as error:
            template = None
            log.warning(
                "%s: can't be kept as it comes (%s); cuts of it hold no video",
                stream.codec_context.name,
                error,
            )
        with self._lock:
            self._template = template
            self._groups, self._bytes, self._first_s = [], 0, None

    def add(
        self,
        packet: Packet[Stream],
        *,
        is_key: bool,
        stamp_s: float | None,
        shift_s: float | None,
        arrived_s: float,
    ) -> None:
        """Keep a packet of the video.

        Args:
            packet: as it came.
            is_key: whether decoding can start with it.
            stamp_s: when its picture is shown, by the stream's own stamps; None: it does not say.
            shift_s: media time minus these stamps; None: not known yet.
            arrived_s: of a clock that is never set.
        """
        own_s = arrived_s if stamp_s is None else stamp_s
        with self._lock:
            if self._first_s is None:
                self._first_s = own_s
            known = stamp_s is not None and shift_s is not None
            self._shift_s = shift_s if known and shift_s is not None else -self._first_s
            kept = Kept(packet, is_key, own_s + self._shift_s)
            for cut in self._cuts:
                cut.take(kept)
            self._cuts = [cut for cut in self._cuts if not cut.complete.is_set()]
            if is_key and self._template is not None:
                self._groups.append([])
            if self._groups:  # else nothing to decode it from
                self._groups[-1].append(kept)
                self._bytes += packet.size
            self._trim(kept.at_s)

    def end(self) -> None:
        """End the session: no cut gets anything more."""
        with self._lock:
            for cut in self._cuts:
                cut.complete.set()
            self._cuts = []

    def forget(self) -> None:
        """Let go of all that is kept, for good; what was cut stands."""
        self.end()
        with self._lock:
            self._template, self._groups, self._bytes = None, [], 0

    def cut(self, from_s: float, until_s: float, max_bytes: int) -> Cut:
        """Return what is kept of a stretch of time, and what will come of it.

        Args:
            from_s: media time, seconds; the cut begins at the key frame before, if that is kept.
            until_s: media time, seconds.
            max_bytes: of all packets of the cut.
        """
        with self._lock:
            first = max(
                (n for n, group in enumerate(self._groups) if group[0].at_s <= from_s), default=0
            )
            kept = [each for group in self._groups[first:] for each in group]
            cut = Cut(self._template, until_s, max_bytes, starts_s=kept[0].at_s if kept else None)
            for each in kept:
                if not cut.complete.is_set():
                    cut.take(each)
            if not cut.complete.is_set():
                self._cuts.append(cut)
        return cut

    def _trim(self, now_s: float) -> None:
        """Forget the oldest groups, as long as those after them reach back far enough."""
        while len(self._groups) > 1 and (
            self._bytes > self._max_bytes or self._groups[1][0].at_s <= now_s - self._seconds
        ):
            self._forget_first()
        if self._bytes > self._max_bytes:
            self._forget_first()

    def _forget_first(self) -> None:
        self._bytes -= sum(kept.packet.size for kept in self._groups.pop(0))
