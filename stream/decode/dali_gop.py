"""Decoding with NVIDIA DALI, one group of pictures at a time.

PyAV holds the connection and finds the packets, as for all decoders; each group is a file in
memory for DALI's `experimental.inputs.video`. On a GPU it is decoded there (`mixed`), and the
pixels stay there; without one on the CPU, where DALI knows VP8, VP9 and MJPEG alone. The former
never ran.

DALI gives pictures and nothing else, so who they are is kept beside: the packets of the groups it
was given, in the order in which their pictures are shown.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import av
import numpy as np
import torch
from nvidia.dali import Pipeline, fn
from torch.utils.dlpack import from_dlpack

from stream.decode.colours import from_bt601
from stream.decode.groups import Arrived, GroupCutter, GroupTooLongError, remuxed
from stream.decode.on_device import DeviceDecoder
from stream.records import SourceCode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from av.packet import Packet
    from av.stream import Stream
    from torch import Tensor

    from stream.config import DecodeConfig
    from stream.decode.groups import Group
    from stream.decode.on_device import Example
    from stream.errors import SourceError
    from stream.records import Frame

log = logging.getLogger(__name__)

CPU_CODECS: Final = frozenset({"vp8", "vp9", "mjpeg"})
GPU_CODECS: Final = frozenset({"h264", "hevc", "av1", "mpeg4", "vp8", "vp9"})
# Pictures that come from DALI at once.
SEQUENCE_LENGTH: Final = 8
# Groups that DALI has before the decoder waits for the first of them.
_GROUPS_AHEAD: Final = 2
# Groups in a row that DALI could not decode: it will not do better with the next.
MAX_BAD_GROUPS: Final = 10
# Codecs whose decoders read the header of a key frame without decoding it.
_HEADER_ALONE: Final = frozenset({"vp8", "mjpeg"})
# Longest wait for the thread to end: only a driver that hangs takes so long.
_LONGEST_END_S: Final = 10.0


class DaliDecoder(DeviceDecoder):
    """A `Decoder` by DALI; late by a group of pictures."""

    _name = "dali"

    _pipeline: _Pipeline | None = None

    def _prepare(self, config: DecodeConfig) -> None:
        self._device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
        self._threads = config.threads
        self._codec = self._stream.codec_context.codec.canonical_name
        known = GPU_CODECS if self._device.type == "cuda" else CPU_CODECS
        if self._codec not in known:
            raise self._unsupported(
                f"DALI decodes no {self._codec} on a {self._device.type}, only "
                f"{', '.join(sorted(known))}"
            )
        intra_only = self._stream.codec_context.codec.intra_only
        self._cutter = GroupCutter(self._codec, intra_only=intra_only)
        self._first: Example | None = None
        self._waiting: deque[_Waiting] = deque()  # groups at DALI, oldest first
        self._bad_groups = 0  # in a row

    def close(self) -> None:
        """Release DALI, the socket and the codec; a second call does nothing."""
        if self._pipeline is not None:
            self._pipeline.close()
        super().close()

    def frames(self) -> Iterator[Frame | None]:
        """Yield the frames that are due, and None for every packet; see `Decoder`."""
        try:
            for packet in self._packets():
                if self._of_video(packet):
                    group = self._cut(Arrived(packet, self._clock(), self._monotonic()))
                    if group is not None:
                        yield from self._feed(group)
                yield from self._ready()
                yield None
            for group in self._cutter.flush():
                yield from self._feed(group)
            while self._waiting and not self._closed:
                yield from self._next_sequence()
            if not self._closed:
                self._check_end()
        finally:
            self.close()

    def _cut(self, arrived: Arrived) -> Group | None:
        try:
            return self._cutter.push(arrived)
        except GroupTooLongError as error:
            what = f"{error}, and DALI takes a group of pictures as a whole"
            raise self._unsupported(what) from None

    def _feed(self, group: Group) -> Iterator[Frame]:
        """Hand a group to DALI, once there is room."""
        while len(self._waiting) >= _GROUPS_AHEAD and not self._closed:
            yield from self._next_sequence()
        if self._closed:
            return
        shown = group.in_order_of_showing(self._codec)
        key = group.packets[0].packet
        try:
            file = remuxed(group, self._stream, self._size_of(key))
        except av.FFmpegError as error:
            self._give_up(len(shown), error.strerror)
            return
        if shown:
            self._hand_over(_Waiting(file, deque(shown), group.borrowed))

    def _hand_over(self, group: _Waiting) -> None:
        if self._pipeline is None:
            self._pipeline = _Pipeline(self._device, self._threads)
        self._pipeline.feed(group.file, len(group.shown))
        self._waiting.append(group)

    def _size_of(self, key: Packet[Stream]) -> tuple[int, int]:
        """Return width and height of a group, px. DALI would go by the header and be silent."""
        context = self._stream.codec_context
        if self._first is None:
            self._first = self._example(key)
            if self._first.interlaced:
                raise self._unsupported("interlaced pictures, which DALI leaves combed")
            if self._codec in _HEADER_ALONE:
                context.skip_frame = "ALL"
        else:
            with contextlib.suppress(av.FFmpegError):  # DALI will find out, too
                context.decode(key)
                context.decode(None)
            context.flush_buffers()
        if context.width * context.height > self._source.max_pixels:
            raise self._too_large(context.width, context.height)
        return context.width, context.height

    def _ready(self) -> Iterator[Frame]:
        """Yield what DALI has finished, without waiting."""
        while self._pipeline is not None and self._waiting and self._pipeline.has_output():
            yield from self._next_sequence()

    def _next_sequence(self) -> Iterator[Frame]:
        """Yield the due frames of the next pictures, which are waited for."""
        group = self._waiting[0]
        assert self._pipeline is not None
        try:
            pictures = self._pipeline.next(self._source.read_timeout_s)
        except _DaliError as error:
            if self._closed:
                return
            self._restart(str(error))
            return
        if len(pictures) < min(SEQUENCE_LENGTH, len(group.shown)):
            self._waiting.popleft()
            self._give_up(len(group.shown) - len(pictures), "fewer pictures came back than went in")
        for picture in pictures[: len(group.shown)]:
            if self._closed:
                return
            shown = group.shown.popleft()
            if shown is group.borrowed:
                continue
            packet = shown.packet
            self._frames_seen += 1
            self._bad_packets = self._bad_groups = 0
            stamp_s = self._stamp_s(packet.pts, packet.dts, packet.time_base)
            moment = self._moment(stamp_s, shown.captured_at, shown.arrived_s)
            if self._due.take(moment.pts_s):
                yield self._stamped(self._picture(picture), moment)
        if not group.shown and self._waiting and self._waiting[0] is group:
            self._waiting.popleft()

    def _picture(self, picture: Tensor) -> Tensor:
        """Return one of DALI's pictures as a frame's image, in memory of its own."""
        assert self._first is not None
        image = self._upright(from_bt601(picture, self._first.colour.matrix), self._first.turns)
        # Else it would keep the whole sequence in memory.
        return image.clone() if image.data_ptr() == picture.data_ptr() else image

    def _restart(self, why: str) -> None:
        """Leave out the group that DALI could not decode; give those after it to a new pipeline."""
        assert self._pipeline is not None
        self._pipeline.close()
        self._pipeline = None
        failed, *others = self._waiting
        self._waiting.clear()
        self._give_up(len(failed.shown), why)
        for group in others:
            self._hand_over(group)

    def _give_up(self, n_packets: int, why: str | None) -> None:
        self._count_bad(why, n_packets)
        self._bad_groups += 1
        log.warning(
            "source %s: DALI could not decode a group of %d pictures: %s",
            self._source.id,
            n_packets,
            why,
        )
        if self._bad_groups >= MAX_BAD_GROUPS:
            what = f"DALI decoded none of {self._bad_groups} groups of pictures: {why}"
            raise self._error(SourceCode.INVALID_DATA, what)

    def _unsupported(self, what: str) -> SourceError:
        advice = "choose decode.kind auto, nvdec or pyav for it"
        return self._error(SourceCode.UNSUPPORTED_CODEC, what, advice)


@dataclass
class _Waiting:
    """A group that DALI has."""

    file: bytes
    shown: deque[Arrived]  # what has not come back, in the order in which it will
    borrowed: Arrived | None


class _DaliError(Exception):
    """DALI could not decode a group, or did not give as many pictures as it should."""


class _Pipeline:
    """DALI's graph, run in a thread of its own.

    `run()` waits for a file, without limit, when all that it was given are done. It is run no more
    often than there are pictures to come, but a decoder that loses some can still leave it waiting:
    `next` then gives up, and `close` gives it the file once more, so that it comes back.
    """

    def __init__(self, device: torch.device, threads: int) -> None:
        on_gpu = device.type == "cuda"
        self._pipeline = Pipeline(
            batch_size=1,
            num_threads=threads,
            device_id=torch.cuda.current_device() if on_gpu else None,
            prefetch_queue_depth=1,
        )
        with self._pipeline:
            video = fn.experimental.inputs.video(
                name="video",
                device="mixed" if on_gpu else "cpu",
                sequence_length=SEQUENCE_LENGTH,
                last_sequence_policy="partial",
                blocking=True,
                affine=False,  # the machine is shared with other sources
            )
            self._pipeline.set_outputs(video)
        self._pipeline.build()
        self._files: queue.SimpleQueue[tuple[bytes, int] | None] = queue.SimpleQueue()
        self._output: queue.Queue[Tensor | RuntimeError] = queue.Queue(maxsize=2)
        self._closed = False
        self._running = False
        self._file = b""  # that is being decoded
        self._thread = threading.Thread(target=self._run, name="dali", daemon=True)
        self._thread.start()

    def feed(self, file: bytes, n_pictures: int) -> None:
        """Have a file decoded, after those before it."""
        self._files.put((file, n_pictures))

    def has_output(self) -> bool:
        """Return whether `next` would not wait."""
        return not self._output.empty()

    def next(self, timeout_s: float) -> Tensor:
        """Return the next pictures (F, H, W, 3) uint8 RGB, all of one file.

        Raises:
            _DaliError: they can't be decoded, or did not come in time.
        """
        try:
            output = self._output.get(timeout=timeout_s)
        except queue.Empty:
            raise _DaliError(f"no picture for {timeout_s:g} s") from None
        if isinstance(output, RuntimeError):
            raise _DaliError(_reason(output)) from None
        return output

    def close(self) -> None:
        """End the thread, which may be waiting for a file, for a reader, or for work."""
        if self._closed:
            return
        self._closed = True
        self._files.put(None)
        with contextlib.suppress(queue.Empty):
            while True:
                self._output.get_nowait()
        if self._running:
            with contextlib.suppress(RuntimeError):
                self._feed(self._file)
        self._thread.join(_LONGEST_END_S)
        if self._thread.is_alive():
            log.error("DALI did not come back for %g s; its thread is left behind", _LONGEST_END_S)

    def _feed(self, file: bytes) -> None:
        self._pipeline.feed_input("video", [np.frombuffer(file, np.uint8)])

    def _run(self) -> None:
        """Run the graph as often as there are pictures to come; the thread's only function."""
        while (work := self._files.get()) is not None and not self._closed:
            self._file, left = work
            try:
                # Not before the last file is done: its pictures could be taken for this one's.
                self._feed(self._file)
                while left > 0 and not self._closed:
                    pictures = self._next_pictures()
                    self._output.put(pictures)
                    # A short sequence ends a file, whatever was expected of it.
                    whole = len(pictures) == SEQUENCE_LENGTH
                    left = left - len(pictures) if whole else 0
            except RuntimeError as error:
                self._output.put(error)
                return

    def _next_pictures(self) -> Tensor:
        self._running = True
        try:
            (output,) = self._pipeline.run()
        finally:
            self._running = False
        pictures = from_dlpack(output[0]).clone()
        if pictures.is_cuda:  # DALI's own may be overwritten from now on
            torch.cuda.current_stream(pictures.device).synchronize()
        return pictures


def _reason(error: RuntimeError) -> str:
    """Return what DALI says went wrong, of an error that is mostly stacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "failed" in line or "not supported" in line]
    return (told or lines or ["no reason given"])[0][:200]
