"""All threads, backpressure and shutdown; nowhere else.

One decode thread per source, one analysis thread, one publish thread:

    Source.events -> Inbox -> Analyser -> messages -> Sink.publish

The analysis comes first: decode threads have a lower priority, and no more of them than there are
cores decode at a moment (`stream/decode/slots.py`).

What goes wrong with one source is that source's alone: it is tried again or ends, and the others
go on. Any other error stops all threads and is raised by `run`. Asked to stop, or out of sources,
the pipeline drains: decoders leave their loop, analysis empties the inbox, publishing empties the
messages, the sinks close. A decoder that is stuck in the network is not awaited.

Sources may be added, removed, paused and resumed while it runs, from any thread; the others are
not touched (docs/decisions/0060-cameras-at-run-time.md).
"""

from __future__ import annotations

import faulthandler
import logging
import queue
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from stream.closing import DECODE_THREAD
from stream.errors import StreamError
from stream.inbox import Inbox
from stream.priority import step_back, take_turns
from stream.records import (
    Alert,
    AttackFamily,
    FeedAlert,
    Frame,
    SourceCode,
    SourceHistory,
    SourceState,
    SourceStatus,
)
from stream.sources import name_taken, no_such_source
from stream.stack_log import StackLog
from stream.turns import Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stream.analyse import Analyser, Step
    from stream.config import SourceConfig
    from stream.messages import MessageWriter, OutMessage
    from stream.publish import Sink
    from stream.records import Message, TrackScore
    from stream.sources import Source

log = logging.getLogger(__name__)

HOPELESS_FRAMES: Final = 50  # when so many in a row fail, of all sources, the fault is ours
_POLL_S: Final = 0.2  # how often a blocked thread looks whether it should give up
_LEAVE_SHARE: Final = 0.25  # of the time to drain: for decoders to leave their loop
_MESSAGE_STEPS: Final = 256  # analysis waits when publishing is so many steps behind

_Work = TypeVar("_Work")


class Watcher(Protocol):
    """Sees what the analysis sees: a page, metrics, evidence. It must not slow it down."""

    def watch(self, frames: Sequence[Frame], step: Step) -> Sequence[Message] | None:
        """Take note of one step, in the analysis thread; return within a millisecond or so.

        Args:
            frames: that were analysed, at most one per source.
            step: what they let us say; frames of a source among its failures are not in it.

        Returns:
            What is to be published because of it, if anything.
        """
        ...


class PerSource(Protocol):
    """Keeps something of each source; told in the analysis thread, between its steps."""

    def begin(self, source: Source) -> None:
        """Take over what a source brings, before its first frame; one of its id is forgotten."""
        ...

    def forget(self, source_id: str) -> None:
        """Let go of a source that was removed, after its last frame and the end of its tracks."""
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """Counters for people; a snapshot."""

    sources: dict[str, SourceStatus]  # last status of each that has said one
    frames_analysed: int
    verdicts: dict[str, int]  # alerts by new verdict, attacks with their family if it is known
    waiting: dict[str, int] = field(default_factory=dict)  # frames before the analysis, by source
    busy_s: float = 0.0  # for how long the analysis, or the publishing, has been at one thing
    watched: tuple[SourceConfig, ...] = ()  # all there are now, those that have ended, too


@dataclass(slots=True, eq=False)
class _Watch:
    """A source and the thread that decodes it."""

    source: Source
    thread: threading.Thread | None = None  # None: it waits for one of its id to be gone
    leave_by: float | None = None  # monotonic seconds; None: nobody asked it to end
    has_ended: bool = False
    abandoned: bool = False  # it has not, but whatever its thread still says is not heard
    has_left: bool = False  # the inbox knows that nothing more comes

    @property
    def is_over(self) -> bool:
        return self.has_ended or self.abandoned


