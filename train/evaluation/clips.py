"""Judge deployed detectors on labelled real clips, through the streaming path, per track.

Reports counts with every rate, and nothing is chosen here: the thresholds are those of the engines'
manifests. Beside what the detectors say together stands what each says for itself.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
import yaml
from PIL import Image, ImageOps
from pydantic import BaseModel, Field, ValidationError

from models import crop_faces, one_line, whole_file
from stream.records import Verdict
from stream.stages.align import aligned, common_scale
from train.errors import TrainError
from train.evaluation.clip_tracks import ClipTrack, tracks_of_clip
from train.evaluation.measures import finite
from train.evaluation.metrics.intervals import wilson
from train.evaluation.metrics.roc import roc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stream.analyse import Analyser
    from stream.config import DecodeConfig
    from stream.stages.detect import FaceDetector
    from stream.stages.infer import Classifier
    from trt_engines.manifest import Manifest

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
    note: str = Field("", description="For people.")


class LabelledStill(BaseModel, frozen=True, extra="forbid"):
    """One real picture; its largest face is judged by a single look."""

    path: Path = Field(description="Relative to the root.")
    group: str = Field(description="Kind of picture, for the report.")
    label: Label = Field(description="What every face in it is.")


class LabelledClips(BaseModel, frozen=True, extra="forbid"):
    """What to judge on; test data only, never used to choose anything."""

    clips: tuple[LabelledClip, ...] = Field(min_length=1, description="Videos.")
    stills: tuple[LabelledStill, ...] = Field((), description="Pictures.")


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
    except ValidationError as error:
        raise TrainError(f"{path}: {one_line(error, LabelledClips)}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainError(f"{path}: can't read the list of labelled clips: {error}") from error


def judge_clips(
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
    face_detector: FaceDetector,
    classifiers: Sequence[Classifier],
) -> list[dict[str, Any]]:
    """Return path, group, label and probabilities (None: no face) of each picture.

    `probability` is the highest on the detectors' common scale, as the stream fuses them;
    `detectors` has each one's own, in their order.

    Raises:
        TrainError: a listed picture is missing or damaged.
    """
    stills = []
    for still in labelled.stills:
        image = _picture(root / still.path)
        (detections,) = face_detector.detect([image], [None])
        said: list[float] = []
        if detections:
            largest = max(detections, key=lambda d: float(d.box[2] - d.box[0]))
            for classifier in classifiers:
                crop = crop_faces(image, largest.box[None], classifier.manifest.input)
                said += classifier.probabilities(crop)
        stills.append(
            {
                **still.model_dump(mode="json"),
                "probability": _fused(said, classifiers) if said else None,
                "detectors": said or None,
            }
        )
    return stills


def _fused(said: Sequence[float], classifiers: Sequence[Classifier]) -> float:
    """Return the highest of a look's probabilities, on the common scale."""
    thresholds = [t for c in classifiers if (t := c.manifest.thresholds) is not None]
    common = common_scale(thresholds)
    return max(aligned(p, own, common) for p, own in zip(said, thresholds, strict=True))


def _picture(path: Path) -> torch.Tensor:
    """Return a picture as it is to be looked at: (H, W, 3) RGB."""
    try:
        with Image.open(path) as picture:
            return torch.from_numpy(np.array(ImageOps.exif_transpose(picture).convert("RGB")))
    except (OSError, SyntaxError) as error:  # a damaged PNG is a SyntaxError to Pillow
        raise TrainError(f"{path}: can't read the picture: {error}") from error


def summarise(judged: Sequence[JudgedTrack], *, min_scores: int) -> dict[str, Any]:
    """Return rates with counts: per group and label, and AUC of each kind of attack.

    Tracks without a verdict (undecided, abstain) are counted apart: they neither alarm nor count as
    right. What has no value, for lack of tracks, is None.

    Args:
        judged: tracks and the truth; all were judged by the same detectors.
        min_scores: looks from which on streaming decides; tracks with fewer have no part in the
            AUC. Of a detector's own AUC the same holds for its own looks.
    """
    by_cell: defaultdict[tuple[str, str], list[ClipTrack]] = defaultdict(list)
    fused: list[tuple[str, float]] = []
    for item in judged:
        track = item.track
        by_cell[item.group, item.label].append(track)
        if track.last is not None and track.n_scores >= min_scores:
            fused.append((item.label, track.last))
    return {
        "rates": {
            f"{group} / {label}": _rate(label, tracks)
            for (group, label), tracks in sorted(by_cell.items())
        },
        "families_of_alarms": _families(judged),
        "auc_of_last_track_score": _areas(fused),
        "detectors": _each(judged, min_scores),
    }


