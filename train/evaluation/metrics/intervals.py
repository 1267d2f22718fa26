"""How far a figure can be trusted: intervals, and the spread over runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2

from train.evaluation.metrics.roc import roc

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from train.evaluation.metrics.roc import Roc

REPLICATES: Final = 1000
SEED: Final = 12345
FEW_CLUSTERS: Final = 20  # of fewer, the bootstrap's intervals are too narrow

_Z95: Final = 1.959963984540054
_EDGE: Final = 1e-9
_CHUNK: Final = 2_000_000  # samples x replicates held at a time


@dataclass(frozen=True, slots=True, eq=False)
class Resampling:
    """Which clusters of samples each bootstrap replicate drew.

    Attributes:
        cluster: (N,) index of each sample's cluster.
        draws: (B, C) how often each cluster was drawn.
    """

    cluster: NDArray[np.int64]
    draws: NDArray[np.int64]

    def of(self, chosen: NDArray[np.bool_]) -> Resampling:
        """Return the same draws of a part of the samples, (N,) true for those of it."""
        return Resampling(self.cluster[chosen], self.draws)

    def sums(self, values: NDArray[np.integer | np.floating]) -> NDArray[np.float64]:
        """Return the (B, K) sums, over each replicate's samples, of (N, K) values."""
        per_cluster = np.stack(
            [np.bincount(self.cluster, column, self.draws.shape[1]) for column in values.T], axis=1
        )
        return np.asarray(self.draws @ per_cluster, np.float64)

    def over_rocs(
        self,
        labels: NDArray[np.int64],
        scores: NDArray[np.float64],
        figures: Callable[[Roc], NDArray[np.float64]],
    ) -> NDArray[np.float64]:
        """Return the (K, B) figures of each replicate's ROC.

        Args:
            labels: (N,) 1 attack, 0 bona fide.
            scores: (N,) finite.
            figures: of the ROC of b replicates, (K, b).
        """
        rows = max(1, _CHUNK // max(1, scores.size))
        chunks = [self.draws[i : i + rows] for i in range(0, len(self.draws), rows)]
        return np.hstack([figures(roc(labels, scores, c[:, self.cluster])) for c in chunks])


def resample(
    labels: ArrayLike, clusters: ArrayLike, *, replicates: int = REPLICATES, seed: int = SEED
) -> Resampling:
    """Draw whole clusters, as many as there are, from the attacks and from the bona fide apart.

    A cluster is what was filmed together: frames of a video, or videos of a person. A person with
    samples of both classes makes a cluster in each.

    Args:
        labels: (N,) 1 attack, 0 bona fide.
        clusters: (N,) names.
        replicates: B.
        seed: of the draws.
    """
    y = np.asarray(labels)
    _, name = np.unique(np.asarray(clusters), return_inverse=True)
    # Attacks first: the published worked example draws in this order.
    keys, cluster = np.unique(np.stack([1 - y, name]), axis=1, return_inverse=True)
    n_attack = int((keys[0] == 0).sum())
    strata = [np.arange(n_attack), np.arange(n_attack, keys.shape[1])]
    rng = np.random.default_rng(seed)
    draws = np.empty((replicates, keys.shape[1]), np.int64)
    for row in draws:
        drawn = [rng.choice(stratum, stratum.size) for stratum in strata if stratum.size]
        row[:] = np.bincount(np.concatenate(drawn), minlength=keys.shape[1])
    return Resampling(cluster.ravel(), draws)


def percentile_interval(values: ArrayLike) -> tuple[float, float]:
    """Return the 2.5th and 97.5th percentile; replicates where a figure is NaN are left out."""
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    if not known.size:
        return math.nan, math.nan
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)


def clustered_rate(errors: NDArray[np.bool_], clusters: ArrayLike) -> tuple[float, float]:
    """Return the 95 % interval of a rate whose samples are alike within a cluster.

    By the bootstrap over clusters, and at least Wilson's with each cluster for one sample where
    the bootstrap is too sure of itself: of few clusters, and where all its replicates agree.

    Args:
        errors: (N,) which samples are errors, N > 0.
        clusters: (N,) names.
    """
    drawn = resample(np.zeros(errors.size, np.int64), clusters)
    wrong, n = drawn.sums(np.stack([errors, np.ones_like(errors)], 1).astype(np.int64)).T
    n_clusters = drawn.draws.shape[1]
    as_one = wilson(float(errors.mean()) * n_clusters, n_clusters)
    return _sure_enough(wrong / n, as_one, n_clusters)


