"""Export a run's best weights for streaming: engine, weights and manifest with thresholds."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from train.data.loaders import open_evaluation_loader
from train.errors import TrainError
from train.evaluation.score_model import score_part
from train.fit.checkpoint import trained_model
from train.release.thresholds import choose_thresholds, fused_tracks
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
    from trt_engines.manifest import Manifest, Precision

_EXAMPLES = 8  # faces on which ONNX and torch are compared


def export_run(
    run: Path,
    out: Path,
    data: Data,
    ranks: Ranks,
    *,
    licence: str,
    false_alarms: float,
    with_weights: bool = True,
    precision: Precision = "fp32",
) -> Manifest:
    """Write a run's engine, ready for streaming: ONNX, weights and manifest with thresholds.

    The thresholds hold for a track's fused probability, and are chosen on dev's bona fide tracks.

    Args:
        run: folder of a finished run.
        out: folder of the engine.
        data: with the run's dev faces.
        ranks: of a single process.
        licence: of the weights, one line.
        false_alarms: share of dev's bona fide tracks that may alarm, 0..1.
        with_weights: write safetensors too.
        precision: of the graph; thresholds are chosen in float32 in any case.

    Raises:
        TrainError: not calibrated, no dev faces, or no thresholds that a track can reach.
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
    of = f"dev faces of {data.protocol or 'the data sets'}"
    if recipe.data.synthetic:
        of += ", with attacks made from them"
    thresholds = choose_thresholds(fused_tracks(scores), false_alarms=false_alarms, data=of)
    return export_engine(
        model,
        method=recipe.method,
        options=recipe.options,
        examples=_crops(model, data, recipe, [*data.dev.rows, *data.train][:_EXAMPLES]),
        folder=out,
        licence=licence,
        thresholds=thresholds,
        with_weights=with_weights,
        precision=precision,
        family=recipe.family,
    )


def _crops(model: AttackModel, data: Data, recipe: Recipe, rows: Sequence[int]) -> torch.Tensor:
    loaded = open_evaluation_loader(
        data.shards, rows, model.input_spec, recipe.loader, batch=len(rows)
    )
    return next(loaded).batch.images
