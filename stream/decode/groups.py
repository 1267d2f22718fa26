"""Groups of pictures (GOPs) as files in memory, for decoders that take nothing else.

A group starts with a key frame and can be decoded by itself, but for open groups: there, pictures
that are shown before the key frame follow it and need the group before, too. Such a group before is
given the next key frame and those pictures at its end, so that nothing is lost; the key frame is
then decoded twice, and left out once. Of the first group of a session they can't be decoded by
anybody, and are left out.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import av
from av.packet import Packet

from stream.errors import StreamError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from av.container import OutputContainer
    from av.stream import Stream
    from av.video.stream import VideoStream

# A group with more than this would fill the memory once it is decoded.
MAX_GROUP_BYTES: Final = 64 * 2**20
_MILLISECOND: Final = Fraction(1, 1000)


class GroupTooLongError(StreamError):
    """Key frames are so far apart that a group does not fit into the memory."""


@dataclass(frozen=True, eq=False)
class Arrived:
    """A packet of the video, and when it came."""

    packet: Packet[Stream]
    captured_at: float  # Unix seconds
    arrived_s: float  # of a clock that is never set

    def is_before(self, other: Arrived) -> bool:
        """Return whether its picture is shown before another's, as far as is known."""
        ours, theirs = self.packet.pts, other.packet.pts
        return ours is not None and theirs is not None and ours < theirs


@dataclass(frozen=True)
class Group:
    """Packets that can be decoded without any others, in their order."""

    packets: list[Arrived]
    # Of the next group: decoded for what is shown before it, and not to be shown itself.
    borrowed: Arrived | None = None

    def in_order_of_showing(self, codec: str) -> list[Arrived]:
        """Return the packets whose pictures a decoder gives, in the order in which it does."""
        given = [each for each in self.packets if _is_shown(each.packet, codec)]
        if any(each.packet.pts is None for each in given):
            return given
        return sorted(given, key=lambda each: each.packet.pts or 0)


@dataclass
class GroupCutter:
    """Cuts a stream's packets at its key frames.

    Whether a group is open shows with the packet after the next key frame, so a group is complete
    one packet later than need be; not so where every picture is a key frame.
    """

    codec: str  # FFmpeg's name
    intra_only: bool  # every picture is a key frame, as in MJPEG
    _group: list[Arrived] = field(default_factory=list)
    _next: list[Arrived] = field(default_factory=list)  # a key frame and what is shown before it
    _bytes: int = 0
    _is_first: bool = True

    def push(self, arrived: Arrived) -> Group | None:
        """Take the next packet; return the group that is known to be complete by it, if any.

        Raises:
            GroupTooLongError: there is no key frame in `MAX_GROUP_BYTES`.
        """
        if self.intra_only:
            return Group([arrived])
        complete = None
        is_key = is_key_frame(arrived.packet, self.codec)
        if self._next and (is_key or not arrived.is_before(self._next[0])):
            complete = self._close()
        if self._next or (is_key and self._group):
            self._next.append(arrived)
        elif is_key or (self._group and not self._leads_all(arrived)):
            self._group.append(arrived)
        else:
            return None  # nothing to decode it from
        self._bytes += arrived.packet.size
        if self._bytes > MAX_GROUP_BYTES:
            raise GroupTooLongError(f"no key frame in {self._bytes / 2**20:.0f} MiB")
        return complete

    def flush(self) -> list[Group]:
        """Return what is left at the end of the stream."""
        left = [self._close()] if self._next else []
        if self._group:
            left.append(Group(self._group))
            self._group = []
        return left

    def _leads_all(self, arrived: Arrived) -> bool:
        return self._is_first and arrived.is_before(self._group[0])

    def _close(self) -> Group:
        key = self._next[0]
        is_open = len(self._next) > 1
        group = Group([*self._group, *self._next], key) if is_open else Group(self._group)
        self._group, self._next = [key], []
        self._bytes, self._is_first = key.packet.size, False
        return group


def is_key_frame(packet: Packet[Stream], codec: str) -> bool:
    """Return whether decoding can start with a packet; RTP does not say so of VP8 and VP9."""
    if packet.is_keyframe or codec not in {"vp8", "vp9"} or not packet.size:
        return packet.is_keyframe
    first = bytes(packet)[0]
    if codec == "vp8":
        return not first & 1  # RFC 6386, 9.1
    # VP9 bitstream specification, 6.2: marker, profile, one more bit in profile 3, flag and type.
    bits = first << 1 if first >> 4 & 3 == 3 else first
    return first >> 6 == 2 and not bits >> 2 & 3


def _is_shown(packet: Packet[Stream], codec: str) -> bool:
    """Return whether a packet's picture is shown; VP8 has some that only others are made from."""
    return codec != "vp8" or bool(bytes(packet)[0] >> 4 & 1)  # RFC 6386, 9.1: show_frame


def remuxed(group: Group, stream: VideoStream, size: tuple[int, int]) -> bytes:
    """Return a group as a Matroska file.

    Args:
        group: of packets of `stream`.
        stream: where they come from.
        size: width and height of its key frame, px, which may not be those in the stream's header.

    Raises:
        av.FFmpegError: they don't fit into such a file.
    """
    file = io.BytesIO()
    codec = stream.codec_context.codec.canonical_name
    with av.open(file, "w", format="matroska") as container:
        video = container.add_stream_from_template(stream)
        video.width, video.height = size
        # Without fit stamps they are numbered: times are kept beside the file.
        mux(container, video, [(e.packet, is_key_frame(e.packet, codec)) for e in group.packets])
    return file.getvalue()


def mux(
    container: OutputContainer,
    video: VideoStream,
    packets: Sequence[tuple[Packet[Stream], bool]],
    times_s: Sequence[float] | None = None,
) -> None:
    """Copy packets to a file, their stamps counted from the first one's.

    Args:
        container: open for writing.
        video: a stream of it.
        packets: of one stream, in decoding order, and whether decoding can start with each.
        times_s: used where the stamps are missing or go back, which containers do not take; made
            to grow. None: packets are numbered then.

    Raises:
        av.FFmpegError: they don't fit into such a file.
    """
    fit = _have_fit_stamps([packet for packet, _ in packets])
    first = packets[0][0].dts or 0
    last = -1
    for number, (packet, is_key) in enumerate(packets):
        copy: Packet[Stream] = Packet(bytes(packet))
        copy.time_base = packet.time_base
        if fit and packet.pts is not None and packet.dts is not None:
            copy.pts, copy.dts = packet.pts - first, packet.dts - first
        elif times_s is None:
            copy.pts = copy.dts = number
        else:
            copy.time_base = _MILLISECOND
            last = max(last + 1, round((times_s[number] - times_s[0]) * 1000))
            copy.pts = copy.dts = last
        copy.is_keyframe = is_key
        copy.stream = video
        container.mux(copy)


def _have_fit_stamps(packets: list[Packet[Stream]]) -> bool:
    known = [p.dts for p in packets if p.dts is not None and p.pts is not None]
    return len(known) == len(packets) and all(a < b for a, b in pairwise(known))
