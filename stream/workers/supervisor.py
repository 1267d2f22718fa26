"""Starts workers, hears them, and starts again what died.

A worker that dies takes nothing but its own sources along, for seconds. Of these the supervisor
says at once that nobody watches them, and why; a new worker goes on with their next session. A
source that kills its worker again and again is found by halves: from the third death within ten
minutes on, what the dead worker watched is divided between two workers, until the guilty one is
alone and waits ever longer (docs/decisions/0055).

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
import signal
import threading
import time
from collections import Counter, deque
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
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
from stream.sources import Source
from stream.workers.said import (
    SAID,
    STOP,
    Counted,
    Done,
    Failed,
    FailureKind,
    Logged,
    Ready,
    SourceSaid,
)
from stream.workers.shares import bounded, shares
from stream.workers.worker import Task, work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from multiprocessing.context import ForkServerContext
    from pathlib import Path

    from stream.config import SinkConfig, StreamConfig
    from stream.metrics.monitor import Monitor
    from stream.records import SourceAlert, SourceStatus
    from stream.signals import StopSignals
    from stream.workers.said import Said

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
    is_done: bool = False
    failure: Failed | None = None
    counted: Counted = field(default_factory=lambda: Counted(0, {}, {}))
    counted_at: float | None = None  # monotonic seconds; None: not yet

    def busy_s(self) -> float:
        """Return for how long one of its loops has been at one thing; silence counts as such."""
        if self.counted_at is None:
            return 0.0  # it loads its engines
        return self.counted.busy_s + time.monotonic() - self.counted_at


@dataclass(eq=False)
class _Group:
    """Sources that one worker watches, over the lives of that worker."""

    number: int
    source_ids: list[str]
    start_at: float | None = 0.0  # monotonic seconds; None: it runs, or is over
    deaths: deque[float] = field(default_factory=deque)  # when
    worker: _Process | None = None


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
    ) -> None:
        self._monitor = monitor
        self._run = run
        self._signals = signals
        self._stop = signals.stop
        self._log_level = log_level
        self._duration_s = math.inf if duration_s is None else duration_s
        self._config = config
        self._most = workers + MOST_EXTRA
        self._numbers = itertools.count(1)
        ids = [source.id for source in config.sources]
        self._groups = [
            _Group(next(self._numbers), part) for part in shares(ids, {}, min(workers, len(ids)))
        ]
        self._share = max(1, processors() // len(self._groups))  # of a worker, in processors
        self._sources = {source.id: source for source in config.sources}
        self._histories: dict[str, SourceHistory] = {}
        self._away: dict[str, Source] = {}  # those that no process watches
        self._costs: dict[str, float] = {}
        self._frames_analysed = 0  # by workers that have ended, as are...
        self._verdicts: Counter[str] = Counter()  # ...these
        self._heard: queue.Queue[tuple[_Group, _Process, Said | None]] = queue.Queue()
        self._error: StreamError | None = None
        self._ready_at: float | None = None  # the first worker; monotonic seconds
        self._looped_at = time.monotonic()

    def run(self, report: Callable[[Progress], None], report_s: float = 1.0) -> None:
        """Run until every source has ended or `stop` is set, then drain.

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
                heartbeat_s=self._heartbeat_s(),
                source_ids=list(self._sources),
            )
            if self._monitor is not None:
                self._sinks.append(self._monitor.measures.sink(self._sinks))
            for sink in self._sinks:
                resources.callback(sink.close)
            cores, n = processors(), len(self._groups)
            self._config = bounded(self._config, self._share)
            log.log(
                logging.INFO if n <= cores else logging.WARNING,
                "%d workers on %d processors%s, each with %d threads a network run, and %d a "
                "decoder",
                n,
                cores,
                "" if n <= cores else " (more than these slow each other down)",
                getattr(self._config.backend, "threads", 0),
                self._config.decode.threads,
            )
            self._context = _context()
            resources.callback(self._kill_all)
            self._loop(report, report_s)
            report(self.progress())
        if self._error is not None:
            raise self._error

    def progress(self) -> Progress:
        """Return the counters of all workers, as far as they were told. Any thread may ask."""
        frames, verdicts = self._frames_analysed, self._verdicts.copy()
        busy_s = time.monotonic() - self._looped_at
        for worker in [group.worker for group in self._groups]:
            if worker is not None:
                frames += worker.counted.frames_analysed
                verdicts.update(worker.counted.verdicts)
                busy_s = max(busy_s, worker.busy_s())
        watched = tuple(self._sources.values())
        return Progress(self._statuses(), frames, dict(verdicts), busy_s=busy_s, watched=watched)

    def failed_sources(self) -> list[SourceStatus]:
        """Return the last status of each source that ended by a failure."""
        return [status for status in self._statuses().values() if status.failed]

    def _statuses(self) -> dict[str, SourceStatus]:
        known = {source_id: self._histories.get(source_id) for source_id in self._sources}
        return {s: past.status for s, past in known.items() if past and past.status}

    def _heartbeat_s(self) -> float:
        return max(source.heartbeat_s for source in self._sources.values())

    def _loop(self, report: Callable[[Progress], None], report_s: float) -> None:
        reported_at = time.monotonic()
        deadline: float | None = None
        while self._groups:
            self._looped_at = time.monotonic()
            if self._stop.is_set() and deadline is None:
                deadline = time.monotonic() + self._config.shutdown_s
                self._drain()
            if deadline is None:
                self._start_due()
            elif time.monotonic() > deadline:
                self._fail(
                    StreamError(
                        f"workers could not drain within {self._config.shutdown_s:g} s; what was "
                        "not published is lost"
                    )
                )
                return
            self._hear(_POLL_S)
            began = self._ready_at
            if began and time.monotonic() - began >= self._duration_s:
                self._stop.set()
            self._say(event for source in self._away.values() for event in source.beat())
            if time.monotonic() - reported_at >= report_s:
                report(self.progress())
                reported_at = time.monotonic()

    def _start_due(self) -> None:
        now = time.monotonic()
        for group in self._groups:
            if group.start_at is not None and group.start_at <= now:
                self._start(group)

    def _start(self, group: _Group) -> None:
        """Start a worker for what is left of a group."""
        histories = {s: self._away[s].history for s in group.source_ids if s in self._away}
        config = self._config.model_copy(
            update={
                "sources": tuple(self._sources[s] for s in group.source_ids),
                "sinks": tuple(_own(sink, group.number) for sink in self._config.sinks),
                "shutdown_s": _DRAIN_SHARE * self._config.shutdown_s,
            }
        )
        ours, theirs = self._context.Pipe()
        metrics = self._monitor.folder if self._monitor else None
        task = Task(
            config, histories, self._run, self._log_level, self._share, group.number, metrics
        )
        name = f"worker-{group.number}"
        process = self._context.Process(target=work, args=(task, theirs), name=name, daemon=True)
        try:
            _start_server()
            process.start()
        except (OSError, EOFError) as error:  # no memory, no more processes
            ours.close()
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
        self._signals.drain_from_now()
        log.info("worker %d (process %s): %s", group.number, process.pid, _named(group.source_ids))
        group.start_at = None
        group.worker = _Process(process, ours)
        for source_id in histories:
            del self._away[source_id]
        threading.Thread(
            target=self._listen, args=(group, group.worker), name=f"hear-{name}", daemon=True
        ).start()

    def _listen(self, group: _Group, worker: _Process) -> None:
        """Queue what a worker says, and None at its end; runs in a thread."""
        with suppress(EOFError, OSError, ValidationError):
            while True:
                said = SAID.validate_json(worker.pipe.recv_bytes(_LONGEST_SAID))
                self._heard.put((group, worker, said))
        self._heard.put((group, worker, None))

    def _hear(self, wait_s: float) -> None:
        """Act on what was said; wait for it if nothing was."""
        try:
            self._act(*self._heard.get(timeout=wait_s))
            while True:
                self._act(*self._heard.get_nowait())
        except queue.Empty:
            return

    def _act(self, group: _Group, worker: _Process, said: Said | None) -> None:
        match said:
            case SourceSaid(source_id=source_id, history=history):
                self._histories[source_id] = history
            case Counted():
                worker.counted, worker.counted_at = said, time.monotonic()
                self._costs.update(said.costs)
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
        if worker.is_done or hopeless:
            self._groups.remove(group)
        else:
            self._bury(group, worker)

    def _bury(self, group: _Group, worker: _Process) -> None:
        """Say that a worker died, and choose when and how its sources are watched again."""
        now = time.monotonic()
        why = _cause(worker)
        alone = len(group.source_ids) == 1
        group.deaths.append(now)
        while now - group.deaths[0] > FORGOTTEN_S:
            group.deaths.popleft()
        suspect = len(group.deaths) > DEATHS_TOGETHER
        for source_id in group.source_ids:
            past = self._histories.get(source_id, SourceHistory())
            if past.status is not None and past.status.state is SourceState.ENDED:
                continue
            source = Source(
                self._sources[source_id], self._config.decode, stop=self._stop, history=past
            )
            self._away[source_id] = source
            self._say(source.interrupted(why, for_good=alone and suspect))
        left = [s for s in group.source_ids if s in self._away and not self._has_ended(s)]
        for source_id in set(group.source_ids) - set(left):
            self._away.pop(source_id, None)
        if self._stop.is_set() or not left:
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
        numbers = [group.number, *itertools.islice(self._numbers, len(parts) - 1)]
        self._groups.remove(group)
        self._groups += [
            _Group(number, part, now + wait_s, group.deaths.copy())
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

    def _has_ended(self, source_id: str) -> bool:
        status = self._histories[source_id].status
        return status is not None and status.state is SourceState.ENDED

    def _drain(self) -> None:
        """Tell all workers to end; those that wait for a start never get one."""
        for group in list(self._groups):
            if group.worker is not None:
                with suppress(OSError):  # it has died, which will be heard
                    group.worker.pipe.send_bytes(STOP)
            else:
                self._give_up(group)

    def _give_up(self, group: _Group) -> None:
        """Say that the sources of a group, which no worker watches, won't be watched again."""
        for source_id in group.source_ids:
            source = self._away.pop(source_id, None)
            if source is not None:
                self._say(source.stopped())
                self._histories[source_id] = source.history
        self._groups.remove(group)

    def _fail(self, error: StreamError) -> None:
        """Note the first error, and end everything."""
        self._error = self._error or error
        self._stop.set()

    def _say(self, events: Iterable[SourceStatus | SourceAlert]) -> None:
        """Publish what is to be said of sources that no worker watches."""
        messages = [self._writer.write(event) for event in events]
        for source_id, source in self._away.items():
            self._histories[source_id] = source.history
        try:
            for sink in self._sinks:
                sink.publish(messages)
        except SinkError as error:
            self._fail(error)

    def _kill_all(self) -> None:
        """Leave no worker behind, whatever happened."""
        for group in self._groups:
            if group.worker is not None:
                group.worker.process.kill()
                group.worker.process.join()


def _context() -> ForkServerContext:
    """Return what starts the workers: a process that has their imports and one thread, and forks.

    Never this process itself, which has threads.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            *("__main__", "stream.workers.worker", "stream.analyse"),
            *("stream.decode.pyav_packets", "stream.publish.redis_stream"),
            "trt_engines.backends.onnx_session",
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


def _named(source_ids: Sequence[str]) -> str:
    return ", ".join(source_ids)
