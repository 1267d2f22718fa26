"""Whether decoding can't keep up with a live stream."""

from __future__ import annotations

from typing import Final

LAG_S: Final = 0.5  # pictures that are so late are behind,
PATIENCE_S: Final = 0.5  # and when they have been for so long,
IDLE_SHARE: Final = 0.3  # and less of that time was spent waiting, then for want of CPU time
CAUGHT_UP_S: Final = 0.1  # as late as the network makes them
BORED_SHARE: Final = 0.5


class Behind:
    """Tells a decoder that lacks CPU time from a camera or network that was held up.

    After a hold-up, what waited comes at once and is soon decoded. Stamps that run at a wrong rate
    make pictures look ever later, but then most of the time is spent waiting for them.
    """

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._waited_s = 0.0  # since then

    def waited(self, seconds: float) -> None:
        """Take in that there was nothing to do for so long."""
        self._waited_s += seconds

    def is_lasting(self, lag_s: float, now_s: float) -> bool:
        """Return whether decoding is behind, and catching up is not in sight.

        Args:
            lag_s: how late the present packet is, seconds.
            now_s: of a clock that is never set.
        """
        if lag_s <= LAG_S:
            self._since_s = None
            return False
        if self._since_s is None:
            self._since_s, self._waited_s = now_s, 0.0
            return False
        lasted_s = now_s - self._since_s
        if lasted_s < PATIENCE_S:
            return False
        starved = self._waited_s < IDLE_SHARE * lasted_s
        self._since_s, self._waited_s = now_s, 0.0  # judged anew
        return starved

    def has_caught_up(self, lag_s: float, now_s: float) -> bool:
        """Return whether decoding can go on, after it was behind and nothing was decoded since.

        Who only reads, and still waits for packets most of the time, has read all there are,
        whatever the stamps say.
        """
        began_s = now_s if self._since_s is None else self._since_s
        caught_up = lag_s <= CAUGHT_UP_S or self._waited_s > BORED_SHARE * (now_s - began_s) > 0
        if caught_up:
            self._since_s = None
        return caught_up