def _families(judged: Sequence[JudgedTrack]) -> dict[str, dict[str, int]]:
    """Return, by label, how many of the tracks that alarmed were said to be of which family."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for item in judged:
        if item.track.family is not None:
            found[item.label][item.track.family] += 1
    return {label: dict(sorted(counts.items())) for label, counts in sorted(found.items())}


def _each(judged: Sequence[JudgedTrack], min_scores: int) -> list[dict[str, Any]]:
    """Return what each detector made of the tracks by itself, in their order."""
    said = zip(*(item.track.detectors for item in judged), strict=True)
    labels = [item.label for item in judged]
    return [
        {
            "name": scores[0].name,
            "family": scores[0].family,
            "abstained": dict(sorted(Counter(s.problem for s in scores if s.problem).items())),
            "auc_of_last_track_score": _areas(
                [
                    (label, score.probability)
                    for label, score in zip(labels, scores, strict=True)
                    if score.probability is not None and score.n_scores >= min_scores
                ]
            ),
        }
        for scores in said
    ]


def _areas(last: Sequence[tuple[str, float]]) -> dict[str, dict[str, Any]]:
    """Return the AUC of each kind of attack against bona fide.

    Args:
        last: label and last probability of each track.
    """
    by_label: defaultdict[str, list[float]] = defaultdict(list)
    for label, probability in last:
        by_label[label].append(probability)
    bona_fide = by_label.pop("bona_fide", [])
    return {
        label: {
            "auc": _auc(bona_fide, attacks),
            "bona_fide": len(bona_fide),
            "attacks": len(attacks),
        }
        for label, attacks in sorted(by_label.items())
    }


def _rate(label: str, tracks: Sequence[ClipTrack]) -> dict[str, Any]:
    """Return the error rate of tracks of one label, with its counts."""
    alarmed = sum(track.alarmed for track in tracks)
    decided = sum(
        track.alarmed or track.verdict in (Verdict.ATTACK, Verdict.BONA_FIDE) for track in tracks
    )
    errors = alarmed if label == "bona_fide" else decided - alarmed
    return {
        "rate": "BPCER" if label == "bona_fide" else "APCER",
        "tracks": len(tracks),
        "decided": decided,
        "alarmed": alarmed,
        "errors": errors,
        "value": errors / decided if decided else None,
        "wilson_95": wilson(errors, decided) if decided else None,
    }


def _auc(bona_fide: Sequence[float], attacks: Sequence[float]) -> float | None:
    labels = [0] * len(bona_fide) + [1] * len(attacks)
    return finite(float(roc(labels, [*bona_fide, *attacks]).auc()))


def write_judgement(
    path: Path,
    judged: Sequence[JudgedTrack],
    stills: Sequence[dict[str, Any]],
    *,
    engines: Sequence[Manifest],
    min_scores: int,
) -> dict[str, Any]:
    """Write summary and tracks as JSON; returns the summary.

    Args:
        path: of the file.
        judged: tracks and the truth.
        stills: as of `judge_stills`.
        engines: that judged, in their order.
        min_scores: see `summarise`.

    Raises:
        OSError: the folder can't be made, is full, or may not be written.
    """
    summary = summarise(judged, min_scores=min_scores)
    tracks = [{"group": j.group, "label": j.label, **asdict(j.track)} for j in judged]
    content = {
        "engines": [
            engine.model_dump(include={"name", "method", "family", "onnx_sha256", "thresholds"})
            for engine in engines
        ],
        **summary,
        "stills": stills,
        "tracks": tracks,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as whole:
        whole.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return summary
