"""How many decoders work at the same moment: one per core, however many cameras there are.

A thread that runs Python holds the interpreter's lock now and then. Of dozens of decoders that all
want a core, the one with the lock may have to wait for its turn, and the analysis waits with it:
so more cameras than the machine holds brought the analysis to a standstill (decision 56).
"""

from __future__ import annotations

import threading
from typing import Final

from stream.processors import processors

SLOTS: Final = threading.BoundedSemaphore(processors())  # held for one packet, or one conversion
