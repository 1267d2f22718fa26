"""Why a source failed: a code for programs and a sentence for people; shared by all decoders."""

from __future__ import annotations

from typing import Final

import av

from stream.errors import SourceError
from stream.records import SourceCode
from stream.redact import printable, redact

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
    SourceCode.UNTRUSTED: "name the certificate of its issuer (ca_file), or its fingerprint once "
    "you have compared it with the camera's own, or accept any certificate (insecure: true)",
    SourceCode.UNSUPPORTED_TRANSPORT: "change rtsp_transport, or the transports that the camera "
    "allows; video by multicast or in an HTTP tunnel is not read",
    SourceCode.UNREACHABLE: "no valid answer in time; is the address right and the camera on?",
    SourceCode.FROZEN: "the connection stands, but nothing of use arrives",
    SourceCode.DISCONNECTED: "the far end went away",
    SourceCode.NO_VIDEO: "is it the right file, stream or device?",
    SourceCode.UNSUPPORTED_CODEC: "choose another codec, H.264 for example",
    SourceCode.TOO_LARGE: "choose a smaller picture, or raise max_pixels",
    SourceCode.INVALID_DATA: "damaged, or not a video",
}


def source_error(
    code: SourceCode, uri: str, what: str | None, advice: str | None = None
) -> SourceError:
    """Return the error to raise for a source: its address, what happened, what to do.

    Args:
        code: why.
        uri: of the source; what may be shown of it is.
        what: happened; may hold text that the far end sent.
        advice: in place of the code's own.
    """
    return SourceError(code, printable(f"{redact(uri)}: {what}; {advice or _ADVICE[code]}"))


def code_of(error: Exception) -> SourceCode | None:
    """Return the code that an error of FFmpeg or the system stands for, None if for none."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), None)
