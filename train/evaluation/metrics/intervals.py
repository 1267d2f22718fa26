"""How far a figure can be trusted: intervals, and the spread over runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from train.evaluation.metrics.roc import roc

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from train.evaluation.metrics.roc import Roc

REPLICATES: Final = 1000
SEED: Final = 12345

_Z95: Final = 1.959963984540054
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


def wilson(errors: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a rate: `errors` of `n` independent samples, n > 0."""
    rate, z2 = errors / n, _Z95**2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation (ddof = 1, as papers print it) over two or more runs."""
    return float(np.mean(values)), float(np.std(values, ddof=1))
