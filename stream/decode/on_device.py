"""What decoders share whose pixels FFmpeg does not make on the CPU.

The packets don't say how a picture is to be turned, whether it is interlaced, or what its colours
are by. The first key frame is therefore decoded on the CPU, too, once a session.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import av
import torch
from av.packet import Packet
from torch.nn import functional as F

from stream.decode.colours import Colour
from stream.decode.pyav_packets import PyAVDecoder, matrix_of, turned, turns_of

if TYPE_CHECKING:
    from av.stream import Stream
    from torch import Tensor

FULL_RANGE: Final = 2  # AVCOL_RANGE_JPEG


@dataclass(frozen=True, slots=True)
class Example:
    """What the first key frame shows of all."""

    colour: Colour
    turns: int  # quarters, counter-clockwise, to be upright
    interlaced: bool


class DeviceDecoder(PyAVDecoder):
    """A `PyAVDecoder` but for the pixels; `Frame.image` lies where they were made."""

    def _example(self, key: Packet[Stream]) -> Example:
        """Return what a key frame shows, or where it can't be decoded, what the header says."""
        context = self._stream.codec_context
        pictures = []
        try:
            pictures = context.decode(key) + context.decode(None)
            context.flush_buffers()
        except av.FFmpegError as error:
            self._count_bad(error.strerror)
        if not pictures:
            matrix = matrix_of(context.colorspace, context.height)
            return Example(Colour(matrix, context.color_range == FULL_RANGE), 0, False)
        picture = pictures[0]
        # The old names of formats (yuvj420p) are another way to say full range.
        full = picture.color_range == FULL_RANGE or picture.format.name.startswith("yuvj")
        colour = Colour(matrix_of(picture.colorspace, picture.height), full)
        return Example(colour, turns_of(picture), picture.interlaced_frame)

    def _upright(self, image: Tensor, turns: int) -> Tensor:
        """Return an image (H, W, 3) uint8 upright and with square pixels, where it lies."""
        height, width, _ = image.shape
        wide, high = self._square_size(width, height)
        if (wide, high) != (width, height):
            stored = image.permute(2, 0, 1)[None].float()
            scaled = F.interpolate(stored, (high, wide), mode="bicubic", align_corners=False)
            image = scaled[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).contiguous()
        return turned(image, turns)

    def _of_video(self, packet: Packet[Stream]) -> bool:
        return packet.stream_index == self._stream.index and packet.size > 0