def clustered_auc(
    labels: NDArray[np.int64], scores: NDArray[np.float64], clusters: ArrayLike
) -> tuple[float, float]:
    """Return the 95 % interval of an AUC whose samples are alike within a cluster.

    As `clustered_rate`, with `newcombe` in place of Wilson's.

    Args:
        labels: (N,) 1 attack, 0 bona fide; both are there.
        scores: (N,) finite.
        clusters: (N,) names.
    """
    drawn = resample(labels, clusters)
    names = np.asarray(clusters)
    n_attack, n_bona_fide = (np.unique(names[labels == y]).size for y in (1, 0))
    as_one = newcombe(float(roc(labels, scores).auc()), n_attack, n_bona_fide)
    return _sure_enough(_aucs(drawn, labels, scores), as_one, min(n_attack, n_bona_fide))


def clustered_auc_difference(
    labels: NDArray[np.int64],
    scores: NDArray[np.float64],
    others: NDArray[np.float64],
    clusters: ArrayLike,
) -> tuple[float, float]:
    """Return the 95 % interval of the AUC of `scores` less that of `others` of the same samples.

    By the bootstrap over clusters alone, which is too sure of itself where they are few.
    """
    drawn = resample(labels, clusters)
    return percentile_interval(_aucs(drawn, labels, scores) - _aucs(drawn, labels, others))


def clustered_ratio(
    events: NDArray[np.integer], exposure: NDArray[np.floating], clusters: ArrayLike
) -> tuple[float, float]:
    """Return the 95 % interval of events per unit of exposure, such as alarms an hour.

    As `clustered_rate`, with `poisson` in place of Wilson's.

    Args:
        events: (N,) numbers of events.
        exposure: (N,) in units of which the rate is given, not all 0.
        clusters: (N,) names.
    """
    drawn = resample(np.zeros(events.size, np.int64), clusters)
    happened, over = drawn.sums(np.stack([events, exposure], 1)).T
    rates = np.divide(happened, over, out=np.full_like(over, np.nan), where=over > 0)
    independent = poisson(int(events.sum()), float(exposure.sum()))
    return _sure_enough(rates, independent, drawn.draws.shape[1])


def _aucs(
    drawn: Resampling, labels: NDArray[np.int64], scores: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (B,) the AUC of every replicate."""
    areas = drawn.over_rocs(labels, scores, lambda curve: curve.auc()[None])
    return np.asarray(areas[0], np.float64)


def _sure_enough(
    replicates: NDArray[np.float64], at_least: tuple[float, float], n_clusters: int
) -> tuple[float, float]:
    low, high = percentile_interval(replicates)
    if n_clusters >= FEW_CLUSTERS and low < high:
        return low, high
    return min(low, at_least[0]), max(high, at_least[1])


def newcombe(auc: float, n_attack: int, n_bona_fide: int) -> tuple[float, float]:
    """Return the 95 % interval of an AUC of independent samples.

    Method 5 of Newcombe (2006, Statistics in Medicine 25:559): the AUCs that the found one lies
    within 1.96 standard errors of, by their own standard error. Not empty where the AUC is 0 or 1.

    Args:
        auc: 0..1.
        n_attack: how many attacks, 1 or more.
        n_bona_fide: how many bona fide samples, 1 or more.
    """
    spare, pairs = (n_attack + n_bona_fide) / 2 - 1, n_attack * n_bona_fide

    def excess(area: float) -> float:
        factor = 1 + spare * (1 - area) / (2 - area) + spare * area / (1 + area)
        return (auc - area) ** 2 - _Z95**2 * area * (1 - area) * factor / pairs

    # At 0 and 1, where there is no error, an AUC of 0 or 1 is found, too: not what is looked for.
    inner = min(max(auc, _EDGE), 1 - _EDGE)
    low = float(brentq(excess, 0.0, inner)) if auc > _EDGE else 0.0
    high = float(brentq(excess, inner, 1.0)) if auc < 1 - _EDGE else 1.0
    return low, high


def poisson(events: int, exposure: float) -> tuple[float, float]:
    """Return the exact 95 % interval of the rate of independent events (Garwood, 1936).

    Args:
        events: how many there were.
        exposure: over how much, more than 0.
    """
    low = float(chi2.ppf(0.025, 2 * events)) / 2 if events else 0.0
    return low / exposure, float(chi2.ppf(0.975, 2 * events + 2)) / 2 / exposure


def wilson(errors: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a rate: `errors` of `n` independent samples, n > 0."""
    rate, z2 = errors / n, _Z95**2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation (ddof = 1, as papers print it) over two or more runs."""
    return float(np.mean(values)), float(np.std(values, ddof=1))
