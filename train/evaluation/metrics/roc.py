"""Errors at every threshold that matters, and the figures read off that curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import isotonic_regression

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Roc:
    """Counts of errors at every threshold; leading axes, if any, are bootstrap replicates.

    Attributes:
        thresholds: (T,) the distinct scores, ascending, then infinity.
        missed: (..., T) attacks below the threshold.
        alarms: (..., T) bona fide samples at or above it.
    """

    thresholds: NDArray[np.float64]
    missed: NDArray[np.int64]
    alarms: NDArray[np.int64]

    @property
    def n_attack(self) -> NDArray[np.int64]:
        """(...,) attacks."""
        return self.missed[..., -1]

    @property
    def n_bona_fide(self) -> NDArray[np.int64]:
        """(...,) bona fide samples."""
        return self.alarms[..., 0]

    @property
    def apcer(self) -> NDArray[np.float64]:
        """(..., T) share of all attacks that is missed; NaN without attacks."""
        return share(self.missed, self.n_attack[..., None])

    @property
    def bpcer(self) -> NDArray[np.float64]:
        """(..., T) share of bona fide samples that alarm; NaN without any."""
        return share(self.alarms, self.n_bona_fide[..., None])

    def auc(self) -> NDArray[np.float64]:
        """Return how probably an attack scores above a bona fide sample, ties half."""
        attacks_here = np.diff(self.missed)
        # Bona fide samples below each score, and below or at it: their sum counts ties half.
        twice_below = 2 * self.n_bona_fide[..., None] - self.alarms[..., :-1] - self.alarms[..., 1:]
        return share((attacks_here * twice_below).sum(-1), 2 * self.n_attack * self.n_bona_fide)

    def average_precision(self) -> NDArray[np.float64]:
        """Return the step sum of precision over recall, attack positive."""
        found = self.n_attack[..., None] - self.missed[..., :-1]
        precision = found / np.maximum(found + self.alarms[..., :-1], 1)
        average = share((np.diff(self.missed) * precision).sum(-1), self.n_attack)
        return np.where(self.n_bona_fide > 0, average, np.nan)

    def eer_nearest(self) -> tuple[float, float]:
        """Return the equal error rate and its threshold, at the nearest operating point.

        The smallest |APCER - BPCER| wins, then the smaller sum, then the larger threshold; compared
        as whole numbers. The rate is the mean of both there. For a curve without replicates.
        """
        if not (self.n_attack and self.n_bona_fide):
            return np.nan, np.nan
        missed, alarms = self.missed * self.n_bona_fide, self.alarms * self.n_attack
        best = np.lexsort((-self.thresholds, missed + alarms, np.abs(missed - alarms)))[0]
        rate = (self.apcer[best] + self.bpcer[best]) / 2
        return float(rate), float(self.thresholds[best])

    def eer_interpolated(self) -> NDArray[np.float64]:
        """Return where the straight lines between operating points meet APCER = BPCER."""
        return _crossing(self.apcer, self.bpcer)

    def eer_convex_hull(self) -> float:
        """Return where the ROC's convex hull meets APCER = BPCER; without replicates."""
        corners = pooled_blocks(self)
        return float(_crossing(self.apcer[corners], self.bpcer[corners]))

    def tpr_at_bpcer(self, limit: float) -> NDArray[np.float64]:
        """Return the largest share of attacks detected where BPCER <= limit; attack positive.

        By the step rule: no operating point is made up between two others. A limit below 1 over
        the number of bona fide samples means nothing but "no false alarm seen".
        """
        least = np.where(self.bpcer <= limit, self.apcer, np.inf).min(-1)
        return np.where(self.n_bona_fide > 0, 1 - least, np.nan)

    def threshold_at_bpcer(self, limit: float) -> float:
        """Return the smallest threshold with BPCER <= limit; without replicates."""
        return float(self.thresholds[np.argmax(self.bpcer <= limit)])


