"""A source of video over its whole life: opened, watched, reopened when a camera was lost.

A source never falls silent: besides frames it says in what state it is, whenever that changes and
every `heartbeat_s`, so that "no alert" is never mistaken for "no attack". What people must hear of
it is decided here, too: a loss is an alert once, and so is a source that comes and goes.

Durations run on a monotonic clock: setting the wall clock ends and silences nothing.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
import time
from collections import deque
from functools import partial
from pathlib import Path
from random import Random
from threading import Event
from typing import TYPE_CHECKING, Final, Protocol

from pydantic import SecretStr

from stream.config import SOURCE_ID, SourceConfig, idles
from stream.decode import SourceKind, open_decoder, source_kind
from stream.errors import ConfigError, SourceError
from stream.records import (
    FrameFates,
    SourceAlert,
    SourceCode,
    SourceEventKind,
    SourceHistory,
    SourceState,
    SourceStatus,
)
from stream.redact import printable, redact, scrub, secrets_of
from stream.stack_log import StackLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from stream.config import DecodeConfig
    from stream.decode import Decoder
    from stream.decode.recent import RecentPackets
    from stream.learned import Learned
    from stream.records import SourceOutput

log = logging.getLogger(__name__)

# A source lost so often in so many seconds flaps, until it was not lost for as long. One that is
# lost more rarely makes two alerts each time: at most 96 an hour.
FLAPPING_LOSSES: Final = 5
FLAPPING_S: Final = 300.0
# Cameras lock an account after five to ten wrong passwords within minutes, for up to half an hour.
LONGEST_UNAUTHORISED_S: Final = 1800.0
_PAUSE_POLL_S: Final = 0.2  # how often a paused source looks whether it should go on


class FatesOfFrames(Protocol):
    """Tells a source what became of the frames it gave."""

    def __call__(self, *, settled: bool = False) -> FrameFates:
        """Return the counts; `settled` waits until no frame is under way."""
        ...


def no_such_source(source_id: str, known: Iterable[str]) -> ConfigError:
    """Return what to raise when a source is named that is none of those known."""
    return ConfigError(
        f"source {source_id}: there is none of that name; there are: {', '.join(known) or 'none'}"
    )


def name_taken(source_id: str) -> ConfigError:
    """Return what to raise when a source is to have the name of another."""
    return ConfigError(f"source {source_id}: there is one of that name already")


def parse_source_argument(argument: str, position: int = 1) -> SourceConfig:
    """Read a source as the command line gives it: `ID=URI`, or a URI or path alone.

    >>> source = parse_source_argument("door=rtsp://10.0.0.7/ch1")
    >>> source.id, source.uri.get_secret_value()
    ('door', 'rtsp://10.0.0.7/ch1')
    >>> parse_source_argument("clips/two faces.mp4").id
    'two-faces'

    Args:
        argument: what stands before the first `=` is the id, unless it holds a `/`: then all of the
            argument is a URI or a path.
        position: names a source without a file name: `cam<position>`.

    Raises:
        ConfigError: what stands before `=` can't be an id, or the URI is empty.
    """
    name, equals, uri = argument.partition("=")
    if not equals or "/" in name:
        name, uri = "", argument
    elif not re.fullmatch(SOURCE_ID, name):
        # What holds one of these may be the beginning of a password.
        shown = "what stands" if re.search("[:@]", name) else repr(name)
        raise ConfigError(
            f"source {position}: {shown} before = is not a valid name; expected a letter or digit, "
            "then at most 63 letters, digits, or . _ -; before a path that holds a =, write its "
            "folder: ./a=b.mp4"
        )
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
        monotonic: Callable[[], float] = time.monotonic,
        random: Random | None = None,
        history: SourceHistory | None = None,
        recent: RecentPackets | None = None,
        learned: Learned | None = None,
    ) -> None:
        """Look at the URI; nothing is opened yet.

        Args:
            config: where the video comes from, and how patient to be.
            decode: decoder, and how often a frame is due.
            stop: once set, `events` ends as soon as the current read does; `end` sets it, so what
                is to be ended alone has an event of its own.
            clock: Unix seconds, for stamps.
            monotonic: seconds that never go back, for durations.
            random: jitter of the back-off.
            history: of the same source, in a process that is gone; counters, sessions and alerts
                go on from there.
            recent: keeps the latest packets.
            learned: of this source, what `config.learned` names; goes with it to the analysis.

        Raises:
            ConfigError: the URI is not one we open.
        """
        self.recent = recent
        self.learned = learned
        past = history or SourceHistory()
        uri = config.uri.get_secret_value()
        self._config = config
        self._decode = decode
        self._stop = stop
        self._pause = Event()
        self._clock = clock
        self._monotonic = monotonic
        # Else not known before it is open.
        self._has_end = source_kind(config) is SourceKind.FILE or past.has_end
        self._name = redact(uri)
        self._secrets = secrets_of(uri)
        self._past_fates = _fates_of(past.status)
        self._fates: FatesOfFrames = partial(_added, self._past_fates, _no_fates)
        self._patience = _Patience(config, random or Random())
        self._alarm = _Alarm(config.recovered_after_s, past.raised, past.lost_at)
        self._stacks = StackLog(log, monotonic)
        self._sessions = past.sessions  # that brought a picture
        self._frames_seen = past.status.frames_seen if past.status else 0
        self._frames_due = past.status.frames_due if past.status else 0
        self._frames_undecoded = past.status.frames_undecoded if past.status else 0
        self._frames_failed = self._past_fates.failed
        self._alerts = past.alerts
        self._is_idle = False
        self._catches_up = False
        self._status = past.status  # the latest
        # On the monotonic clock:
        self._reported_at = 0.0
        self._well_since: float | None = None  # first picture of the session; None before
        self._picture_at = 0.0  # the latest
        self._failure_at = 0.0  # the latest of analysis
        self._occupied_at = 0.0  # the latest live track, or the opening

    @property
    def config(self) -> SourceConfig:
        """As it was configured."""
        return self._config

    @property
    def source_id(self) -> str:
        """The id in every message."""
        return self._config.id

    @property
    def is_live(self) -> bool:
        """Whether frames may be dropped under load. What has an end waits, unless `realtime`."""
        return not self._has_end or self._config.realtime

    @property
    def may_drop(self) -> bool:
        """Whether the latest frame may be dropped: of a live source, unless it has just woken."""
        return self.is_live and not self._catches_up

    def require_can_pause(self, *, has_ended: bool) -> None:
        """Check that it may be left alone for a while.

        Raises:
            ConfigError: it has ended, or it is read once, to its end.
        """
        if has_ended:
            raise ConfigError(f"source {self.source_id}: it has ended; remove it, or add it anew")
        if self._has_end and not self._config.loop:
            raise ConfigError(
                f"source {self.source_id}: what is read once, to its end, can't be paused; "
                "remove it"
            )

    def end(self) -> None:
        """Ask `events` to end; any thread may."""
        self._stop.set()

    def pause(self) -> None:
        """Ask `events` to let go of the source until `resume`; any thread may."""
        self._pause.set()

    def resume(self) -> None:
        """Undo `pause`: the source is opened anew, in a new session."""
        self._pause.clear()

    def number_from(self, past: SourceHistory) -> None:
        """Go on with the numbers of an earlier source of this id, so that none is used twice.

        To be called before `events`. Numbers that are higher already stand.
        """
        self._sessions = max(self._sessions, past.sessions)
        self._alerts = max(self._alerts, past.alerts)

    def events(self, fates: FatesOfFrames | None = None) -> Iterator[SourceOutput]:
        """Yield frames that are due, statuses and alerts, until the source ends.

        A live source that fails is tried again, whatever the reason, for ever or for `give_up_s`:
        cameras are rebooted and passwords corrected. Each reopening that brings a picture starts
        a new session. What has an end is read once (`loop`: again and again) and ends with its
        first error; what it gave before stands.

        Args:
            fates: what became of the frames; default: all were analysed.
        """
        self._fates = partial(_added, self._past_fates, fates or _no_fates)
        self._patience.start(self._monotonic())
        while not self._stop.is_set():
            if self._pause.is_set():
                yield from self._while_paused()
                continue
            try:
                yield from self._session_events()
            except SourceError as error:
                code, detail = error.code, str(error)
            except Exception as error:
                code, detail = SourceCode.DECODING_FAILED, "an error of ours; the log has its stack"
                self._stacks.error(self.source_id, f"source {self.source_id}: {detail}", error)
            else:
                if not self._should_leave and not self._config.loop:
                    yield from self._end_of_file()
                    return
                continue
            if self._should_leave:
                continue
            now = self._monotonic()
            left_s = self._patience.lost(
                now, recovered=self._stood_s() >= self._config.recovered_after_s
            )
            if self._has_end or left_s <= 0:
                yield from self._report(SourceState.ENDED, code, detail)
                return
            if code is SourceCode.UNAUTHORISED:
                detail += (
                    f"; tried again after {self._config.retry_unauthorised_s:g} s, then ever more "
                    "rarely: cameras lock accounts"
                )
            yield from self._report(SourceState.LOST, code, detail)
            yield from self._rest(min(self._patience.next_wait_s(code), left_s))
        yield from self.stopped()

    def abandoned(self) -> SourceStatus:
        """Return the last status of a source whose thread is stuck in a read and won't be awaited.

        Any thread may ask.
        """
        detail = "asked to stop; the read under way was not awaited"
        return self._made(SourceState.ENDED, SourceCode.STOPPED, detail, changed=True)

    @property
    def history(self) -> SourceHistory:
        """What another process needs to go on with this source."""
        return SourceHistory(
            status=self._status,
            sessions=self._sessions,
            alerts=self._alerts,
            has_end=self._has_end,
            raised=self._alarm.raised,
            lost_at=self._alarm.lost_at,
        )

    def interrupted(self, why: str, *, for_good: bool) -> Iterator[SourceStatus | SourceAlert]:
        """Say that the process which watched this source died.

        What has an end, and was begun, is over: its start would be judged twice.

        Args:
            why: of the death, for people.
            for_good: whether what has an end is over even if it was not begun.
        """
        over = self._has_end and not self._config.loop and (for_good or self._sessions > 0)
        state = SourceState.ENDED if over else SourceState.LOST
        self._well_since = None
        yield from self._report(state, SourceCode.WORKER_FAILED, why)

    def put_aside(self) -> Iterator[SourceStatus | SourceAlert]:
        """Say that this source, which nobody watches at the moment, is paused."""
        self._well_since = None
        yield from self._report(SourceState.PAUSED, SourceCode.STOPPED, "asked to pause")

    def stopped(self) -> Iterator[SourceStatus | SourceAlert]:
        """Say that this source, which nobody watches at the moment, won't be watched again."""
        yield from self._report(SourceState.ENDED, SourceCode.STOPPED, "asked to stop")

    def _session_events(self) -> Iterator[SourceOutput]:
        """Open once, and yield until the stream ends, breaks, or `stop` is set."""
        self._well_since = None
        self._is_idle = False
        decoder = open_decoder(
            self._config,
            self._decode,
            session=self._sessions,
            clock=self._clock,
            monotonic=self._monotonic,
            wait=self._stop.wait,
            recent=self.recent,
        )
        self._has_end = not decoder.is_live
        seen_before, undecoded_before = self._frames_seen, self._frames_undecoded
        try:
            for frame in decoder.frames():
                if seen_before + decoder.frames_seen > self._frames_seen:
                    self._frames_seen = seen_before + decoder.frames_seen
                    self._picture_at = self._monotonic()
                undecoded = undecoded_before + decoder.frames_undecoded
                self._frames_due += undecoded - self._frames_undecoded
                self._frames_undecoded = undecoded
                if frame is not None:
                    if self._well_since is None:
                        self._well_since = self._picture_at
                        self._sessions += 1
                        self._patience.opened(self._picture_at)
                        self._occupied_at = self._picture_at
                        self._frames_failed = self._fates().failed
                        yield from self._report(
                            SourceState.OPEN, SourceCode.OK, decoder.description
                        )
                    self._frames_due += 1
                    self._catches_up = decoder.is_catching_up
                    yield frame
                yield from self._watch_analysis(decoder.description)
                if self._may_idle:
                    yield from self._doze(decoder)
                yield from self.beat()
                if self._should_leave:
                    return
        finally:
            decoder.close()

    @property
    def _should_leave(self) -> bool:
        """Whether the session is over because somebody said so."""
        return self._stop.is_set() or self._pause.is_set()

    def _while_paused(self) -> Iterator[SourceStatus | SourceAlert]:
        """Leave the source alone, with heartbeats, until it is resumed or ended."""
        yield from self.put_aside()
        while self._should_leave and not self._stop.wait(_PAUSE_POLL_S):
            yield from self.beat()
        self._patience.start(self._monotonic())

    def _end_of_file(self) -> Iterator[SourceStatus | SourceAlert]:
        """Say that all was read, and whether all of it could be analysed."""
        failed = self._fates(settled=True).failed
        if failed:
            detail = f"{failed} of {self._frames_due} frames failed; the log has the stacks"
            yield from self._report(SourceState.ENDED, SourceCode.ANALYSIS_FAILED, detail)
        else:
            detail = f"{self._frames_seen} frames"
            yield from self._report(SourceState.ENDED, SourceCode.END_OF_FILE, detail)

    def _watch_analysis(self, description: str) -> Iterator[SourceStatus | SourceAlert]:
        """Say when frames of the open source fail in the analysis, and when that is over."""
        if self._status is None or self._well_since is None:
            return
        fates, now = self._fates(), self._monotonic()
        if fates.failed > self._frames_failed:
            self._frames_failed, self._failure_at = fates.failed, now
            detail = "a frame could not be analysed; the log has the stack"
            yield from self._report(SourceState.LOST, SourceCode.ANALYSIS_FAILED, detail)
        elif (
            self._status.code is SourceCode.ANALYSIS_FAILED
            and not fates.failing
            and now - self._failure_at >= self._config.recovered_after_s
        ):
            self._well_since = self._failure_at
            yield from self._report(self._up, SourceCode.OK, description)

    @property
    def _may_idle(self) -> bool:
        wanted = idles(self._config, self._decode)
        return wanted and self.is_live and self._well_since is not None

    @property
    def _up(self) -> SourceState:
        return SourceState.IDLE if self._is_idle else SourceState.OPEN

    def _doze(self, decoder: Decoder) -> Iterator[SourceStatus | SourceAlert]:
        """Let a decoder sleep while there is nobody, and wake it."""
        now = self._monotonic()
        if self._fates().occupied:
            self._occupied_at = now
        is_idle = now - self._occupied_at >= self._decode.idle_after_s
        if is_idle != self._is_idle:
            self._is_idle = is_idle
            decoder.set_idle(is_idle)
            if self._status is not None and self._status.state.is_up:
                yield from self._report(self._up, SourceCode.OK, decoder.description)

    def _stood_s(self) -> float:
        """Return for how long this session has given pictures that could be analysed, seconds."""
        if self._well_since is None or self._status is None:
            return 0.0
        is_open = self._status.state.is_up
        return self._picture_at - self._well_since if is_open else 0.0

    def _rest(self, seconds: float) -> Iterator[SourceStatus | SourceAlert]:
        """Wait, but not past `stop`, and with heartbeats."""
        while seconds > 0 and not self._should_leave:
            step_s = min(seconds, max(self._heartbeat_due_s(), 0.001))
            self._stop.wait(step_s)
            seconds -= step_s
            yield from self.beat()

    def beat(self) -> Iterator[SourceStatus | SourceAlert]:
        """Yield the heartbeat if it is due, and what only time makes an alert."""
        if self._status is None:
            return
        if self._heartbeat_due_s() <= 0:
            last = self._status
            yield self._made(last.state, last.code, last.detail, changed=False)
        kind = self._alarm.time_passed(
            self._monotonic(),
            stood_s=self._stood_s(),
            is_open=self._status.state.is_up,
        )
        if kind is not None:
            yield self._alert(kind, self._status)

    def _heartbeat_due_s(self) -> float:
        if self._status is None:
            return math.inf
        return self._reported_at + self._config.heartbeat_s - self._monotonic()

    def _report(
        self, state: SourceState, code: SourceCode, detail: str
    ) -> Iterator[SourceStatus | SourceAlert]:
        """Yield a status, unless it would say what the latest said, and the alert it calls for."""
        last = self._status
        session = self._session
        if last and (last.session, last.state, last.code) == (session, state, code):
            return
        status = self._made(state, code, detail, changed=True)
        shown = f"{self._name}: {status.detail}" if code is SourceCode.OK else status.detail
        log.log(_level(status), "source %s: %s (%s): %s", self.source_id, state, code, shown)
        yield status
        kind = None
        if status.failed:
            kind = SourceEventKind.ENDED
        elif state is SourceState.LOST and not (last and last.state is SourceState.LOST):
            kind = self._alarm.lost(self._monotonic())
        if kind is not None:
            yield self._alert(kind, status)

    @property
    def _session(self) -> int:
        return max(self._sessions - 1, 0)

    def _made(
        self, state: SourceState, code: SourceCode, detail: str, *, changed: bool
    ) -> SourceStatus:
        """Make the latest status."""
        fates = self._fates()
        self._reported_at = self._monotonic()
        self._status = SourceStatus(
            source_id=self.source_id,
            session=self._session,
            state=state,
            code=code,
            detail=printable(scrub(detail, self._secrets)),
            changed=changed,
            frames_seen=self._frames_seen,
            frames_due=self._frames_due,
            frames_overtaken=fates.overtaken,
            frames_late=fates.late,
            frames_undecoded=self._frames_undecoded,
            frames_failed=fates.failed,
            at=self._clock(),
        )
        return self._status

    def _alert(self, kind: SourceEventKind, status: SourceStatus) -> SourceAlert:
        """Make an alert of the source as it is now."""
        losses, within_s = self._alarm.losses(self._monotonic())
        if kind is SourceEventKind.FLAPPING:
            log.warning(
                "source %s: flapping, lost %d times in %.0f s", self.source_id, losses, within_s
            )
        self._alerts += 1
        return SourceAlert(
            kind=kind,
            ordinal=self._alerts,
            status=dataclasses.replace(status, at=self._clock()),
            losses=losses,
            within_s=within_s,
        )


