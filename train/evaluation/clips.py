"""Judge a deployed detector on labelled real clips, through the streaming path, per track.

Reports counts with every rate, and nothing is chosen here: the thresholds are those of the engine's
manifest.
"""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
import yaml
from PIL import Image, ImageOps
from pydantic import BaseModel, Field, ValidationError

from models import crop_faces
from stream.records import Verdict
from train.errors import TrainError
from train.evaluation.clip_tracks import ClipTrack, tracks_of_clip
from train.evaluation.metrics.intervals import wilson
from train.evaluation.metrics.roc import roc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models import InputSpec
    from stream.analyse import Analyser
    from stream.config import DecodeConfig
    from stream.stages.detect import FaceDetector
    from train.evaluation.metrics.roc import Roc
    from trt_engines.backends import Backend

log = logging.getLogger(__name__)

Label: TypeAlias = Literal["bona_fide", "print", "replay", "mask", "deepfake"]


class LabelledClip(BaseModel, frozen=True, extra="forbid"):
    """One real clip whose faces' nature is known."""

    path: Path = Field(description="Relative to the root.")
    group: str = Field(description="Where it comes from; results are reported by group too.")
    label: Label = Field(description="Of every face, or of those left of the middle.")
    right: Label | None = Field(
        None, description="Of the faces right of the middle, if it differs."
    )
    note: str = ""


class LabelledStill(BaseModel, frozen=True, extra="forbid"):
    """One real picture; its largest face is judged by a single look."""

    path: Path = Field(description="Relative to the root.")
    group: str
    label: Label


class LabelledClips(BaseModel, frozen=True, extra="forbid"):
    """What to judge on; test data only, never used to choose anything."""

    clips: tuple[LabelledClip, ...] = Field(min_length=1)
    stills: tuple[LabelledStill, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedTrack:
    """A track and the truth."""

    group: str
    label: Label
    track: ClipTrack


def load_labelled(path: Path) -> LabelledClips:
    """Read the list of clips.

    Raises:
        TrainError: unreadable or malformed.
    """
    try:
        return LabelledClips.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise TrainError(f"{path}: can't read the list of labelled clips: {error}") from error


def judge(
    labelled: LabelledClips, root: Path, analyser: Analyser, decode: DecodeConfig
) -> list[JudgedTrack]:
    """Stream every clip and join its tracks with the truth.

    Raises:
        TrainError: a listed clip is missing.
    """
    judged = []
    for clip in labelled.clips:
        path = root / clip.path
        if not path.is_file():
            raise TrainError(f"{path}: missing; the list of labelled clips names it")
        tracks = tracks_of_clip(path, analyser, decode)
        log.info("%s: %d tracks", clip.path, len(tracks))
        for track in tracks:
            label = clip.right if clip.right and track.centre_x > 0.5 else clip.label
            judged.append(JudgedTrack(group=clip.group, label=label, track=track))
    return judged


def judge_stills(
    labelled: LabelledClips,
    root: Path,
    detector: FaceDetector,
    classifier: Backend,
    spec: InputSpec,
) -> list[dict[str, Any]]:
    """Return path, group, label and probability (None: no face) of each picture."""
    found = []
    for still in labelled.stills:
        with Image.open(root / still.path) as picture:
            image = torch.from_numpy(np.array(ImageOps.exif_transpose(picture).convert("RGB")))
        (detections,) = detector.detect([image], [None])
        probability = None
        if detections:
            largest = max(detections, key=lambda d: float(d.box[2] - d.box[0]))
            crop = crop_faces(image, largest.box[None], spec)
            probability = classifier.infer(crop)["probability"].item()
        found.append({**still.model_dump(mode="json"), "probability": probability})
    return found


def summarise(judged: Sequence[JudgedTrack]) -> dict[str, Any]:
    """Return rates with counts: per group and label, and AUC of each kind of attack.

    Tracks without a verdict (undecided, abstain) are counted apart: they neither alarm nor count as
    right.
    """
    cells: dict[str, dict[str, Any]] = {}
    by_cell: defaultdict[tuple[str, str], list[ClipTrack]] = defaultdict(list)
    for item in judged:
        by_cell[item.group, item.label].append(item.track)
    for (group, label), tracks in sorted(by_cell.items()):
        decided = [t for t in tracks if t.verdict in (Verdict.ATTACK, Verdict.BONA_FIDE)]
        alarmed = sum(t.alarmed for t in tracks)
        wrong = alarmed if label == "bona_fide" else sum(not t.alarmed for t in decided)
        n = len(decided)
        cells[f"{group} / {label}"] = {
            "rate": "BPCER" if label == "bona_fide" else "APCER",
            "tracks": len(tracks),
            "decided": n,
            "alarmed": alarmed,
            "errors": wrong,
            "value": wrong / n if n else math.nan,
            "wilson_95": wilson(min(wrong, n), n) if n else (math.nan, math.nan),
        }
    peaks: defaultdict[str, list[float]] = defaultdict(list)
    for item in judged:
        if item.track.last is not None and item.track.n_scores >= 3:
            peaks[item.label].append(item.track.last)
    areas = {
        label: {
            "auc": float(_roc(peaks["bona_fide"], scores).auc()),
            "bona_fide": len(peaks["bona_fide"]),
            "attacks": len(scores),
        }
        for label, scores in sorted(peaks.items())
        if label != "bona_fide"
    }
    return {"rates": cells, "auc_of_last_track_score": areas}


def _roc(bona_fide: Sequence[float], attacks: Sequence[float]) -> Roc:
    return roc([0] * len(bona_fide) + [1] * len(attacks), [*bona_fide, *attacks])


def save_report(
    path: Path,
    judged: Sequence[JudgedTrack],
    stills: Sequence[dict[str, Any]],
    manifest_sha256: str,
) -> dict[str, Any]:
    """Write summary and tracks as JSON; returns the summary."""
    summary = summarise(judged)
    tracks = [{"group": j.group, "label": j.label, **asdict(j.track)} for j in judged]
    report = {"onnx_sha256": manifest_sha256, **summary, "stills": stills, "tracks": tracks}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return summary
