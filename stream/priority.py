"""Which threads come first: the analysis, which all frames wait for."""

from __future__ import annotations

import os
import sys
import threading
from typing import Final

# Not so far that a busy machine stops decoding.
_NICENESS: Final = 5
# For how long a thread keeps the interpreter's lock when others want it. A decoder that has done
# its packet needs it for microseconds; by Python's own 5 ms it, and its slot, wait so long.
_LOCK_S: Final = 0.0005


def take_turns() -> None:
    """Let the threads of this process hand over the interpreter's lock sooner than by default."""
    sys.setswitchinterval(_LOCK_S)


def step_back() -> None:
    """Give the calling thread a lower priority than the analysis, where a thread has one."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        niceness = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, min(niceness + _NICENESS, 19))
