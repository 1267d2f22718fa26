"""Where rows go: the journal at once, sinks before it; tables and report at times."""

from __future__ import annotations

import secrets
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from stream.closing import Closing
from stream.messages import Lane
from stream.publish import open_sinks
from stream.scan.announce import scan_message
from stream.scan.report import write_report
from stream.scan.results import journals_in, write_results

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from stream.config import SinkConfig
    from stream.scan.journal import Journal
    from stream.scan.rows import FileRow
    from trt_engines.backends import Backend

WRITE_EVERY_S: Final = 60.0
_WRITING_SHARE: Final = 0.05  # of the time, at most, goes into tables and report of a growing scan
_RETRY_EVERY_S: Final = 1.0


class Outputs(Closing):
    """Takes the rows of a scan.

    A row is given to each sink, or to its spool, before it is in the journal: who is killed between
    the two scans the file again, and publishes its result again, under the same id.

    Args:
        out: folder of the results.
        journal: of this scan; not closed here.
        open_detector: for the report; see `write_report`.
        sinks: where results are published, too.
        is_whole: whether this scan is all of the archive, and writes tables and report.
        grows: whether it goes on without end: then results are there while it does.
        clock: monotonic seconds.

    Raises:
        ConfigError: a sink can't be used as configured.
    """

    def __init__(
        self,
        out: Path,
        journal: Journal,
        open_detector: Callable[[], Backend] | None,
        *,
        sinks: Sequence[SinkConfig],
        is_whole: bool,
        grows: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out = out
        self._journal = journal
        self._open_detector = open_detector
        self._is_whole = is_whole
        self._grows = grows
        self._clock = clock
        self._is_new = False  # something in the journal is not in the tables
        self._write_at = self._retry_at = clock()
        self._run = secrets.token_hex(4)
        self._sinks = open_sinks(sinks, run=self._run, heartbeat_s=1, lanes=(Lane.SCANS,))
        self._resources = ExitStack()
        for sink in self._sinks:
            self._resources.callback(sink.close)

    def add(self, row: FileRow) -> None:
        """Keep a row.

        Raises:
            StreamError: the disk is full, or Redis has been away for too long.
        """
        for sink in self._sinks:
            sink.publish([scan_message(row, self._run)])
        self._journal.append(row)
        self._is_new = True
        if self._grows and self._is_whole:
            with (self._out / "results.jsonl").open("ab", buffering=0) as file:
                file.write(row.model_dump_json().encode() + b"\n")

    def refresh(self) -> None:
        """Send what waits, and write the tables of a growing scan, if it is time."""
        now = self._clock()
        if now >= self._retry_at:
            for sink in self._sinks:
                sink.publish([])
            self._retry_at = now + _RETRY_EVERY_S
        if self._grows and self._is_new and now >= self._write_at:
            self.write()

    def write(self) -> None:
        """Write results.jsonl, tables and report anew."""
        if not self._is_whole:
            return
        began = self._clock()
        journals = journals_in(self._out)
        write_results(journals, self._out)
        write_report(journals, self._out, self._open_detector)
        self._is_new = False
        now = self._clock()
        self._write_at = now + max(WRITE_EVERY_S, (now - began) / _WRITING_SHARE)

    def close(self) -> None:
        """Send what waits; a second call does nothing.

        Raises:
            SinkError: something is left; the spool has it.
        """
        self._resources.close()
