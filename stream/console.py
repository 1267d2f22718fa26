"""What people see while a stream runs: log lines, and a live table on a terminal."""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Final, Literal, TextIO

from stream.redact import RedactingFilter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rich.table import Table

    from stream.pipeline import Progress

log = logging.getLogger(__name__)

_LOG_EVERY_S: Final = 10.0


def open_standard_streams() -> None:
    """Lead standard streams that were closed before the start to the null device.

    Else the next file or socket would get the number of a closed one, and whatever a library
    writes to stderr would land in it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # It gets the lowest free number, which is this one; child processes need it as well.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdout is None:
        sys.stdout = _null(1)
    if sys.stderr is None:
        sys.stderr = _null(2)


def _null(number: int) -> TextIO:
    return open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at the time: the live table replaces it while it is shown."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


class _LineFormatter(logging.Formatter):
    """Lines for people; those of a worker begin with its number, which is a field in JSON."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(of_worker)s%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        worker = getattr(record, "worker", None)
        record.of_worker = "" if worker is None else f"worker {worker}: "
        return super().format(record)


def set_up_logging(form: Literal["text", "json"], *, verbose: bool) -> None:
    """Send log records to stderr, as lines for people or as one JSON object each."""
    handler = _StderrHandler()
    if form == "json":
        from pythonjsonlogger.json import JsonFormatter

        handler.setFormatter(
            JsonFormatter(
                "{levelname}{name}{message}", style="{", timestamp=True, json_ensure_ascii=False
            )
        )
    else:
        handler.setFormatter(_LineFormatter())
    handler.addFilter(RedactingFilter(()))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])


def hide_in_logs(secrets: Iterable[str]) -> None:
    """Take these passwords and user names out of every further log record."""
    known = frozenset(secrets)
    for handler in logging.getLogger().handlers:
        for each in handler.filters:
            if isinstance(each, RedactingFilter):
                each.hide(known)


@contextmanager
def progress_reporter() -> Iterator[Callable[[Progress], None]]:
    """Yield a function that shows a `Progress`: a live table on a terminal, else log lines.

    At the end, the last one's totals are logged.
    """
    with ExitStack() as shown:
        show = _LogReporter() if not sys.stderr.isatty() else shown.enter_context(_live_table())
        last: Progress | None = None

        def report(progress: Progress) -> None:
            nonlocal last
            last = progress
            show(progress)

        yield report
    if last is not None:
        log.info("%s", _title(last))


@contextmanager
def _live_table() -> Iterator[Callable[[Progress], None]]:
    """Yield a function that draws a table, as long as the terminal is there to take it."""
    from rich.console import Console
    from rich.live import Live

    live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)

    def show(progress: Progress) -> None:
        with suppress(OSError):
            live.update(_table(progress), refresh=True)

    with suppress(OSError):
        live.start()
    try:
        yield show
    finally:
        with suppress(OSError):
            live.stop()


class _LogReporter:
    """Logs counters every `_LOG_EVERY_S`."""

    def __init__(self) -> None:
        self._logged_at = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._logged_at < _LOG_EVERY_S:
            return
        self._logged_at = now
        for status in progress.sources.values():
            log.info(
                "%s: %s, %d frames seen, %d due, %d dropped, %d failed",
                status.source_id,
                status.state,
                status.frames_seen,
                status.frames_due,
                status.frames_dropped,
                status.frames_failed,
            )
        log.info("%s", _title(progress))


def _table(progress: Progress) -> Table:
    from rich.table import Table

    table = Table(
        "source", "state", "frames seen", "due", "dropped", "failed", title=_title(progress)
    )
    for status in progress.sources.values():
        table.add_row(
            status.source_id,
            f"{status.state} ({status.code})",
            str(status.frames_seen),
            str(status.frames_due),
            str(status.frames_dropped),
            str(status.frames_failed),
        )
    return table


def _title(progress: Progress) -> str:
    verdicts = ", ".join(f"{n} {verdict}" for verdict, n in progress.verdicts.items())
    return f"{progress.frames_analysed} frames analysed; verdicts: {verdicts or 'none yet'}"
