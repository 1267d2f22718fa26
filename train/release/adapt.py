"""Adapt an engine to a site: cameras differ more than methods do.

A few minutes of a site's own bona fide faces move the calibration and choose the thresholds; with a
few of its own attacks the last layer is fitted, too. Half of the recordings, or of their time, is
kept back, and says what it brought. Looks are those of streaming: its detector, tracker, quality
gate, windows and rate.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import numpy as np
import torch
from pydantic import BaseModel, Field
from scipy.optimize import brentq
from scipy.stats import chi2
from torch.nn import functional as F

from models import (
    ATTACK,
    BONA_FIDE,
    AdaptableModel,
    RefinedModel,
    load_checkpoint,
    sigmoid,
    whole_file,
)
from stream.config import DetectConfig, QualityConfig, TrackConfig
from stream.stages.crop import Cropper, View
from stream.stages.detect import open_detector
from stream.stages.follow import Follower
from train.data.datasets._registry import load_dataset
from train.data.frames import VideoFrames
from train.errors import TrainError
from train.evaluation.metrics.roc import roc
from train.evaluation.scores import FrameScore
from train.release.calibrate import fit_calibration
from train.release.thresholds import LOOK_EVERY_S, choose_thresholds, fused_tracks
from trt_engines.backends import OnnxRuntimeConfig
from trt_engines.export import export_engine
from trt_engines.manifest import load_manifest, verified_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from models import AttackModel, Calibration
    from train.data.datasets._sample import ListedVideo
    from trt_engines.manifest import DecisionThresholds, Manifest

log = logging.getLogger(__name__)

LEAST_ADAPTED_S: Final = 240.0  # of bona fide faces, seconds of looks; less chooses no threshold
LEAST_KEPT_BACK_S: Final = 120.0
LEAST_ATTACK_LOOKS: Final = 15  # on each side; fewer fit nothing
_BETWEEN_S: Final = 8.0  # left out between the two parts of one recording: evidence lasts so long
_ADAPTED_SHARE: Final = 0.6  # of the time of a recording that is split
_QUANTILE: Final = 0.9  # of the site's bona fide looks ...
_AT_QUANTILE: Final = -1.0  # ... lies at these calibrated log-odds
_TOWARDS_ALARMS: Final = 1.0  # log-odds by which a quiet camera may make an engine more sensitive
_KEPT: Final = 0.02  # weight of the squared change of all log-odds while the last layer is fitted
_STEPS: Final = 100
_BATCH: Final = 32
_EXAMPLES: Final = 8  # faces on which ONNX and torch are compared
_CONFIDENCE: Final = 0.95


class Part(BaseModel, frozen=True, extra="forbid"):
    """What an engine says of the part of the site that was kept back."""

    bona_fide_tracks: int = Field(ge=0)
    bona_fide_s: float = Field(ge=0, description="Seconds of bona fide faces.")
    false_alarms: int = Field(ge=0, description="Bona fide tracks that alarm.")
    false_alarms_an_hour: float = Field(ge=0)
    at_most_an_hour: float = Field(ge=0, description="Upper 95 % bound of that rate (Poisson).")
    highest_bona_fide: float = Field(ge=0, le=1, description="Highest fused probability.")
    attack_tracks: int = Field(ge=0)
    attacks_caught: int = Field(ge=0)
    auc: float | None = Field(description="Of single looks; null: no attack was kept back.")


class Adaptation(BaseModel, frozen=True, extra="forbid"):
    """What was done, and what it brought on what was kept back."""

    engine: str = Field(description="SHA-256 of the graph that was adapted.")
    bona_fide_s: float = Field(description="Seconds of bona fide faces that were learned from.")
    attack_looks: int = Field(description="Looks at attacks that were learned from.")
    fitted_last_layer: bool
    split_by: str = Field(description="`recording` or `time`, bona fide faces and attacks.")
    turned_away: int = Field(description="Sightings that the quality gate turned away.")
    before: Part
    after: Part

    def report(self) -> str:
        """Return some lines for people."""
        lines = [
            f"learned from {self.bona_fide_s:.0f} s of bona fide faces and {self.attack_looks} "
            f"looks at attacks; the last layer was {'' if self.fitted_last_layer else 'not '}"
            f"fitted; kept back by {self.split_by}; {self.turned_away} sightings were turned away"
        ]
        for name, part in (("before", self.before), ("after", self.after)):
            caught = f"{part.attacks_caught} of {part.attack_tracks} attacks caught"
            auc = "" if part.auc is None else f", AUC {part.auc:.3f}"
            lines.append(
                f"{name}: {part.false_alarms} false alarms in {part.bona_fide_s:.0f} s of "
                f"{part.bona_fide_tracks} bona fide tracks (at most {part.at_most_an_hour:.1f} an "
                f"hour, 95 %), highest p {part.highest_bona_fide:.3f}; {caught}{auc}"
            )
        return "\n".join(lines)


class _Look(NamedTuple):
    """One look of the kind that streaming takes."""

    video: str
    track: int
    pts_s: float
    label: int
    features: Tensor | None  # (D,), of an adaptable network
    logit: float  # of the network as it was, not calibrated


@dataclass(slots=True)
class _Site:
    looks: list[_Look] = field(default_factory=list)
    examples: list[Tensor] = field(default_factory=list)  # (3, S, S) uint8, of the export
    turned_away: int = 0


def adapt_engine(
    manifest_path: Path, data: Path, out: Path, *, false_alarms: float = 0.0
) -> Adaptation:
    """Write an engine that is adapted to a site, and `adaptation.json` beside it.

    Args:
        manifest_path: of the engine; its weights lie beside it.
        data: the site's recordings, as the data set `two_folders` has them; attacks are optional.
        out: folder of the new engine.
        false_alarms: share of the site's bona fide tracks that may alarm, 0..1.

    Raises:
        TrainError: too little footage, or no threshold that a track can reach.
        EngineError: the engine is damaged, or has no weights beside it.
    """
    manifest = load_manifest(manifest_path)
    model = _model_of(manifest, manifest_path)
    site = _read_site(model, data)
    learned, kept_back, split_by = _parts(site.looks)
    _check_enough(learned, kept_back)
    assert manifest.thresholds is not None  # `_model_of` saw to it
    before = _judged(_scores(kept_back, model.calibration), manifest.thresholds)
    attacks = sum(look.label == ATTACK for look in learned)
    fitted = False
    if min(attacks, sum(look.label == ATTACK for look in kept_back)) >= LEAST_ATTACK_LOOKS:
        fitted = _fit_last_layer(model, learned)
        logits = _logits(learned, model)
        labels = np.array([look.label for look in learned])
        fit_calibration(model.calibration, logits[labels == BONA_FIDE], logits[labels == ATTACK])
    else:
        if attacks:
            log.warning(
                "%d looks at attacks are too few to learn from (%d and as many to keep back are "
                "wanted): the bona fide faces alone are used",
                *(attacks, LEAST_ATTACK_LOOKS),
            )
        shift_to_bona_fide(
            model.calibration,
            np.array([look.logit for look in learned if look.label == BONA_FIDE]),
        )
    rescored = _judged_again(learned, model)
    thresholds = choose_thresholds(
        fused_tracks(_scores(rescored, model.calibration)),
        false_alarms=false_alarms,
        data=f"footage of a site ({data.name})",
    )
    after = _judged(_scores(_judged_again(kept_back, model), model.calibration), thresholds)
    export_engine(
        model,
        method=cast("str", manifest.method),
        options=manifest.options,
        examples=torch.stack(site.examples),
        folder=out,
        licence=f"{manifest.licence}; adapted to a site",
        thresholds=thresholds,
        family=manifest.family,
        max_batch=manifest.max_batch,
        precision=manifest.precision,
    )
    adaptation = Adaptation(
        engine=manifest.onnx_sha256,
        bona_fide_s=_seconds(learned),
        attack_looks=attacks,
        fitted_last_layer=fitted,
        split_by=split_by,
        turned_away=site.turned_away,
        before=before,
        after=after,
    )
    with whole_file(out / "adaptation.json") as path:
        path.write_text(adaptation.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return adaptation


def shift_to_bona_fide(calibration: Calibration, logits: NDArray[np.float64]) -> None:
    """Move a calibration by what bona fide faces of a camera say; its slope stays.

    A camera shifts the log-odds of all its faces alike (the first-order part of what it does). The
    shift puts nine in ten of its bona fide looks below the log-odds of -1, p = 0.27: a convention,
    which leaves room on both sides; the thresholds are chosen afterwards. A camera whose faces lie
    lower makes the engine more sensitive by 1 at most: the next person may look otherwise.

    Args:
        calibration: changed in place.
        logits: (N,) of bona fide looks, not calibrated.
    """

    def above(raw: float) -> float:
        return float(calibration(torch.tensor([raw]))[0]) - _AT_QUANTILE

    reach = 1.0
    while above(-reach) > 0 or above(reach) < 0:
        reach *= 2
    shift = float(np.quantile(logits, _QUANTILE)) - float(brentq(above, -reach, reach, xtol=1e-6))
    shift = max(shift, -_TOWARDS_ALARMS * float(calibration.scale))
    calibration.offset += shift
    calibration.starts += shift


def _model_of(manifest: Manifest, path: Path) -> AttackModel:
    if manifest.method is None or manifest.thresholds is None or manifest.weights is None:
        raise TrainError(
            f"{path}: expected the engine of an attack detector with its weights beside it, which "
            "`python -m train export` writes unless told --onnx-only"
        )
    assert manifest.weights_sha256 is not None  # written together
    weights = verified_file(path, manifest.weights, manifest.weights_sha256)
    model = cast("AttackModel", load_checkpoint(manifest.method, weights, **manifest.options))
    if isinstance(model, RefinedModel):
        raise TrainError(
            f"{path}: {manifest.method} looks twice at undecided faces, and its second look has a "
            "calibration of its own; such engines can't be adapted: train with the site's data"
        )
    return model


def _read_site(model: AttackModel, data: Path) -> _Site:
    site = _Site()
    with open_detector(DetectConfig(), OnnxRuntimeConfig()) as detector:
        for video in load_dataset("two_folders").read(data):
            follower = Follower(
                detector, TrackConfig(), detect_every_s=DetectConfig().detect_every_s
            )
            cropper = Cropper([View(model.input_spec, LOOK_EVERY_S)], QualityConfig())
            _read_video(video, data, follower, cropper, model, site)
    return site


def _read_video(
    video: ListedVideo,
    root: Path,
    follower: Follower,
    cropper: Cropper,
    model: AttackModel,
    site: _Site,
) -> None:
    waiting: list[tuple[int, float, Tensor]] = []

    def flush() -> None:
        if waiting:
            images = torch.stack([image for _, _, image in waiting])
            features, logits = _outputs(model, images)
            site.looks.extend(
                _Look(
                    video.video_id,
                    track,
                    pts_s,
                    BONA_FIDE if video.attack_type is None else ATTACK,
                    None if features is None else features[i],
                    float(logits[i]),
                )
                for i, (track, pts_s, _) in enumerate(waiting)
            )
            waiting.clear()

    frames = VideoFrames(video, root, 1 / LOOK_EVERY_S)
    for frame in frames:
        (update,), _ = follower.follow([frame])
        looks = cropper.crop([frame], [update])
        site.turned_away += len(looks.rejected)
        for crop in looks.crops:
            sighting = crop.sighting
            waiting.append((sighting.key.track_id, sighting.stamp.pts_s, crop.image))
            if len(site.examples) < _EXAMPLES:
                site.examples.append(crop.image)
        if len(waiting) >= _BATCH:
            flush()
    flush()
    if frames.damage is not None:
        log.warning("%s: %s", video.video_id, frames.damage)


@torch.inference_mode()
def _outputs(model: AttackModel, images: Tensor) -> tuple[Tensor | None, Tensor]:
    normalised = model.normalise(images)
    if isinstance(model, AdaptableModel) and model.last_layer() is not None:
        features = model.last_features(normalised)
        return features, model.logit_of_features(features)
    return None, model.attack_logit(model(normalised))


def _parts(looks: Sequence[_Look]) -> tuple[list[_Look], list[_Look], str]:
    """Return the looks to learn from, those to keep back, and how each class was split."""
    learned: list[_Look] = []
    kept_back: list[_Look] = []
    how = []
    for label in (BONA_FIDE, ATTACK):
        own = [look for look in looks if look.label == label]
        videos = {
            video: list(its)
            for video, its in groupby(sorted(own, key=lambda look: look.video), lambda x: x.video)
        }
        if not videos:
            continue
        if len(videos) == 1:
            how.append("time")
            (only,) = videos.values()
            end = max(look.pts_s for look in only) * _ADAPTED_SHARE
            learned += [look for look in only if look.pts_s <= end]
            kept_back += [look for look in only if look.pts_s > end + _BETWEEN_S]
            continue
        how.append("recording")
        longest_first = sorted(videos.values(), key=lambda its: (-len(its), its[0].video))
        for i, its in enumerate(longest_first):
            (learned if i % 2 == 0 else kept_back).extend(its)
    return learned, kept_back, ", ".join(how)


def _check_enough(learned: Sequence[_Look], kept_back: Sequence[_Look]) -> None:
    """Refuse footage from which nothing can be said.

    Raises:
        TrainError: it is too little.
    """
    found, left = _seconds(learned), _seconds(kept_back)
    if found < LEAST_ADAPTED_S or left < LEAST_KEPT_BACK_S:
        raise TrainError(
            f"{found:.0f} s of bona fide faces to learn from and {left:.0f} s to keep back are "
            f"too little; expected {LEAST_ADAPTED_S:.0f} s and {LEAST_KEPT_BACK_S:.0f} s, about "
            "ten minutes of footage with a face in it: record more"
        )


def _seconds(looks: Sequence[_Look] | Sequence[FrameScore]) -> float:
    """Return the time that the bona fide looks stand for."""
    return LOOK_EVERY_S * sum(look.label == BONA_FIDE for look in looks)


def _fit_last_layer(model: AttackModel, looks: Sequence[_Look]) -> bool:
    """Fit the last layer to a site's looks, both classes alike; return whether there is one.

    What the network says of all looks may change only at a price: a site's few attacks are of few
    kinds.
    """
    if not isinstance(model, AdaptableModel) or (layer := model.last_layer()) is None:
        log.warning("%s: no last layer that could be fitted alone", type(model).__name__)
        return False
    features = torch.stack([cast("Tensor", look.features) for look in looks]).clone()
    labels = torch.tensor([float(look.label) for look in looks])
    before = torch.tensor([look.logit for look in looks])
    weights = torch.where(labels == 1, 0.5 / labels.sum(), 0.5 / (1 - labels).sum())
    parameters = list(layer.parameters())
    optimiser = torch.optim.LBFGS(parameters, max_iter=_STEPS, line_search_fn="strong_wolfe")
    forward = cast("Callable[[Tensor], Tensor]", model.logit_of_features)

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits = forward(features)
        told = F.binary_cross_entropy_with_logits(logits, labels, weights, reduction="sum")
        total: Tensor = told + _KEPT * (logits - before).square().mean()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    cast("nn.Module", model).requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser.step(loss)  # type: ignore[no-untyped-call]
    layer.requires_grad_(False)
    return True


def _judged_again(looks: Sequence[_Look], model: AttackModel) -> list[_Look]:
    logits = _logits(looks, model).tolist()
    return [look._replace(logit=logit) for look, logit in zip(looks, logits, strict=True)]


@torch.inference_mode()
def _logits(looks: Sequence[_Look], model: AttackModel) -> NDArray[np.float64]:
    """Return what the network says of looks now."""
    if isinstance(model, AdaptableModel) and model.last_layer() is not None:
        features = torch.stack([cast("Tensor", look.features) for look in looks])
        return np.asarray(model.logit_of_features(features).double().numpy())
    return np.array([look.logit for look in looks])


def _scores(looks: Sequence[_Look], calibration: Calibration) -> list[FrameScore]:
    with torch.inference_mode():
        raw = torch.tensor([look.logit for look in looks])
        probabilities = sigmoid(calibration(raw).double().numpy())
    return [
        FrameScore(
            sample_id=f"{look.video}@{look.pts_s}.{look.track}",
            dataset="site",
            video_id=look.video,
            label=look.label,
            attack_type=None if look.label == BONA_FIDE else "attack",
            pts_s=look.pts_s,
            track=look.track,
            logit=look.logit,
            score=float(p),
        )
        for look, p in zip(looks, probabilities, strict=True)
    ]


def _judged(scores: Sequence[FrameScore], thresholds: DecisionThresholds) -> Part:
    """Return what an operating point does to the part that was kept back."""
    tracks = fused_tracks(scores)
    bona_fide = [track for track in tracks if not track.attack]
    attacks = [track for track in tracks if track.attack]
    alarms = sum(track.peak >= thresholds.enter for track in bona_fide)
    seconds = _seconds(scores)
    hours = seconds / 3600
    return Part(
        bona_fide_tracks=len(bona_fide),
        bona_fide_s=seconds,
        false_alarms=alarms,
        false_alarms_an_hour=alarms / hours,
        at_most_an_hour=float(chi2.ppf(_CONFIDENCE, 2 * alarms + 2)) / 2 / hours,
        highest_bona_fide=max(track.peak for track in bona_fide),
        attack_tracks=len(attacks),
        attacks_caught=sum(track.peak >= thresholds.enter for track in attacks),
        auc=_auc(scores) if attacks else None,
    )


def _auc(scores: Sequence[FrameScore]) -> float:
    return float(roc([s.label for s in scores], [cast("float", s.score) for s in scores]).auc())
