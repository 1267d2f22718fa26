"""How FFmpeg is told to open a source.

What is opened is fenced in: FFmpeg gets the protocols that the URI calls for, and only demuxers
that read nothing but the opened file or connection (no playlists of local files).
"""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import av

from stream.decode import SourceKind, source_kind
from stream.decode.challenges import KNOWN, algorithms_asked, is_misread, md5_alone
from stream.decode.reasons import code_of, source_error
from stream.decode.tls import distrust, open_checked, trust_of
from stream.records import SourceCode

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from av.container import InputContainer

    from stream.config import SourceConfig
    from stream.decode.tls import Trust
    from stream.errors import SourceError

log = logging.getLogger(__name__)

# Probing the header may decode a picture. Up to this size, one that is too large is refused as
# such; beyond, FFmpeg refuses it as invalid.
PROBE_PIXELS: Final = 8192 * 8192

_DEMUXERS: Final = (
    "mov,matroska,webm,mpegts,mpeg,avi,flv,asf,ogg,mxf,ivf,obu,h264,hevc,m4v,mpegvideo,mjpeg,"
    "mpjpeg,gif,image2,jpeg_pipe,png_pipe,bmp_pipe,webp_pipe,wav,mp3,aac,flac"
)
_NO_TRANSPORT: Final = errno.EPROTONOSUPPORT  # as FFmpeg reads the RTSP answer 461
_TRANSPORTS: Final = {
    "tls": {"rtsp_transport": "tcp", "protocol_whitelist": "tls,tcp"},
    "tcp": {"rtsp_transport": "tcp", "protocol_whitelist": "tcp"},
    "udp": {
        "rtsp_transport": "udp",
        "protocol_whitelist": "tcp,udp,rtp",
        "rtsp_flags": "filter_src",  # else anyone could send us pictures
    },
}
_NETWORK: Final = {
    # FFmpeg would watch 20 frames before it hands out the first...
    "fpsprobesize": "0",
    # ...and wait 5 s, or until we give up, for sound that was announced and never comes.
    "analyzeduration": "1000000",
}


@dataclass(frozen=True)
class Connection:
    """An opened source."""

    container: InputContainer
    over_udp: bool = False


def connect(source: SourceConfig, resources: ExitStack) -> Connection:
    """Open a source.

    Args:
        source: what to open.
        resources: gets the container, and what it needs for as long as it is open.

    Raises:
        SourceError: it can't be opened.
    """
    uri = source.uri.get_secret_value()
    kind = source_kind(source)
    scheme, _, rest = uri.partition(":")
    scheme = scheme.lower()
    trust = trust_of(source, resources) if scheme in {"rtsps", "https"} else None
    try:
        match kind:
            case SourceKind.FILE:
                return Connection(_open_file(source, resources))
            case SourceKind.WEBCAM:
                return Connection(_open(source, resources, uri, {}, form="v4l2"))
            case SourceKind.RTSP:
                return _open_rtsp(source, resources, f"{scheme}:{rest}", trust)
            case SourceKind.HTTP:
                return Connection(_open_http(source, resources, f"{scheme}:{rest}", trust))
    except (av.FFmpegError, OSError) as error:
        raise _reason(source, kind, trust, error) from None


def _open_file(source: SourceConfig, resources: ExitStack) -> InputContainer:
    uri = source.uri.get_secret_value()
    path = unquote(uri[7:]) if uri[:8].lower() == "file:///" else uri
    if not Path(path).is_file():
        raise source_error(SourceCode.NOT_FOUND, uri, "no such file")
    fence = {"protocol_whitelist": "file", "format_whitelist": _DEMUXERS}
    # "%d" in the name of a picture means itself, not a series.
    return _open(source, resources, f"file:{path}", fence | {"pattern_type": "none"})


