"""Error rates of attack detection in the terms of ISO/IEC 30107-3, and the ROC area.

Scores grow with the evidence of an attack; a face counts as an attack when its score is at or above
the threshold. The definitions, tie rules included, are those of docs/decisions/0009; the worked
examples stand in the tests.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
from sklearn.metrics import roc_auc_score

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_Z95: Final = 1.959963984540054


def apcer(attack_scores: ArrayLike, threshold: float) -> float:
    """Return the share of attacks taken for bona fide; NaN without attacks.

    Args:
        attack_scores: (N,) of one species of attack.
        threshold: at or above it a face counts as an attack.
    """
    scores = np.asarray(attack_scores, float)
    return float((scores < threshold).mean()) if scores.size else math.nan


def bpcer(bona_fide_scores: ArrayLike, threshold: float) -> float:
    """Return the share of bona fide faces taken for attacks; NaN without any."""
    scores = np.asarray(bona_fide_scores, float)
    return float((scores >= threshold).mean()) if scores.size else math.nan


def auc(bona_fide_scores: ArrayLike, attack_scores: ArrayLike) -> float:
    """Return how probably an attack scores above a bona fide face, ties half; NaN if empty."""
    bona_fide, attack = np.asarray(bona_fide_scores, float), np.asarray(attack_scores, float)
    if not (bona_fide.size and attack.size):
        return math.nan
    labels = np.r_[np.zeros(bona_fide.size), np.ones(attack.size)]
    return float(roc_auc_score(labels, np.r_[bona_fide, attack]))


def eer(bona_fide_scores: ArrayLike, attack_scores: ArrayLike) -> tuple[float, float]:
    """Return the equal error rate and its threshold, by the nearest operating point.

    Candidates are the scores themselves and infinity; of those with the smallest |APCER - BPCER|
    the one with the smaller sum wins, then the larger threshold. The rate is the mean of APCER and
    BPCER there.
    """
    bona_fide, attack = np.asarray(bona_fide_scores, float), np.asarray(attack_scores, float)
    candidates = np.r_[np.unique(np.r_[bona_fide, attack]), np.inf]

    def key(threshold: float) -> tuple[float, float, float]:
        missed, alarmed = apcer(attack, threshold), bpcer(bona_fide, threshold)
        return abs(missed - alarmed), missed + alarmed, -threshold

    best = float(min(candidates, key=key))
    return (apcer(attack, best) + bpcer(bona_fide, best)) / 2, best


def wilson(errors: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a rate: `errors` of `n`, n > 0."""
    rate, z2 = errors / n, _Z95**2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
