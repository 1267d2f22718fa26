"""Decision thresholds, chosen on development videos."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from trt_engines.manifest import DecisionThresholds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from train.evaluation.scores import FrameScore

_FIRST_LOOKS = 3  # streaming decides nothing on fewer (stream.config.FuseConfig.min_scores)


def choose_thresholds(
    peaks: Sequence[float], *, false_alarms: float, hysteresis: float, source: str
) -> DecisionThresholds:
    """Return thresholds at which at most a share of the bona fide calibration tracks alarm.

    Args:
        peaks: highest fused probability of each bona fide track.
        false_alarms: share of tracks that may alarm, 0..1.
        hysteresis: distance of the two thresholds, in logits.
        source: what the peaks are, for the manifest.
    """
    allowed = math.floor(false_alarms * len(peaks))
    highest = sorted(peaks, reverse=True)[allowed]
    enter = _sigmoid(max(_logit(highest) + 0.1, 0.0))
    leave = _sigmoid(_logit(enter) - hysteresis)
    return DecisionThresholds(
        enter=round(enter, 4),
        leave=round(leave, 4),
        source=f"{source}; {len(peaks)} bona fide tracks, at most {allowed} of them alarm",
    )


def _logit(p: float) -> float:
    p = min(max(p, 1e-6), 1 - 1e-6)
    return math.log(p / (1 - p))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def dev_peaks(scores: Sequence[FrameScore]) -> list[float]:
    """Return the highest probability that each video's running mean of log-odds reaches."""
    videos: defaultdict[str, list[float]] = defaultdict(list)
    for score in sorted(scores, key=lambda s: s.frame):
        if score.score is not None:
            p = min(max(score.score, 1e-6), 1 - 1e-6)
            videos[score.video_id].append(math.log(p / (1 - p)))
    peaks = []
    for log_odds in videos.values():
        means = np.cumsum(log_odds) / np.arange(1, len(log_odds) + 1)
        peaks.append(float(1 / (1 + np.exp(-means[min(_FIRST_LOOKS, len(means)) - 1 :].max()))))
    return peaks