def _open_rtsp(
    source: SourceConfig, resources: ExitStack, location: str, trust: Trust | None
) -> Connection:
    told = source.rtsp_transport
    transport = "tls" if trust is not None else "tcp" if told == "auto" else told
    tls = {} if trust is None else trust.options
    media = {"allowed_media_types": "video"}  # sound may be announced, and never come
    is_relayed = False
    while True:
        options = _NETWORK | _TRANSPORTS[transport] | tls | media
        try:
            container = _open(source, resources, location, options, form="rtsp")
            return Connection(container, over_udp=transport == "udp")
        except (av.FFmpegError, OSError) as error:
            # A camera that answers TCP with UDP reads as invalid data.
            no_tcp = error.errno == _NO_TRANSPORT or isinstance(error, av.InvalidDataError)
            if no_tcp and (told, transport) == ("auto", "tcp") and not is_relayed:
                log.info("source %s: no video over TCP; trying UDP", source.id)
                transport = "udp"
            elif media and isinstance(error, av.HTTPBadRequestError | av.HTTPOtherClientError):
                media = {}  # there is no video, or it is not given alone
            elif (
                isinstance(error, av.HTTPUnauthorizedError)
                and transport != "udp"
                and not is_relayed
                and is_misread(_algorithms_asked(source, trust))
            ):
                context = None if trust is None else trust.context
                location = resources.enter_context(md5_alone(source, context))
                transport, tls, is_relayed = "tcp", {}, True
            else:
                raise


def _algorithms_asked(source: SourceConfig, trust: Trust | None) -> list[str]:
    try:
        return algorithms_asked(source, None if trust is None else trust.context)
    except (OSError, ValueError):
        return []  # what FFmpeg said of it will do


def _open_http(
    source: SourceConfig, resources: ExitStack, location: str, trust: Trust | None
) -> InputContainer:
    options = _NETWORK | {"protocol_whitelist": "http,https,tls,tcp"}
    with_hls = f"{_DEMUXERS},hls"
    if trust is None or source.insecure:
        options |= {} if trust is None else trust.options
        return _open(source, resources, location, options | {"format_whitelist": with_hls})
    try:
        fence = {"format_whitelist": _DEMUXERS} | trust.options
        return _open(source, resources, location, options | fence)
    except av.ArgumentError:
        # Not in the list of formats. FFmpeg's own reading of HLS checks no segment's certificate.
        fence = {"format_whitelist": with_hls, "http_persistent": "0", "http_multiple": "0"}
        return _open(
            source,
            resources,
            location,
            options | fence,
            form="hls",
            io_open=open_checked(source, trust),
        )


def _open(
    source: SourceConfig,
    resources: ExitStack,
    location: str,
    options: dict[str, str],
    *,
    form: str | None = None,
    io_open: Callable[..., object] | None = None,
) -> InputContainer:
    return resources.enter_context(
        av.open(
            location,
            format=form,
            options=options
            | {
                "max_pixels": str(max(PROBE_PIXELS, source.max_pixels)),
                # FFmpeg would read a recording's jump back as one ahead by 2^33 ticks.
                "correct_ts_overflow": "0",
            },
            timeout=(source.open_timeout_s, source.read_timeout_s),
            metadata_errors="replace",
            io_open=io_open,
        )
    )


def _reason(
    source: SourceConfig, kind: SourceKind, trust: Trust | None, error: OSError | av.FFmpegError
) -> SourceError:
    """Return what to say of an error of opening."""
    uri = source.uri.get_secret_value()
    what = error.strerror or str(error)
    code = code_of(error)
    if trust is not None and error.errno == errno.EIO and (why := distrust(source, trust)):
        return source_error(SourceCode.UNTRUSTED, uri, why)
    if kind is SourceKind.RTSP and error.errno == _NO_TRANSPORT:
        allowed = {"auto": "neither TCP nor UDP", "tcp": "no TCP", "udp": "no UDP"}
        what = f"the camera offers {allowed[source.rtsp_transport]} for the video"
        return source_error(SourceCode.UNSUPPORTED_TRANSPORT, uri, what)
    if kind is SourceKind.WEBCAM and error.errno == errno.ENOTTY:
        return source_error(SourceCode.NO_VIDEO, uri, "not a video device")
    if isinstance(error, av.HTTPUnauthorizedError):
        asked = _algorithms_asked(source, trust)
        # Only between FFmpeg and RTSP do we step in where it misreads a choice.
        if asked and asked[-1] not in KNOWN and (kind is SourceKind.HTTP or not is_misread(asked)):
            named = ", ".join(asked)
            what = (
                f"it takes the password by Digest with {named}; FFmpeg reads the last alone, and "
                "knows MD5"
            )
            advice = "allow MD5 in its settings, or Basic together with TLS"
            return source_error(SourceCode.UNAUTHORISED, uri, what, advice)
    if code is None:
        # A camera that does not answer the RTSP request reads as invalid data, too.
        invalid = isinstance(error, av.InvalidDataError | av.ArgumentError)
        known = kind is SourceKind.FILE or (invalid and kind is not SourceKind.RTSP)
        code = SourceCode.INVALID_DATA if known else SourceCode.UNREACHABLE
    return source_error(code, uri, what)
