"""Decoding on the CPU with FFmpeg, through PyAV.

Packet by packet, each in its own `try`, so that one bad packet spoils one picture. What is opened
is fenced in: FFmpeg gets the one protocol that the URI calls for, and only demuxers that read
nothing but the opened file or connection (no playlists of local files).
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import av
import numpy as np
import torch
from av.stream import Disposition
from av.video.reformatter import Colorspace, VideoReformatter
from av.video.stream import VideoStream

from stream.decode import SourceKind, source_kind
from stream.decode.media_time import MAX_STEP_S, DueFrames, MediaTime
from stream.errors import SourceError
from stream.records import Frame, FrameStamp, SourceCode
from stream.redact import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from torch import Tensor

    from stream.config import DecodeConfig, SourceConfig

log = logging.getLogger(__name__)

# More undecodable packets than this at the end of a file: its end is damaged.
MAX_BAD_TAIL: Final = 10
# Probing the header may decode a picture. Up to this size, one that is too large is refused as
# such; beyond, FFmpeg refuses it as invalid.
PROBE_PIXELS: Final = 8192 * 8192
DEFAULT_FPS: Final = 25

_DEMUXERS: Final = (
    "mov,matroska,webm,mpegts,mpeg,avi,flv,asf,ogg,mxf,ivf,obu,h264,hevc,m4v,mpegvideo,mjpeg,"
    "mpjpeg,gif,image2,jpeg_pipe,png_pipe,bmp_pipe,webp_pipe,wav,mp3,aac,flac"
)
_PROTOCOLS: Final = {
    "rtsp": "tcp",
    "rtsps": "tls,tcp",
    "http": "http,https,tls,tcp",
    "https": "http,https,tls,tcp",
}
_COLORSPACE_UNSPECIFIED: Final = 2  # AVCOL_SPC_UNSPECIFIED

_CODES: Final[tuple[tuple[type[Exception], SourceCode], ...]] = (
    (av.HTTPUnauthorizedError, SourceCode.UNAUTHORISED),
    (av.HTTPForbiddenError, SourceCode.UNAUTHORISED),
    (PermissionError, SourceCode.UNAUTHORISED),
    (av.HTTPNotFoundError, SourceCode.NOT_FOUND),
    (FileNotFoundError, SourceCode.NOT_FOUND),
    (av.HTTPError, SourceCode.REFUSED),
    (av.HTTPClientError, SourceCode.REFUSED),
    (ConnectionRefusedError, SourceCode.REFUSED),
    (av.DecoderNotFoundError, SourceCode.UNSUPPORTED_CODEC),
)
_ADVICE: Final = {
    SourceCode.NOT_FOUND: "is the path right?",
    SourceCode.REFUSED: "is the server running, and has it a stream to spare?",
    SourceCode.UNAUTHORISED: "are user and password right, and their special characters "
    "percent-encoded?",
    SourceCode.UNREACHABLE: "no valid answer in time; is the address right and the camera on?",
    SourceCode.FROZEN: "the connection stands, but nothing of use arrives",
    SourceCode.DISCONNECTED: "the far end went away",
    SourceCode.NO_VIDEO: "is it the right file or stream?",
    SourceCode.UNSUPPORTED_CODEC: "choose another codec, H.264 for example",
    SourceCode.TOO_LARGE: "choose a smaller picture, or raise max_pixels",
    SourceCode.INVALID_DATA: "damaged, or not a video",
}


class PyAVDecoder:
    """A `Decoder` on the CPU."""

    def __init__(
        self,
        source: SourceConfig,
        config: DecodeConfig,
        *,
        session: int,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        wait: Callable[[float], object],
    ) -> None:
        self._source = source
        self._session = session
        self._clock = clock
        self._monotonic = monotonic
        self._wait = wait
        self._uri = source.uri.get_secret_value()
        self._kind = source_kind(source)
        self._live = self._kind is not SourceKind.FILE
        self._due = DueFrames(config.analyse_fps)
        self._reformatter = VideoReformatter()
        self._frames_seen = 0
        self._picture_found = False
        self._bad_packets = 0  # since the last that gave a good picture
        self._waited_s = 0.0  # for packets, since the last good picture
        self._play_from: float | None = None  # time of the monotonic clock at media time 0
        self._closed = False
        self._container = self._open()
        try:
            self._stream = self._find_video(config.threads)
        except BaseException:
            self.close()
            raise
        rate = self._stream.average_rate or DEFAULT_FPS
        self._media_time = MediaTime(interval_s=float(1 / rate), live=self._live)
        self._format = self._container.format.name

    @property
    def frames_seen(self) -> int:
        """Frames decoded so far, analysed or not."""
        return self._frames_seen

    @property
    def is_live(self) -> bool:
        """See `Decoder.is_live`."""
        return self._live

    @property
    def description(self) -> str:
        """See `Decoder.description`."""
        context = self._stream.codec_context
        rate = self._stream.average_rate
        fps = f", {float(rate):.4g} fps" if rate else ""
        return f"{context.name} {context.width}x{context.height}{fps}"

    def close(self) -> None:
        """Release the socket and the codec; a second call does nothing."""
        self._closed = True
        self._container.close()

    def frames(self) -> Iterator[Frame | None]:
        """Yield the frames that are due, and None for every packet; see `Decoder`."""
        try:
            for packet in self._packets():
                arrived_at = self._clock()
                for picture in self._decode(packet):
                    index = self._frames_seen
                    self._frames_seen += 1
                    if picture.is_corrupt:  # concealed damage may look like an attack
                        continue
                    self._picture_found = True
                    self._waited_s = 0.0
                    if packet.size:  # else the decoder was emptied at the end
                        self._bad_packets = 0
                    arrived_s = self._monotonic()
                    pts_s = self._media_time.advance(self._stamp_s(picture), arrived_s)
                    if self._source.realtime and not self._live:
                        self._play(pts_s)
                        arrived_at = self._clock()
                    if self._due.take(pts_s):
                        yield self._frame(picture, index, pts_s, arrived_at)
                yield None
            if not self._closed:
                self._check_end()
        finally:
            self.close()

    def _open(self) -> InputContainer:
        try:
            location, form, options = self._target()
            return av.open(
                location,
                format=form,
                options=options | {"max_pixels": str(max(PROBE_PIXELS, self._source.max_pixels))},
                timeout=(self._source.open_timeout_s, self._source.read_timeout_s),
                metadata_errors="replace",
            )
        except (av.FFmpegError, OSError) as error:
            code = next((code for kind, code in _CODES if isinstance(error, kind)), None)
            if code is None:
                # A camera that does not answer the RTSP request reads as invalid data, too.
                invalid = isinstance(error, av.InvalidDataError | av.ArgumentError)
                known = invalid and self._kind is not SourceKind.RTSP
                code = SourceCode.INVALID_DATA if known else SourceCode.UNREACHABLE
            raise self._error(code, error.strerror) from None

    def _target(self) -> tuple[str, str | None, dict[str, str]]:
        """Return FFmpeg's name of the source, its demuxer if it is certain, and options."""
        scheme, _, rest = self._uri.partition(":")
        scheme = scheme.lower()
        match self._kind:
            case SourceKind.FILE:
                path = unquote(rest[2:]) if rest.startswith("///") else self._uri
                if not Path(path).is_file():
                    raise self._error(SourceCode.NOT_FOUND, "no such file")
                fence = {"protocol_whitelist": "file", "format_whitelist": _DEMUXERS}
                # "%d" in the name of a picture means itself, not a series.
                return f"file:{path}", None, fence | {"pattern_type": "none"}
            case SourceKind.WEBCAM:
                return self._uri, "v4l2", {}
            case SourceKind.RTSP:
                fence = {"protocol_whitelist": _PROTOCOLS[scheme]}
                # Without fpsprobesize, FFmpeg watches 20 frames before it hands out the first.
                options = {"rtsp_transport": "tcp", "fpsprobesize": "0"}
                return f"{scheme}:{rest}", "rtsp", fence | options
            case SourceKind.HTTP:
                fence = {
                    "protocol_whitelist": _PROTOCOLS[scheme],
                    "format_whitelist": f"{_DEMUXERS},hls",
                }
                return f"{scheme}:{rest}", None, fence | {"fpsprobesize": "0"}

    def _find_video(self, threads: int) -> VideoStream:
        stream = self._container.streams.best("video")
        if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
            raise self._error(SourceCode.NO_VIDEO, "no video in it")
        if not stream.codec_context:
            raise self._error(SourceCode.UNSUPPORTED_CODEC, "its codec is not known")
        context = stream.codec_context
        if context.width * context.height > self._source.max_pixels:
            raise self._too_large(stream)
        context.options = {"max_pixels": str(self._source.max_pixels)}
        context.thread_count = threads
        context.thread_type = "SLICE" if self._live else "AUTO"  # frame threads add latency
        return stream

    def _packets(self) -> Iterator[Packet[Stream]]:
        # All streams, not the video alone: else PyAV would wait for it, without limit, for as
        # long as sound arrives.
        packets = self._container.demux()
        while not self._closed:
            started = time.monotonic()
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:
                frozen = isinstance(error, av.ExitError | av.TimeoutError)
                lost = SourceCode.FROZEN if frozen else SourceCode.DISCONNECTED
                code = lost if self._live else SourceCode.INVALID_DATA
                raise self._error(code, error.strerror) from None
            if packet is None:
                return
            waited_s = time.monotonic() - started
            self._waited_s += waited_s
            # On a time-out, FFmpeg first hands out what its parser held, then waits once more.
            if self._live and (
                waited_s >= self._source.read_timeout_s or self._waited_s >= self._source.stall_s
            ):
                code = SourceCode.INVALID_DATA if self._bad_packets else SourceCode.FROZEN
                raise self._error(code, f"no whole picture for {self._waited_s:.1f} s")
            yield packet

    def _decode(self, packet: Packet[Stream]) -> list[VideoFrame]:
        if packet.stream_index != self._stream.index:
            return []
        try:
            return self._stream.decode(packet)
        except av.FFmpegError as error:
            context = self._stream.codec_context
            if context.width * context.height > self._source.max_pixels:
                raise self._too_large(self._stream) from None
            self._bad_packets += 1
            log.debug(
                "%s: packet after frame %d can't be decoded: %s",
                self._source.id,
                self._frames_seen,
                error.strerror,
            )
            return []

    def _stamp_s(self, picture: VideoFrame) -> float | None:
        """Return the time the stream gives a picture, seconds, where it gives one."""
        ticks = picture.pts
        if self._format == "mpjpeg":
            ticks = None  # counted by FFmpeg at 25 fps, whatever the camera does
        elif self._format == "avi":
            ticks = picture.dts  # AVI counts pictures in decoding order; FFmpeg guesses the rest
        if ticks is None or picture.time_base is None:
            return None
        return float(ticks * picture.time_base)

    def _play(self, pts_s: float) -> None:
        """Wait until a frame of a file played as a camera is due."""
        now = self._monotonic()
        if self._play_from is None:
            self._play_from = now - pts_s
        delay_s = self._play_from + pts_s - now
        if delay_s > 0:
            self._wait(min(delay_s, MAX_STEP_S))

    def _frame(self, picture: VideoFrame, index: int, pts_s: float, captured_at: float) -> Frame:
        image = self._rgb(picture)
        stamp = FrameStamp(
            source_id=self._source.id,
            session=self._session,
            index=index,
            pts_s=pts_s,
            captured_at=captured_at,
            width=image.shape[1],
            height=image.shape[0],
            decoder="pyav",
        )
        return Frame(stamp=stamp, image=image)

    def _rgb(self, picture: VideoFrame) -> Tensor:
        """Return (H, W, 3) uint8, upright, in memory of its own."""
        matrix = None
        if picture.colorspace == _COLORSPACE_UNSPECIFIED and not picture.format.is_rgb:
            # As players do: FFmpeg itself would take BT.601 for HD, too.
            matrix = Colorspace.ITU709 if picture.height > 576 else Colorspace.ITU601
        try:
            rgb = self._reformatter.reformat(
                picture, format="rgb24", src_colorspace=matrix, threads=1
            )
        except av.FFmpegError as error:
            what = f"{picture.format.name} can't be converted to RGB: {error.strerror}"
            raise self._error(SourceCode.UNSUPPORTED_CODEC, what) from None
        # A copy is needed where rows are padded, or where the decoder's own buffer came back.
        array = np.array(rgb.to_ndarray(), order="C", copy=True if rgb is picture else None)
        image = torch.from_numpy(array)
        turns = round(picture.rotation / 90) % 4  # counter-clockwise, as torch counts
        return image.rot90(turns).contiguous() if turns else image

    def _check_end(self) -> None:
        """Raise if the stream did not end as a whole file does."""
        if self._live:
            raise self._error(SourceCode.DISCONNECTED, "the stream ended")
        if not self._picture_found:
            raise self._error(SourceCode.INVALID_DATA, "not one picture could be decoded")
        index = self._stream.index_entries
        last = index[-1] if len(index) else None
        cut = last is not None and last.pos + last.size > self._container.size
        if cut or self._bad_packets > MAX_BAD_TAIL:
            what = f"the end is missing or damaged, after {self._frames_seen} frames"
            raise self._error(SourceCode.INVALID_DATA, what)

    def _too_large(self, stream: VideoStream) -> SourceError:
        context = stream.codec_context
        return self._error(
            SourceCode.TOO_LARGE,
            f"{context.width}x{context.height} exceeds {self._source.max_pixels} pixels",
        )

    def _error(self, code: SourceCode, what: str | None) -> SourceError:
        return SourceError(code, f"{redact(self._uri)}: {what}; {_ADVICE[code]}")
