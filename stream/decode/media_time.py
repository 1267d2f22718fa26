"""Media time of a session, and which of its frames are due for analysis; shared by all decoders."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

# A live stream's stamps that run ahead of the clock by more, all at once, are a fault of the
# camera. Less does no harm: a track outlives it.
MAX_LEAP_S: Final = 1.0
# A camera's clock and ours drift apart by less, seconds per second.
MAX_DRIFT: Final = 0.001
# Damage can put so many frames in the wrong order (H.264's reordering depth): time waits for them.
MAX_DISORDER: Final = 16
# A frame so little early still counts as due: containers round time stamps, Matroska to 1 ms.
DUE_TOLERANCE_S: Final = 0.001


class MediaTime:
    """Turns a session's time stamps into seconds that start at 0 and never decrease.

    A recording's gaps are kept, however long: nobody was filmed meanwhile. A live stream can't be
    ahead of the clock, so a leap that the clock did not see is bridged. Where stamps are missing
    or go back, time goes on with the clock (live) or by the frame interval (recordings).
    """

    def __init__(self, *, interval_s: float, live: bool) -> None:
        """Start a session.

        Args:
            interval_s: usual time between two frames.
            live: whether frames arrive as they are filmed.
        """
        self._interval_s = interval_s
        self._live = live
        self._now_s: float | None = None
        self._arrived_s = 0.0  # arrival of the frame that last moved time on
        self._lead_s = 0.0  # how far media time was ahead of arrival, at most
        self._shift_s: float | None = None  # media time minus the stream's stamps
        self._disorder = 0  # frames in a row that time has waited for

    def advance(self, stamp_s: float | None, arrived_s: float) -> float:
        """Return the media time of the next frame, seconds.

        Args:
            stamp_s: the frame's own time stamp, seconds; None if it has none.
            arrived_s: when it reached us, seconds of a clock that is never set.
        """
        if self._now_s is None:
            self._now_s, self._arrived_s, self._lead_s = 0.0, arrived_s, -arrived_s
        elif stamp_s is not None and self._follows(self._now_s, stamp_s, arrived_s):
            return self._now_s
        else:
            # Without any stamps, the interval is but a guess, and would add up.
            step_s = 0.0 if self._live and stamp_s is None else self._interval_s
            if self._live:
                step_s = max(step_s, arrived_s - self._arrived_s)
            self._move(self._now_s + step_s, arrived_s)
        if stamp_s is not None:
            self._shift_s = self._now_s - stamp_s
        return self._now_s

    @property
    def shift_s(self) -> float | None:
        """Media time minus the stream's stamps, as far as known, seconds."""
        return self._shift_s

    def lag_s(self, stamp_s: float | None, arrived_s: float) -> float:
        """Return how much later a picture arrived than it would have, had it come as early as any.

        Args:
            stamp_s: its own time stamp, seconds; without one, the answer is 0.
            arrived_s: when it reached us.
        """
        if stamp_s is None or self._shift_s is None:
            return 0.0
        return self._lead_s - (stamp_s + self._shift_s - arrived_s)

    def _follows(self, now_s: float, stamp_s: float, arrived_s: float) -> bool:
        """Return whether a stamp is plausible, and if so, move time on to it."""
        if self._shift_s is None:
            return False
        next_s = stamp_s + self._shift_s
        step_s = round(next_s - now_s, 6)  # less is rounding noise
        if step_s <= 0:
            self._disorder += 1
            return self._disorder <= MAX_DISORDER and -MAX_DISORDER * self._interval_s <= step_s
        # Not against the last arrival alone: what was held up on its way arrives at once.
        ahead_s = next_s - arrived_s - self._lead_s
        if self._live and min(step_s, ahead_s) > MAX_LEAP_S:
            return False
        self._disorder = 0
        self._move(next_s, arrived_s)
        return True

    def _move(self, now_s: float, arrived_s: float) -> None:
        drift_s = MAX_DRIFT * (arrived_s - self._arrived_s)
        self._now_s, self._arrived_s = now_s, arrived_s
        self._lead_s = max(now_s - arrived_s, self._lead_s - drift_s)


class DueFrames:
    """Picks frames at a fixed rate of media time, whatever the rate at which they come.

    Media time is cut into slots of equal length; the first frame in each is due. So the choice
    does not drift, and after a gap there is nothing to catch up with.

    Args:
        per_second: slots.
        spans: stretches of media time, seconds; outside them nothing is due. None: all is inside.
    """

    def __init__(
        self, per_second: float, spans: Sequence[tuple[float, float]] | None = None
    ) -> None:
        self._per_second = per_second
        self._spans = ((-math.inf, math.inf),) if spans is None else tuple(spans)
        self._slot = -1

    def take(self, pts_s: float) -> bool:
        """Return whether a frame is due, and if so, count its slot as served."""
        slot = self.last_slot(pts_s, pts_s)
        if not self.wants(slot):
            return False
        self._slot = slot
        return True

    def last_slot(self, from_s: float, to_s: float) -> int:
        """Return the last slot of a stretch of time that something in it is due for; -1: none."""
        ends = [min(to_s, end) for start, end in self._spans if start <= to_s and from_s <= end]
        return self.slot(max(ends)) if ends else -1

    def missed(self, pts_s: float) -> int:
        """Return how many slots before that of a time have gone by without a frame."""
        return max(self.slot(pts_s) - self._slot - 1, 0)

    def slot(self, pts_s: float) -> int:
        """Return the number of the slot that a time lies in."""
        return math.floor((pts_s + DUE_TOLERANCE_S) * self._per_second)

    def wants(self, slot: int) -> bool:
        """Return whether a frame of this slot would still be due."""
        return slot > self._slot
