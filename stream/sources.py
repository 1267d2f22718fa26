"""A source of video over its whole life: opened, watched, reopened when a camera was lost.

A source never falls silent: besides frames it says in what state it is, whenever that changes and
every `heartbeat_s`, so that "no alert" is never mistaken for "no attack".
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from pydantic import SecretStr

from stream.config import SourceConfig
from stream.decode import SourceKind, open_decoder, source_kind
from stream.errors import ConfigError, SourceError
from stream.records import (
    SourceAlert,
    SourceCode,
    SourceEventKind,
    SourceState,
    SourceStatus,
)
from stream.redact import redact, scrub, secrets_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from threading import Event

    from stream.config import DecodeConfig
    from stream.records import Frame

log = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def parse_source_argument(argument: str, position: int = 1) -> SourceConfig:
    """Read a source as the command line gives it: `ID=URI`, or a URI or path alone.

    >>> source = parse_source_argument("door=rtsp://10.0.0.7/ch1")
    >>> source.id, source.uri.get_secret_value()
    ('door', 'rtsp://10.0.0.7/ch1')
    >>> parse_source_argument("clips/two faces.mp4").id
    'two-faces'

    Args:
        argument: text before `=` counts as the id if it could be one.
        position: names a source without a file name: `cam<position>`.

    Raises:
        ConfigError: the URI is empty.
    """
    name, equals, uri = argument.partition("=")
    if not (equals and _ID.fullmatch(name)):
        name, uri = "", argument
    if not uri.strip():
        raise ConfigError(f"source {name or position}: expected ID=URI or a path, found nothing")
    if not name and "://" not in uri:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(uri).stem).strip("-._")[:64]
    return SourceConfig(id=name or f"cam{position}", uri=SecretStr(uri))


class Source:
    """One camera or file; a single thread runs its `events`."""

    def __init__(
        self,
        config: SourceConfig,
        decode: DecodeConfig,
        *,
        stop: Event,
        clock: Callable[[], float] = time.time,
        random: Random | None = None,
    ) -> None:
        """Look at the URI; nothing is opened yet.

        Args:
            config: where the video comes from, and how patient to be.
            decode: decoder, and how often a frame is due.
            stop: once set, `events` ends as soon as the current read does.
            clock: Unix seconds.
            random: jitter of the back-off.

        Raises:
            ConfigError: the URI is not one we open.
        """
        uri = config.uri.get_secret_value()
        self._config = config
        self._decode = decode
        self._stop = stop
        self._clock = clock
        self._random = random or Random()
        self._reopens = source_kind(config) is not SourceKind.FILE
        self._name = redact(uri)
        self._secrets = secrets_of(uri)
        self._sessions = 0  # that brought a picture
        self._is_open = False
        self._frames_seen = 0
        self._frames_due = 0
        self._status: SourceStatus | None = None  # the latest
        self._frames_dropped: Callable[[], int] = int
        self._is_lost = False
        self._alerts = 0

    @property
    def source_id(self) -> str:
        """The id in every message."""
        return self._config.id

    @property
    def is_live(self) -> bool:
        """Whether frames may be dropped under load: true for all but plain files, which wait."""
        return self._reopens or self._config.realtime

    def events(
        self, frames_dropped: Callable[[], int] = int
    ) -> Iterator[Frame | SourceStatus | SourceAlert]:
        """Yield frames that are due, statuses and alerts, until the source ends.

        A live source that fails is tried again, whatever the reason, for ever or for `give_up_s`:
        cameras are rebooted and passwords corrected. Each reopening that brings a picture starts
        a new session. A file ends with its first error; what it gave before stands.

        Args:
            frames_dropped: how many of the frames were never analysed, so far.
        """
        self._frames_dropped = frames_dropped
        failures = 0
        lost_at = self._clock()
        while not self._stop.is_set():
            try:
                yield from self._session_events()
            except SourceError as error:
                if self._is_open:
                    failures, lost_at = 0, self._clock()
                left_s = self._patience_s(lost_at)
                if left_s <= 0:
                    yield from self._report(SourceState.ENDED, error.code, str(error))
                    return
                yield from self._report(SourceState.LOST, error.code, str(error))
                yield from self._rest(min(self._back_off_s(failures), left_s))
                failures += 1
            else:
                if not self._stop.is_set() and not self._config.loop:
                    yield from self._report(SourceState.ENDED, SourceCode.END_OF_FILE, self._name)
                    return
        yield from self._report(SourceState.ENDED, SourceCode.STOPPED, "asked to stop")

    def _session_events(self) -> Iterator[Frame | SourceStatus | SourceAlert]:
        """Open once, and yield until the stream ends, breaks, or `stop` is set."""
        self._is_open = False
        decoder = open_decoder(
            self._config,
            self._decode,
            session=self._sessions,
            clock=self._clock,
            wait=self._stop.wait,
        )
        seen_before = self._frames_seen
        try:
            for frame in decoder.frames():
                self._frames_seen = seen_before + decoder.frames_seen
                if frame is not None:
                    if not self._is_open:
                        self._is_open = True
                        self._sessions += 1
                        yield from self._report(SourceState.OPEN, SourceCode.OK, self._name)
                    self._frames_due += 1
                    yield frame
                yield from self._heartbeat()
                if self._stop.is_set():
                    return
        finally:
            decoder.close()

    def _patience_s(self, lost_at: float) -> float:
        """Return for how long a source lost at that time is still tried; infinite for ever."""
        if not self._reopens:
            return 0.0
        if self._config.give_up_s is None:
            return math.inf
        return lost_at + self._config.give_up_s - self._clock()

    def _back_off_s(self, failures: int) -> float:
        """Return how long to wait after so many failures: exponential, capped, full jitter."""
        doubled = self._config.retry_first_s * 2.0 ** min(failures, 64)
        return self._random.uniform(0, min(self._config.retry_max_s, doubled))

    def _rest(self, seconds: float) -> Iterator[SourceStatus]:
        """Wait, but not past `stop`, and with heartbeats."""
        while seconds > 0 and not self._stop.is_set():
            step_s = min(seconds, max(self._heartbeat_due_s(), 0.001))
            self._stop.wait(step_s)
            seconds -= step_s
            yield from self._heartbeat()

    def _heartbeat_due_s(self) -> float:
        if self._status is None:
            return math.inf
        age_s = self._clock() - self._status.at
        return self._config.heartbeat_s - age_s if age_s >= 0 else 0.0  # the clock was set back

    def _heartbeat(self) -> Iterator[SourceStatus]:
        if self._status is not None and self._heartbeat_due_s() <= 0:
            self._status = dataclasses.replace(
                self._status,
                changed=False,
                frames_seen=self._frames_seen,
                frames_due=self._frames_due,
                frames_dropped=self._frames_dropped(),
                at=self._clock(),
            )
            yield self._status

    def _report(
        self, state: SourceState, code: SourceCode, detail: str
    ) -> Iterator[SourceStatus | SourceAlert]:
        """Yield a status and perhaps an alert, unless they would say what the latest said."""
        session = max(self._sessions - 1, 0)
        last = self._status
        if last and (last.session, last.state, last.code) == (session, state, code):
            return
        detail = scrub(detail, self._secrets)
        log.info("source %s: %s (%s): %s", self.source_id, state, code, detail)
        self._status = SourceStatus(
            source_id=self.source_id,
            session=session,
            state=state,
            code=code,
            detail=detail,
            changed=True,
            frames_seen=self._frames_seen,
            frames_due=self._frames_due,
            frames_dropped=self._frames_dropped(),
            at=self._clock(),
        )
        yield self._status
        yield from self._alert(state, code)

    def _alert(self, state: SourceState, code: SourceCode) -> Iterator[SourceAlert]:
        was_lost, self._is_lost = self._is_lost, state is SourceState.LOST
        wanted = code in (SourceCode.OK, SourceCode.END_OF_FILE, SourceCode.STOPPED)
        kind = None
        if state is SourceState.LOST and not was_lost:
            kind = SourceEventKind.LOST
        elif state is SourceState.OPEN and was_lost:
            kind = SourceEventKind.REGAINED
        elif state is SourceState.ENDED and not wanted:
            kind = SourceEventKind.ENDED
        if kind is not None and self._status is not None:
            self._alerts += 1
            yield SourceAlert(
                kind=kind, ordinal=self._alerts, status=self._status, losses=1, within_s=0.0
            )
