"""Starts workers, hears them, and starts again what died.

A worker that dies takes nothing but its own sources along, for seconds. Of these the supervisor
says at once that nobody watches them, and why; a new worker goes on with their next session. A
source that kills its worker again and again is found by halves: from the third death within ten
minutes on, what the dead worker watched is divided between two workers, until the guilty one is
alone and waits ever longer (docs/decisions/0055).

Sources may be added, removed, paused and resumed while it runs, from any thread. What is wanted is
noted at once; the loop passes it on to the worker that it concerns, and to every worker after that
one, should it die (docs/decisions/0062).

This process decodes nothing and runs no network, and imports nothing that does.
"""

from __future__ import annotations

import itertools
import logging
import math
import multiprocessing
import multiprocessing.connection
import queue
import re
import select
import signal
import threading
import time
from collections import Counter, deque
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import forkserver, resource_tracker
from typing import TYPE_CHECKING, Final

from pydantic import SecretStr, ValidationError

from stream.assembly import message_writer
from stream.config import RedisSinkConfig, WebhookSinkConfig
from stream.errors import ConfigError, SinkError, StreamError
from stream.pipeline import Progress
from stream.processors import processors
from stream.publish import open_sink, open_sinks
from stream.publish.embedded import EmbeddedServer
from stream.records import SourceHistory, SourceState
from stream.signals import STOP_SIGNALS
from stream.sources import Source, name_taken, no_such_source
from stream.workers.said import (
    SAID,
    Counted,
    Done,
    Failed,
    FailureKind,
    Logged,
    Ready,
    SourceSaid,
)
from stream.workers.shares import bounded, cheapest, shares
from stream.workers.told import Add, Pause, Remove, Resume, Stop
from stream.workers.worker import Task, work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from multiprocessing.context import ForkServerContext
    from pathlib import Path

    from stream.config import SinkConfig, SourceConfig, StreamConfig
    from stream.metrics.monitor import Monitor
    from stream.records import SourceAlert, SourceStatus
    from stream.signals import StopSignals
    from stream.workers.page import Gallery, Link
    from stream.workers.said import Said
    from stream.workers.told import Change

log = logging.getLogger(__name__)

FORGOTTEN_S: Final = 600.0  # a death counts for so long
DEATHS_TOGETHER: Final = 2  # after so many, what died is divided
MOST_EXTRA: Final = 8  # workers more than asked for, of divided ones
FIRST_WAIT_S: Final = 1.0  # before a dead worker's sources are watched again; doubled, up to...
LONGEST_TOGETHER_S: Final = 4.0  # ...this, while it is not known whose fault it is
LONGEST_ALONE_S: Final = 60.0
SPOOLED: Final = (RedisSinkConfig, WebhookSinkConfig)  # sinks that keep messages on disk
_POLL_S: Final = 0.2
_LAST_MOMENTS_S: Final = 1.0  # for a process that has said its last word
_DRAIN_SHARE: Final = 0.8  # of `shutdown_s`, for the workers; the rest is for the supervisor
_LONGEST_SAID: Final = 2**20  # bytes


@dataclass(eq=False)
class _Process:
    """A worker as long as it lives."""

    process: multiprocessing.process.BaseProcess
    pipe: multiprocessing.connection.Connection
    link: Link | None  # to the page
    is_done: bool = False
    failure: Failed | None = None
    counted: Counted = field(default_factory=lambda: Counted(0, {}, {}))
    counted_at: float | None = None  # monotonic seconds; None: not yet
    is_ending: bool = False  # was told to

    def tell(self, told: Change | Stop) -> None:
        """Tell it something, unless it has died, which will be heard.

        One that has not listened for long is killed; the next knows what is wanted.
        """
        poll = select.poll()
        with suppress(OSError):
            poll.register(self.pipe, select.POLLOUT)
            if poll.poll(0):
                self.pipe.send(told)
            else:
                self.process.kill()

    def busy_s(self) -> float:
        """Return for how long one of its loops has been at one thing; silence counts as such."""
        if self.counted_at is None:
            return 0.0  # it loads its engines
        return self.counted.busy_s + time.monotonic() - self.counted_at


