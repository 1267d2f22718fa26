"""Errors that may come with every frame, logged with their stacks, but seldom."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

EVERY_S: Final = 60.0


class StackLog:
    """Logs an error of a source with its stack, at most once a minute for each source.

    Args:
        log: where to.
        monotonic: seconds that never go back.
    """

    def __init__(
        self, log: logging.Logger, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._monotonic = monotonic
        self._logged_at: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def error(self, source_id: str, message: str, error: BaseException) -> None:
        """Log an error with its stack, or count it if the source's last one is too fresh."""
        now = self._monotonic()
        last = self._logged_at.get(source_id)
        if last is not None and now - last < EVERY_S:
            self._left_out[source_id] = self._left_out.get(source_id, 0) + 1
            return
        self._logged_at[source_id] = now
        left_out = self._left_out.pop(source_id, 0)
        more = f" ({left_out} more since the last such line)" if left_out else ""
        self._log.error("%s%s", message, more, exc_info=error)
