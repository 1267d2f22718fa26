"""The videos that a detector misjudges most: what to look at first."""

from __future__ import annotations

import io
from collections import defaultdict
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from models import InputSpec, crop_faces
from train.evaluation.measures import ReportPart
from train.evaluation.scores import video_samples

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from train.data.shards import Shards
    from train.evaluation.scores import FrameScore

_PICTURE_PX: Final = 112
_JPEG_QUALITY: Final = 85


class WorstVideo(ReportPart):
    """A video, and the one of its frames that speaks most for the wrong class."""

    sample_id: str = Field(description="Of that frame.")
    dataset: str
    video_id: str
    attack_type: str | None = Field(description="null: bona fide.")
    frame: int
    frame_score: float
    score: float = Field(description="The video's.")
    wrong: bool = Field(description="The video lies on the wrong side of the threshold.")


class WorstCases(ReportPart):
    """Of one test set."""

    bona_fide: tuple[WorstVideo, ...] = Field(description="Highest score first.")
    attacks: tuple[WorstVideo, ...] = Field(description="Lowest score first.")


def worst_cases(rows: Sequence[FrameScore], aggregate: str, threshold: float, n: int) -> WorstCases:
    """Return the `n` bona fide videos of highest score, and the `n` attacks of lowest.

    Videos without a face have no picture to show and are left out.

    Args:
        rows: frames of a test set.
        aggregate: how frames make a video's score.
        threshold: at or above it a video counts as an attack.
        n: 0 or more.
    """
    frames: defaultdict[str, list[FrameScore]] = defaultdict(list)
    for row in rows:
        if row.score is not None:
            frames[f"{row.dataset}/{row.video_id}"].append(row)
    videos = video_samples(rows, aggregate, "exclude")

    def cases(label: int) -> tuple[WorstVideo, ...]:
        sign = 1 - 2 * label  # a high score is wrong of bona fide videos, a low one of attacks
        of_class = np.flatnonzero(videos.labels == label)
        order = of_class[np.argsort(-sign * videos.evidence[of_class], kind="stable")]
        return tuple(
            _case(frames[str(videos.names[i])], videos.scores[i], sign, threshold)
            for i in order[:n]
        )

    return WorstCases(bona_fide=cases(0), attacks=cases(1))


def _case(frames: Sequence[FrameScore], score: float, sign: int, threshold: float) -> WorstVideo:
    worst = max(frames, key=lambda row: sign * (row.score or 0.0))
    return WorstVideo(
        sample_id=worst.sample_id,
        dataset=worst.dataset,
        video_id=worst.video_id,
        attack_type=worst.attack_type,
        frame=worst.frame,
        frame_score=worst.score or 0.0,
        score=float(score),
        wrong=bool((score >= threshold) == (worst.label == 0)),
    )


def pictures_of(
    cases: Iterable[WorstCases], shards: Shards, rows: Iterable[int], spec: InputSpec
) -> dict[str, bytes]:
    """Return the crops of worst cases as small JPEGs, by sample id: what the network looked at.

    Args:
        cases: of any number of test sets.
        shards: that hold their faces.
        rows: where in the shards to look for them.
        spec: of the network.

    Raises:
        TrainError: a shard can't be read.
    """
    wanted = {case.sample_id for found in cases for case in (*found.bona_fide, *found.attacks)}
    pictures = {}
    searched = list(rows)
    for row, sample_id in zip(searched, shards.records.sample_ids(searched), strict=True):
        if sample_id in wanted:
            pictures[sample_id] = _picture(shards, row, spec)
    return pictures


def _picture(shards: Shards, row: int, spec: InputSpec) -> bytes:
    loose = torch.from_numpy(shards.crop(row))
    box = shards.records.face(row)[None].astype(np.float32)
    small = spec.model_copy(update={"size_px": _PICTURE_PX})
    crop = crop_faces(loose, box, small)[0].permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(crop).save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()
