"""Score prepared faces with a network: a table with one row per face, each once over all ranks."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from models import ATTACK, FaceBatch, RefinedModel, in_float32, sigmoid
from train.attacks.pairs import dev_pairs
from train.data.loaders import open_evaluation_loader
from train.evaluation.distortion import distort
from train.evaluation.scores import FrameScore, checked_scores

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor, nn

    from models import AttackModel
    from train.config import Recipe
    from train.data.datasets._sample import ListedVideo
    from train.data.loaders import Loaded
    from train.data.selection import Data, Part
    from train.data.shards import FaceRecord, Shards
    from train.fit.ranks import Ranks

_BATCH = 32


def score_part(
    model: AttackModel,
    data: Data,
    part: Part,
    recipe: Recipe,
    ranks: Ranks,
    *,
    refine: bool = False,
) -> list[FrameScore]:
    """Return a part's scores on every rank; videos that gave no face have rows without a score.

    Args:
        model: a `torch.nn.Module`; in eval mode afterwards.
        data: of the run.
        part: dev, or a test set.
        recipe: of the run.
        ranks: this process among those of the run.
        refine: a `RefinedModel` looks again at undecided faces, as its engine does; its second look
            must be fitted.
    """
    batches = part_batches(model, data, part, recipe, ranks)
    rows = score_batches(model, data.shards, batches, refine=refine)
    everyone = [row for rows_of_rank in ranks.gathered(rows) for row in rows_of_rank]
    return checked_scores([*everyone, *map(_faceless, part.faceless)])


def score_batches(
    model: AttackModel, shards: Shards, batches: Iterable[Loaded], *, refine: bool = False
) -> list[FrameScore]:
    """Return a row for each face of some batches.

    Args:
        model: a `torch.nn.Module`; in eval mode afterwards.
        shards: that the batches were read from.
        batches: on the model's device.
        refine: as of `score_part`.
    """
    cast("nn.Module", model).eval()
    rows: list[FrameScore] = []
    with torch.inference_mode():
        for step in batches:
            outputs = in_float32(model(model.normalise(step.batch.images)))
            logits = model.attack_logit(outputs)
            log_odds = model.calibration(logits)
            if refine and isinstance(model, RefinedModel):
                low, high = model.refinement_band
                probabilities = torch.sigmoid(log_odds)
                undecided = (low <= probabilities) & (probabilities <= high)
                features = model.refinement_features(outputs)[undecided]
                log_odds[undecided] = model.refine(features)
            rows += _rows(
                [shards.records[row] for row in step.rows],
                step.batch.labels.tolist(),
                logits.tolist(),
                log_odds.tolist(),
            )
    return rows


def part_batches(
    model: AttackModel, data: Data, part: Part, recipe: Recipe, ranks: Ranks
) -> Iterator[Loaded]:
    """Yield this rank's share of a part's faces, on its device, without augmentation.

    Where attacks are made from a part's bona fide faces, a batch holds those faces, then their
    attacks; no test set is treated so.
    """
    synthetic = part.synthetic
    rows = part.rows
    if synthetic:
        rows = [row for row in rows if data.shards.label[row] != ATTACK]
    loaded = open_evaluation_loader(
        data.shards,
        rows,
        model.input_spec,
        recipe.loader,
        batch=_BATCH,
        rank=ranks.rank,
        world=ranks.world,
        transform=(
            dev_pairs(recipe.data.dev_attacks, recipe.data.dev_autoencoders) if synthetic else None
        ),
    )
    for step in loaded:
        images = step.batch.images
        if part.distorted:
            names = data.shards.records.sample_ids(step.rows)
            images = _distorted(images.cpu(), names)
        yield step._replace(batch=FaceBatch(images.to(ranks.device), step.batch.labels))


def _distorted(images: Tensor, names: Sequence[str]) -> Tensor:
    """Damage each picture (N, 3, S, S), in every run alike."""
    damaged = []
    for image, name in zip(images, names, strict=True):
        key = hashlib.sha256(name.encode()).digest()
        rng = np.random.default_rng(int.from_bytes(key[:8], "big"))
        damaged.append(distort(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), rng))
    return torch.from_numpy(np.stack(damaged)).permute(0, 3, 1, 2)


def _rows(
    records: Sequence[FaceRecord],
    labels: Sequence[int],
    logits: Sequence[float],
    log_odds: Sequence[float],
) -> Iterator[FrameScore]:
    scores = sigmoid(log_odds).tolist()  # in float64: in float32 it is 1 from log-odds of 17 on
    for record, label, logit, odds, score in zip(
        records, labels, logits, log_odds, scores, strict=True
    ):
        made = label != record.label  # an attack made from a bona fide face
        mark = "synthetic/" if made else ""
        yield FrameScore(
            sample_id=mark + record.sample_id,
            dataset=mark + record.dataset,
            video_id=mark + record.video_id,
            source_id=record.source_id,
            subject=record.subject,
            label=cast("Any", label),
            attack_type="synthetic" if made else record.attack_type,
            frame=record.frame,
            pts_s=record.pts_s,
            track=record.track,
            logit=logit,
            log_odds=odds,
            score=score,
        )


def _faceless(video: ListedVideo) -> FrameScore:
    return FrameScore(
        sample_id=f"{video.video_id}@none",
        dataset=video.dataset,
        video_id=video.video_id,
        source_id=video.source_id,
        subject=video.subject,
        label=cast("Any", video.label),
        attack_type=video.attack_type,
        score=None,
    )
