"""All threads, backpressure and shutdown; nowhere else.

One decode thread per source, one analysis thread, one publish thread:

    Source.events -> Inbox -> Analyser -> messages -> Sink.publish

The first error of any thread stops the others and is raised by `run`. Asked to stop, or out of
sources, the pipeline drains: decoders leave their loop, analysis empties the inbox, publishing
empties the messages, the sinks close.
"""

from __future__ import annotations

import faulthandler
import logging
import queue
import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from stream.errors import StreamError
from stream.inbox import Inbox
from stream.records import Alert, Frame, SourceState, SourceStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stream.analyse import Analyser
    from stream.messages import MessageWriter, OutMessage
    from stream.publish import Sink
    from stream.records import Message, TrackScore
    from stream.sources import Source

log = logging.getLogger(__name__)

_POLL_S: Final = 0.2  # how often a blocked thread looks whether it should give up
_MESSAGE_STEPS: Final = 256  # analysis waits when publishing is so many steps behind


@dataclass(frozen=True, slots=True)
class Progress:
    """Counters for people; a snapshot."""

    sources: dict[str, SourceStatus]  # last status of each
    frames_analysed: int
    verdicts: dict[str, int]  # alerts by new verdict


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
    ) -> None:
        """Connect the parts.

        Args:
            sources: each is consumed by a thread of its own; they watch the same `stop`.
            analyser: owned by the analysis thread while running; closed by the caller.
            writer: turns what sources and analysis say into messages, once for all sinks.
            sinks: owned by the publish thread; closed at the end of `run`.
            stop: set from outside (signals, a timer) to drain and end.
            shutdown_s: longest time to drain.
        """
        self._sources = sources
        self._analyser = analyser
        self._writer = writer
        self._sinks = sinks
        self._stop = stop
        self._shutdown_s = shutdown_s
        self._inbox = Inbox()
        self._messages: queue.Queue[list[OutMessage] | None] = queue.Queue(_MESSAGE_STEPS)
        self._error: BaseException | None = None
        self._publisher_ended = threading.Event()
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._statuses: dict[str, SourceStatus] = {}
        self._frames_analysed = 0
        self._verdicts: Counter[str] = Counter()

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
        while not self._done.wait(report_s) and not self._stop.is_set():
            if report:
                report(self.progress())
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

    def progress(self) -> Progress:
        """Return the counters as they are now."""
        with self._lock:
            return Progress(dict(self._statuses), self._frames_analysed, {**self._verdicts})

    def _run_stages(self) -> None:
        decoders = [
            self._start(f"decode-{source.source_id}", partial(self._decode, source))
            for source in self._sources
        ]
        analysis = self._start("analysis", self._analyse)
        publisher = self._start("publish", self._publish)
        for thread in decoders:
            thread.join()
        self._inbox.close()
        analysis.join()
        self._queue_messages(None)
        publisher.join()
        self._done.set()

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
        for event in source.events(partial(self._inbox.dropped, source.source_id)):
            if isinstance(event, Frame):
                if not self._inbox.put(event, wait=not source.is_live):
                    break
                continue
            if isinstance(event, SourceStatus):
                with self._lock:
                    self._statuses[event.source_id] = event
                if event.state is not SourceState.OPEN:
                    self._inbox.finish(event.source_id)
            self._say([event])

    def _analyse(self) -> None:
        while taken := self._inbox.take():
            records: list[TrackScore | Alert] = []
            if taken.frames:
                records += self._analyser.analyse(taken.frames)
            for source_id in taken.finished:
                records += self._analyser.finish(source_id)
            with self._lock:
                self._frames_analysed += len(taken.frames)
                self._verdicts.update(r.track.verdict for r in records if isinstance(r, Alert))
            self._say(records)

    def _say(self, records: Sequence[Message]) -> None:
        """Write the messages now, so that no wait for a sink counts as latency, and queue them."""
        if records:
            self._queue_messages([self._writer.write(record) for record in records])

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
            while (messages := self._messages.get()) is not None:
                for sink in self._sinks:
                    sink.publish(messages)
