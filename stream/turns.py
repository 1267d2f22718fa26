"""Whose frame is analysed next when not all can be: the rule, without threads or clocks.

docs/decisions/0056-no-collapse.md says why it is this one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from stream.records import Need

if TYPE_CHECKING:
    from collections.abc import Sequence

# A camera that was not looked at for so long comes before all others. Less than
# `track.lost_after_s`, after which a face would be another's.
LONGEST_GAP_S: Final = 1.0
# A step of the analysis should take no longer: what is not taken by then is chosen anew, with
# newer frames.
STEP_S: Final = 0.2
_MEMORY_FRAMES: Final = 20  # over which the cost of a frame is averaged
_RANK: Final = {Need.UNDECIDED: 1, Need.NOBODY: 2, Need.DECIDED: 3}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A source with a frame that waits."""

    source_id: str
    need: Need  # what its latest analysed frame showed
    since_look_s: float  # since that frame was taken
    n_looks: int = 0  # frames taken so far


def chosen(candidates: Sequence[Candidate], at_most: int) -> list[str]:
    """Return the sources whose frames are analysed next, the most urgent first.

    First who has not been looked at for `LONGEST_GAP_S`; then who shows a face without a verdict;
    then who shows nobody, for somebody may have come; then the others. Among equals, first who
    waited longest, and of those who were looked at together, who was so most rarely: so each comes
    in turn, and none is forgotten.

    Args:
        candidates: each source once.
        at_most: so many, 1 or more.
    """
    return [c.source_id for c in sorted(candidates, key=_urgency)[:at_most]]


def _urgency(candidate: Candidate) -> tuple[int, float, int]:
    overdue = candidate.since_look_s >= LONGEST_GAP_S
    rank = 0 if overdue else _RANK[candidate.need]
    return rank, -candidate.since_look_s, candidate.n_looks


class Pace:
    """How many frames fit into a step, by what the latest ones cost."""

    def __init__(self) -> None:
        self._frame_s: float | None = None

    def note(self, n_frames: int, seconds: float) -> None:
        """Take in a step of one or more frames."""
        cost_s = min(seconds / n_frames, STEP_S)  # a network's first run is slow
        share = min(n_frames / _MEMORY_FRAMES, 1.0)
        before_s = cost_s if self._frame_s is None else self._frame_s
        self._frame_s = before_s + share * (cost_s - before_s)

    def at_most(self) -> int | None:
        """Return how many frames a step should take, 1 or more; None: not known yet."""
        if self._frame_s is None:
            return None
        return max(1, int(STEP_S / max(self._frame_s, 1e-6)))
