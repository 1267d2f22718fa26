"""From a network's log-odds to a probability, and from tracks of people kept back to a threshold.

Both use the `calibration` split only: bona fide faces of people and clips that training never saw,
and attacks made from them. No real attack and no test clip is involved.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from models._preprocess import crop_faces
from train.augment import degrade
from train.datasets.prepared import LOOSE_FACE_BOX
from train.synthetic import LooseCrop, synthesise
from trt_engines.manifest import DecisionThresholds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from models._calibration import Calibration
    from models._contract import AttackModel, InputSpec
    from train.datasets.prepared import PreparedFaces

log = logging.getLogger(__name__)


def calibration_crops(
    faces: PreparedFaces, spec: InputSpec, attack_weights: Mapping[str, float], *, seed: int
) -> tuple[Tensor, Tensor]:
    """Return as many bona fide as attack crops, (N, 3, S, S) uint8 each, N = faces of the split.

    The bona fide ones are as filmed, the way a stream delivers them; the attacks go through one
    more camera, as a recaptured face does.
    """
    bona_fide, attacks = [], []
    for i in faces.where("calibration"):
        rng = np.random.default_rng((seed, i))
        landmarks = np.array(faces.faces[i].landmarks, np.float32)
        face = LooseCrop(np.array(faces.images[i]), landmarks)
        attack = degrade(synthesise(face, rng, attack_weights).image, rng)
        bona_fide.append(_crop(face.image, spec))
        attacks.append(_crop(attack, spec))
    return torch.stack(bona_fide), torch.stack(attacks)


def _crop(image: NDArray[np.uint8], spec: InputSpec) -> Tensor:
    return crop_faces(torch.from_numpy(image), LOOSE_FACE_BOX[None], spec)[0]


def attack_logits(model: AttackModel, crops: Tensor, batch: int = 32) -> NDArray[np.float64]:
    """Return (N,) log-odds, not calibrated, of uint8 crops (N, 3, S, S)."""
    with torch.inference_mode():
        parts = [
            model.attack_logit(model(model.normalise(part))) for part in torch.split(crops, batch)
        ]
    return torch.cat(parts).double().numpy()


def fit_calibration(
    calibration: Calibration, bona_fide: NDArray[np.float64], attacks: NDArray[np.float64]
) -> None:
    """Fit offset and scale: sigmoid((logit - offset) / scale) is the probability.

    Logistic regression without penalty on equal numbers of both classes (Platt, 1999).
    """
    scores = np.r_[bona_fide, attacks]
    # The solver wants a spread of about one.
    spread = float(scores.std())
    labels = np.r_[np.zeros(len(bona_fide)), np.ones(len(attacks))]
    fit = LogisticRegression(C=math.inf).fit(scores[:, None] / spread, labels)
    slope = float(fit.coef_[0, 0]) / spread
    calibration.scale.fill_(1 / slope)
    calibration.offset.fill_(-float(fit.intercept_[0]) / slope)
    log.info("calibration: offset %.5f, scale %.5f", calibration.offset, calibration.scale)


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
