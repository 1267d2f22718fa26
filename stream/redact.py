"""Keeps credentials out of whatever people and programs read: logs, errors, messages.

Cameras are named by URIs such as `rtsp://user:password@host/path`, whose passwords hold any
character, often written without percent-encoding. Where it is unclear what belongs to the
password, more is hidden rather than less.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from collections.abc import Iterable

HIDDEN: Final = "***"
# A shorter password is hidden only as part of `user:password`: alone, it would blank half of
# every log line.
MIN_SECRET_CHARS: Final = 3

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?(.*)", re.DOTALL)
_HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?")
_PASSWORD_NAMES = r"pass|passwd|password|psw|pwd|secret|token|access_token|api_?key|signature"
_PASSWORD = re.compile(rf"(?i)(?<![a-z])(?:{_PASSWORD_NAMES})=([^&;#]+)")
_PARAMETER = re.compile(
    rf"(?i)(?<![a-z])((?:user|username|usr|login|{_PASSWORD_NAMES})=)[^&;#\s'\"]+"
)
_USER_INFO = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s'\"]*@")


def printable(text: str, keep: str = "") -> str:
    r"""Return a text with all that can't be written, or that steers a terminal, as escapes.

    Names of files may hold any byte: those that are not UTF-8 reach us as lone surrogates, which
    no encoder takes.

    >>> print(printable("clips/\udcff\n.mp4"))
    clips/\udcff\n.mp4

    Args:
        text: of whatever origin.
        keep: characters that stay although they are not printable.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
    )


def redact(uri: str) -> str:
    """Return what may be shown of a source's URI: no user, password, query or fragment.

    A path is returned as it is. Where host and password can't be told apart, only the scheme is
    left.

    >>> redact("rtsp://admin:p@ss%2Fword@10.0.0.7:554/ch1?channel=2")
    'rtsp://10.0.0.7:554/ch1?***'
    >>> redact("rtsp://admin:pass/word@10.0.0.7/ch1")
    'rtsp://***'
    """
    uri = printable(uri)
    parts = _URI.fullmatch(uri)
    if parts is None:
        return HIDDEN if "://" in uri else uri
    scheme, slashes, rest = parts.groups()
    if scheme.lower() == "file":
        return uri
    if not slashes:
        return HIDDEN if "@" in rest else f"{scheme}:{HIDDEN}"
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    host = authority.rpartition("@")[2]
    tail = rest[len(authority) :]
    if "@" in tail or not _HOST.fullmatch(host):
        return f"{scheme}://{HIDDEN}"
    path = re.split(r"[?#]", tail, maxsplit=1)[0]
    path = path[: m.start()] if (m := _PARAMETER.search(path)) else path  # /user=..&password=..
    return f"{scheme}://{host}{path}" + (f"?{HIDDEN}" if path != tail else "")


def secrets_of(uri: str) -> frozenset[str]:
    """Return what `scrub` must remove of a URI: as written, percent-encoded and decoded."""
    scheme, _, rest = uri.partition(":")
    if scheme.lower() == "file":
        return frozenset()
    rest = rest.removeprefix("//")
    written = set(_PASSWORD.findall(rest))
    # Any `@` may be the one before the host: every reading of the password counts.
    for at in (i for i, character in enumerate(rest) if character == "@"):
        user_info = rest[:at]
        written |= {user_info, user_info.partition(":")[2]}
    plain = written | {unquote(s) for s in written}
    forms = plain | {quote(s, safe="") for s in plain}
    return frozenset(form for form in forms if len(form) >= MIN_SECRET_CHARS)


def scrub(text: str, secrets: Iterable[str] = ()) -> str:
    """Return a text without the given secrets, and without what looks like credentials of a URI.

    >>> scrub("can't open 'rtsp://admin:1@cam/ch1?user=admin'")
    "can't open 'rtsp://***@cam/ch1?user=***'"
    """
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    text = _USER_INFO.sub(rf"\1{HIDDEN}@", text)
    return _PARAMETER.sub(rf"\1{HIDDEN}", text)


class RedactingFilter(logging.Filter):
    """Scrubs every string of a log record, and makes it printable: message, stack, extra fields.

    Add it to handlers, not to loggers: a logger's filters do not see the records of its children.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        self._secrets = frozenset(secrets)  # replaced, never changed: other threads log meanwhile
        self._formatter = logging.Formatter()

    def hide(self, secrets: Iterable[str]) -> None:
        """Scrub these as well from now on."""
        self._secrets |= frozenset(secrets)

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record in place and let it pass."""
        record.msg, record.args = record.getMessage(), None
        if record.exc_info:
            record.exc_text = self._formatter.formatException(record.exc_info)
            record.exc_info = None  # formatters would print it again, unscrubbed
        for name, value in vars(record).items():
            if isinstance(value, str):
                setattr(record, name, printable(scrub(value, self._secrets), keep="\n\t"))
        return True
