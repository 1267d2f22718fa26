"""How many decoders work at the same moment: one per core, however many cameras there are.

A thread that runs Python holds the interpreter's lock now and then. Of dozens of decoders that all
want a core, the one with the lock may have to wait for its turn, and the analysis waits with it:
so more cameras than the machine holds brought the analysis to a standstill (decision 56).
"""

from __future__ import annotations

import threading

from stream.processors import processors

_slots = threading.BoundedSemaphore(processors())


def slot() -> threading.BoundedSemaphore:
    """Return what a decoder holds for one packet, or one conversion."""
    return _slots


def share_processors(n: int) -> None:
    """Let so many decoders of this process work at a moment, before any does.

    Args:
        n: processors that are its share, where several processes decode.
    """
    global _slots
    _slots = threading.BoundedSemaphore(n)
