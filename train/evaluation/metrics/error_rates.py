"""Error rates at one threshold, in the terms of ISO/IEC 30107-3 and in those of the literature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from train.evaluation.metrics.roc import share

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True, eq=False)
class ErrorCounts:
    """Errors and samples; leading axes, if any, are bootstrap replicates. Rates of nothing are NaN.

    Attributes:
        types: (K,) names of the attack types, sorted.
        missed: (..., K) attacks of each type that were taken for bona fide.
        attacks: (..., K) attacks of each type.
        alarms: (...,) bona fide samples that were taken for attacks.
        bona_fide: (...,) bona fide samples.
    """

    types: tuple[str, ...]
    missed: NDArray[np.int64]
    attacks: NDArray[np.int64]
    alarms: NDArray[np.int64]
    bona_fide: NDArray[np.int64]

    @property
    def apcer(self) -> NDArray[np.float64]:
        """(..., K) share of each type's attacks that is missed."""
        return share(self.missed, self.attacks)

    @property
    def apcer_max(self) -> NDArray[np.float64]:
        """(...,) APCER of the worst type: the standard's figure."""
        return np.asarray(np.fmax.reduce(self.apcer, axis=-1, initial=np.nan), np.float64)

    @property
    def apcer_pooled(self) -> NDArray[np.float64]:
        """(...,) share of all attacks that is missed, types not told apart: not the standard's."""
        return share(self.missed.sum(-1), self.attacks.sum(-1))

    @property
    def bpcer(self) -> NDArray[np.float64]:
        """(...,) share of bona fide samples that alarm."""
        return share(self.alarms, self.bona_fide)

    @property
    def acer(self) -> NDArray[np.float64]:
        """(...,) mean of the worst type's APCER and BPCER."""
        return (self.apcer_max + self.bpcer) / 2

    @property
    def hter(self) -> NDArray[np.float64]:
        """(...,) mean of pooled APCER and BPCER; some papers print it as ACER."""
        return (self.apcer_pooled + self.bpcer) / 2

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """(...,) share of samples judged rightly; depends on the mix of the classes."""
        wrong, n = self.missed.sum(-1) + self.alarms, self.attacks.sum(-1) + self.bona_fide
        return 1 - share(wrong, n)

    @property
    def balanced_accuracy(self) -> NDArray[np.float64]:
        """(...,) mean of the two classes' shares judged rightly."""
        return 1 - self.hter


def error_masks(
    labels: NDArray[np.int64],
    scores: NDArray[np.float64],
    attack_types: ArrayLike,
    threshold: float,
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Mark what each sample adds to the counts.

    Returns:
        The K names of the types, and (N, 2K + 2) 0 or 1: missed of each type, attack of each type,
        alarm, bona fide. `counts_of` takes sums of its rows.
    """
    types = np.asarray(attack_types)
    names, positive = np.unique(types[labels == 1]), scores >= threshold
    attacks = (labels == 1)[:, None] & (types[:, None] == names)
    bona_fide = (labels == 0)[:, None]
    wrong = ~positive[:, None]
    marks = np.hstack([attacks & wrong, attacks, bona_fide & ~wrong, bona_fide])
    return tuple(map(str, names)), marks.astype(np.int64)


def counts_of(types: tuple[str, ...], sums: NDArray[np.int64]) -> ErrorCounts:
    """Name the (..., 2K + 2) sums of the columns of `error_masks`."""
    k = len(types)
    return ErrorCounts(
        types, sums[..., :k], sums[..., k : 2 * k], sums[..., 2 * k], sums[..., 2 * k + 1]
    )


def error_counts(
    labels: NDArray[np.int64],
    scores: NDArray[np.float64],
    attack_types: ArrayLike,
    threshold: float,
) -> ErrorCounts:
    """Count the errors at a threshold.

    Args:
        labels: (N,) 1 attack, 0 bona fide.
        scores: (N,) growing with the evidence of an attack.
        attack_types: (N,) names; those of bona fide samples are not read.
        threshold: at or above it a sample counts as an attack.
    """
    types, marks = error_masks(labels, scores, attack_types, threshold)
    return counts_of(types, marks.sum(0))
