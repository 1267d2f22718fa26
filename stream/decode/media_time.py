"""Media time of a session, and which of its frames are due for analysis; shared by all decoders."""

from __future__ import annotations

import math
from typing import Final

# Time stamps that go back, stand still or leap further than this are a fault of the stream: media
# time goes on from where it was.
MAX_STEP_S: Final = 5.0
# A frame so little early still counts as due: containers round time stamps, Matroska to 1 ms.
DUE_TOLERANCE_S: Final = 0.001


class MediaTime:
    """Turns a session's time stamps into seconds that start at 0 and never decrease."""

    def __init__(self, *, interval_s: float, live: bool) -> None:
        """Start a session.

        Args:
            interval_s: usual time between two frames.
            live: where stamps fail, go on with the clock; otherwise by `interval_s`.
        """
        self._interval_s = interval_s
        self._live = live
        self._now_s: float | None = None
        self._first_arrival_s = 0.0
        self._shift_s: float | None = None  # media time minus the stream's stamps

    def advance(self, stamp_s: float | None, arrived_s: float) -> float:
        """Return the media time of the next frame, seconds.

        Args:
            stamp_s: the frame's own time stamp, seconds; None if it has none.
            arrived_s: when it reached us, seconds of any steady clock.
        """
        if self._now_s is None:
            self._first_arrival_s = arrived_s
            self._now_s = 0.0
        elif (
            stamp_s is not None
            and self._shift_s is not None
            and 0 < stamp_s + self._shift_s - self._now_s <= MAX_STEP_S
        ):
            self._now_s = stamp_s + self._shift_s
            return self._now_s
        elif self._live:
            self._now_s = max(self._now_s, arrived_s - self._first_arrival_s)
        else:
            self._now_s += self._interval_s
        if stamp_s is not None:
            self._shift_s = self._now_s - stamp_s
        return self._now_s


class DueFrames:
    """Picks frames at a fixed rate of media time, whatever the rate at which they come.

    Media time is cut into slots of equal length; the first frame in each is due. So the choice
    does not drift, and after a gap there is nothing to catch up with.
    """

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._slot = -1

    def take(self, pts_s: float) -> bool:
        """Return whether a frame is due, and if so, count its slot as served."""
        slot = math.floor((pts_s + DUE_TOLERANCE_S) * self._per_second)
        if slot <= self._slot:
            return False
        self._slot = slot
        return True
