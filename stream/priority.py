"""Which threads come first: the analysis, which all frames wait for."""

from __future__ import annotations

import os
import sys
import threading
from typing import Final

# Not so far that a busy machine stops decoding.
_NICENESS: Final = 5


def step_back() -> None:
    """Give the calling thread a lower priority than the analysis, where a thread has one."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        niceness = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, min(niceness + _NICENESS, 19))
