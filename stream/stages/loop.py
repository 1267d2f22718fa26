"""Finds stretches of video that were shown before.

The last seconds of a source are compared with all that is remembered of it, at every lag. What
counts is the residual: the mean squared difference between the two stretches, over how much the
present one changes. That is its variance in time or, if that is less, what twice the steps from
picture to picture make, without the two largest. A loop repeats all of it, light and background
too, and leaves next to nothing; the same person at the same desk leaves 0.7 and more
(docs/feed.md). A still scene matches itself at every lag, as does a lamp that goes on at the same
times, but no better than it matches its own next picture. Nothing is proved by a scene that repeats
within seconds, as a fan does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESIDUAL_LIMIT: Final = 0.25  # at or below: the same stretch
SHORTEST_LOOP_S: Final = 5.0  # what repeats faster may be a fan, a sign, a pendulum
SEARCH_EVERY_S: Final = 2.0
REMEMBER_EVERY_S: Final = 0.19  # five pictures a second, whatever comes
_COARSE: Final = 16  # numbers of a picture that the search compares
_PROBES: Final = 5  # pictures of the stretch that the search compares
_CANDIDATES: Final = 8  # lags that are looked at closely
_LEAST_SPREAD: Final = 0.6  # of a stretch, grey levels: below, it is still
_JUMPS: Final = 2  # steps of a stretch that do not count: light that goes on and off
_LEAST_PICTURES: Final = 12  # of a stretch
_LONGEST_GAP_S: Final = 1.0  # between remembered pictures, to guess what was between them


@dataclass(frozen=True, slots=True)
class LoopMatch:
    """The present stretch beside an earlier one."""

    lag_s: float
    residual: float  # 0: the same; about 2: nothing in common


class LoopFinder:
    """Remembers the pictures of one source.

    Args:
        window_s: media time over which they are remembered.
        match_s: media time that is compared.
        blocks: numbers that a picture is described by, a multiple of 16.
    """

    def __init__(self, *, window_s: float, match_s: float, blocks: int) -> None:
        self._keep = math.ceil(window_s / REMEMBER_EVERY_S)
        capacity = self._keep + self._keep // 4
        self._window_s = window_s
        self._match_s = match_s
        self._n = 0
        self._times = np.zeros(capacity)
        self._pictures = np.zeros((capacity, blocks), np.float16)
        self._coarse = np.zeros((capacity, _COARSE), np.float32)
        self._searched_s = -math.inf
        self._match: LoopMatch | None = None

    def look(self, now_s: float, picture: NDArray[np.float32]) -> LoopMatch | bool | None:
        """Remember a picture, and say whether the stretch that it ends was shown before.

        Args:
            now_s: media time, growing over all sessions.
            picture: (blocks,) mean brightness of each part of it, grey levels.

        Returns:
            The match, or False if there is none; None if this can't be told now, or was not looked
            for: the scene is still, repeats by itself, or is seen too rarely.
        """
        if self._n and now_s - self._times[self._n - 1] < REMEMBER_EVERY_S:
            return None
        self._remember(now_s, picture)
        if now_s - self._searched_s < SEARCH_EVERY_S:
            return None
        self._searched_s = now_s
        stretch = self._stretch(now_s)
        if stretch is None:
            return None
        times, pictures, change = stretch
        if self._match is not None:
            again = self._compare(times, pictures, change, self._match.lag_s)
            if again.residual <= RESIDUAL_LIMIT:
                return again
        self._match = self._find(times, pictures, change)
        if self._match is None:
            return False
        if self._repeats_by_itself(times, pictures, change):
            self._match = None
        return self._match

    def _remember(self, now_s: float, picture: NDArray[np.float32]) -> None:
        if self._n == len(self._times):
            for table in (self._times, self._pictures, self._coarse):
                table[: self._keep] = table[-self._keep :]
            self._n = self._keep
        self._times[self._n] = now_s
        self._pictures[self._n] = picture
        self._coarse[self._n] = picture.reshape(_COARSE, -1).mean(axis=1)
        self._n += 1

    def _stretch(
        self, now_s: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float32], float] | None:
        """Return times, pictures and change of the last seconds; None if they prove nothing."""
        first = int(np.searchsorted(self._times[: self._n], now_s - self._match_s))
        if self._n - first < _LEAST_PICTURES:
            return None
        pictures = self._pictures[first : self._n].astype(np.float32)
        variance = float(((pictures - pictures.mean(axis=0)) ** 2).mean())
        steps = ((pictures[1:] - pictures[:-1]) ** 2).mean(axis=1)
        if variance < _LEAST_SPREAD**2:
            return None
        change = min(variance, 2 * float(np.sort(steps)[:-_JUMPS].mean()))
        return None if change == 0 else (self._times[first : self._n], pictures, change)

    def _find(
        self, times: NDArray[np.float64], pictures: NDArray[np.float32], change: float
    ) -> LoopMatch | None:
        """Return the best match at any lag, or None if none is good."""
        known = self._times[: self._n]
        oldest_s = known[-1] - self._window_s
        ends = known[np.searchsorted(known, oldest_s + self._match_s) :]
        ends = ends[: np.searchsorted(ends, known[-1] - SHORTEST_LOOP_S, "right")]
        lags = known[-1] - ends
        if not len(lags):
            return None
        difference = np.zeros(len(lags))
        for probe in np.linspace(0, len(times) - 1, _PROBES).astype(int):
            coarse = pictures[probe].reshape(_COARSE, -1).mean(axis=1)
            apart = ((self._coarse[: self._n] - coarse) ** 2).mean(axis=1)
            difference += np.interp(times[probe] - lags, known, apart)
        best: LoopMatch | None = None
        for _ in range(min(_CANDIDATES, len(lags))):
            lag = float(lags[np.argmin(difference)])
            difference[np.abs(lags - lag) < 2 * REMEMBER_EVERY_S] = np.inf
            found = self._compare(times, pictures, change, lag)
            if best is None or found.residual < best.residual:
                best = found
            if not np.isfinite(difference).any():
                break
        assert best is not None
        shifts = np.arange(-0.1, 0.101, 0.02)
        lags = [best.lag_s + float(shift) for shift in shifts]
        finer = [self._compare(times, pictures, change, lag) for lag in lags]
        best = min(finer, key=lambda match: match.residual)
        return best if best.residual <= RESIDUAL_LIMIT else None

    def _repeats_by_itself(
        self, times: NDArray[np.float64], pictures: NDArray[np.float32], change: float
    ) -> bool:
        """Return whether the stretch equals itself a short time ago, and differs in between."""
        differed = False
        for lag in np.arange(0.2, SHORTEST_LOOP_S, 0.1):
            residual = self._compare(times, pictures, change, float(lag)).residual
            if differed and residual <= 2 * RESIDUAL_LIMIT:
                return True
            differed |= residual > 3 * RESIDUAL_LIMIT
        return False

    def _compare(
        self,
        times: NDArray[np.float64],
        pictures: NDArray[np.float32],
        change: float,
        lag_s: float,
    ) -> LoopMatch:
        """Hold a stretch against what was shown `lag_s` before each of its pictures."""
        known = self._times[: self._n]
        wanted = times - lag_s
        after = np.searchsorted(known, wanted).clip(1, self._n - 1)
        before = after - 1
        gap = known[after] - known[before]
        inside = (gap <= _LONGEST_GAP_S) & (wanted >= known[before]) & (wanted <= known[after])
        if inside.mean() < 0.9:
            return LoopMatch(lag_s, math.inf)
        share = ((wanted - known[before]) / gap)[:, None].astype(np.float32)
        earlier = self._pictures[before] * (1 - share) + self._pictures[after] * share
        apart = ((pictures - earlier) ** 2).mean(axis=1)
        return LoopMatch(lag_s, float(apart[inside].mean()) / change)
