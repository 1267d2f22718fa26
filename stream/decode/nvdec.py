"""Decoding on an NVIDIA GPU (NVDEC); the pixels stay there.

PyAV holds the connection and finds the packets, as for all decoders. They go to the core decoder
of PyNvVideoCodec, and luma and chroma come back as tensors of the GPU, without a copy through the
host. Where PyNvVideoCodec is missing or refuses a stream, FFmpeg drives NVDEC (PyAV's `HWAccel`);
the frames' stamps then name the decoder `nvdec_pyav`.

Never run on a GPU. PyNvVideoCodec's names and arguments are those of its wheel 2.2.4; older ones
overflow a buffer when the size changes. The form of what `DecodedFrame` gives through DLPack, luma
above chroma, is taken from its documentation.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import av
import torch
from av.bitstream import BitStreamFilterContext
from av.codec.context import CodecContext
from av.codec.hwaccel import HWAccel
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from torch.utils.dlpack import from_dlpack

from stream.decode.colours import Planes, rgb_of
from stream.decode.groups import is_key_frame
from stream.decode.on_device import DeviceDecoder
from stream.decode.reasons import source_error
from stream.records import SourceCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
    from torch import Tensor

    from stream.config import DecodeConfig, SourceConfig
    from stream.decode.on_device import Example
    from stream.errors import SourceError
    from stream.records import Frame

log = logging.getLogger(__name__)

# PyNvVideoCodec's names of the codecs, by FFmpeg's. NVDEC knows more; those need headers that
# their packets don't carry, and no camera sends them.
CODECS: Final = {
    "h264": "H264",
    "hevc": "HEVC",
    "av1": "AV1",
    "vp8": "VP8",
    "vp9": "VP9",
    "mpeg2video": "MPEG2",
}
# Parameter sets go before every key frame: RTSP may name them in the description alone.
_FILTERS: Final = {
    "h264": "h264_mp4toannexb,dump_extra",
    "hevc": "hevc_mp4toannexb,dump_extra",
}
# Packets whose pictures are remembered: those of damaged packets never come.
_REMEMBERED: Final = 256


class NotOnGpuError(Exception):
    """Why a stream, or any, can't be decoded by NVDEC."""


@dataclass(frozen=True)
class Machine:
    """Where pictures are decoded."""

    codec: Any  # the module PyNvVideoCodec, or None where it can't be had
    why_not: str  # if so
    device: torch.device
    finish: Callable[[], None]  # waits until the device has done all that it was asked to
    ffmpeg: Callable[[str], VideoCodecContext]  # opens FFmpeg's decoder of a codec on the device


def this_machine() -> Machine:
    """Return the machine that this program runs on, with its current GPU.

    Raises:
        NotOnGpuError: torch finds no GPU.
    """
    if not torch.cuda.is_available():
        raise NotOnGpuError("torch finds no GPU")
    torch.cuda.init()  # type: ignore[no-untyped-call]
    number = torch.cuda.current_device()
    codec, why_not = None, ""
    try:
        codec = importlib.import_module("PyNvVideoCodec")
    except (ImportError, RuntimeError) as error:  # the latter: no driver, or one too old
        why_not = f"PyNvVideoCodec: {str(error).splitlines()[0]}"
    return Machine(
        codec,
        why_not,
        torch.device("cuda", number),
        torch.cuda.synchronize,
        lambda name: _ffmpegs_decoder(name, number),
    )


def require_gpu(source: SourceConfig) -> None:
    """Look for a GPU before a source is asked for anything.

    Raises:
        SourceError: there is none.
    """
    try:
        this_machine()
    except NotOnGpuError as error:
        raise _unsupported(source, str(error)) from None


def _ffmpegs_decoder(name: str, gpu: int) -> VideoCodecContext:
    accelerated = HWAccel("cuda", gpu, allow_software_fallback=False, is_hw_owned=True)
    context = CodecContext.create(name, "r", hwaccel=accelerated)
    assert isinstance(context, VideoCodecContext)
    return context


