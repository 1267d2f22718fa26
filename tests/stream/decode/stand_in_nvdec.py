"""What stands for PyNvVideoCodec and for FFmpeg's NVDEC where there is no GPU.

It decodes on the CPU, and refuses what the real ones refuse: packets that are not Annex B,
parameter sets that are not in the packets, pictures larger than the first, pixels read after the
next packet.
Names and arguments are compared with the real ones' in test_nvdec.py. What it proves is our side
of the bargain.
"""

from __future__ import annotations

import ctypes
from collections import deque
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import torch
from av.packet import Packet

from stream.decode.nvdec import Machine


class PyNvVCExceptionUnsupported(Exception):  # noqa: N818
    """Real name and base."""


class PyNvVCException(Exception):  # noqa: N818
    """Real name and base."""


class cudaVideoCodec(IntEnum):  # noqa: N801 - the real name
    MPEG2 = 1
    H264 = 4
    HEVC = 8
    VP8 = 9
    VP9 = 10
    AV1 = 11


class OutputColorType(IntEnum):
    NATIVE = 0
    RGB = 1
    RGBP = 2


class DisplayDecodeLatencyType(IntEnum):
    NATIVE = 0
    LOW = 1
    ZERO = 2


class VideoPacketFlag(IntEnum):
    ENDOFSTREAM = 1
    TIMESTAMP = 2
    DISCONTINUITY = 4
    ENDOFPICTURE = 8
    NOTIFY_EOS = 16


class Pixel_Format(IntEnum):  # noqa: N801 - the real name
    NV12 = 3
    YUV444 = 4
    P016 = 5
    YUV444_16Bit = 6
    NV16 = 7
    P216 = 8
    RGB = 9
    RGBP = 10


class PacketData:
    """Takes numbers alone, as pybind11 does."""

    bsl: int
    bsl_data: int
    decode_flag: int
    key: int
    pts: int

    def __init__(self) -> None:
        for name in ("bsl", "bsl_data", "decode_flag", "key", "pts"):
            setattr(self, name, 0)

    def __setattr__(self, name: str, value: int) -> None:
        if name not in {"bsl", "bsl_data", "decode_flag", "key", "pts"} or type(value) is not int:
            raise TypeError(f"{name} = {value!r}: incompatible function arguments")
        super().__setattr__(name, value)


class DecodedFrame:
    def __init__(self, pixels: torch.Tensor, kind: Pixel_Format, pts: int) -> None:
        self._pixels, self.format, self._pts = pixels, kind, pts

    def getPTS(self) -> int:
        return self._pts

    def __dlpack__(self, stream: Any = 0) -> Any:
        return self._pixels.__dlpack__()

    def __dlpack_device__(self) -> Any:
        return self._pixels.__dlpack_device__()

    def overwrite(self) -> None:
        self._pixels.fill_(7)


def stacked(frame: av.VideoFrame) -> tuple[torch.Tensor, Pixel_Format]:
    """Return luma above chroma, as NVDEC lays them out, and the name of that."""
    deep = frame.format.components[0].bits > 8
    planes = [plane_of(plane, deep) for plane in frame.planes]
    full = frame.format.name.startswith(("yuv444", "gbr"))
    if full:
        kind = Pixel_Format.YUV444_16Bit if deep else Pixel_Format.YUV444
        return torch.from_numpy(np.concatenate(planes)), kind
    luma, blue, red = planes
    chroma = np.stack((blue, red), -1).reshape(len(blue), -1)
    wide = frame.format.name.startswith("yuv422")
    kinds = (
        (Pixel_Format.NV16, Pixel_Format.P216) if wide else (Pixel_Format.NV12, Pixel_Format.P016)
    )
    return torch.from_numpy(np.concatenate((luma, chroma))), kinds[deep]


def plane_of(plane: Any, deep: bool) -> np.ndarray[Any, Any]:
    rows = np.frombuffer(plane, np.uint16 if deep else np.uint8)
    rows = rows.reshape(plane.height, -1)[:, : plane.width]
    return rows * 64 if deep else rows  # ten bits, at the upper end