def roc(labels: ArrayLike, scores: ArrayLike, weights: NDArray[np.int64] | None = None) -> Roc:
    """Count the errors at every distinct score.

    Args:
        labels: (N,) 1 attack, 0 bona fide.
        scores: (N,) finite.
        weights: (..., N) how often each sample counts; once without.
    """
    attack, values = np.asarray(labels, bool), np.asarray(scores, float)
    if attack.shape != values.shape or not np.isfinite(values).all():
        raise ValueError("expected as many finite scores as labels")
    order = np.argsort(values, kind="stable")
    thresholds, first = np.unique(values[order], return_index=True)
    counts = np.ones(values.size, np.int64) if weights is None else weights[..., order]
    below = np.zeros((2, *counts.shape[:-1], thresholds.size + 1), np.int64)
    if values.size:
        for kind, total in ((attack, below[0]), (~attack, below[1])):
            at_score = np.add.reduceat(counts * kind[order], first, axis=-1)
            np.cumsum(at_score, axis=-1, out=total[..., 1:])
    missed, passed = below
    return Roc(np.r_[thresholds, np.inf], missed, passed[..., -1:] - passed)


def bpcer_at_apcer(
    labels: NDArray[np.int64], scores: NDArray[np.float64], attack_types: ArrayLike, limit: float
) -> tuple[float, float]:
    """Return the least BPCER where the worst type's APCER is at most `limit`, and the threshold.

    Of several thresholds with that BPCER the smallest, which misses the fewest attacks. BPCER10,
    BPCER20 and BPCER100 are limits of 10, 5 and 1 %.

    Args:
        labels: (N,) 1 attack, 0 bona fide.
        scores: (N,) finite.
        attack_types: (N,) names; those of bona fide samples are not read.
        limit: 0..1.
    """
    curve = roc(labels, scores)
    if not (curve.n_attack and curve.n_bona_fide):
        return np.nan, np.nan
    last = np.flatnonzero(_worst_apcer(curve, labels, scores, attack_types) <= limit)[-1]
    least = float(curve.bpcer[last])
    return least, curve.threshold_at_bpcer(least)


def least_acer(
    labels: NDArray[np.int64], scores: NDArray[np.float64], attack_types: ArrayLike
) -> tuple[float, float]:
    """Return the smallest ACER of all thresholds, and the largest threshold that gives it.

    An oracle of the samples it is computed on. The arguments are those of `bpcer_at_apcer`.
    """
    curve = roc(labels, scores)
    if not (curve.n_attack and curve.n_bona_fide):
        return np.nan, np.nan
    acer = (_worst_apcer(curve, labels, scores, attack_types) + curve.bpcer) / 2
    best = np.flatnonzero(np.isclose(acer, acer.min(), rtol=0, atol=1e-12))[-1]
    return float(acer[best]), float(curve.thresholds[best])


def _worst_apcer(
    curve: Roc, labels: NDArray[np.int64], scores: NDArray[np.float64], attack_types: ArrayLike
) -> NDArray[np.float64]:
    """Return (T,) the highest APCER of any type at each threshold of the curve."""
    attacks, types = scores[labels == 1], np.asarray(attack_types)[labels == 1]
    worst = np.zeros(curve.thresholds.size)
    for name in np.unique(types):
        own = np.sort(attacks[types == name])
        np.maximum(worst, np.searchsorted(own, curve.thresholds) / own.size, out=worst)
    return worst


def pooled_blocks(curve: Roc) -> NDArray[np.int64]:
    """Return the thresholds' indices that are corners of the ROC's convex hull.

    They bound the blocks into which the pool-adjacent-violators algorithm gathers the scores.
    """
    attacks, bona_fide = np.diff(curve.missed), -np.diff(curve.alarms)
    weights = attacks + bona_fide
    pooled = isotonic_regression(attacks / weights, weights=weights)
    return pooled.blocks


def share(part: NDArray[np.integer | np.bool_], of: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return part / of, NaN where `of` is 0."""
    part, of = np.broadcast_arrays(part, of)
    rates = np.full(of.shape, np.nan)
    np.divide(part, of, out=rates, where=of > 0)
    return rates


def _crossing(apcer: NDArray[np.float64], bpcer: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return where the polyline of (..., T) operating points meets APCER = BPCER; NaN if empty."""
    gap = apcer - bpcer  # rises from -1 to 1; a threshold without samples leaves it as it is
    after = np.argmax(gap >= 0, axis=-1)[..., None]
    before = np.maximum(after - 1, 0)
    g0, g1 = (np.take_along_axis(gap, i, -1) for i in (before, after))
    a0, a1 = (np.take_along_axis(apcer, i, -1) for i in (before, after))
    part = np.divide(-g0, g1 - g0, out=np.zeros_like(g0), where=g1 > g0)
    met: NDArray[np.float64] = (a0 + part * (a1 - a0))[..., 0]
    return met
