"""After the last step: calibrate the kept weights on dev, and export them for streaming."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch

from models._contract import ATTACK, RefinedModel
from models._registry import build_model
from train.calibrate import choose_thresholds, fit_calibration
from train.checkpoint import load_weights, save_weights
from train.errors import TrainError
from train.loaders import open_evaluation_loader
from train.score_model import part_batches, score_part
from trt_engines.export import export_engine

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

    from models._contract import AttackModel
    from train.config import Recipe
    from train.distributed import Ranks
    from train.scores import FrameScore
    from train.selection import Data
    from trt_engines.manifest import Manifest

log = logging.getLogger(__name__)

_EXAMPLES = 8  # faces on which ONNX and torch are compared
_FIRST_LOOKS = 3  # streaming decides nothing on fewer (stream.config.FuseConfig.min_scores)
_HYSTERESIS = 1.0  # between the thresholds, in log-odds


class Trained(NamedTuple):
    """A run's best network."""

    model: AttackModel  # in eval mode
    recipe: Recipe
    step: int  # after which the weights were kept
    calibrated: bool


def trained_model(run: Path) -> Trained:
    """Return a run's best network.

    Raises:
        TrainError: no weights, or not of this version.
    """
    recipe, step, state, calibrated = load_weights(run / "best.pt")
    model = build_model(recipe.method, recipe.options)
    try:
        cast("nn.Module", model).load_state_dict(state)
    except RuntimeError as error:
        raise TrainError(f"{run / 'best.pt'}: weights of another version: {error}") from error
    cast("nn.Module", model).eval()
    return Trained(model, recipe, step, calibrated)


def calibrate_run(run: Path, data: Data, ranks: Ranks) -> None:
    """Fit the calibration of a run's best weights on dev, and keep it with them.

    A network that learned nothing stays uncalibrated, with a warning: the run is not lost.
    """
    model, recipe, step, _ = trained_model(run)
    network = cast("nn.Module", model)
    network.to(ranks.device)
    scores = score_part(model, data, data.dev, recipe, ranks)
    bona_fide, attacks = (_logits(scores, label) for label in (0, 1))
    try:
        fit_calibration(model.calibration, bona_fide, attacks, recipe.calibration)
        if isinstance(model, RefinedModel):
            model.fit_refinement(*_features(model, data, recipe, ranks))
    except TrainError as error:
        log.warning("%s: not calibrated: %s", run, error)
        return
    if ranks.writes:
        save_weights(run / "best.pt", recipe, step, network.cpu(), calibrated=True)


def export_run(
    run: Path,
    out: Path,
    data: Data,
    ranks: Ranks,
    *,
    licence: str,
    false_alarms: float,
    with_weights: bool = True,
) -> Manifest:
    """Write a run's engine, ready for streaming: ONNX, weights and manifest with thresholds.

    The thresholds hold for a track's fused probability. They are chosen on dev's bona fide videos,
    by the highest mean of the log-odds that a video reaches from its third look on.

    Args:
        run: folder of a finished run.
        out: folder of the engine.
        data: with the run's dev faces.
        ranks: of a single process.
        licence: of the weights, one line.
        false_alarms: share of dev's bona fide videos that may alarm.
        with_weights: write safetensors too.

    Raises:
        TrainError: not calibrated, or no dev faces.
        EngineError: the graph can't be traced, or does not compute what torch does.
    """
    model, recipe, _, calibrated = trained_model(run)
    if not calibrated or not data.dev.rows:
        raise TrainError(
            f"{run}: not calibrated, so its probabilities mean nothing and no threshold can be "
            "chosen; it needs dev faces on which attacks score higher"
        )
    network = cast("nn.Module", model)
    network.to(ranks.device)
    scores = score_part(model, data, data.dev, recipe, ranks, refine=True)
    network.cpu()
    peaks = _peaks([score for score in scores if score.label != ATTACK])
    return export_engine(
        model,
        method=recipe.method,
        options=recipe.options,
        examples=_crops(model, data, recipe, data.dev.rows[:_EXAMPLES]),
        folder=out,
        licence=licence,
        thresholds=choose_thresholds(
            peaks,
            false_alarms=false_alarms,
            hysteresis=_HYSTERESIS,
            source=f"dev videos of {data.protocol or 'the data sets'}, frames' mean log-odds",
        ),
        with_weights=with_weights,
    )


def _logits(
    scores: Sequence[FrameScore], label: int
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    found = [score.logit for score in scores if score.label == label and score.logit is not None]
    return np.array(found, np.float64)


def _peaks(scores: Sequence[FrameScore]) -> list[float]:
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


def _crops(model: AttackModel, data: Data, recipe: Recipe, rows: Sequence[int]) -> torch.Tensor:
    loaded = open_evaluation_loader(
        data.shards, rows, model.input_spec, recipe.loader, batch=len(rows)
    )
    return next(loaded).batch.images


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
    everyone = ranks.gathered((torch.cat(features), torch.cat(labels)))
    return torch.cat([f for f, _ in everyone]), torch.cat([n for _, n in everyone])
