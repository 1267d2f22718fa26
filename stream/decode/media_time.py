"""Media time of a session, and which of its frames are due for analysis; shared by all decoders."""

from __future__ import annotations

import math
from typing import Final

# A time stamp that leaps further ahead, or goes back, is a fault of the stream: media time goes on
# from where it was.
MAX_STEP_S: Final = 5.0
# Damage can put so many frames in the wrong order (H.264's reordering depth): time waits for them.
MAX_DISORDER: Final = 16
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
        self._disorder = 0  # frames in a row that time has waited for

    def advance(self, stamp_s: float | None, arrived_s: float) -> float:
        """Return the media time of the next frame, seconds.

        Args:
            stamp_s: the frame's own time stamp, seconds; None if it has none.
            arrived_s: when it reached us, seconds of any steady clock.
        """
        if self._now_s is None:
            self._first_arrival_s = arrived_s
            self._now_s = 0.0
        elif stamp_s is not None and self._follows(stamp_s):
            return self._now_s
        elif not self._live:
            self._now_s += self._interval_s
        else:
            # Without any stamps, the interval is but a guess, and would add up.
            step_s = 0.0 if stamp_s is None else self._interval_s
            self._now_s = max(self._now_s + step_s, arrived_s - self._first_arrival_s)
        if stamp_s is not None:
            self._shift_s = self._now_s - stamp_s
        return self._now_s

    def _follows(self, stamp_s: float) -> bool:
        """Return whether a stamp is plausible, and if so, move time on to it."""
        if self._now_s is None or self._shift_s is None:
            return False
        step_s = round(stamp_s + self._shift_s - self._now_s, 6)  # less is rounding noise
        if 0 < step_s <= MAX_STEP_S:
            self._now_s = stamp_s + self._shift_s
            self._disorder = 0
            return True
        self._disorder += 1
        return self._disorder <= MAX_DISORDER and -MAX_DISORDER * self._interval_s <= step_s <= 0


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
