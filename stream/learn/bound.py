"""The lowest threshold at which a camera keeps a budget of false alarms, and how sure that is.

Visits are taken to come independently (a Poisson process), each with a peak; a visit whose peak
reaches the threshold is a false alarm. Two rules, both exact under what they assume:

- *counted*: of the visits that were watched, the rate above the m-th highest is at most
  chi2(confidence, 2m) / 2 per time watched. It assumes nothing of the peaks, and needs three times
  as long as the budget's one false alarm takes.
- *tail*: above a high order statistic, log-odds are taken to fall off exponentially or faster. The
  rate above it and the scale of the fall have exact bounds (chi-square again, after Renyi), each at
  half of the error. Gail and Gastwirth's test refuses peaks that fall off more slowly, and nothing
  is said of a time more than `FARTHEST` times as long as was watched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from scipy.stats import chi2

from stream.stages.fuse import MARGIN

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONFIDENCE: Final = 0.95
WEEK_S: Final = 7 * 86_400.0
FARTHEST: Final = 10.0  # times the time watched
LEAST_VISITS: Final = 40
MOST_IN_TAIL: Final = 50
_TAIL_SHARE: Final = 4  # the highest of so many visits
_HEAVY: Final = 1.0  # standard deviations of the Gini index above that of an exponential tail


@dataclass(frozen=True, slots=True)
class Bound:
    """A threshold, and the false alarms that it makes at most."""

    threshold: float  # log-odds
    at_most: float  # false alarms a week, with `CONFIDENCE`
    rule: Literal["counted", "tail"]


class NotEnoughError(Exception):
    """Too little was seen to promise a budget; the message says how much more is needed."""


def threshold_for(peaks: NDArray[np.float64], watched_s: float, budget: float) -> Bound:
    """Return the lowest threshold that keeps a budget.

    Args:
        peaks: (N,) the highest log-odds of each bona fide visit; -inf: it had too few looks.
        watched_s: time in which they were seen, seconds.
        budget: false alarms a week, more than 0.

    Raises:
        NotEnoughError: nothing can be promised.
    """
    weeks = watched_s / WEEK_S
    ordered = np.sort(peaks)[::-1]
    counted = _counted(ordered, weeks, budget)
    if counted is not None:
        return counted
    return _tail(ordered, weeks, budget)


def _counted(ordered: NDArray[np.float64], weeks: float, budget: float) -> Bound | None:
    """Return the threshold that the visits themselves show to be high enough, if they are many."""
    above = 0
    while _rate(above + 2) <= budget * weeks:
        above += 1
    if _rate(above + 1) > budget * weeks:
        return None
    # So many may reach it; the next one is the highest that may not.
    highest = ordered[above] if above < len(ordered) else -math.inf
    return Bound(max(float(highest) + MARGIN, 0.0), _rate(above + 1) / weeks, "counted")


def _tail(ordered: NDArray[np.float64], weeks: float, budget: float) -> Bound:
    needed_weeks = 1 / (FARTHEST * budget)
    n = int(np.isfinite(ordered).sum())
    if weeks < needed_weeks or n < LEAST_VISITS:
        raise NotEnoughError(_needs(weeks, n, needed_weeks, budget))
    k = min(n // _TAIL_SHARE, MOST_IN_TAIL)
    start = float(ordered[k])
    excesses = ordered[:k] - start
    if excesses[0] == 0:
        raise NotEnoughError("the highest visits are all alike, as if something cut them off")
    if _is_heavy(excesses):
        raise NotEnoughError(
            "the highest visits lie too far apart to say how high others will come: look at them, "
            f"some may be no bona fide faces; or watch for {_time(_rate(1) / budget)}"
        )
    error = (1 - CONFIDENCE) / 2
    rate = chi2.ppf(1 - error, 2 * (k + 1)) / 2 / weeks
    scale = 2 * float(excesses.sum()) / chi2.ppf(error, 2 * k)
    reached = start + scale * math.log(rate / budget)
    threshold = max(reached, float(ordered[0]) + MARGIN, 0.0)
    at_most = rate * math.exp(-(threshold - start) / scale)
    return Bound(threshold, min(budget, float(at_most)), "tail")


def _rate(order: int) -> float:
    """Return the most that is expected above the `order`-th highest, in the time watched."""
    return float(chi2.ppf(CONFIDENCE, 2 * order)) / 2


def _is_heavy(excesses: NDArray[np.float64]) -> bool:
    """Return whether a tail falls off more slowly than an exponential one (Gail, Gastwirth 1978).

    Args:
        excesses: (k,) over its start, k > 1, descending.
    """
    k = len(excesses)
    ranks = np.arange(k, 0, -1)
    gini = float(((2 * ranks - k - 1) * excesses).sum() / ((k - 1) * excesses.sum()))
    return (gini - 0.5) * math.sqrt(12 * (k - 1)) > _HEAVY


def _needs(weeks: float, n: int, needed_weeks: float, budget: float) -> str:
    """Say how much more must be seen."""
    more = []
    if weeks < needed_weeks:
        more.append(f"{_time(needed_weeks)} in all, of which {_time(weeks)} were watched")
    if n < LEAST_VISITS:
        more.append(f"{LEAST_VISITS} visits with a verdict, of which {n} were seen")
    return (
        f"for {budget:g} false alarms a week at most, it takes {' and '.join(more)}; at a budget "
        f"of {1 / (FARTHEST * weeks):.3g} a week the time would do"
        if weeks < needed_weeks
        else f"it takes {' and '.join(more)}"
    )


def _time(weeks: float) -> str:
    hours = weeks * 168
    if hours < 2:
        return f"{hours * 60:.0f} minutes"
    return f"{hours:.1f} hours" if hours < 72 else f"{hours / 24:.1f} days"
