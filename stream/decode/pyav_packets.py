"""Decoding on the CPU with FFmpeg, through PyAV.

Packet by packet, each in its own `try`, so that one bad packet spoils one picture.
"""

from __future__ import annotations

import hashlib
import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import av
import numpy as np
import torch
from av.packet import Packet
from av.stream import Disposition
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from stream.decode import SourceKind, source_kind
from stream.decode.behind import CAUGHT_UP_S, Behind
from stream.decode.connect import connect
from stream.decode.deinterlace import Deinterlacer
from stream.decode.groups import MAX_GROUP_BYTES, Arrived, is_key_frame
from stream.decode.media_time import DueFrames, MediaTime
from stream.decode.reasons import source_error
from stream.decode.slots import slot
from stream.records import Frame, FrameStamp, SourceCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from av.stream import Stream
    from av.video.frame import VideoFrame
    from torch import Tensor

    from stream.config import DecodeConfig, SourceConfig
    from stream.decode.recent import RecentPackets
    from stream.errors import SourceError

log = logging.getLogger(__name__)

# More undecodable packets than this at the end of a file: its end is damaged.
MAX_BAD_TAIL: Final = 10
DEFAULT_FPS: Final = 25
# A gap in a file played as a camera is cut to this.
MAX_PAUSE_S: Final = 5.0
# A recording that ends earlier than its header says, by more than this and its longest gap, was
# cut. Headers are rounded, and may count the last picture for as long as any.
END_TOLERANCE_S: Final = 0.5
# Formats whose header holds the duration. FFmpeg guesses that of the others, or takes it from
# their end, which is always reached.
_TIMED_FORMATS: Final = {"matroska,webm", "flv", "avi", "asf", "mxf", "ivf"}
# A pixel's width over its height that can be meant; other tags are mistakes.
_PIXEL_ASPECTS: Final = Fraction(1, 4), Fraction(4)
# So little off is not worth the loss of resampling.
_ASPECT_TOLERANCE: Final = 0.01
# After it woke, a decoder has so long to catch up before it counts as behind.
CATCH_UP_S: Final = 10.0
COLORSPACE_UNSPECIFIED: Final = 2  # AVCOL_SPC_UNSPECIFIED
# FFmpeg's decoders count padding, too: rows of whole 64 pixels, blocks of 16. So they are allowed
# more, and what exceeds the limit is refused once its size is known.
_PADDED: Final = 2
_PADDING_PX: Final = 2**16


@dataclass(frozen=True, slots=True)
class Moment:
    """What a `FrameStamp` says of when a picture was taken."""

    index: int
    pts_s: float
    captured_at: float


def matrix_of(colorspace: int, height: int) -> int:
    """Return the matrix of a picture's colours, an AVColorSpace, guessed where it is not tagged.

    As players do: FFmpeg itself would take BT.601 for HD, too.
    """
    if colorspace != COLORSPACE_UNSPECIFIED:
        return colorspace
    return int(Colorspace.ITU709 if height > 576 else Colorspace.ITU601)


def turns_of(picture: VideoFrame) -> int:
    """Return by how many quarters a picture is to be turned, counter-clockwise, as torch counts."""
    return round(picture.rotation / 90) % 4


def turned(image: Tensor, turns: int) -> Tensor:
    """Return an image (H, W, 3) turned by so many quarters, counter-clockwise."""
    return image.rot90(turns).contiguous() if turns else image


def _encoding(stream: VideoStream) -> str:
    """Return codec and digest of the parameter sets: what tells encoders apart.

    As announced when the stream was opened, not as repeated within it.
    """
    context = stream.codec_context
    sets = context.extradata
    digest = hashlib.sha256(sets).hexdigest()[:8] if sets else None
    return " ".join(filter(None, [context.name, digest]))


