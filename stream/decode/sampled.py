"""Decoding only what frames that are due need.

A group of pictures (GOP) starts with a key frame and can be decoded by itself. One that holds no
due frame never reaches the decoder, and decoding of the others ends with their last due frame.

What is yielded is, pixel for pixel, what `PyAVDecoder` makes of the same picture, but for
interlaced pictures: those have no neighbours here, and are made whole from themselves alone.
Pictures that are shown before their group's key frame (open groups) need the group before, and are
passed over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from stream.decode.media_time import MAX_DISORDER
from stream.decode.pyav_packets import DEFAULT_FPS, PyAVDecoder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from av.packet import Packet
    from av.stream import Stream
    from av.video.frame import VideoFrame

    from stream.config import DecodeConfig
    from stream.records import Frame

# A group with more than this is decoded whole, as it comes: it must not fill the memory.
MAX_GROUP_BYTES: Final = 64 * 2**20
# Formats whose packets don't say when their pictures are shown: `PyAVDecoder` reads them.
_UNTIMED: Final = {"avi", "mpjpeg", "h264", "hevc", "m4v", "mpegvideo", "obu"}
_SKIPPED: Final[dict[str, Literal["DEFAULT", "NONREF", "NONKEY"]]] = {
    "due": "DEFAULT",
    "reference": "NONREF",
    "keyframes": "NONKEY",
}


class SampledDecoder(PyAVDecoder):
    """A `Decoder` on the CPU that leaves out what it can; see `DecodeConfig.pictures`."""

    def _prepare(self, config: DecodeConfig) -> None:
        self._keys_alone = config.pictures == "keyframes"
        self._interval_s = float(1 / (self._stream.average_rate or DEFAULT_FPS))
        self._group_ticks: int | None = None  # when the present group is shown
        if self._format not in _UNTIMED:
            self._stream.codec_context.skip_frame = _SKIPPED[config.pictures]

    def frames(self) -> Iterator[Frame | None]:
        """Yield the frames that are due, and None for every packet; see `Decoder`."""
        if self._format in _UNTIMED:
            yield from super().frames()
            return
        try:
            group: list[Packet[Stream]] = []
            size, is_open = 0, False  # open: its beginning has been decoded
            for packet in self._packets():
                yield None
                if packet.stream_index != self._stream.index or not packet.size:
                    continue
                if packet.is_keyframe:
                    yield from self._of_group(group, go_on=is_open)
                    group, size, is_open = [], 0, False
                if packet.is_keyframe or ((group or is_open) and not self._keys_alone):
                    group.append(packet)
                    size += packet.size
                if size > MAX_GROUP_BYTES:
                    yield from self._of_part(group)
                    group, size, is_open = [], 0, True
            yield from self._of_group(group, go_on=is_open)
            if not self._closed:
                self._check_end()
        finally:
            self.close()

    def _of_group(self, group: Sequence[Packet[Stream]], *, go_on: bool) -> Iterator[Frame]:
        """Yield the due frames of a group of pictures.

        Args:
            group: its packets, or those after the part that was decoded already.
            go_on: whether there is such a part.
        """
        last = None
        if group and not go_on:
            last = self._last_slot(group)
            if self._is_served(last):
                return
        elif not go_on:
            return
        for packet in group:
            if self._closed:
                return
            yield from self._of_packet(packet)
            if self._is_served(last):
                break
        else:
            yield from self._of_packet(self._nothing_more())
        self._stream.codec_context.flush_buffers()

    def _is_served(self, last: int | None) -> bool:
        """Return whether nothing is due up to a slot; media time starts with the first picture."""
        timed = self._media_time.shift_s is not None
        return timed and last is not None and not self._due.wants(last)

    def _of_part(self, group: Sequence[Packet[Stream]]) -> Iterator[Frame]:
        """Yield the due frames of a part of a group: all is decoded, what follows may need it."""
        if group[0].is_keyframe:
            self._last_slot(group)
        for packet in group:
            yield from self._of_packet(packet)

    def _of_packet(self, packet: Packet[Stream]) -> Iterator[Frame]:
        for picture, moment in self._pictures(packet):
            if self._closed or not self._due.take(moment.pts_s):
                continue
            yield from (self._frame(*p) for p in self._deinterlacer.push(picture, moment))
            yield from (self._frame(*p) for p in self._deinterlacer.flush())

    def _decode(self, packet: Packet[Stream]) -> list[VideoFrame]:
        """Return the pictures of a packet but those that are shown before their group."""
        return [picture for picture in super()._decode(packet) if not self._leads(picture)]

    def _leads(self, picture: VideoFrame) -> bool:
        if self._group_ticks is None or picture.pts is None or picture.time_base is None:
            return False
        # What is shown much earlier is of a clock that was set back.
        early_s = (self._group_ticks - picture.pts) * picture.time_base
        return 0 < early_s <= MAX_DISORDER * self._interval_s

    def _last_slot(self, group: Sequence[Packet[Stream]]) -> int | None:
        """Enter a group; return the last slot of time that it has a picture of, None if unknown."""
        before, self._group_ticks = self._group_ticks, group[0].pts
        shown = [packet.pts for packet in group if packet.pts is not None]
        base = group[0].time_base
        if self._group_ticks is None or base is None or len(shown) < len(group):
            return None
        first_s, last_s = float(self._group_ticks * base), float(max(shown) * base)
        set_back = first_s - float(min(shown) * base) > MAX_DISORDER * self._interval_s
        if set_back or (before is not None and self._group_ticks <= before):
            return None  # `MediaTime` finds out what that means, picture by picture
        shift_s = -first_s if self._media_time.shift_s is None else self._media_time.shift_s
        return self._due.last_slot(first_s + shift_s, last_s + shift_s)
