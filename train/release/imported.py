"""From weights that somebody else trained to an engine, on bona fide faces alone.

Whoever imports a network has no attacks of the kind that it was trained on. So its log-odds are
only shifted, and `enter` is chosen as for a network of ours: both rest on bona fide tracks
(docs/decisions/0034).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import TYPE_CHECKING, Final, cast

import numpy as np

from models import BONA_FIDE, Calibration, CheckpointError, RefinedModel, import_checkpoint
from train.data.loaders import TorchLoaderConfig, open_evaluation_loader
from train.data.selection import open_dev
from train.errors import TrainError
from train.evaluation.score_model import score_batches
from train.release.thresholds import choose_thresholds, fused_tracks
from trt_engines.export import export_engine

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from models import AttackModel
    from train.data.loaders import Loaded
    from train.data.selection import Data
    from train.evaluation.scores import FrameScore
    from trt_engines.manifest import Family, Manifest, Precision

log = logging.getLogger(__name__)

_BATCH: Final = 32
_EXAMPLES: Final = 8  # faces on which ONNX and torch are compared


def import_network(
    method: str,
    weights: Path,
    faces: Sequence[Path],
    out: Path,
    *,
    options: Mapping[str, object],
    licence: str,
    false_alarms: float,
    family: Family | None = None,
    precision: Precision = "fp32",
) -> Manifest:
    """Write the engine of a network that was trained elsewhere: ONNX, weights, manifest.

    The calibration keeps the network's slope and shifts its log-odds, so that of the bona fide
    tracks all but a share have a mean below 0; `enter` is the lowest at which at most that share
    alarms in streaming. Attacks among the faces choose nothing.

    Args:
        method: name of a module of `models`.
        weights: a file of any layout of the method, or our own.
        faces: prepared folders with bona fide faces of split dev, or of no split.
        out: folder of the engine.
        options: of the method; they take precedence over what the file says.
        licence: of the weights, one line.
        false_alarms: that share, 0..1.
        family: of the attacks that it was trained to see; None: both, or unknown.
        precision: of the graph.

    Raises:
        TrainError: the weights can't be used or fill a part of the network only; no bona fide dev
            face, or of another window; no thresholds that a track can reach; or a method with a
            second look, which only attacks can fit.
        EngineError: the graph can't be traced, or does not compute what torch does.
    """
    try:
        imported = import_checkpoint(method, weights, **options)
    except CheckpointError as error:
        raise TrainError(str(error)) from error
    if imported.kept:
        raise TrainError(
            f"{weights} ({imported.layout}) fills a part of the network only, the rest is random: "
            "a network to start a training from (start_from), and no detector"
        )
    if isinstance(imported.model, RefinedModel):
        raise TrainError(f"{method}: its second look is fitted on attacks; train it instead")
    log.info("%s: %s", weights, imported.report())
    model = cast("AttackModel", imported.model)
    data = open_dev(faces)
    rows = [row for row in data.dev.rows if data.shards.label[row] == BONA_FIDE]
    if not rows:
        raise TrainError(f"{', '.join(map(str, faces))}: none of the dev faces is bona fide")
    model.calibration.load_state_dict(Calibration().state_dict())
    shift = _shift(_scores(model, data, rows), false_alarms)
    model.calibration.offset.fill_(shift)
    tracks = fused_tracks(_scores(model, data, data.dev.rows))
    names = ", ".join(sorted(set(data.shards.videos["dataset"].to_pylist())))
    of = (
        f"bona fide dev faces of {names}; log-odds of an imported network less {shift:.3g}, "
        f"so that {1 - false_alarms:g} of the bona fide tracks have a mean below 0"
    )
    thresholds = choose_thresholds(tracks, false_alarms=false_alarms, data=of)
    return export_engine(
        model,
        method=method,
        options=imported.options,
        examples=next(_batches(model, data, rows[:_EXAMPLES])).batch.images,
        folder=out,
        licence=licence,
        thresholds=thresholds,
        family=family,
        precision=precision,
    )


def _shift(scores: Sequence[FrameScore], share: float) -> float:
    """Return the log-odds that all but a share of the tracks stay below in the mean."""
    of_track: defaultdict[tuple[str, str, int], list[float]] = defaultdict(list)
    for score in scores:
        if score.logit is not None:
            of_track[score.dataset, score.video_id, score.track].append(score.logit)
    means = [float(np.mean(logits)) for logits in of_track.values()]
    return float(np.quantile(means, 1 - share))


def _scores(model: AttackModel, data: Data, rows: Sequence[int]) -> list[FrameScore]:
    return score_batches(model, data.shards, _batches(model, data, rows))


def _batches(model: AttackModel, data: Data, rows: Sequence[int]) -> Iterator[Loaded]:
    return open_evaluation_loader(
        data.shards, rows, model.input_spec, TorchLoaderConfig(workers=0), batch=_BATCH
    )