class _Patience:
    """When a lost source is tried again, and for how long. Times are monotonic seconds."""

    def __init__(self, config: SourceConfig, random: Random) -> None:
        self._config = config
        self._random = random
        self._failures = self._refusals = 0  # since it last recovered, as is...
        self._away_s = 0.0  # ...the time away that is over
        self._away_since: float | None = None

    def start(self, now: float) -> None:
        """Begin: the source is away until it is opened."""
        self._away_since = now

    def opened(self, now: float) -> None:
        """Note a picture after a time without."""
        if self._away_since is not None:
            self._away_s += now - self._away_since
            self._away_since = None

    def lost(self, now: float, *, recovered: bool) -> float:
        """Note a failure, and return for how long the source is still tried, seconds.

        Args:
            now: when.
            recovered: before that, it had stood for long enough to begin anew.
        """
        if recovered:
            self._failures = self._refusals = 0
            self._away_s = 0.0
        if self._away_since is None:
            self._away_since = now
        if self._config.give_up_s is None:
            return math.inf
        return self._config.give_up_s - self._away_s - (now - self._away_since)

    def next_wait_s(self, code: SourceCode) -> float:
        """Return how long to wait for the next attempt: exponential, capped, with full jitter.

        After a refused password longer, and without jitter, which would shorten the wait.
        """
        if code is SourceCode.UNAUTHORISED:
            first_s = self._config.retry_unauthorised_s
            doubled_s = _doubled(first_s, self._refusals)
            self._refusals += 1
            return min(doubled_s, max(first_s, LONGEST_UNAUTHORISED_S))
        doubled_s = _doubled(self._config.retry_first_s, self._failures)
        self._failures += 1
        return self._random.uniform(0, min(self._config.retry_max_s, doubled_s))


