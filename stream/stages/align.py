"""Several detectors on one scale; docs/decisions/0035-several-detectors.md derives it.

A probability means the same for two detectors where they decide: at its own thresholds each is as
sure as it must be to alarm, or to clear a face. So each one's log-odds are moved until these points
meet those of the others; between them the way is straight, beyond them it has slope 1. A detector
alone, or several of the same thresholds, are left as they are, to the bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from models import logit, sigmoid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trt_engines.manifest import DecisionThresholds


class Scale(NamedTuple):
    """Where verdicts begin, as probabilities."""

    enter: float  # at or above: attack
    leave: float  # below: bona fide


def common_scale(thresholds: Sequence[DecisionThresholds]) -> Scale:
    """Return where the thresholds of the detectors meet: at the mean of their log-odds.

    Of all points it is the one to which the detectors have to be moved least (least squares).

    Args:
        thresholds: of each detector, one or more.
    """
    own = [Scale(each.enter, each.leave) for each in thresholds]
    if len(set(own)) == 1:
        return own[0]
    enter, leave = sigmoid(np.mean(logit(own), axis=0)).tolist()
    return Scale(enter, leave)


def aligned(probability: float, own: DecisionThresholds, common: Scale) -> float:
    """Return what a detector's probability is on the common scale.

    Args:
        probability: fused over the looks of the detector, 0..1.
        own: thresholds of the detector.
        common: of all detectors.
    """
    if (own.enter, own.leave) == common:
        return probability
    p, enter, leave = logit([probability, own.enter, own.leave]).tolist()
    to_enter, to_leave = logit(common).tolist()
    if p >= enter:
        moved = to_enter + (p - enter)
    elif p < leave:
        moved = to_leave + (p - leave)
    else:
        moved = to_leave + (p - leave) * (to_enter - to_leave) / (enter - leave)
    return float(sigmoid(moved))
