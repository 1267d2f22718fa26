"""Errors of the stream package.

StreamError
    ConfigError    bad arguments or configuration: exit code 2
    SourceError    a source failed: retried with back-off if live; else the source ends, alone
    SinkError      messages could not be delivered within the limits: exit code 1

A class exists because someone acts differently on it. Bugs stay `ValueError` and `TypeError`. No
message ever holds a URI with credentials: see `stream.redact`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stream.records import SourceCode


class StreamError(Exception):
    """Root of what this package raises on purpose."""


class ConfigError(StreamError):
    """The arguments or the configuration can't be used; the message says what to change."""


class SourceError(StreamError):
    """A video source can't be opened or read further.

    Attributes:
        code: why, as published in `SourceStatus`.
    """

    def __init__(self, code: SourceCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class SinkError(StreamError):
    """Messages could not be delivered; the message says what was kept and where."""