class PyAVDecoder:
    """A `Decoder` on the CPU; what it does with packets is shared by all decoders."""

    _name = "pyav"  # in each frame's stamp

    def __init__(
        self,
        source: SourceConfig,
        config: DecodeConfig,
        *,
        session: int,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        wait: Callable[[float], object],
        recent: RecentPackets | None = None,
    ) -> None:
        self._source = source
        self._session = session
        self._clock = clock
        self._monotonic = monotonic
        self._wait = wait
        self._recent = recent
        self._kind = source_kind(source)
        self._due = DueFrames(config.analyse_fps, config.spans)
        self._deinterlacer: Deinterlacer[Moment] = Deinterlacer()
        self._reformatter = VideoReformatter()
        self._frames_seen = 0
        self._frames_undecoded = 0
        self._behind = Behind()
        self._sheds = False  # packets, up to the next key frame
        self._has_gap = False  # no frame has come since packets were left out
        self._idle = False
        self._kept: list[Arrived] = []  # while idle: the latest key frame and what came since
        self._kept_bytes = 0
        self._shown_ticks: int | None = None  # of the key frame that was decoded by itself
        self._woke_s: float | None = None  # until it has caught up
        self._picture_found = False
        self._key_found = False
        self._bad_packets = 0  # since the last that gave a good picture
        self._waited_s = 0.0  # for packets, since the last good picture
        self._silent_s = 0.0  # since the last packet of the video
        self._reached_s: float | None = None  # end of what was read, by the container's stamps
        self._longest_gap_s = 0.0  # between what was read
        self._tail_cut = False  # the last packet is not whole
        self._play_from: float | None = None  # time of the monotonic clock at media time 0
        self._closed = False
        self._resources = ExitStack()
        try:
            connection = connect(source, self._resources)
            self._container = connection.container
            self._over_udp = connection.over_udp
            self._format = self._container.format.name
            self._live = not self._has_end()
            self._stream = self._find_video(config.threads)
        except BaseException:
            self.close()
            raise
        # Segments come at once, and would not fit into the inbox: they are played as filmed.
        segmented = self._live and self._format == "hls"
        self._paced = segmented or (source.realtime and not self._live)
        self._tagged_aspect = self._container_aspect()
        self._encoding = _encoding(self._stream)
        rate = self._stream.average_rate or DEFAULT_FPS
        self._media_time = MediaTime(interval_s=float(1 / rate), live=self._live)
        try:
            if recent is not None:
                recent.begin(self._stream)
            self._prepare(config)
        except BaseException:
            self.close()
            raise

    def _prepare(self, config: DecodeConfig) -> None:
        """Get ready what a decoder has of its own, once the stream is known."""

    @property
    def frames_seen(self) -> int:
        """Frames decoded so far, analysed or not."""
        return self._frames_seen

    @property
    def frames_undecoded(self) -> int:
        """See `Decoder.frames_undecoded`."""
        return self._frames_undecoded

    @property
    def is_live(self) -> bool:
        """See `Decoder.is_live`."""
        return self._live

    @property
    def is_catching_up(self) -> bool:
        """See `Decoder.is_catching_up`."""
        return self._woke_s is not None

    def set_idle(self, idle: bool) -> None:
        """See `Decoder.set_idle`."""
        self._idle = idle

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
        if self._recent is not None:
            self._recent.end()
        self._resources.close()

    def frames(self) -> Iterator[Frame | None]:
        """Yield the frames that are due, and None for every packet; see `Decoder`."""
        try:
            for packet in self._packets():
                if self._sleeps_through(packet):
                    yield from self._key_frame_alone(packet)
                else:
                    if self._kept and (not self._idle or self._kept_bytes > MAX_GROUP_BYTES):
                        yield from self._since_the_key_frame()
                    if not self._is_shed(packet):
                        yield from self._due_of_packet(packet)
                yield None
            yield from self._due_of(self._deinterlacer.flush())
            if not self._closed:
                self._check_end()
        finally:
            self.close()

    def _due_of_packet(self, packet: Packet[Stream]) -> Iterator[Frame]:
        for picture, moment in self._pictures(packet):
            yield from self._due_of(self._deinterlacer.push(picture, moment))

    def _sleeps_through(self, packet: Packet[Stream]) -> bool:
        """Return whether a packet is kept for the case that its source wakes; key frames first."""
        if not self._idle or packet.stream_index != self._stream.index or not packet.size:
            return False
        # A group that would fill the memory is decoded as it comes.
        return self._is_key(packet) or 0 < self._kept_bytes <= MAX_GROUP_BYTES

    def _key_frame_alone(self, packet: Packet[Stream]) -> Iterator[Frame]:
        """Keep a packet; yield the frame of a key frame, if it is due."""
        is_key = self._is_key(packet)
        if is_key and not self._kept:  # falling asleep: what the decoder still holds
            yield from self._due_of_packet(self._nothing_more())
            yield from self._due_of(self._deinterlacer.flush())
        stamp_s = self._stamp_s(packet.pts, packet.dts, packet.time_base)
        shift_s = self._media_time.shift_s
        if self._paced and stamp_s is not None and shift_s is not None:
            self._play(stamp_s + shift_s)
        self._waited_s = 0.0  # it is not for want of pictures
        arrived = Arrived(packet, self._clock(), self._monotonic())
        if not is_key:
            self._kept.append(arrived)
            self._kept_bytes += packet.size
            return
        self._kept, self._kept_bytes, self._sheds = [arrived], packet.size, False
        self._start_anew()
        for part in (packet, self._nothing_more()):
            for picture, moment in self._pictures(part, arrived):
                self._shown_ticks = picture.pts
                yield from self._due_of(self._deinterlacer.push(picture, moment))
        yield from self._due_of(self._deinterlacer.flush())
        self._start_anew()

    def _since_the_key_frame(self) -> Iterator[Frame | None]:
        """Yield the due frames of what was kept, and None for every packet: the source woke."""
        kept, self._kept, self._kept_bytes = self._kept, [], 0
        if len(kept) > 1:
            self._woke_s = self._monotonic()
        for each in kept:
            if self._closed:
                return
            for picture, moment in self._pictures(each.packet, each):
                yield from self._due_of(self._deinterlacer.push(picture, moment))
            yield None
        self._shown_ticks = None

    def _due_of(self, pictures: Iterable[tuple[VideoFrame, Moment]]) -> Iterator[Frame]:
        """Yield the frames of those whole pictures that are due."""
        for picture, moment in pictures:
            missed = self._due.missed(moment.pts_s) if self._has_gap else 0
            if self._due.take(moment.pts_s):
                self._has_gap = False
                self._frames_undecoded += missed
                yield self._frame(picture, moment)

    def _is_shed(self, packet: Packet[Stream]) -> bool:
        """Return whether a packet is left out because decoding is behind; then, up to a key frame.

        What waits in the socket only gets older. So a decoder that can't keep up reads on to what
        is new, and is as late as the others, but for the gap.
        """
        of_video = self._is_of_video(packet)
        if not of_video or not (self._live or self._paced):
            return False
        stamp_s = self._stamp_s(packet.pts, packet.dts, packet.time_base)
        if stamp_s is None:
            return self._sheds
        now_s = self._monotonic()
        lag_s = self._lag_s(stamp_s, now_s)
        if self._woke_s is not None:
            if lag_s > CAUGHT_UP_S and now_s - self._woke_s < CATCH_UP_S:
                return False
            self._woke_s = None
        if self._sheds and self._is_key(packet) and self._behind.has_caught_up(lag_s, now_s):
            self._sheds = False
            self._start_anew()
        elif not self._sheds and self._behind.is_lasting(lag_s, now_s):
            self._sheds = self._has_gap = True
            log.debug(
                "%s: %.1f s behind: up to a key frame nothing is decoded", self._source.id, lag_s
            )
        if self._sheds:
            self._waited_s = 0.0  # it is not for want of pictures
        return self._sheds

    def _start_anew(self) -> None:
        """Forget all pictures, before a key frame that does not follow what was decoded last."""
        self._stream.codec_context.flush_buffers()
        self._deinterlacer = Deinterlacer()

    def _is_key(self, packet: Packet[Stream]) -> bool:
        return is_key_frame(packet, self._stream.codec_context.codec.canonical_name)

    def _lag_s(self, stamp_s: float, arrived_s: float) -> float:
        """Return how late a packet is, seconds: how long it has waited for us, as far as known."""
        shift_s = self._media_time.shift_s
        if not self._paced:
            return self._media_time.lag_s(stamp_s, arrived_s)
        if self._play_from is None or shift_s is None:
            return 0.0
        return arrived_s - self._play_from - stamp_s - shift_s

    def _has_end(self) -> bool:
        """Return whether what was opened is a recording, known by its size or its duration."""
        if self._kind is not SourceKind.HTTP:
            return self._kind is SourceKind.FILE
        if self._format == "mpjpeg":
            return False  # pictures pushed by a camera, whatever length it claims
        # The size of HLS is that of its playlist.
        sized = self._format != "hls" and self._container.size > 0
        return sized or (self._container.duration or 0) > 0

    def _find_video(self, threads: int) -> VideoStream:
        stream = self._container.streams.best("video")
        if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
            raise self._error(SourceCode.NO_VIDEO, "no video in it")
        if not stream.codec_context:
            raise self._error(SourceCode.UNSUPPORTED_CODEC, "its codec is not known")
        context = stream.codec_context
        if context.width * context.height > self._source.max_pixels:
            raise self._too_large(context.width, context.height)
        context.options = {"max_pixels": str(_PADDED * self._source.max_pixels + _PADDING_PX)}
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
            except (av.FFmpegError, OSError) as error:
                if isinstance(error, av.ExitError | TimeoutError):
                    raise self._frozen(time.monotonic() - started) from None
                of_file = self._kind is SourceKind.FILE
                code = SourceCode.INVALID_DATA if of_file else SourceCode.DISCONNECTED
                raise self._error(code, error.strerror) from None
            if packet is None:
                return
            self._behind.waited(time.monotonic() - started)
            if self._kind is not SourceKind.FILE:
                self._check_patience(packet, time.monotonic() - started)
            if not self._live:
                self._note_end(packet)
            if self._recent is not None and self._is_of_video(packet):
                self._recent.add(
                    packet,
                    is_key=self._is_key(packet),
                    stamp_s=self._stamp_s(packet.pts, packet.dts, packet.time_base),
                    shift_s=self._media_time.shift_s,
                    arrived_s=self._monotonic(),
                )
            yield packet

    def _is_of_video(self, packet: Packet[Stream]) -> bool:
        return packet.stream_index == self._stream.index and packet.size > 0

    def _check_patience(self, packet: Packet[Stream], waited_s: float) -> None:
        """Raise if the far end has given nothing of use for too long."""
        source = self._source
        of_video = self._is_of_video(packet)
        self._waited_s += waited_s
        self._silent_s = 0.0 if of_video else self._silent_s + waited_s
        # On a time-out, FFmpeg first hands out what its parser held, then waits once more.
        if waited_s >= source.read_timeout_s or self._silent_s >= source.stall_s:
            raise self._frozen(max(waited_s, self._silent_s))
        if of_video and packet.is_keyframe and not self._key_found:
            self._key_found = True
            self._waited_s = 0.0
        if self._key_found and self._waited_s >= source.stall_s:
            code = SourceCode.INVALID_DATA if self._bad_packets else SourceCode.FROZEN
            raise self._error(code, f"no whole picture for {self._waited_s:.1f} s")
        if not self._key_found and self._waited_s >= source.key_frame_s:
            raise self._error(
                SourceCode.FROZEN,
                f"packets arrive, but for {self._waited_s:.1f} s no key frame, where decoding can "
                "start",
                "let the camera send key frames (I-frames) more often, or raise key_frame_s",
            )

    def _note_end(self, packet: Packet[Stream]) -> None:
        """Note how far a recording was read."""
        ticks = packet.dts if packet.pts is None else packet.pts
        if not packet.size or ticks is None or packet.time_base is None:
            return
        end_s = float((ticks + (packet.duration or 0)) * packet.time_base)
        self._tail_cut = packet.is_corrupt
        if self._reached_s is not None:
            self._longest_gap_s = max(self._longest_gap_s, end_s - self._reached_s)
        self._reached_s = end_s if self._reached_s is None else max(self._reached_s, end_s)

    def _pictures(
        self, packet: Packet[Stream], arrived: Arrived | None = None
    ) -> Iterator[tuple[VideoFrame, Moment]]:
        """Yield the good pictures that a packet completes.

        Args:
            packet: of any stream.
            arrived: when it came; None: now.
        """
        if arrived is None:
            captured_at, arrived_s = self._clock(), self._monotonic()
        else:
            captured_at, arrived_s = arrived.captured_at, arrived.arrived_s
        for picture in self._decode(packet):
            if picture.pts is not None and picture.pts == self._shown_ticks:
                continue  # its key frame was decoded by itself
            self._frames_seen += 1
            if picture.is_corrupt:  # concealed damage may look like an attack
                continue
            if packet.size:  # else the decoder was emptied at the end
                self._bad_packets = 0
            stamp_s = self._stamp_s(picture.pts, picture.dts, picture.time_base)
            moment = self._moment(stamp_s, captured_at, arrived_s)
            yield picture, moment if arrived is None else replace(moment, captured_at=captured_at)

    def _moment(self, stamp_s: float | None, captured_at: float, arrived_s: float) -> Moment:
        """Return when the good picture that was counted last was taken; wait if it is played."""
        self._picture_found = True
        self._waited_s = 0.0
        pts_s = self._media_time.advance(stamp_s, arrived_s)
        if self._paced:
            late_s = self._play(pts_s)
            captured_at = self._clock() - late_s
        return Moment(self._frames_seen - 1, pts_s, captured_at)

    def _nothing_more(self) -> Packet[Stream]:
        """Return the packet that makes the decoder give what it holds."""
        packet: Packet[Stream] = Packet()
        packet.stream = self._stream
        if self._stream.time_base is not None:
            packet.time_base = self._stream.time_base
        return packet

    def _decode(self, packet: Packet[Stream]) -> list[VideoFrame]:
        if packet.stream_index != self._stream.index:
            return []
        try:
            with slot():
                return self._stream.decode(packet)
        except av.FFmpegError as error:
            context = self._stream.codec_context
            if context.width * context.height > self._source.max_pixels:
                raise self._too_large(context.width, context.height) from None
            self._count_bad(error.strerror)
            return []

    def _count_bad(self, why: str | None, packets: int = 1) -> None:
        self._bad_packets += packets
        log.debug(
            "%s: packet after frame %d can't be decoded: %s",
            self._source.id,
            self._frames_seen,
            why,
        )

    def _stamp_s(
        self, pts: int | None, dts: int | None, time_base: Fraction | None
    ) -> float | None:
        """Return the time the stream gives a picture, seconds, where it gives one."""
        ticks = pts
        if self._format == "mpjpeg":
            ticks = None  # counted by FFmpeg at 25 fps, whatever the camera does
        elif self._format == "avi":
            ticks = dts  # AVI counts pictures in decoding order; FFmpeg guesses the rest
        if ticks is None or time_base is None:
            return None
        return float(ticks * time_base)

    def _play(self, pts_s: float) -> float:
        """Wait until a frame is due that is read faster than it was filmed.

        Returns:
            How long ago it was due, seconds: more than 0 where decoding can't keep up. What is live
            is due when it is there.
        """
        now_s = self._monotonic()
        if self._play_from is None:
            self._play_from = now_s - pts_s
        early_s = self._play_from + pts_s - now_s
        if early_s > 0:
            self._wait(min(early_s, MAX_PAUSE_S))
            self._behind.waited(min(early_s, MAX_PAUSE_S))
        now_s = self._monotonic()
        if early_s > MAX_PAUSE_S or (self._live and early_s < 0):
            self._play_from = now_s - pts_s
        return 0.0 if self._live else max(0.0, now_s - self._play_from - pts_s)

    def _frame(self, picture: VideoFrame, moment: Moment) -> Frame:
        return self._stamped(self._rgb(picture), moment)

    def _stamped(self, image: Tensor, moment: Moment) -> Frame:
        stamp = FrameStamp(
            source_id=self._source.id,
            session=self._session,
            index=moment.index,
            pts_s=moment.pts_s,
            captured_at=moment.captured_at,
            width=image.shape[1],
            height=image.shape[0],
            decoder=self._name,
            encoding=self._encoding,
        )
        return Frame(stamp=stamp, image=image)

    def _rgb(self, picture: VideoFrame) -> Tensor:
        """Return (H, W, 3) uint8, upright, with square pixels, in memory of its own."""
        matrix = None
        if picture.colorspace == COLORSPACE_UNSPECIFIED and not picture.format.is_rgb:
            matrix = Colorspace(matrix_of(picture.colorspace, picture.height))
        width, height = self._square_size(picture.width, picture.height)
        is_resized = (width, height) != (picture.width, picture.height)
        try:
            with slot():
                rgb = self._reformatter.reformat(
                    picture,
                    width=width,
                    height=height,
                    format="rgb24",
                    src_colorspace=matrix,
                    interpolation=Interpolation.BICUBIC if is_resized else None,
                    threads=1,
                )
        except av.FFmpegError as error:
            what = f"{picture.format.name} can't be converted to RGB: {error.strerror}"
            raise self._error(SourceCode.UNSUPPORTED_CODEC, what) from None
        # A copy is needed where rows are padded, or where the decoder's own buffer came back.
        array = np.array(rgb.to_ndarray(), order="C", copy=True if rgb is picture else None)
        image = torch.from_numpy(array)
        return turned(image, turns_of(picture))

    def _square_size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height, as stored, that make the pixels square; none is lost."""
        aspect = self._pixel_aspect()
        if abs(aspect - 1) > _ASPECT_TOLERANCE:
            width, height = round(width * max(aspect, 1)), round(height / min(aspect, 1))
        if width * height > self._source.max_pixels:
            raise self._too_large(width, height)
        return width, height

    def _pixel_aspect(self) -> float:
        """Return the width of a stored pixel over its height."""
        if self._source.pixel_aspect is not None:
            return self._source.pixel_aspect
        tagged = self._tagged_aspect or self._stream.codec_context.sample_aspect_ratio
        least, most = _PIXEL_ASPECTS
        return float(tagged) if tagged and least <= tagged <= most else 1.0

    def _container_aspect(self) -> Fraction | None:
        """Return what the container says of it, which overrules the codec."""
        guessed = self._stream.sample_aspect_ratio
        return None if guessed == self._stream.codec_context.sample_aspect_ratio else guessed

    def _check_end(self) -> None:
        """Raise if the stream did not end as a whole recording does."""
        if self._live:
            raise self._error(SourceCode.DISCONNECTED, "the stream ended")
        if not self._picture_found:
            raise self._error(SourceCode.INVALID_DATA, "not one picture could be decoded")
        if self._is_cut() or self._bad_packets > MAX_BAD_TAIL:
            what = f"the end is missing or damaged, after {self._frames_seen} frames"
            raise self._error(SourceCode.INVALID_DATA, what)

    def _is_cut(self) -> bool:
        """Return whether a recording is shorter than its header or index says."""
        index = self._stream.index_entries
        last = index[-1] if len(index) else None
        if last is not None and 0 < self._container.size < last.pos + last.size:
            return True
        if self._format not in _TIMED_FORMATS or self._reached_s is None:
            return False
        missing_s = (self._container.duration or 0) / 1e6 - self._reached_s
        return self._tail_cut or missing_s > END_TOLERANCE_S + self._longest_gap_s

    def _too_large(self, width: int, height: int) -> SourceError:
        what = f"{width}x{height} exceeds {self._source.max_pixels} pixels"
        return self._error(SourceCode.TOO_LARGE, what)

    def _frozen(self, silent_s: float) -> SourceError:
        what = f"no packet of the video for {silent_s:.1f} s"
        blocked = "is there a firewall or another network between, that lets no UDP through?"
        return self._error(SourceCode.FROZEN, what, blocked if self._over_udp else None)

    def _error(self, code: SourceCode, what: str | None, advice: str | None = None) -> SourceError:
        return source_error(code, self._source.uri.get_secret_value(), what, advice)