class _Alarm:
    """Which losses and returns of a source people must hear of. Times are monotonic seconds."""

    def __init__(
        self,
        recovered_after_s: float,
        raised: SourceEventKind | None = None,
        lost_at: tuple[float, ...] = (),
    ) -> None:
        self._recovered_after_s = recovered_after_s
        self.raised = raised  # LOST or FLAPPING, until it is REGAINED
        self._lost_at = deque(lost_at)

    @property
    def lost_at(self) -> tuple[float, ...]:
        """The latest losses."""
        return tuple(self._lost_at)

    def lost(self, now: float) -> SourceEventKind | None:
        """Note a loss, and return what it is an alert of, if any."""
        while self._lost_at and now - self._lost_at[0] >= FLAPPING_S:
            self._lost_at.popleft()
        self._lost_at.append(now)
        flaps = len(self._lost_at) >= FLAPPING_LOSSES
        kind = SourceEventKind.FLAPPING if flaps else SourceEventKind.LOST
        if self.raised in (kind, SourceEventKind.FLAPPING):
            return None
        self.raised = kind
        return kind

    def time_passed(self, now: float, *, stood_s: float, is_open: bool) -> SourceEventKind | None:
        """Return what the source is after a while: regained, or no longer flapping but lost."""
        if self.raised is None:
            return None
        flapping = self.raised is SourceEventKind.FLAPPING
        if is_open and stood_s >= (FLAPPING_S if flapping else self._recovered_after_s):
            self.raised = None
            return SourceEventKind.REGAINED
        if flapping and not is_open and now - self._lost_at[-1] >= FLAPPING_S:
            self.raised = SourceEventKind.LOST
            return SourceEventKind.LOST
        return None

    def losses(self, now: float) -> tuple[int, float]:
        """Return how often the source was lost lately, and in how many seconds."""
        return len(self._lost_at), now - self._lost_at[0] if self._lost_at else 0.0


def _no_fates(*, settled: bool = False) -> FrameFates:
    return FrameFates()


def _fates_of(status: SourceStatus | None) -> FrameFates:
    if status is None:
        return FrameFates()
    return FrameFates(
        overtaken=status.frames_overtaken, late=status.frames_late, failed=status.frames_failed
    )


def _added(past: FrameFates, fates: FatesOfFrames, *, settled: bool = False) -> FrameFates:
    """Return the fates of all frames: those of a process that is gone, and of this one's."""
    now = fates(settled=settled)
    return FrameFates(
        overtaken=past.overtaken + now.overtaken,
        late=past.late + now.late,
        failed=past.failed + now.failed,
        failing=now.failing,
        occupied=now.occupied,
    )


def _doubled(first_s: float, times: int) -> float:
    return first_s * 2.0 ** min(times, 64)


def _level(status: SourceStatus) -> int:
    if status.failed:
        return logging.ERROR
    return logging.WARNING if status.state is SourceState.LOST else logging.INFO