@dataclass(eq=False)
class _Watched:
    """A source from when it was added until it is removed."""

    config: SourceConfig
    life: int  # as in `Add`
    is_paused: bool = False  # as was asked for
    away: Source | None = None  # while no process watches it, after one that died

    @property
    def source_id(self) -> str:
        return self.config.id


@dataclass(eq=False)
class _Group:
    """Sources that one worker watches, over the lives of that worker."""

    number: int
    sources: dict[str, _Watched]  # of a worker that runs it may be empty
    start_at: float | None = 0.0  # monotonic seconds; None: it runs, or is over
    deaths: deque[float] = field(default_factory=deque)  # when
    worker: _Process | None = None
    leaving: dict[int, _Watched] = field(default_factory=dict)  # removed; by life

    def deaths_lately(self) -> int:
        """Return how many deaths count, and forget the others."""
        while self.deaths and time.monotonic() - self.deaths[0] > FORGOTTEN_S:
            self.deaths.popleft()
        return len(self.deaths)


class Supervisor:
    """Watches sources by several processes; used once.

    Args:
        config: of the run.
        workers: processes, at most one per source.
        run: names the run in every message.
        signals: say when to drain and end; until the first worker is started they end this at once.
        log_level: least severity of what workers log.
        duration_s: `stop` is set so long after the first worker is ready; None: never.
        monitor: serves what all measure; None: nothing is measured.
        gallery: collects what all show; None: there is no page.
    """

    def __init__(
        self,
        config: StreamConfig,
        workers: int,
        *,
        run: str,
        signals: StopSignals,
        log_level: int,
        duration_s: float | None = None,
        monitor: Monitor | None = None,
        gallery: Gallery | None = None,
    ) -> None:
        self._monitor = monitor
        self._gallery = gallery
        self._run = run
        self._signals = signals
        self._stop = signals.stop
        self._log_level = log_level
        self._duration_s = math.inf if duration_s is None else duration_s
        self._config = config
        self._workers = workers
        self._most = workers + MOST_EXTRA
        self._lives = itertools.count(1)
        self._lock = threading.Lock()  # of the next one, for those who change it
        # Replaced, never changed, since any thread may read it; what `_groups` have follows it.
        self._wanted = {s.id: _Watched(s, next(self._lives)) for s in config.sources}
        parts = shares(list(self._wanted), {}, min(workers, len(self._wanted)))
        self._groups = [
            _Group(number, {source_id: self._wanted[source_id] for source_id in part})
            for number, part in enumerate(parts, start=1)
        ]
        self._share = max(1, processors() // len(self._groups))  # of a worker, in processors
        self._heartbeat_s = max(source.heartbeat_s for source in config.sources)
        self._said: dict[str, SourceSaid] = {}  # the latest, also of sources that were removed
        self._costs: dict[str, float] = {}
        self._frames_analysed = 0  # by workers that have ended, as are...
        self._verdicts: Counter[str] = Counter()  # ...these
        self._to_do: queue.Queue[Callable[[], None]] = queue.Queue()  # by the loop
        self._error: StreamError | None = None
        self._ready_at: float | None = None  # the first worker; monotonic seconds
        self._looped_at = time.monotonic()

    def run(self, report: Callable[[Progress], None], report_s: float = 1.0) -> None:
        """Run until every source has ended or `stop` is set, then drain.

        A run whose sources were all removed waits for others.

        Args:
            report: called about every `report_s`, and once at the end.
            report_s: seconds.

        Raises:
            ConfigError: the configuration can't be used.
            StreamError: messages could not be delivered, or draining took longer than `shutdown_s`.
        """
        self._writer = message_writer(self._config, self._run)
        with ExitStack() as resources:
            self._config = _with_servers(self._config, resources)
            _send_left(self._config, {group.number for group in self._groups}, self._run)
            self._sinks = open_sinks(
                self._config.sinks,
                run=self._run,
                heartbeat_s=self._heartbeat_s,
                source_ids=list(self._wanted),
            )
            if self._monitor is not None:
                self._sinks.append(self._monitor.measures.sink(self._sinks))
            if self._gallery is not None:
                self._sinks.append(self._gallery.board)
            for sink in self._sinks:
                resources.callback(sink.close)
            cores, n = processors(), len(self._groups)
            each = bounded(self._config, self._share)
            log.log(
                logging.INFO if n <= cores else logging.WARNING,
                "%d workers on %d processors%s, each with %d threads a network run, and %d a "
                "decoder",
                n,
                cores,
                "" if n <= cores else " (more than these slow each other down)",
                getattr(each.backend, "threads", 0),
                each.decode.threads,
            )
            self._context = _context(has_page=self._gallery is not None)
            resources.callback(self._kill_all)
            self._loop(report, report_s)
            report(self.progress())
        if self._error is not None:
            raise self._error

    def add(self, source: SourceConfig) -> None:
        """Watch another source, by the worker with the least to do; see `Pipeline.add`.

        Raises:
            ConfigError: a source of this id is watched.
        """
        with self._lock:
            if source.id in self._wanted:
                raise name_taken(source.id)
            watched = _Watched(source, next(self._lives))
            self._to_do.put(partial(self._take_up, watched))  # first: see `_goes_on`
            self._wanted = {**self._wanted, source.id: watched}

    def remove(self, source_id: str) -> None:
        """End a source and its tracks, and forget it; see `Pipeline.remove`.

        Raises:
            ConfigError: there is no such source.
        """
        with self._lock:
            watched = self._require(source_id)
            self._to_do.put(partial(self._let_go, watched))
            self._wanted = {s: w for s, w in self._wanted.items() if s != source_id}

    def pause(self, source_id: str) -> None:
        """Close a source until it is resumed, whatever becomes of its worker meanwhile.

        Raises:
            ConfigError: there is no such source, it has ended, or it is read once, to its end.
        """
        with self._lock:
            watched = self._require(source_id)
            self._opened(watched).require_can_pause(has_ended=self._has_ended(watched))
            self._to_do.put(partial(self._hold, watched, True))

    def resume(self, source_id: str) -> None:
        """Open a paused source again, in a new session.

        Raises:
            ConfigError: there is no such source.
        """
        with self._lock:
            self._to_do.put(partial(self._hold, self._require(source_id), False))

    def _require(self, source_id: str) -> _Watched:
        """Return a source that is wanted; called with the lock held."""
        if source_id not in self._wanted:
            raise no_such_source(source_id, self._wanted)
        return self._wanted[source_id]

    def progress(self) -> Progress:
        """Return the counters of all workers, as far as they were told. Any thread may ask."""
        frames, verdicts = self._frames_analysed, self._verdicts.copy()
        busy_s = time.monotonic() - self._looped_at
        for worker in [group.worker for group in self._groups]:
            if worker is not None:
                frames += worker.counted.frames_analysed
                verdicts.update(worker.counted.verdicts)
                busy_s = max(busy_s, worker.busy_s())
        watched = tuple(each.config for each in self._wanted.values())
        return Progress(self._statuses(), frames, dict(verdicts), busy_s=busy_s, watched=watched)

    def failed_sources(self) -> list[SourceStatus]:
        """Return the last status of each source that ended by a failure."""
        return [status for status in self._statuses().values() if status.failed]

    def _statuses(self) -> dict[str, SourceStatus]:
        known = {source_id: self._history(w).status for source_id, w in self._wanted.items()}
        return {source_id: status for source_id, status in known.items() if status is not None}

    def _history(self, watched: _Watched) -> SourceHistory:
        """Return where a source is; of an earlier one of its id only the numbers count."""
        said = self._said.get(watched.source_id)
        if said is None:
            return SourceHistory()
        past = said.history
        if said.life == watched.life:
            return past
        return SourceHistory(sessions=past.sessions, alerts=past.alerts)

    def _has_ended(self, watched: _Watched) -> bool:
        status = self._history(watched).status
        return status is not None and status.state is SourceState.ENDED

    def _opened(self, watched: _Watched) -> Source:
        """Return a source, to speak for it in this process."""
        return Source(
            watched.config, self._config.decode, stop=self._stop, history=self._history(watched)
        )

    def _loop(self, report: Callable[[Progress], None], report_s: float) -> None:
        reported_at = time.monotonic()
        deadline: float | None = None
        while self._goes_on():
            self._looped_at = time.monotonic()
            if self._stop.is_set() and deadline is None:
                deadline = time.monotonic() + self._config.shutdown_s
                self._drain()
            if deadline is None:
                self._start_due()
                self._end_idle()
            elif time.monotonic() > deadline:
                self._fail(
                    StreamError(
                        f"workers could not drain within {self._config.shutdown_s:g} s; what was "
                        "not published is lost"
                    )
                )
                return
            self._do(_POLL_S)
            began = self._ready_at
            if began and time.monotonic() - began >= self._duration_s:
                self._stop.set()
            self._say(event for _, source in self._away() for event in source.beat())
            if time.monotonic() - reported_at >= report_s:
                report(self.progress())
                reported_at = time.monotonic()

    def _goes_on(self) -> bool:
        waits_for_sources = not self._wanted and not self._stop.is_set()
        # In this order: whoever makes another source wanted has put it into the queue before.
        return waits_for_sources or not self._to_do.empty() or bool(self._groups)

    def _end_idle(self) -> None:
        """End the workers without a source once all sources of the run have ended."""
        if self._wanted and self._to_do.empty() and not any(g.sources for g in self._groups):
            self._drain()

    # --- changes, as the loop does them ---

    def _take_up(self, watched: _Watched) -> None:
        """Let a worker watch another source."""
        if self._stop.is_set():
            return
        group = self._with_room(watched.source_id)
        group.sources[watched.source_id] = watched
        log.info("worker %d: gets source %s", group.number, watched.source_id)
        if group.worker is not None:
            group.worker.tell(self._introduced(watched))

    def _with_room(self, source_id: str) -> _Group:
        """Choose who is to watch another source.

        That is who still watches an earlier one of its id; else a worker without a source; else a
        new one, as long as there are fewer than asked for; else who has the least to do.
        """
        for group in self._groups:
            if any(watched.source_id == source_id for watched in group.leaving.values()):
                return group
        sound = [
            group
            for group in self._groups
            if group.worker is not None
            and not group.worker.is_ending
            and group.deaths_lately() <= DEATHS_TOGETHER
        ]
        idle = [group for group in sound if not group.sources]
        if idle:
            return idle[0]
        most = self._workers if sound else self._most
        if len(self._groups) < most:
            group = _Group(self._free_number(), {})
            self._groups.append(group)
            self._share = max(1, min(self._share, processors() // len(self._groups)))
            return group
        candidates = sound or self._groups
        watched_by = [
            [s for s, watched in group.sources.items() if not self._has_ended(watched)]
            for group in candidates
        ]
        return candidates[cheapest(watched_by, self._costs)]

    def _let_go(self, watched: _Watched) -> None:
        """End a source that was removed."""
        group = self._group_of(watched)
        if group is None:
            return  # it has ended, and so has its worker
        if group.worker is not None:
            if not self._has_ended(watched):
                group.leaving[watched.life] = watched
            group.worker.tell(Remove(watched.source_id))
        elif watched.away is not None:
            self._say(watched.away.stopped())
            watched.away = None
        del group.sources[watched.source_id]
        self._costs.pop(watched.source_id, None)
        if group.worker is None and not group.sources:
            self._groups.remove(group)

    def _hold(self, watched: _Watched, is_paused: bool) -> None:
        """Pause a source, or resume it."""
        watched.is_paused = is_paused
        group = self._group_of(watched)
        if group is not None and group.worker is not None:
            source_id = watched.source_id
            group.worker.tell(Pause(source_id) if is_paused else Resume(source_id))
        elif watched.away is not None:
            why = "its worker died while it was paused"
            source = watched.away
            self._say(source.put_aside() if is_paused else source.interrupted(why, for_good=False))

    def _group_of(self, watched: _Watched) -> _Group | None:
        for group in self._groups:
            if group.sources.get(watched.source_id) is watched:
                return group
        return None

    def _free_number(self) -> int:
        taken = {group.number for group in self._groups}
        return next(number for number in itertools.count(1) if number not in taken)

    def _introduced(self, watched: _Watched) -> Add:
        """Return what a worker must know of a source."""
        return Add(watched.config, watched.life, self._history(watched), watched.is_paused)

    # --- workers ---

    def _start_due(self) -> None:
        now = time.monotonic()
        for group in self._groups:
            if group.start_at is not None and group.start_at <= now:
                self._start(group)

    def _start(self, group: _Group) -> None:
        """Start a worker for what is left of a group."""
        watched = list(group.sources.values())
        config = bounded(self._config, self._share).model_copy(
            update={
                "sources": tuple(each.config for each in watched),
                "sinks": tuple(_own(sink, group.number) for sink in self._config.sinks),
                "shutdown_s": _DRAIN_SHARE * self._config.shutdown_s,
                "page": None,  # nor what opens it: it is this process that serves it
            }
        )
        ours, theirs = self._context.Pipe()
        metrics = self._monitor.folder if self._monitor else None
        task = Task(
            config,
            first=tuple(map(self._introduced, watched)),
            heartbeat_s=self._heartbeat_s,
            run=self._run,
            log_level=self._log_level,
            processors=self._share,
            number=group.number,
            metrics=metrics,
        )
        name = f"worker-{group.number}"
        link, page = self._gallery.connect(name) if self._gallery else (None, None)
        process = self._context.Process(
            target=work, args=(task, theirs, page), name=name, daemon=True
        )
        try:
            _start_server()
            process.start()
        except (OSError, EOFError) as error:  # no memory, no more processes
            ours.close()
            if page is not None:
                page.close()
            self._end_link(link)
            group.start_at = time.monotonic() + LONGEST_TOGETHER_S
            log.warning(
                "worker %d can't be started (%r); once more in %g s",
                group.number,
                error,
                LONGEST_TOGETHER_S,
            )
            return
        finally:
            theirs.close()
            if page is not None:
                page.close()
        self._signals.drain_from_now()
        log.info("worker %d (process %s): %s", group.number, process.pid, _named(group.sources))
        group.start_at = None
        group.worker = _Process(process, ours, link)
        for each in watched:
            each.away = None
        threading.Thread(
            target=self._listen, args=(group, group.worker), name=f"hear-{name}", daemon=True
        ).start()

    def _listen(self, group: _Group, worker: _Process) -> None:
        """Queue what a worker says, and None at its end; runs in a thread."""
        with suppress(EOFError, OSError, ValidationError):
            while True:
                said = SAID.validate_json(worker.pipe.recv_bytes(_LONGEST_SAID))
                self._to_do.put(partial(self._act, group, worker, said))
        self._to_do.put(partial(self._act, group, worker, None))

    def _do(self, wait_s: float) -> None:
        """Act on what was said, and asked for; wait for it if nothing was."""
        try:
            self._to_do.get(timeout=wait_s)()
            while True:
                self._to_do.get_nowait()()
        except queue.Empty:
            return

    def _act(self, group: _Group, worker: _Process, said: Said | None) -> None:
        match said:
            case SourceSaid(source_id=source_id, history=history, life=life):
                self._said[source_id] = said
                if history.status is not None and history.status.state is SourceState.ENDED:
                    group.leaving.pop(life, None)
            case Counted():
                worker.counted, worker.counted_at = said, time.monotonic()
                self._costs |= {s: cost for s, cost in said.costs.items() if s in group.sources}
            case Logged():
                _log(said, group.number)
            case Ready():
                self._ready_at = self._ready_at or time.monotonic()
            case Failed():
                worker.failure = said
            case Done():
                worker.is_done = True
            case None:
                self._end(group, worker)

    def _end(self, group: _Group, worker: _Process) -> None:
        """Find out how a worker ended, and what is to become of its sources."""
        worker.pipe.close()
        worker.process.join(_LAST_MOMENTS_S)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        self._end_link(worker.link)
        self._frames_analysed += worker.counted.frames_analysed
        self._verdicts.update(worker.counted.verdicts)
        group.worker = None
        if self._monitor is not None:
            self._monitor.worker_died(group.number)
        failure = worker.failure
        if failure and failure.kind is FailureKind.SINK:
            self._fail(SinkError(failure.text))
        elif failure and failure.kind is FailureKind.DRAIN:
            self._fail(StreamError(failure.text))
        hopeless = failure and failure.kind is FailureKind.CONFIG and self._ready_at is None
        if failure and hopeless:
            self._fail(ConfigError(failure.text))
        for watched in group.leaving.values():
            self._speak_last(watched)
        group.leaving.clear()
        left = [w for w in group.sources.values() if not self._has_ended(w)]
        if hopeless or (worker.is_done and (self._stop.is_set() or not left)):
            self._groups.remove(group)
        elif worker.is_done:  # they came when it was about to end
            group.sources = {watched.source_id: watched for watched in left}
            group.start_at = time.monotonic()
        else:
            self._bury(group, worker)

    def _speak_last(self, watched: _Watched) -> None:
        """Say that a source was stopped whose worker died before it could."""
        source = self._opened(watched)
        if source.history.status is not None:
            self._say(source.stopped())
            self._note(watched, source)

    def _end_link(self, link: Link | None) -> None:
        """Let the page hear a worker's last words, before anything is said of its end."""
        if self._gallery is not None and link is not None:
            self._gallery.end(link)

    def _bury(self, group: _Group, worker: _Process) -> None:
        """Say that a worker died, and choose when and how its sources are watched again."""
        now = time.monotonic()
        why = _cause(worker)
        alone = len(group.sources) == 1
        group.deaths.append(now)
        suspect = group.deaths_lately() > DEATHS_TOGETHER
        for watched in group.sources.values():
            if self._has_ended(watched):
                continue
            source = watched.away = self._opened(watched)
            if watched.is_paused:
                self._say(source.put_aside())
            else:
                self._say(source.interrupted(why, for_good=alone and suspect))
        left = [s for s, watched in group.sources.items() if not self._has_ended(watched)]
        for source_id in group.sources.keys() - set(left):
            group.sources[source_id].away = None
        if self._stop.is_set() or not left:
            if not group.sources:
                log.error("worker %d: %s; it had no source", group.number, why)
            self._give_up(group)
            return
        self._plan(group, worker, left, now, why)

    def _plan(self, group: _Group, worker: _Process, left: list[str], now: float, why: str) -> None:
        """Choose how the sources that a dead worker left are watched again."""
        config_failed = worker.failure is not None and worker.failure.kind is FailureKind.CONFIG
        divided = (
            len(left) > 1
            and len(group.deaths) > DEATHS_TOGETHER
            and len(self._groups) < self._most
            and not config_failed  # common to all
        )
        longest_s = LONGEST_TOGETHER_S if divided or len(left) > 1 else LONGEST_ALONE_S
        if len(self._groups) >= self._most or config_failed:
            longest_s = LONGEST_ALONE_S
        wait_s = min(longest_s, FIRST_WAIT_S * 2.0 ** (len(group.deaths) - 1))
        parts = shares(left, self._costs, 2) if divided else [left]
        numbers = [group.number, self._free_number()][: len(parts)]
        self._groups.remove(group)
        self._groups += [
            _Group(number, {s: group.sources[s] for s in part}, now + wait_s, group.deaths.copy())
            for number, part in zip(numbers, parts, strict=True)
        ]
        log.error(
            "worker %d: %s, death %d within %.0f s; in %g s %s",
            group.number,
            why,
            len(group.deaths),
            FORGOTTEN_S,
            wait_s,
            " and ".join(
                f"worker {n} watches {_named(part)}" for n, part in zip(numbers, parts, strict=True)
            ),
        )

    def _drain(self) -> None:
        """Tell all workers to end; those that wait for a start never get one."""
        for group in list(self._groups):
            if group.worker is None:
                self._give_up(group)
            elif not group.worker.is_ending:
                group.worker.is_ending = True
                group.worker.tell(Stop())

    def _give_up(self, group: _Group) -> None:
        """Say that the sources of a group, which no worker watches, won't be watched again."""
        for watched in group.sources.values():
            if watched.away is not None:
                self._say(watched.away.stopped())
                watched.away = None
        self._groups.remove(group)

    def _fail(self, error: StreamError) -> None:
        """Note the first error, and end everything."""
        self._error = self._error or error
        self._stop.set()

    def _say(self, events: Iterable[SourceStatus | SourceAlert]) -> None:
        """Publish what is to be said of sources that no worker watches."""
        messages = [self._writer.write(event) for event in events]
        for watched, source in self._away():
            self._note(watched, source)
        try:
            for sink in self._sinks:
                sink.publish(messages)
        except SinkError as error:
            self._fail(error)

    def _away(self) -> list[tuple[_Watched, Source]]:
        """Return the sources that no worker watches, after one that did."""
        everyone = [w for group in self._groups for w in group.sources.values()]
        return [(watched, watched.away) for watched in everyone if watched.away is not None]

    def _note(self, watched: _Watched, source: Source) -> None:
        """Note what was said of a source here, as if its worker had said it."""
        self._said[source.source_id] = SourceSaid(source.source_id, source.history, watched.life)

    def _kill_all(self) -> None:
        """Leave no worker behind, whatever happened."""
        for group in self._groups:
            if group.worker is not None:
                group.worker.process.kill()
                group.worker.process.join()


def _context(*, has_page: bool) -> ForkServerContext:
    """Return what starts the workers: a process that has their imports and one thread, and forks.

    Never this process itself, which has threads.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            *("__main__", "stream.workers.worker", "stream.analyse"),
            *("stream.decode.pyav_packets", "stream.publish.redis_stream"),
            "trt_engines.backends.onnx_session",
            *(["stream.workers.showing"] if has_page else []),
        ]
    )
    return context


def _start_server() -> None:
    """Start what starts the workers, unless it runs; it and they hear no stop signals.

    These come to a whole process group, or by a service manager to all processes of a service; the
    workers obey their supervisor alone.
    """
    resource_tracker.ensure_running()  # else starting it would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _with_servers(config: StreamConfig, resources: ExitStack) -> StreamConfig:
    """Start the embedded server of each Redis sink that has no address, and name it there."""
    sinks: list[SinkConfig] = []
    for sink in config.sinks:
        if isinstance(sink, RedisSinkConfig) and sink.url is None:
            server = resources.enter_context(closing(EmbeddedServer()))
            sinks.append(sink.model_copy(update={"url": SecretStr(server.url)}))
        else:
            sinks.append(sink)
    return config.model_copy(update={"sinks": tuple(sinks)})


def _own(sink: SinkConfig, number: int) -> SinkConfig:
    """Return a sink's options with a spool that is one worker's alone."""
    if isinstance(sink, SPOOLED) and sink.spool is not None:
        return sink.model_copy(update={"spool": _spool(sink.spool, number)})
    return sink


def _spool(folder: Path, number: int) -> Path:
    return folder / f"worker-{number}"


def _send_left(config: StreamConfig, numbers: set[int], run: str) -> None:
    """Send what workers of an earlier run kept, of which there were more than now."""
    for sink in config.sinks:
        if not isinstance(sink, SPOOLED) or sink.spool is None:
            continue
        for folder in sorted(sink.spool.glob("worker-*")):
            number = re.fullmatch(r"worker-(\d+)", folder.name)
            if number and int(number[1]) not in numbers:
                left = sink.model_copy(update={"spool": folder})
                with suppress(SinkError):  # it has logged that, and keeps it
                    open_sink(left, run=run, heartbeat_s=1.0).close()


def _cause(worker: _Process) -> str:
    """Say why a worker died, for people."""
    if worker.failure is not None:
        return f"its worker failed: {worker.failure.text}"
    code = worker.process.exitcode
    if code is not None and code < 0:
        return f"its worker was killed by {signal.Signals(-code).name}"
    return f"its worker ended with code {code}"


def _log(said: Logged, number: int) -> None:
    """Log what a worker logged, as if it were said here."""
    logger = logging.getLogger(said.name)
    record = logger.makeRecord(
        said.name, said.level, "", 0, said.text, (), None, extra={"worker": number}
    )
    record.created, record.exc_text = said.created, said.stack
    record.msecs = (said.created % 1) * 1000
    logger.handle(record)


def _named(source_ids: Iterable[str]) -> str:
    return ", ".join(source_ids)
