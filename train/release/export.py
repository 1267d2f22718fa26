"""Export a run's best weights for streaming: engine, weights and manifest with thresholds."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from models import ATTACK
from train.data.loaders import open_evaluation_loader
from train.errors import TrainError
from train.evaluation.score_model import score_part
from train.fit.checkpoint import trained_model
from train.release.thresholds import choose_thresholds, dev_peaks
from trt_engines.export import export_engine

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from torch import nn

    from models import AttackModel
    from train.config import Recipe
    from train.data.selection import Data
    from train.fit.ranks import Ranks
    from trt_engines.manifest import Manifest

_EXAMPLES = 8  # faces on which ONNX and torch are compared
_HYSTERESIS = 1.0  # between the thresholds, in log-odds


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
    peaks = dev_peaks([score for score in scores if score.label != ATTACK])
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


def _crops(model: AttackModel, data: Data, recipe: Recipe, rows: Sequence[int]) -> torch.Tensor:
    loaded = open_evaluation_loader(
        data.shards, rows, model.input_spec, recipe.loader, batch=len(rows)
    )
    return next(loaded).batch.images
