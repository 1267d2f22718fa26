"""All threads, backpressure and shutdown; nowhere else.

One decode thread per source, one analysis thread, one publish thread:

    Source.events -> Inbox -> Analyser -> messages -> Sink.publish

The analysis comes first: decode threads have a lower priority, and no more of them than there are
cores decode at a moment (`stream/decode/slots.py`).

What goes wrong with one source is that source's alone: it is tried again or ends, and the others
go on. Any other error stops all threads and is raised by `run`. Asked to stop, or out of sources,
the pipeline drains: decoders leave their loop, analysis empties the inbox, publishing empties the
messages, the sinks close. A decoder that is stuck in the network is not awaited.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import queue
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from stream.errors import StreamError
from stream.inbox import Inbox
from stream.records import (
    Alert,
    AttackFamily,
    FeedAlert,
    Frame,
    SourceCode,
    SourceState,
    SourceStatus,
)
from stream.stack_log import StackLog
from stream.turns import Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stream.analyse import Analyser, Step
    from stream.messages import MessageWriter, OutMessage
    from stream.publish import Sink
    from stream.records import Message, TrackScore
    from stream.sources import Source

log = logging.getLogger(__name__)

HOPELESS_FRAMES: Final = 50  # when so many in a row fail, of all sources, the fault is ours
_POLL_S: Final = 0.2  # how often a blocked thread looks whether it should give up
_LEAVE_SHARE: Final = 0.25  # of the time to drain: for decoders to leave their loop
_MESSAGE_STEPS: Final = 256  # analysis waits when publishing is so many steps behind
# Below the analysis, which all frames wait for, and not so far that a busy machine stops decoding.
_DECODER_NICENESS: Final = 5

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


@dataclass(frozen=True, slots=True)
class Progress:
    """Counters for people; a snapshot."""

    sources: dict[str, SourceStatus]  # last status of each
    frames_analysed: int
    verdicts: dict[str, int]  # alerts by new verdict, attacks with their family if it is known
    waiting: dict[str, int] = field(default_factory=dict)  # frames before the analysis, by source
    busy_s: float = 0.0  # for how long the analysis, or the publishing, has been at one thing


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
    ) -> None:
        """Connect the parts.

        Args:
            sources: each is consumed by a thread of its own; they watch the same `stop`.
            analyser: owned by the analysis thread while running; closed by the caller.
            writer: turns what sources and analysis say into messages, once for all sinks.
            sinks: owned by the publish thread; closed at the end of `run`.
            stop: set from outside (signals, a timer) to drain and end.
            shutdown_s: longest time to drain.
            watchers: see every step of the analysis.
        """
        self._sources = sources
        self._analyser = analyser
        self._writer = writer
        self._sinks = sinks
        self._stop = stop
        self._shutdown_s = shutdown_s
        self._watchers = watchers
        self._inbox = Inbox()
        self._messages: queue.Queue[list[OutMessage] | None] = queue.Queue(_MESSAGE_STEPS)
        self._error: BaseException | None = None
        self._publisher_ended = threading.Event()
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._statuses: dict[str, SourceStatus] = {}
        self._stacks = StackLog(log)
        self._frames_analysed = 0
        self._failures_in_a_row = 0
        self._verdicts: Counter[str] = Counter()
        self._busy_since: dict[str, float] = {}  # by loop, if it does not wait for work

    def run(self, report: Callable[[Progress], None] | None = None, report_s: float = 1.0) -> None:
        """Run until every source has ended or `stop` is set, then drain.

        Args:
            report: called from this thread about every `report_s`, and once at the end.
            report_s: seconds.

        Raises:
            Exception: the first error of any thread, once all have ended.
            StreamError: draining took longer than `shutdown_s`; the stacks are on stderr.
        """
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

    def failed_sources(self) -> list[SourceStatus]:
        """Return the last status of each source that ended by a failure."""
        with self._lock:
            return [status for status in self._statuses.values() if status.failed]

    def progress(self) -> Progress:
        """Return the counters as they are now."""
        with self._lock:
            statuses, frames = dict(self._statuses), self._frames_analysed
            verdicts = {**self._verdicts}
        now = time.monotonic()
        busy_s = max((now - since for since in self._busy_since.copy().values()), default=0.0)
        return Progress(statuses, frames, verdicts, self._inbox.waiting(), busy_s)

    def _run_stages(self) -> None:
        decoders = {
            source: self._start(f"decode-{source.source_id}", partial(self._decode, source))
            for source in self._sources
        }
        analysis = self._start("analysis", self._analyse)
        publisher = self._start("publish", self._publish)
        self._await(decoders)
        self._inbox.close()
        analysis.join()
        self._queue_messages(None)
        publisher.join()
        self._done.set()

    def _await(self, decoders: Mapping[Source, threading.Thread]) -> None:
        """Wait for the end of all sources; after a stop, only for so long as a read may take."""
        while any(thread.is_alive() for thread in decoders.values()) and not self._stop.is_set():
            for thread in decoders.values():
                thread.join(_POLL_S / len(decoders))
        leave_by = time.monotonic() + _LEAVE_SHARE * self._shutdown_s
        for source, thread in decoders.items():
            thread.join(max(0.0, leave_by - time.monotonic()))
            if thread.is_alive():
                log.warning("source %s: a read does not return; not awaited", source.source_id)
                self._take_status(source.abandoned())

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

    def _decode(self, source: Source) -> None:
        _step_back()
        for event in source.events(partial(self._inbox.fates, source.source_id)):
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
            for watcher in self._watchers:
                said = watcher.watch(taken.frames, step)
                if said:
                    self._queue_messages([self._writer.write(record) for record in said])
            self._look_at(failures, taken.frames)

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


def _step_back() -> None:
    """Give the calling thread a lower priority than the others, where a thread has one."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        niceness = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, min(niceness + _DECODER_NICENESS, 19))


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
