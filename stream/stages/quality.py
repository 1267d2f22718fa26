"""The quality gate: which faces can be judged at all, and which a detector can be shown.

Measured in pixels of the source. The limits, in `QualityConfig`, turn away only what nobody could
judge: a replay is often blurred, dim or glossy, and must be scored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from models import crop_window
from stream.records import FaceQuality, QualityProblem

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from models import InputSpec
    from stream.config import QualityConfig
    from stream.records import FaceDetection

GRID = 24  # side of the thumbnail on which sharpness is measured, whatever the face's size
INNER = 0.8  # side of the thumbnail over the side of the box: as good as no background
SAMPLES_PX = 96  # a larger face is subsampled to 1..2 times as much before it is averaged
MAX_TURN = 2.0  # the eyes of a full profile may coincide


def assess(image: Tensor, detection: FaceDetection, config: QualityConfig) -> FaceQuality:
    """Measure a face and name the first of its problems.

    Sharpness is the strength of the Laplacian over the contrast, both of a thumbnail of the face:
    0 for one without detail, 1 for white noise. A pale picture is not taken for a blurred one.

    Args:
        image: (H, W, 3) uint8 RGB, any device.
        detection: the face, pixels of `image`; may reach outside.
        config: the limits.
    """
    x1, y1, x2, y2 = (float(v) for v in detection.box)
    face_px = max(x2 - x1, y2 - y1)
    brightness, sharpness = _measure(_thumbnail(image, x1, y1, x2, y2))
    turn = _turn(detection.landmarks)
    problem = None
    if face_px < config.min_face_px:
        problem = QualityProblem.TOO_SMALL
    elif brightness < config.min_brightness:
        problem = QualityProblem.DARK
    elif brightness > config.max_brightness:
        problem = QualityProblem.OVER_EXPOSED
    elif sharpness < config.min_sharpness:
        problem = QualityProblem.BLURRED
    elif turn > config.max_turn:
        problem = QualityProblem.TURNED_AWAY
    return FaceQuality(
        face_px=face_px, sharpness=sharpness, brightness=brightness, turn=turn, problem=problem
    )


def window_problem(
    box: NDArray[np.float32], spec: InputSpec, frame_px: tuple[int, int], config: QualityConfig
) -> QualityProblem | None:
    """Return `CUT_OFF` where the frame holds too little of a detector's window, as `window_share`.

    Args:
        box: (4,) x1 y1 x2 y2, pixels of the frame.
        spec: of the detector.
        frame_px: width and height of the frame.
        config: the limits.
    """
    too_little = window_share(box, spec, frame_px) < config.min_window
    return QualityProblem.CUT_OFF if too_little else None


def window_share(box: NDArray[np.float32], spec: InputSpec, frame_px: tuple[int, int]) -> float:
    """Return how much of the window that a detector wants of a face the frame holds, 0..1 by area.

    A `pad` window lacks what it has outside the frame. An `inside` window lacks nothing where it
    was only shifted, and what it lost where it had to shrink.

    Args:
        box: (4,) x1 y1 x2 y2, pixels of the frame.
        spec: of the detector.
        frame_px: width and height of the frame.
    """
    window = crop_window(box, spec, frame_px)
    held = _overlap(window.left, window.width, frame_px[0]) * _overlap(
        window.top, window.height, frame_px[1]
    )
    x1, y1, x2, y2 = (float(v) for v in box)
    wanted = spec.margin**2 * (x2 - x1) * (y2 - y1)
    if spec.window == "pad":
        wanted = window.width * window.height
    return min(held / wanted, 1.0)  # the corners of an `inside` window are rounded outwards


def _overlap(low: float, length: float, n: int) -> float:
    """Return how long a part of an interval lies within 0..n."""
    return max(min(low + length, n) - max(low, 0.0), 0.0)


def _thumbnail(image: Tensor, x1: float, y1: float, x2: float, y2: float) -> Tensor:
    """Return (GRID, GRID) luma 0..1 of the inner face, as far as it lies in the frame."""
    height, width = image.shape[:2]
    left, right = _visible(x1, x2, width)
    top, bottom = _visible(y1, y2, height)
    step = max(1, max(right - left, bottom - top) // SAMPLES_PX)
    window = image[top:bottom:step, left:right:step].float()
    luma = window @ window.new_tensor([0.299, 0.587, 0.114]) / 255
    return F.adaptive_avg_pool2d(luma[None], GRID)[0]


def _visible(low: float, high: float, size: int) -> tuple[int, int]:
    """Return the inner part of an interval, within 0..size and at least one pixel long."""
    margin = (high - low) * (1 - INNER) / 2
    first = min(max(round(low + margin), 0), size - 1)
    return first, min(max(round(high - margin), first + 1), size)


def _measure(thumbnail: Tensor) -> tuple[float, float]:
    """Return brightness and sharpness."""
    centre = thumbnail[1:-1, 1:-1]
    sides = thumbnail[:-2, 1:-1] + thumbnail[2:, 1:-1] + thumbnail[1:-1, :-2] + thumbnail[1:-1, 2:]
    laplacian = 4 * centre - sides  # 20 times the variance of white noise
    contrast = thumbnail.var(correction=0).clamp_min(1 / 255**2)  # less than a grey level is none
    sharpness = (laplacian.square().mean() / 20 / contrast).sqrt().clamp_max(1)
    brightness = thumbnail[GRID // 8 : -GRID // 8, GRID // 8 : -GRID // 8].mean()  # without hair
    values: list[float] = torch.stack([brightness, sharpness]).tolist()  # one wait for the device
    return values[0], values[1]


def _turn(landmarks: NDArray[np.float32]) -> float:
    """Return how far the nose is off the middle between the eyes, along their line.

    In halves of the eyes' distance: 0 frontal, 1 where the nose is level with an eye.
    """
    left, right, nose = landmarks[:3].astype(np.float64)
    line = right - left
    offset = abs((nose - (left + right) / 2) @ line)
    return float(min(offset / max(line @ line / 2, 1e-9), MAX_TURN))
