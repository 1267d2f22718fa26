"""What TensorRT says: one listener for the whole process, as TensorRT takes no second one."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

log = logging.getLogger(__name__)


@cache
def messages_of(trt: Any) -> Any:
    """Return the listener of a process, an `ILogger`; `errors` are those since it was cleared.

    Args:
        trt: the module of TensorRT, or of TensorRT-RTX.
    """

    class Messages(trt.ILogger):  # type: ignore[misc]  # the module has no types
        """Keeps errors for the exception, and logs everything for debugging.

        TensorRT calls it from any thread; a list bears that.
        """

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(msg.strip())
            log.debug("%s: %s", severity.name, msg)

    return Messages()
