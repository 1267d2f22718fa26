"""Provisional."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stream.records import FaceQuality, QualityProblem

if TYPE_CHECKING:
    from torch import Tensor

    from stream.config import QualityConfig
    from stream.records import FaceDetection


def assess(image: Tensor, detection: FaceDetection, config: QualityConfig) -> FaceQuality:
    """Provisional."""
    x1, y1, x2, y2 = detection.box
    side = float(max(x2 - x1, y2 - y1))
    return FaceQuality(
        face_px=side,
        sharpness=0.5,
        brightness=0.5,
        turn=0.0,
        problem=QualityProblem.TOO_SMALL if side < config.min_face_px else None,
    )
