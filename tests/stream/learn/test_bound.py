"""Thresholds for a budget, on simulated cameras of which the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from stream.learn.bound import FARTHEST, LEAST_VISITS, WEEK_S, NotEnoughError, threshold_for

HOUR_S = 3600.0
CAMERAS = 600
# Peaks of visits, log-odds: tails that fall off exponentially, or faster.
PEAKS = {
    "exponential": stats.expon(-2, 0.6),
    "normal": stats.norm(-1.5, 0.8),
    "logistic": stats.logistic(-1.5, 0.5),
    "gumbel": stats.gumbel_r(-1.5, 0.6),
    "bounded": stats.beta(2, 5, -3, 6),
}


def simulated(peaks, *, hours, per_hour, budget, cameras=CAMERAS):
    """Return how many cameras were answered, and how many of those exceed their budget."""
    rng = np.random.default_rng(7)
    answered = over = 0
    for n in rng.poisson(hours * per_hour, cameras):
        try:
            bound = threshold_for(peaks.rvs(n, random_state=rng), hours * HOUR_S, budget)
        except NotEnoughError:
            continue
        answered += 1
        over += peaks.sf(bound.threshold) * per_hour * 168 > budget
    return answered, over


@pytest.mark.parametrize("name", PEAKS)
@pytest.mark.parametrize(
    ("hours", "per_hour", "budget"),
    [(17, 5, 1), (24, 20, 1), (1, 60, 20), (600, 1, 1)],
    ids=["a quiet day", "a busy day", "an hour", "25 days"],
)
def test_at_most_one_camera_in_twenty_exceeds_its_budget(name, hours, per_hour, budget):
    answered, over = simulated(PEAKS[name], hours=hours, per_hour=per_hour, budget=budget)
    assert answered > 0.8 * CAMERAS
    assert over <= 0.05 * answered


def test_what_was_counted_keeps_its_promise_whatever_the_peaks():
    """Peaks that fall off slowly, like a power: no tail could be extrapolated."""
    heavy = stats.genpareto(0.5, -2, 0.5)
    answered, over = simulated(heavy, hours=600, per_hour=2, budget=1)
    assert answered == CAMERAS
    assert over <= 0.05 * answered


def test_the_bound_is_not_idle():
    """Had it asked for more than it must, fewer than one in a hundred would exceed it."""
    answered, over = simulated(PEAKS["exponential"], hours=650, per_hour=2, budget=1, cameras=3000)
    assert over > 0.01 * answered


def test_a_slowly_falling_tail_is_mostly_refused():
    heavy = stats.genpareto(0.5, -2, 0.5)
    answered, _ = simulated(heavy, hours=48, per_hour=20, budget=1)
    assert answered < 0.2 * CAMERAS


def peaks(n):
    return stats.norm(-2, 0.5).ppf((np.arange(n) + 0.5) / n)


def test_an_hour_is_not_enough_for_one_false_alarm_a_week():
    with pytest.raises(NotEnoughError, match=r"16\.8 hours in all, of which 60 minutes"):
        threshold_for(peaks(100), HOUR_S, 1.0)


def test_few_visits_are_not_enough_however_long_it_took():
    with pytest.raises(NotEnoughError, match=f"{LEAST_VISITS} visits with a verdict, of which 12"):
        threshold_for(peaks(12), 30 * HOUR_S, 1.0)


def test_the_budget_that_it_names_is_one_that_it_keeps():
    with pytest.raises(NotEnoughError) as refused:
        threshold_for(peaks(100), HOUR_S, 1.0)
    budget = float(str(refused.value).split("at a budget of ")[1].split()[0])
    assert threshold_for(peaks(100), HOUR_S, 1.01 * budget).rule == "tail"


def test_nobody_in_a_month_is_a_threshold_by_counting():
    bound = threshold_for(np.array([]), 4 * WEEK_S, 1.0)
    assert (bound.rule, bound.threshold) == ("counted", 0.0)


def test_the_threshold_lies_above_every_visit_that_may_not_alarm():
    seen = peaks(200)
    assert threshold_for(seen, 17 * HOUR_S, 1.0).threshold > seen.max()


def test_the_bound_holds_what_was_asked_for():
    for hours, budget in ((17, 1.0), (100, 0.5), (600, 1.0), (2000, 3.0)):
        bound = threshold_for(peaks(400), hours * HOUR_S, budget)
        assert 0 < bound.at_most <= budget


def test_a_longer_watch_never_raises_the_threshold_of_the_same_visits():
    thresholds = [threshold_for(peaks(100), h * HOUR_S, 1.0).threshold for h in (17, 60, 170)]
    assert thresholds == sorted(thresholds, reverse=True)


def test_visits_all_alike_are_refused():
    with pytest.raises(NotEnoughError, match="all alike"):
        threshold_for(np.full(100, -1.0), 17 * HOUR_S, 1.0)


def test_visits_without_a_verdict_do_not_count_as_seen():
    seen = np.concatenate([peaks(LEAST_VISITS - 1), np.full(500, -np.inf)])
    with pytest.raises(NotEnoughError, match=f"of which {LEAST_VISITS - 1}"):
        threshold_for(seen, WEEK_S / FARTHEST + 1, 1.0)