class PyNvDecoder:
    def __init__(self, codec: cudaVideoCodec, latency: DisplayDecodeLatencyType, faults: Faults):
        names = {"MPEG2": "mpeg2video"}
        self._annex_b = codec.name in {"H264", "HEVC"}
        self._context: Any = av.CodecContext.create(names.get(codec.name, codec.name.lower()), "r")
        self._context.thread_count = 1
        self._context.copy_opaque = True
        self._late = 0 if latency is DisplayDecodeLatencyType.LOW else 4
        self._held: deque[DecodedFrame] = deque()
        self._given: list[DecodedFrame] = []
        self._most: tuple[int, int] | None = None
        self._faults = faults

    def Decode(self, arg0: PacketData) -> list[DecodedFrame]:
        if not isinstance(arg0, PacketData):
            raise TypeError("Decode(): incompatible function arguments")
        for frame in self._given:
            frame.overwrite()
        self._faults.before_decoding(arg0)
        ends = not arg0.bsl or bool(arg0.decode_flag & VideoPacketFlag.ENDOFSTREAM)
        packet = None if ends else self._packet(arg0)
        try:
            self._held += [self._frame(picture) for picture in self._context.decode(packet)]
        except av.FFmpegError as error:
            raise PyNvVCException(f"HandleVideoSequence: {error}\nmore") from None
        late = 0 if ends else self._late
        self._given = [self._held.popleft() for _ in range(max(len(self._held) - late, 0))]
        return self._given

    def _packet(self, data: PacketData) -> Any:
        content = ctypes.string_at(data.bsl_data, data.bsl)
        if self._annex_b and not content.startswith((b"\0\0\1", b"\0\0\0\1")):
            raise PyNvVCException("no start code")
        packet: Any = Packet(content)
        packet.opaque = [data.pts]  # PyAV finds it by its `id`
        return packet

    def _frame(self, picture: Any) -> DecodedFrame:
        size = picture.width, picture.height
        self._most = self._most or size
        if any(a > b for a, b in zip(size, self._most, strict=True)):
            self._context.flush_buffers()
            raise PyNvVCException(
                "Reconfigure Not supported when width/height > maxwidth/maxheight"
            )
        return DecodedFrame(*stacked(picture), picture.opaque[0])


class Faults:
    """What goes wrong, as tests want it."""

    def __init__(self) -> None:
        self.no_codec: str | None = None  # why CreateDecoder fails
        self.unsupported = False  # Decode says so
        self.bad_packets: set[int] = set()  # tokens
        self.no_ffmpeg = False
        self.flags: list[int] = []  # seen
        self.decoders = 0  # made

    def before_decoding(self, data: PacketData) -> None:
        self.flags.append(data.decode_flag)
        if self.unsupported:
            raise PyNvVCExceptionUnsupported("Codec not supported on this GPU\nHandleVideoSequence")
        if data.pts in self.bad_packets:
            raise PyNvVCException("CUDA error with code 700")


class StandIn:
    """The module PyNvVideoCodec."""

    PyNvVCExceptionUnsupported = PyNvVCExceptionUnsupported
    PyNvVCException = PyNvVCException
    cudaVideoCodec = cudaVideoCodec  # noqa: N815
    OutputColorType = OutputColorType
    DisplayDecodeLatencyType = DisplayDecodeLatencyType
    VideoPacketFlag = VideoPacketFlag
    Pixel_Format = Pixel_Format
    PacketData = PacketData
    DecodedFrame = DecodedFrame
    PyNvDecoder = PyNvDecoder

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def CreateDecoder(
        self,
        gpuid: int = 0,
        codec: Any = cudaVideoCodec.H264,
        usedevicememory: bool = False,
        outputColorType: Any = OutputColorType.NATIVE,
        latency: Any = DisplayDecodeLatencyType.NATIVE,
    ) -> Any:
        assert usedevicememory
        assert outputColorType is OutputColorType.NATIVE
        assert gpuid == 0
        if self._faults.no_codec:
            raise PyNvVCExceptionUnsupported(self._faults.no_codec)
        self._faults.decoders += 1
        return PyNvDecoder(codec, latency, self._faults)


class CudaPlane:
    def __init__(self, pixels: torch.Tensor) -> None:
        self._pixels = pixels

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        if stream is not None:
            raise NotImplementedError("CUDA stream synchronization is not supported.")
        return self._pixels.__dlpack__()


class CudaFrame:
    """A frame of PyAV's that lies on a GPU."""

    def __init__(self, picture: av.VideoFrame) -> None:
        pixels, kind = stacked(picture)
        self.format = SimpleNamespace(name="cuda")
        self.sw_format = SimpleNamespace(
            name={"NV12": "nv12", "P016": "p010le"}.get(kind.name, "?")
        )
        self.opaque, self.is_corrupt = picture.opaque, picture.is_corrupt
        height, width = picture.height, picture.width
        chroma = (
            pixels[height:].unflatten(1, (width // 2, 2))
            if kind.name in {"NV12", "P016"}
            else pixels
        )
        self.planes = CudaPlane(pixels[:height]), CudaPlane(chroma)


class CudaContext:
    """A decoder of PyAV's with `HWAccel("cuda", is_hw_owned=True)`."""

    def __init__(self, name: str) -> None:
        object.__setattr__(self, "_real", av.CodecContext.create(name, "r"))

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._real, name, value)  # type: ignore[attr-defined]

    def decode(self, packet: Any) -> list[CudaFrame]:
        return [CudaFrame(picture) for picture in self._real.decode(packet)]  # type: ignore[attr-defined]


def stand_in_machine(faults: Faults) -> Machine:
    def ffmpeg(name: str) -> Any:
        if faults.no_ffmpeg:
            raise av.error.PermissionError(1, "Operation not permitted")
        return CudaContext(name)

    return Machine(StandIn(faults), "", torch.device("cpu"), lambda: None, ffmpeg)
