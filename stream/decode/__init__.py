"""Decoders: a source's bytes to frames."""

from __future__ import annotations

import os
import re
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from stream.errors import ConfigError
from stream.redact import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stream.config import DecodeConfig, SourceConfig
    from stream.decode.pyav_packets import PyAVDecoder
    from stream.decode.recent import RecentPackets
    from stream.records import Frame


class SourceKind(StrEnum):
    """What a source's URI leads to."""

    FILE = "file"
    RTSP = "rtsp"
    HTTP = "http"
    WEBCAM = "webcam"


_KINDS = {
    "file": SourceKind.FILE,
    "rtsp": SourceKind.RTSP,
    "rtsps": SourceKind.RTSP,
    "http": SourceKind.HTTP,
    "https": SourceKind.HTTP,
}


def source_kind(source: SourceConfig) -> SourceKind:
    """Return what a source is, judged by its URI alone.

    Raises:
        ConfigError: the URI's scheme is not one of ours, or is http(s) without `allow_http`.
    """
    uri = source.uri.get_secret_value()
    match = re.match(r"[A-Za-z][A-Za-z0-9+.-]*(?=:)|.*(?=://)", uri)
    scheme = match[0].lower() if match else ""
    if scheme not in {"rtsps", "https"} and (
        source.insecure or source.ca_file is not None or source.fingerprint is not None
    ):
        raise ConfigError(
            f"source {source.id}: ca_file, fingerprint and insecure are for rtsps:// and https://, "
            f"found {redact(uri)}"
        )
    if match is None:
        return SourceKind.WEBCAM if _is_device(uri) else SourceKind.FILE
    kind = _KINDS.get(scheme)
    if kind is None or (kind is SourceKind.FILE and uri[4:8] != ":///"):
        raise ConfigError(
            f"source {source.id}: can't open {redact(uri)}; expected rtsp://, rtsps://, file:///, "
            "a path (./a:b if its name holds a colon), /dev/videoN, or http(s):// with allow_http"
        )
    if scheme == "rtsps" and source.rtsp_transport == "udp":
        raise ConfigError(f"source {source.id}: rtsps:// protects TCP alone; rtsp_transport is udp")
    if kind is SourceKind.HTTP and not source.allow_http:
        raise ConfigError(
            f"source {source.id}: {redact(uri)} is not opened unless allow_http is set for it"
        )
    return kind


def _is_device(path: str) -> bool:
    """Return whether a path is that of a webcam, or was or will be while it is plugged in."""
    if "\0" in path:
        return False
    places = path, os.path.realpath(path)
    return Path(path).is_char_device() or any(
        place.startswith(("/dev/video", "/dev/v4l/")) for place in places
    )


class Decoder(Protocol):
    """One opened session of one source."""

    def frames(self) -> Iterator[Frame | None]:
        """Yield the frames that are due for analysis, until the end of the stream.

        Between them, None is yielded whenever a packet has passed, so that the caller can look
        at its clock: it never waits longer than `read_timeout_s` for one or the other.

        Raises:
            SourceError: the stream broke, froze or can't be decoded.
        """
        ...

    @property
    def frames_seen(self) -> int:
        """Frames decoded so far, analysed or not."""
        ...

    @property
    def frames_undecoded(self) -> int:
        """Frames so far that would have been due, had decoding not been behind."""
        ...

    @property
    def is_live(self) -> bool:
        """Whether it goes on for ever: False for what has an end, and is read once, to that end."""
        ...

    @property
    def is_catching_up(self) -> bool:
        """Whether its frames were kept while it was idle, or waited behind those: none is late."""
        ...

    def set_idle(self, idle: bool) -> None:
        """Decode key frames alone from the next one on, or again all since the latest one.

        Without effect on a decoder that always decodes what it is given.
        """
        ...

    @property
    def description(self) -> str:
        """Codec, size and frame rate, for people."""
        ...

    def close(self) -> None:
        """Release the socket and the codec; a second call does nothing."""
        ...


def open_decoder(
    source: SourceConfig,
    config: DecodeConfig,
    *,
    session: int,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
    wait: Callable[[float], object] = time.sleep,
    recent: RecentPackets | None = None,
) -> Decoder:
    """Connect to a source and find its video.

    Args:
        source: what to open.
        config: which decoder, and how often a frame is due.
        session: written into every frame's stamp.
        clock: Unix seconds, for `captured_at` alone.
        monotonic: seconds of a clock that is never set, for all durations.
        wait: sleeps for so many seconds; paces a file with `realtime`. May return early.
        recent: is given every packet of the video, and told when the session begins and ends.

    Raises:
        ConfigError: the URI is not one we open; see `source_kind`.
        SourceError: it can't be opened, or holds no video that we can decode.
    """
    if config.kind == "auto":
        from stream.decode.auto import AutoDecoder

        def open_kind(kind: Literal["nvdec", "pyav"]) -> Decoder:
            chosen = config.model_copy(update={"kind": kind})
            return open_decoder(
                source,
                chosen,
                session=session,
                clock=clock,
                monotonic=monotonic,
                wait=wait,
                recent=recent,
            )

        return AutoDecoder(
            source.id, on_gpu=lambda: open_kind("nvdec"), on_cpu=lambda: open_kind("pyav")
        )
    decoder = _decoder_of(config.kind, source)
    return decoder(
        source,
        config,
        session=session,
        clock=clock,
        monotonic=monotonic,
        wait=wait,
        recent=recent,
    )


def _decoder_of(
    kind: Literal["pyav", "sampled", "nvdec", "dali"], source: SourceConfig
) -> type[PyAVDecoder]:
    match kind:
        case "pyav":
            from stream.decode.pyav_packets import PyAVDecoder

            return PyAVDecoder
        case "sampled":
            from stream.decode.sampled import SampledDecoder

            return SampledDecoder
        case "nvdec":
            from stream.decode.nvdec import NvdecDecoder, require_gpu

            require_gpu(source)
            return NvdecDecoder
        case "dali":
            try:
                from stream.decode.dali_gop import DaliDecoder
            except ImportError as error:
                from stream.decode.reasons import source_error
                from stream.records import SourceCode

                what = f"DALI can't be loaded: {error}"
                advice = "install nvidia-dali-cuda130, or choose another decode.kind"
                uri = source.uri.get_secret_value()
                raise source_error(SourceCode.UNSUPPORTED_CODEC, uri, what, advice) from None
            return DaliDecoder
