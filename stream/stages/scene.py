"""Tells one scene from another by where it is brighter than beside it.

Light comes and goes, people pass; which parts of a room are brighter than their neighbours stays.
Of two pictures only differences are held against each other that are sure in both. Of those of two
unrelated scenes about half point the other way; of one camera's, few.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SWAPPED_LIMIT: Final = 0.35  # at or above, from one picture to the next: another scene
_BACK_LIMIT: Final = 0.25  # below: the same scene again
_SURE: Final = 5.0  # grey levels between neighbours: below, either may be the brighter
_LEAST_SURE: Final = 40  # differences, to say anything
_SETTLED_S: Final = 5.0  # media time until a scene is known
_MEMORY_S: Final = 30.0  # media time after which an older picture weighs 1/e
_LEAST_PICTURES: Final = 5  # of another scene


class SceneWatch:
    """Knows the scene of one source, over all sessions."""

    def __init__(self) -> None:
        self._known: NDArray[np.float32] | None = None
        self._known_since_s = self._seen_s = 0.0
        self._previous: NDArray[np.float32] | None = None
        self._other_since_s: float | None = None
        self._others = 0
        self.contradiction = 0.0  # of the latest picture and the known scene, 0..1

    @property
    def other_since_s(self) -> float | None:
        """When another scene appeared, if it is still there."""
        return self._other_since_s

    def is_another(self, now_s: float, means: NDArray[np.float32], *, after_s: float) -> bool:
        """Say whether another scene appeared at once, and has stayed.

        Args:
            now_s: media time, growing over all sessions.
            means: (rows, columns) mean brightness of the parts of a picture, grey levels.
            after_s: media time for which it must stay.
        """
        slopes = np.concatenate([np.diff(means, axis=1).ravel(), np.diff(means, axis=0).ravel()])
        if (np.abs(slopes) >= _SURE).sum() < _LEAST_SURE:
            return False  # nothing to be seen: neither this scene nor another
        if self._known is None or self._previous is None:
            self._know(now_s, slopes)
            return False
        step, self._previous = _contradiction(self._previous, slopes), slopes
        apart = _contradiction(self._known, slopes)
        if apart is None:
            return False
        self.contradiction = apart
        if self._other_since_s is None:
            settled = now_s - self._known_since_s >= _SETTLED_S
            if settled and (step or 0) >= SWAPPED_LIMIT and apart >= SWAPPED_LIMIT:
                self._other_since_s, self._others = now_s, 1
                return False
            weight = min(1.0, (now_s - self._seen_s) / _MEMORY_S)
            self._known += weight * (slopes - self._known)
            self._seen_s = now_s
            return False
        self._others += 1
        if apart < _BACK_LIMIT:
            self._other_since_s, self._seen_s = None, now_s
            return False
        return now_s - self._other_since_s >= after_s and self._others >= _LEAST_PICTURES

    def accept(self, now_s: float) -> None:
        """Take the latest picture's scene for the known one."""
        assert self._previous is not None
        self._know(now_s, self._previous)

    def _know(self, now_s: float, slopes: NDArray[np.float32]) -> None:
        self._known, self._previous = slopes.copy(), slopes
        self._known_since_s = self._seen_s = now_s
        self._other_since_s = None


def _contradiction(one: NDArray[np.float32], other: NDArray[np.float32]) -> float | None:
    """Return the share of the sure differences that point the other way; None: too few are sure."""
    sure = (np.abs(one) >= _SURE) & (np.abs(other) >= _SURE)
    n = int(sure.sum())
    return None if n < _LEAST_SURE else float((sure & (one * other < 0)).sum()) / n