@dataclass(frozen=True, slots=True)
class Surface:
    """A decoded picture, before anybody has looked at its pixels."""

    token: int  # of the packet it came in
    planes: Callable[[], Planes]  # on the device; valid until the next packet


class _Engine(Protocol):
    """What decodes packets."""

    name: str

    def decode(self, packet: Packet[Stream], token: int) -> list[Surface]:
        """Return the pictures that a packet completes; all that are left for an empty one.

        Raises:
            NotOnGpuError: this stream can't be decoded.
            _BadPacketError: this packet can't be.
        """
        ...


class _BadPacketError(Exception):
    """A packet can't be decoded."""


class NvdecDecoder(DeviceDecoder):
    """A `Decoder` by NVDEC."""

    def _prepare(self, config: DecodeConfig) -> None:
        self._refused: list[str] = []
        self._first: Example | None = None  # known from the first key frame on
        self._n_packets = 0
        self._stamps: OrderedDict[int, float | None] = OrderedDict()  # by token, seconds
        self._engines = iter((self._open_core, self._open_hwaccel))
        try:
            self._machine = this_machine()
            self._next_engine()
        except NotOnGpuError as error:
            raise self._unsupported(str(error)) from None

    def frames(self) -> Iterator[Frame | None]:
        """Yield the frames that are due, and None for every packet; see `Decoder`."""
        try:
            for packet in self._packets():
                if packet.stream_index == self._stream.index:
                    yield from self._due_frames(packet)
                yield None
            if not self._closed:
                self._check_end()
        finally:
            self.close()

    def _due_frames(self, packet: Packet[Stream]) -> Iterator[Frame]:
        captured_at, arrived_s = self._clock(), self._monotonic()
        if self._first is None:
            codec = self._stream.codec_context.codec.canonical_name
            if not (packet.size and is_key_frame(packet, codec)):
                return  # nothing can be decoded before a key frame
            self._first = self._example(packet)
            if self._first.interlaced:
                raise self._unsupported("interlaced pictures, which are made whole on the CPU")
        for surface in self._surfaces(packet):
            self._frames_seen += 1
            if packet.size:
                self._bad_packets = 0
            moment = self._moment(self._stamps.pop(surface.token, None), captured_at, arrived_s)
            if self._due.take(moment.pts_s):
                yield self._stamped(self._image(surface, self._first), moment)

    def _surfaces(self, packet: Packet[Stream]) -> list[Surface]:
        token = self._n_packets
        self._n_packets += 1
        self._stamps[token] = self._stamp_s(packet.pts, packet.dts, packet.time_base)
        if len(self._stamps) > _REMEMBERED:
            self._stamps.popitem(last=False)
        while True:
            try:
                return self._engine.decode(packet, token)
            except _BadPacketError as error:
                self._count_bad(str(error))
                return []
            except NotOnGpuError as error:
                if self._frames_seen:
                    raise self._unsupported(f"from this packet on, {error}") from None
                self._refused.append(f"{self._engine.name}: {error}")
            try:
                self._next_engine()
            except NotOnGpuError as error:
                raise self._unsupported(str(error)) from None

    def _image(self, surface: Surface, first: Example) -> Tensor:
        planes = surface.planes()
        height, width = planes.luma.shape
        if height * width > self._source.max_pixels:
            raise self._too_large(width, height)
        image = self._upright(rgb_of(planes, first.colour), first.turns)
        # The decoder's next picture may take this one's place, and other threads read the image.
        self._machine.finish()
        return image

    def _next_engine(self) -> None:
        """Take the next that opens.

        Raises:
            NotOnGpuError: there is none; it says why not of all.
        """
        for opened in self._engines:
            try:
                self._engine: _Engine = opened()
            except NotOnGpuError as error:
                self._refused.append(str(error))
                continue
            self._name = self._engine.name
            if self._refused:
                log.info(
                    "source %s: decoded by %s; not by %s", self._source.id, self._name, self._told()
                )
            return
        raise NotOnGpuError(self._told())

    def _told(self) -> str:
        return "; ".join(self._refused)

    def _open_core(self) -> _Engine:
        return _Core(self._machine, self._stream, live=self._live)

    def _open_hwaccel(self) -> _Engine:
        return _HwAccel(self._machine, self._stream)

    def _unsupported(self, what: str) -> SourceError:
        return _unsupported(self._source, what)


