"""Between probabilities and log-odds, for single numbers and arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.special import expit
from scipy.special import logit as unclipped_logit

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

CLIP: Final = 1e-6  # probabilities nearer to 0 or 1 count as this far from them


def logit(probability: ArrayLike, clip: float = CLIP) -> NDArray[np.float64]:
    """Return natural log-odds, an array of the shape of `probability` (a number: 0-dimensional).

    Args:
        probability: 0..1.
        clip: how near to 0 and 1 a probability may come, so that every result is finite; with 0
            they may be reached, and give infinities.
    """
    p = np.clip(np.asarray(probability, np.float64), clip, 1 - clip)
    return np.asarray(unclipped_logit(p), np.float64)


def sigmoid(log_odds: ArrayLike) -> NDArray[np.float64]:
    """Return probabilities, 0..1, an array of the shape of `log_odds`; no value overflows."""
    return np.asarray(expit(np.asarray(log_odds, np.float64)), np.float64)
