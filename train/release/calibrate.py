"""From a network's log-odds to a probability, on development data that training never saw."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from scipy.special import entr
from sklearn.linear_model import LogisticRegression

from models import KNOTS, Calibration, RefinedModel, logit
from train.errors import TrainError
from train.evaluation.metrics.calibration import fit_temperature
from train.evaluation.score_model import part_batches, score_part
from train.fit.checkpoint import save_weights, trained_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from train.config import Recipe
    from train.data.selection import Data
    from train.evaluation.scores import FrameScore
    from train.fit.ranks import Ranks

CalibrationKind: TypeAlias = Literal["temperature", "platt", "isotonic"]

log = logging.getLogger(__name__)


def calibrate_run(run: Path, data: Data, ranks: Ranks) -> None:
    """Fit the calibration of the weights that a run kept, on dev, and keep it with them.

    A network that learned nothing stays uncalibrated, with a warning: the run is not lost.
    """
    for name in ("best.pt", *sorted(f"kept/{path.name}" for path in (run / "kept").glob("*.pt"))):
        _calibrate(run, name, data, ranks)


def _calibrate(run: Path, weights: str, data: Data, ranks: Ranks) -> None:
    model, recipe, step, _ = trained_model(run, weights)
    network = cast("nn.Module", model)
    network.to(ranks.device)
    scores = score_part(model, data, data.dev, recipe, ranks)
    bona_fide, attacks = (_logits(scores, label) for label in (0, 1))
    try:
        fit_calibration(model.calibration, bona_fide, attacks, recipe.calibration)
        if isinstance(model, RefinedModel):
            model.fit_refinement(*_features(model, data, recipe, ranks))
    except TrainError as error:
        log.warning("%s: not calibrated: %s", run / weights, error)
        return
    network.cpu()
    ranks.on_first(lambda: save_weights(run / weights, recipe, step, network, calibrated=True))


def fit_calibration(
    calibration: Calibration,
    bona_fide: NDArray[np.float64],
    attacks: NDArray[np.float64],
    kind: CalibrationKind = "platt",
) -> None:
    """Fit the map from the network's log-odds to calibrated ones, on development data.

    Both classes weigh the same, whatever their numbers: the probability is that of even odds, and
    its log-odds are a log-likelihood ratio. No kind changes the order of the samples.

    Args:
        calibration: filled in place.
        bona_fide: (N0,) log-odds, not calibrated.
        attacks: (N1,) likewise.
        kind: "temperature" scales; "platt" shifts and scales; "isotonic" takes the blocks of the
            pool-adjacent-violators algorithm, thinned to `KNOTS`, with straight lines between their
            centres.

    Raises:
        TrainError: a class is missing, log-odds are no numbers, or attacks do not score higher.
    """
    logits = np.r_[bona_fide, attacks]
    labels = np.repeat([0.0, 1.0], [len(bona_fide), len(attacks)])
    if not (len(bona_fide) and len(attacks) and np.isfinite(logits).all()):
        raise TrainError(
            "calibration needs finite log-odds of both classes on development data; found "
            f"{len(bona_fide)} bona fide samples and {len(attacks)} attacks, "
            f"{int((~np.isfinite(logits)).sum())} of them not finite"
        )
    if not bona_fide.mean() < attacks.mean():
        raise TrainError(
            "on development data the mean log-odds of attacks are no higher "
            f"({attacks.mean():.3g}) than those of bona fide samples ({bona_fide.mean():.3g}), so "
            "there is nothing to calibrate; are the labels reversed (attack is 1), or has the "
            "network learned nothing?"
        )
    weights = np.where(labels == 1, 0.5 / len(attacks), 0.5 / len(bona_fide))
    before = _log_loss(calibration, logits, labels, weights)
    _reset(calibration)
    if kind == "isotonic":
        _fit_isotonic(calibration, logits, labels, weights)
    else:
        # Platt's targets (1999): without them, classes that do not overlap would fit no finite map.
        targets = np.where(labels == 1, 1 - 1 / (len(attacks) + 2), 1 / (len(bona_fide) + 2))
        if kind == "temperature":
            calibration.scale.fill_(fit_temperature(logits, targets, weights))
        else:
            _fit_platt(calibration, logits, targets, weights)
    log.info(
        "calibration by %s on %d bona fide samples and %d attacks: log loss at even odds "
        "%.4f -> %.4f",
        kind,
        len(bona_fide),
        len(attacks),
        before,
        _log_loss(calibration, logits, labels, weights),
    )


def _reset(calibration: Calibration) -> None:
    calibration.load_state_dict(Calibration().state_dict())


def _log_loss(
    calibration: Calibration,
    logits: NDArray[np.float64],
    labels: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> float:
    with torch.inference_mode():
        log_odds = calibration(torch.from_numpy(logits).float()).double().numpy()
    return float(np.average(np.logaddexp(0, log_odds) - labels * log_odds, weights=weights))


def _fit_platt(
    calibration: Calibration,
    logits: NDArray[np.float64],
    targets: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> None:
    """Fit offset and scale by logistic regression without penalty."""
    spread = float(logits.std())  # the solver wants one of about 1
    both = np.r_[logits, logits][:, None] / spread
    labels = np.repeat([1, 0], len(logits))
    fit = LogisticRegression(C=math.inf, tol=1e-8).fit(
        both, labels, sample_weight=np.r_[weights * targets, weights * (1 - targets)]
    )
    slope = float(fit.coef_[0, 0]) / spread
    calibration.scale.fill_(1 / slope)
    calibration.offset.fill_(-float(fit.intercept_[0]) / slope)


def _fit_isotonic(
    calibration: Calibration,
    logits: NDArray[np.float64],
    labels: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> None:
    """Fit the segments.

    One attack more than there is at the lowest score, and one bona fide sample more at the highest,
    keep the outer probabilities from 0 and 1 (Brummer and du Preez, 2013).
    """
    lowest, highest = logits.min(), logits.max()
    x, group = np.unique(np.r_[lowest, logits, highest], return_inverse=True)
    w = np.r_[weights[labels == 1][0], weights, weights[labels == 0][0]]
    attack = np.bincount(group, w * np.r_[1, labels, 0])
    total = np.bincount(group, w)
    starts = isotonic_regression(attack / total, weights=total).blocks[:-1]
    mass = np.add.reduceat(total, starts)
    rate = np.add.reduceat(attack, starts) / mass
    centre = np.add.reduceat(total * x, starts) / mass
    centre, rate = _thinned(centre, rate, mass)
    if len(rate) < 2:
        raise TrainError(
            "isotonic calibration found no rising relation between the scores and the labels of "
            "the development data; use platt, or look at the labels"
        )
    y = logit(rate, clip=0)
    slopes = np.diff(y) / np.diff(centre)
    # A little of the mean slope beyond the outer knots keeps the order of the samples there.
    outer = 0.01 * (y[-1] - y[0]) / (centre[-1] - centre[0])
    calibration.scale.fill_(1 / outer)
    calibration.offset.fill_(centre[0] - y[0] / outer)
    n = len(slopes)
    calibration.starts[:n] = torch.from_numpy(centre[:-1])
    calibration.widths[:n] = torch.from_numpy(np.diff(centre))
    calibration.slopes[:n] = torch.from_numpy(slopes - outer)


def _thinned(
    centre: NDArray[np.float64], rate: NDArray[np.float64], mass: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Merge the neighbouring blocks whose union costs the least likelihood, down to `KNOTS`.

    Blocks of the same rate are merged in any case.
    """
    while len(rate) > 1:
        union = mass[:-1] + mass[1:]
        shared = (mass[:-1] * rate[:-1] + mass[1:] * rate[1:]) / union
        bits = mass * _entropy(rate)
        cost = union * _entropy(shared) - bits[:-1] - bits[1:]
        i = int(np.argmin(cost))
        if len(rate) <= KNOTS and rate[i] < rate[i + 1]:
            break
        centre[i] = (mass[i] * centre[i] + mass[i + 1] * centre[i + 1]) / union[i]
        rate[i], mass[i] = shared[i], union[i]
        centre, rate, mass = (np.delete(a, i + 1) for a in (centre, rate, mass))
    return centre, rate


def _entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(entr(p) + entr(1 - p), np.float64)


def _logits(
    scores: Sequence[FrameScore], label: int
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    found = [score.logit for score in scores if score.label == label and score.logit is not None]
    return np.array(found, np.float64)


def _features(
    model: RefinedModel, data: Data, recipe: Recipe, ranks: Ranks
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a refinement is fitted on: dev's features (N, D) and labels (N,)."""
    features, labels = [], []
    with torch.inference_mode():
        for step in part_batches(model, data, data.dev, recipe, ranks):
            outputs = model(model.normalise(step.batch.images))
            features.append(model.refinement_features(outputs).cpu())
            labels.append(step.batch.labels.cpu())
    # In lists: a rank may have no face of dev.
    everyone = ranks.gathered((features, labels))
    return (
        torch.cat([part for parts, _ in everyone for part in parts]),
        torch.cat([part for _, parts in everyone for part in parts]),
    )