class Pipeline:
    """Runs sources through an analyser into sinks; used once."""

    def __init__(
        self,
        sources: Sequence[Source],
        analyser: Analyser,
        writer: MessageWriter,
        sinks: Sequence[Sink],
        *,
        stop: threading.Event,
        shutdown_s: float,
        watchers: Sequence[Watcher] = (),
        per_source: Sequence[PerSource] = (),
    ) -> None:
        """Connect the parts.

        Args:
            sources: each is consumed by a thread of its own.
            analyser: owned by the analysis thread while running; closed by the caller.
            writer: turns what sources and analysis say into messages, once for all sinks.
            sinks: owned by the publish thread; closed at the end of `run`.
            stop: set from outside (signals, a timer) to drain and end.
            shutdown_s: longest time to drain.
            watchers: see every step of the analysis.
            per_source: beside the analyser, those who are told which sources come and go.
        """
        self._watched = [_Watch(source) for source in sources]
        self._leaving: list[_Watch] = []
        self._numbers: dict[str, SourceHistory] = {}  # of sources that were removed
        self._analyser = analyser
        self._writer = writer
        self._sinks = sinks
        self._stop = stop
        self._shutdown_s = shutdown_s
        self._watchers = watchers
        self._per_source = per_source
        self._begun: queue.SimpleQueue[Source] = queue.SimpleQueue()  # not yet told to these
        self._inbox = Inbox()
        self._messages: queue.Queue[list[OutMessage] | None] = queue.Queue(_MESSAGE_STEPS)
        self._error: BaseException | None = None
        self._publisher_ended = threading.Event()
        self._done = threading.Event()
        self._changed = threading.Event()  # something was done to a source, or became of it
        self._lock = threading.Lock()
        self._statuses: dict[str, SourceStatus] = {}
        self._stacks = StackLog(log)
        self._frames_analysed = 0
        self._failures_in_a_row = 0
        self._verdicts: Counter[str] = Counter()
        self._busy_since: dict[str, float] = {}  # by loop, if it does not wait for work

    def run(self, report: Callable[[Progress], None] | None = None, report_s: float = 1.0) -> None:
        """Run until every source has ended or `stop` is set, then drain.

        A run whose sources were all removed waits for others.

        Args:
            report: called from this thread about every `report_s`, and once at the end.
            report_s: seconds.

        Raises:
            Exception: the first error of any thread, once all have ended.
            StreamError: draining took longer than `shutdown_s`; the stacks are on stderr.
        """
        take_turns()
        main = self._start("main", self._run_stages)
        reported_at = time.monotonic()
        while not self._done.wait(min(_POLL_S, report_s)) and not self._stop.is_set():
            if report and time.monotonic() - reported_at >= report_s:
                report(self.progress())
                reported_at = time.monotonic()
        main.join(self._shutdown_s)
        if main.is_alive():
            faulthandler.dump_traceback()
            raise StreamError(
                f"could not drain within {self._shutdown_s:g} s; what was not published is lost"
            )
        if report:
            report(self.progress())
        if self._error is not None:
            raise self._error

    def add(self, source: Source) -> None:
        """Watch another source; any thread may ask.

        One of the id of a source that was removed goes on with its sessions, so that no track and
        no event is ever named twice; it is opened when that one's last track has ended.

        Raises:
            ConfigError: a source of this id is watched.
        """
        with self._lock:
            if any(w.source.source_id == source.source_id for w in self._watched):
                raise name_taken(source.source_id)
            self._watched.append(_Watch(source))
        self._changed.set()

    def remove(self, source_id: str) -> None:
        """End a source and its tracks, and forget it; any thread may ask.

        It says that it was stopped. A read that does not return is not awaited for longer than a
        quarter of `shutdown_s`.

        Raises:
            ConfigError: there is no such source.
        """
        with self._lock:
            watch = self._of(source_id)
            self._watched.remove(watch)
            if watch.thread is not None:  # else nobody ever heard of it
                watch.leave_by = time.monotonic() + _LEAVE_SHARE * self._shutdown_s
                self._leaving.append(watch)
        watch.source.end()
        self._changed.set()

    def pause(self, source_id: str) -> None:
        """Close a source, and end its tracks, until it is resumed; any thread may ask.

        Raises:
            ConfigError: there is no such source, it has ended, or it is read once, to its end.
        """
        with self._lock:
            watch = self._of(source_id)
        watch.source.require_can_pause(has_ended=watch.is_over)
        watch.source.pause()

    def resume(self, source_id: str) -> None:
        """Open a paused source again, in a new session; any thread may ask.

        Raises:
            ConfigError: there is no such source.
        """
        with self._lock:
            watch = self._of(source_id)
        watch.source.resume()

    def _of(self, source_id: str) -> _Watch:
        """Return a source that is watched; called with the lock held."""
        for watch in self._watched:
            if watch.source.source_id == source_id:
                return watch
        raise no_such_source(source_id, [w.source.source_id for w in self._watched])

    def failed_sources(self) -> list[SourceStatus]:
        """Return the last status of each source that ended by a failure."""
        with self._lock:
            return [status for status in self._statuses.values() if status.failed]

    def progress(self) -> Progress:
        """Return the counters as they are now."""
        with self._lock:
            statuses, frames = dict(self._statuses), self._frames_analysed
            verdicts = {**self._verdicts}
            watched = tuple(watch.source.config for watch in self._watched)
        now = time.monotonic()
        busy_s = max((now - since for since in self._busy_since.copy().values()), default=0.0)
        return Progress(statuses, frames, verdicts, self._inbox.waiting(), busy_s, watched)

    def _run_stages(self) -> None:
        analysis = self._start("analysis", self._analyse)
        publisher = self._start("publish", self._publish)
        self._await_end()
        self._inbox.close()
        analysis.join()
        self._queue_messages(None)
        publisher.join()
        self._done.set()

    def _await_end(self) -> None:
        """Start and end decoders until all sources have ended, or a stop."""
        while not self._stop.is_set():
            self._changed.clear()
            self._bid_farewell()
            watched = self._start_new()
            if watched and not self._leaving and all(watch.is_over for watch in watched):
                break
            self._changed.wait(_POLL_S)
        with self._lock:
            everyone = self._leaving + [w for w in self._watched if w.thread is not None]
        for watch in everyone:
            if not watch.is_over:
                watch.source.end()
        leave_by = time.monotonic() + _LEAVE_SHARE * self._shutdown_s
        for watch in everyone:
            assert watch.thread is not None
            watch.thread.join(max(0.0, leave_by - time.monotonic()))
            self._abandon_if_stuck(watch)

    def _start_new(self) -> list[_Watch]:
        """Start what was added, unless one of its id is not gone yet; return what is watched."""
        with self._lock:
            leaving = {watch.source.source_id for watch in self._leaving}
            for watch in self._watched:
                source = watch.source
                if watch.thread is None and source.source_id not in leaving:
                    if past := self._numbers.pop(source.source_id, None):
                        source.number_from(past)
                    self._begun.put(source)
                    watch.thread = self._start(
                        f"{DECODE_THREAD}{source.source_id}", partial(self._decode, watch)
                    )
            return list(self._watched)

    def _bid_farewell(self) -> None:
        """Forget the removed sources whose threads and last tracks have ended."""
        for watch in list(self._leaving):
            assert watch.leave_by is not None
            source_id = watch.source.source_id
            if time.monotonic() >= watch.leave_by:
                self._abandon_if_stuck(watch)
            if not watch.is_over:
                continue
            if not watch.has_left:
                self._inbox.leave(source_id)
                watch.has_left = True
            if self._inbox.knows(source_id):
                continue
            with self._lock:
                self._leaving.remove(watch)
                self._statuses.pop(source_id, None)
                self._numbers[source_id] = watch.source.history

    def _abandon_if_stuck(self, watch: _Watch) -> None:
        if not watch.is_over:
            watch.abandoned = True
            log.warning("source %s: a read does not return; not awaited", watch.source.source_id)
            self._take_status(watch.source.abandoned())

    def _start(self, name: str, work: Callable[[], None]) -> threading.Thread:
        # Daemons, so that a thread stuck in a driver can't keep the process after `shutdown_s`.
        thread = threading.Thread(target=self._guard, args=(work,), name=name, daemon=True)
        thread.start()
        return thread

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            with self._lock:
                self._error = self._error or error
            self._stop.set()
            self._inbox.close()

    def _decode(self, watch: _Watch) -> None:
        try:
            self._decode_to_the_end(watch)
        finally:
            watch.has_ended = True
            self._changed.set()

    def _decode_to_the_end(self, watch: _Watch) -> None:
        step_back()
        source = watch.source
        for event in source.events(partial(self._inbox.fates, source.source_id)):
            if watch.abandoned:
                break
            if isinstance(event, Frame):
                if not self._inbox.put(event, wait=not source.may_drop):
                    break
            elif isinstance(event, SourceStatus):
                self._take_status(event)
            else:
                self._queue_messages([self._writer.write(event)])

    def _take_status(self, status: SourceStatus) -> None:
        with self._lock:
            self._statuses[status.source_id] = status
        # While its frames fail in the analysis, a session goes on.
        failing = status.state is SourceState.LOST and status.code is SourceCode.ANALYSIS_FAILED
        if not status.state.is_up and not failing:
            self._inbox.finish(status.source_id)
        self._queue_messages([self._writer.write(status)])

    def _analyse(self) -> None:
        pace = Pace()
        while taken := self._next("analysis", lambda: self._inbox.take(pace.at_most())):
            self._tell_who_began()
            began = time.monotonic()
            step = self._analyser.step(taken.frames)
            if taken.frames:
                pace.note(len(taken.frames), time.monotonic() - began)
            records, failures = step.records, step.failures
            for source_id in taken.finished:
                records += self._analyser.finish(source_id)
            messages = self._write([*records, *step.feed], failures)
            with self._lock:
                self._frames_analysed += len(taken.frames) - len(failures)
                self._verdicts.update(_verdict(r.track) for r in records if isinstance(r, Alert))
            if messages:
                self._queue_messages(messages)
            self._inbox.done(taken, failures, step.needs)
            if taken.finished:
                self._changed.set()
            for watcher in self._watchers:
                said = watcher.watch(taken.frames, step)
                if said:
                    self._queue_messages([self._writer.write(record) for record in said])
            for source_id in taken.left:
                self._analyser.forget(source_id)
                for each in self._per_source:
                    each.forget(source_id)
            self._look_at(failures, taken.frames)

    def _tell_who_began(self) -> None:
        """Tell of sources before their first frame: they were noted before it was decoded."""
        while not self._begun.empty():
            source = self._begun.get()
            self._analyser.begin(source.config, source.learned)
            for each in self._per_source:
                each.begin(source)

    def _next(self, loop: str, wait: Callable[[], _Work | None]) -> _Work | None:
        """Wait for the next work of a loop, and note since when it is at it."""
        self._busy_since.pop(loop, None)
        work = wait()
        if work is not None:
            self._busy_since[loop] = time.monotonic()
        return work

    def _write(
        self, records: Sequence[TrackScore | Alert | FeedAlert], failures: dict[str, Exception]
    ) -> list[OutMessage]:
        """Write messages at once, so that no wait for a sink counts as latency."""
        messages: list[OutMessage] = []
        for record in records:
            try:
                messages.append(self._writer.write(record))
            except Exception as error:
                failures[_source_of(record)] = error
        return messages

    def _look_at(self, failures: Mapping[str, Exception], frames: Sequence[Frame]) -> None:
        """Log what failed; raise it if nothing succeeds any more.

        Raises:
            Exception: the latest error.
        """
        if len(failures) < len(frames):
            self._failures_in_a_row = 0
        for frame in frames:
            stamp = frame.stamp
            if (error := failures.get(stamp.source_id)) is None:
                continue
            self._failures_in_a_row += 1
            self._stacks.error(
                stamp.source_id,
                f"source {stamp.source_id}: frame {stamp.index} of session {stamp.session} "
                f"({stamp.width}x{stamp.height}, {stamp.pts_s:.3f} s) can't be analysed; its "
                "tracks end",
                error,
            )
            if self._failures_in_a_row >= HOPELESS_FRAMES:
                log.error("the latest %d frames of all sources failed", self._failures_in_a_row)
                raise error

    def _queue_messages(self, messages: list[OutMessage] | None) -> None:
        """Wait for room; give up only when the publisher has ended by an error."""
        while not self._publisher_ended.is_set():
            try:
                self._messages.put(messages, timeout=_POLL_S)
            except queue.Full:
                continue
            return

    def _publish(self) -> None:
        with ExitStack() as sinks:
            for sink in self._sinks:
                sinks.callback(sink.close)  # all, whichever fails
            sinks.callback(self._publisher_ended.set)
            while (messages := self._next("publish", self._messages.get)) is not None:
                for sink in self._sinks:
                    sink.publish(messages)


def _source_of(record: TrackScore | Alert | FeedAlert) -> str:
    if isinstance(record, FeedAlert):
        return record.stamp.source_id
    score = record.track if isinstance(record, Alert) else record
    return score.sighting.key.source_id


def _verdict(score: TrackScore) -> str:
    """Return a verdict for people."""
    if score.family in (None, AttackFamily.UNSURE):
        return score.verdict
    return f"{score.verdict} ({score.family})"