class _Core:
    """PyNvVideoCodec's core decoder."""

    name = "nvdec"

    def __init__(self, machine: Machine, stream: VideoStream, *, live: bool) -> None:
        if machine.codec is None:
            raise NotOnGpuError(machine.why_not)
        codec = stream.codec_context.codec.canonical_name
        if codec not in CODECS:
            raise NotOnGpuError(f"nvdec: {codec} is none of {', '.join(CODECS)}")
        self._machine = machine
        self._codec = CODECS[codec]
        self._live = live
        filters = _FILTERS.get(codec)
        self._filter = BitStreamFilterContext(filters, stream) if filters else None
        self._decoder = self._open()
        self._before: Any = None  # the one before, which owns the pictures that it gave last
        self._is_new = True  # has decoded nothing yet

    def _open(self) -> Any:
        codec = self._machine.codec
        latency = codec.DisplayDecodeLatencyType
        try:
            return codec.CreateDecoder(
                gpuid=self._machine.device.index or 0,
                codec=getattr(codec.cudaVideoCodec, self._codec),
                usedevicememory=True,
                outputColorType=codec.OutputColorType.NATIVE,
                latency=latency.LOW if self._live else latency.NATIVE,
            )
        except (codec.PyNvVCExceptionUnsupported, codec.PyNvVCException) as error:
            raise NotOnGpuError(f"{self.name}: {_first_line(error)}") from None

    def decode(self, packet: Packet[Stream], token: int) -> list[Surface]:
        """See `_Engine`."""
        self._before = None
        if not packet.size:
            return self._decode(None, token)
        try:
            whole = [packet] if self._filter is None else self._filter.filter(_copied(packet))
        except av.FFmpegError as error:
            raise _BadPacketError(error.strerror) from None
        found: list[Surface] = []
        for each in whole:
            found += self._of_one(each, token)
        return found

    def _of_one(self, packet: Packet[Stream], token: int) -> list[Surface]:
        try:
            found = self._decode(packet, token)
        except _BadPacketError:
            if self._is_new or not packet.is_keyframe:
                raise
            # It may be larger than what the decoder was made for; a new one starts with it.
            return self._of_new_decoder(packet, token)
        self._is_new = False
        return found

    def _of_new_decoder(self, packet: Packet[Stream], token: int) -> list[Surface]:
        found: list[Surface] = []
        with contextlib.suppress(_BadPacketError):
            found = self._decode(None, token)
        self._before, self._decoder = self._decoder, self._open()
        with contextlib.suppress(_BadPacketError):
            found += self._decode(packet, token)
        return found

    def _decode(self, packet: Packet[Stream] | None, token: int) -> list[Surface]:
        codec = self._machine.codec
        data = codec.PacketData()
        if packet is None:
            data.decode_flag = int(codec.VideoPacketFlag.ENDOFSTREAM)
        else:
            data.pts = token  # comes back as it is; the stamp itself may be missing
            data.bsl_data, data.bsl, data.key = (
                packet.buffer_ptr,
                packet.size,
                int(packet.is_keyframe),
            )
            # One packet is one picture: the parser need not wait for the next to know its end.
            data.decode_flag = int(codec.VideoPacketFlag.ENDOFPICTURE) if self._live else 0
        try:
            frames = self._decoder.Decode(data)
        except codec.PyNvVCExceptionUnsupported as error:
            raise NotOnGpuError(_first_line(error)) from None
        except codec.PyNvVCException as error:
            raise _BadPacketError(_first_line(error)) from None
        return [Surface(frame.getPTS(), partial(self._planes, frame)) for frame in frames]

    def _planes(self, frame: Any) -> Planes:
        kind = frame.format.name
        stacked = from_dlpack(frame)
        rows, width = stacked.shape
        if kind in {"NV12", "P016"}:
            height = rows * 2 // 3
            chroma = stacked[height:].reshape(-1, width // 2, 2)
        elif kind in {"NV16", "P216"}:
            height = rows // 2
            chroma = stacked[height:].reshape(-1, width // 2, 2)
        elif kind in {"YUV444", "YUV444_16Bit"}:
            height = rows // 3
            return Planes(stacked[:height], stacked[height : 2 * height], stacked[2 * height :])
        else:
            raise NotOnGpuError(f"pictures of the form {kind}")
        return Planes(stacked[:height], chroma[..., 0], chroma[..., 1])


@dataclass(frozen=True)
class _Tag:
    token: int


def _token_of(frame: VideoFrame) -> int:
    return frame.opaque.token if isinstance(frame.opaque, _Tag) else -1  # known to nobody


class _HwAccel:
    """NVDEC, driven by FFmpeg."""

    name = "nvdec_pyav"

    def __init__(self, machine: Machine, stream: VideoStream) -> None:
        theirs = stream.codec_context
        try:
            self._context = machine.ffmpeg(theirs.codec.canonical_name)
        except (av.FFmpegError, OSError, NotImplementedError) as error:
            raise NotOnGpuError(f"{self.name}: {_first_line(error)}") from None
        if theirs.extradata:
            self._context.extradata = theirs.extradata
        self._context.thread_count = 1
        self._context.copy_opaque = True  # a packet's token comes back with its picture
        self._machine = machine
        self._is_new = True

    def decode(self, packet: Packet[Stream], token: int) -> list[Surface]:
        """See `_Engine`."""
        # PyAV finds these by their `id`, and small integers are the same objects for all sources.
        packet.opaque = _Tag(token)
        try:
            frames = self._context.decode(packet if packet.size else None)
        except av.FFmpegError as error:
            # What a GPU can't decode shows with the first picture, and as any other error.
            refused = NotOnGpuError if self._is_new else _BadPacketError
            raise refused(error.strerror) from None
        self._is_new = False
        for frame in frames:
            kind = frame.sw_format.name if frame.sw_format else frame.format.name
            if frame.format.name != "cuda" or kind not in {"nv12", "p010le", "p016le"}:
                raise NotOnGpuError(f"pictures of the form {frame.format.name} {kind}")
        return [
            Surface(_token_of(frame), partial(self._planes, frame))
            for frame in frames
            if not frame.is_corrupt
        ]

    def _planes(self, frame: VideoFrame) -> Planes:
        self._machine.finish()  # PyAV does not wait for the decoder
        # Not `from_dlpack(plane)`, which asks for a stream that PyAV refuses.
        luma, chroma = (from_dlpack(plane.__dlpack__()) for plane in frame.planes)
        return Planes(luma, chroma[..., 0], chroma[..., 1])


def _copied(packet: Packet[Stream]) -> Packet[Stream]:
    """Return a packet to give away: a filter leaves nothing in what it takes."""
    copy: Packet[Stream] = Packet(bytes(packet))
    copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
    copy.is_keyframe = packet.is_keyframe
    for data in packet.iter_sidedata():
        copy.set_sidedata(data)
    return copy


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _unsupported(source: SourceConfig, what: str) -> SourceError:
    advice = "`python -m trt_engines doctor` says what this machine lacks; pyav needs no GPU"
    return source_error(SourceCode.UNSUPPORTED_CODEC, source.uri.get_secret_value(), what, advice)
