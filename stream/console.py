"""What people see while a stream runs: log lines, and a live table on a terminal."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal

from stream.redact import RedactingFilter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rich.table import Table

    from stream.pipeline import Progress

log = logging.getLogger(__name__)

_LOG_EVERY_S: Final = 10.0


def set_up_logging(form: Literal["text", "json"], *, verbose: bool) -> None:
    """Send log records to stderr, as lines for people or as one JSON object each."""
    handler = logging.StreamHandler()
    if form == "json":
        from pythonjsonlogger.json import JsonFormatter

        handler.setFormatter(
            JsonFormatter(
                "{levelname}{name}{message}", style="{", timestamp=True, json_ensure_ascii=False
            )
        )
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    handler.addFilter(RedactingFilter(()))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])


def hide_in_logs(secrets: Iterable[str]) -> None:
    """Take these passwords and user names out of every further log record."""
    known = tuple(secrets)
    for handler in logging.getLogger().handlers:
        handler.addFilter(RedactingFilter(known))


@contextmanager
def progress_reporter() -> Iterator[Callable[[Progress], None]]:
    """Yield a function that shows a `Progress`: a live table on a terminal, else log lines."""
    if not sys.stderr.isatty():
        yield _LogReporter()
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), refresh_per_second=4, transient=True) as live:
        yield lambda progress: live.update(_table(progress))


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
