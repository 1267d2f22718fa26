"""How far probabilities mean what they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.optimize import minimize_scalar

from models import logit
from train.evaluation.metrics.roc import pooled_blocks, roc

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

CLIP: Final = 1e-15  # probabilities are kept this far from 0 and 1 before a logarithm
ECE_BINS: Final = 15


def log_losses(labels: ArrayLike, p: ArrayLike, clip: float = CLIP) -> NDArray[np.float64]:
    """Return (N,) minus the natural logarithm of the probability given to what each sample is."""
    clipped = np.clip(np.asarray(p, float), clip, 1 - clip)
    return np.asarray(-np.log(np.where(np.asarray(labels) == 1, clipped, 1 - clipped)))


def squared_errors(labels: ArrayLike, p: ArrayLike) -> NDArray[np.float64]:
    """Return (N,) squared differences of probability and label; their mean is the Brier score."""
    return np.asarray((np.asarray(p, float) - np.asarray(labels, float)) ** 2, np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """Bins of samples of like probability, without the empty ones.

    Attributes:
        n: (B,) samples.
        confidence: (B,) mean probability.
        frequency: (B,) share of attacks.
    """

    n: NDArray[np.int64]
    confidence: NDArray[np.float64]
    frequency: NDArray[np.float64]

    @property
    def ece(self) -> float:
        """Expected calibration error: mean |confidence - frequency|, by samples; NaN if empty."""
        gaps = np.abs(self.confidence - self.frequency)
        return float(np.average(gaps, weights=self.n)) if self.n.size else np.nan

    @property
    def mce(self) -> float:
        """Largest |confidence - frequency| of any bin; NaN if empty."""
        return float(np.abs(self.confidence - self.frequency).max()) if self.n.size else np.nan


def reliability(
    labels: ArrayLike, p: ArrayLike, bins: int = ECE_BINS, *, equal_mass: bool = False
) -> Reliability:
    """Bin samples by probability.

    Args:
        labels: (N,) 1 attack, 0 bona fide.
        p: (N,) 0..1.
        bins: of equal width, the upper bound belonging to the next bin (but for 1).
        equal_mass: bins of equally many samples instead (one more in the first ones where that
            doesn't come out even). Samples of the same probability count by their mean label, so
            that their order has no influence.
    """
    y, values = np.asarray(labels, float), np.asarray(p, float)
    if equal_mass:
        order = np.argsort(values, kind="stable")
        _, group, size = np.unique(values, return_inverse=True, return_counts=True)
        y, values = (np.bincount(group, y) / size)[group][order], values[order]
        wide = values.size % bins
        index = np.repeat(np.arange(bins), values.size // bins + (np.arange(bins) < wide))
    else:
        index = np.minimum((values * bins).astype(int), bins - 1)
    n = np.bincount(index, minlength=bins)
    full = n > 0
    confidence, frequency = (np.bincount(index, v, bins)[full] / n[full] for v in (values, y))
    return Reliability(n[full], confidence, frequency)


def cllr_costs(labels: ArrayLike, llr: ArrayLike) -> NDArray[np.float64]:
    """Return (N,) bits: log2(1 + exp(-llr)) of attacks, log2(1 + exp(llr)) of bona fide samples.

    Cllr (Brummer and du Preez, 2006) is the mean over the two classes of their mean costs: 0 is
    perfect, 1 is knowing nothing, more is misleading.

    Args:
        labels: (N,) 1 attack, 0 bona fide.
        llr: (N,) natural logarithm of the likelihood ratio, attack over bona fide.
    """
    sign = np.where(np.asarray(labels) == 1, -1.0, 1.0)
    costs = np.logaddexp(0.0, sign * np.asarray(llr, float)) / np.log(2)
    return np.asarray(costs, np.float64)


def cllr(labels: ArrayLike, llr: ArrayLike) -> float:
    """Return the cost of log-likelihood ratios; see `cllr_costs`. NaN if a class is empty."""
    y, costs = np.asarray(labels), cllr_costs(labels, llr)
    if not 0 < y.sum() < y.size:
        return np.nan
    return float((costs[y == 1].mean() + costs[y == 0].mean()) / 2)


def log_likelihood_ratio(p: ArrayLike, prior: float = 0.5) -> NDArray[np.float64]:
    """Return the evidence in probabilities that were meant for a prior share of attacks.

    Probabilities are clipped by `CLIP`.
    """
    return np.asarray(logit(p, CLIP) - logit(prior, clip=0))


def pav(labels: ArrayLike, scores: ArrayLike) -> NDArray[np.float64]:
    """Return (N,) the share of attacks in each sample's block, the best monotone calibration.

    Blocks are those of the pool-adjacent-violators algorithm; samples of the same score share one.
    """
    curve, values = roc(labels, scores), np.asarray(scores, float)
    corners = pooled_blocks(curve)
    attacks, bona_fide = np.diff(curve.missed[corners]), -np.diff(curve.alarms[corners])
    block = np.searchsorted(curve.thresholds[corners[1:-1]], values, side="right")
    return np.asarray((attacks / (attacks + bona_fide))[block], np.float64)


def min_cllr(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return Cllr after the best monotone calibration on these very samples.

    What `cllr` exceeds it by is loss of calibration, the rest loss of discrimination.
    """
    y = np.asarray(labels)
    if not 0 < y.sum() < y.size:
        return np.nan
    with np.errstate(divide="ignore"):  # a block of one class has infinite evidence, at no cost
        llr = logit(pav(y, scores), clip=0) - logit(y.mean(), clip=0)
    return cllr(y, llr)


def fit_temperature(
    logits: NDArray[np.float64],
    targets: NDArray[np.float64],
    weights: NDArray[np.float64] | None = None,
) -> float:
    """Return the T in 1/100..100 at which sigmoid(logit / T) has the least log loss.

    Args:
        logits: (N,) log-odds.
        targets: (N,) 0..1, the labels or smoothed ones.
        weights: (N,) of the samples; 1 without.
    """

    def loss(log_temperature: float) -> float:
        x = logits / np.exp(log_temperature)
        return float(np.average(np.logaddexp(0, x) - targets * x, weights=weights))

    bound = np.log(100)
    return float(np.exp(minimize_scalar(loss, bounds=(-bound, bound), method="bounded").x))
