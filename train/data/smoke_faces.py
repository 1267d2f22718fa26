"""Smoke faces: a recipe's whole way in seconds, without any data set.

They are drawn, look like no face that a detector should meet, and a score on them says one thing
only: that the loop learns. Attacks are such faces with a screen's grid over them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

import stream
from train.data.shard_writer import ShardWriter
from train.data.shards import FaceRecord, PreparedConfig, encode_crop

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SIZE_PX: Final = 128
MARGIN: Final = 2.0
_SPLITS: Final = (("train", 96), ("dev", 32), ("test", 32))  # faces of each class
_PERIOD_PX: Final = 4  # of the screen's grid
_DEPTH: Final = 0.35


def write_smoke_faces(
    folder: Path, *, window: Literal["pad", "inside"] = "pad", seed: int = 0
) -> None:
    """Write a prepared folder of smoke faces, 160 bona fide and 160 attacks; the same for a seed.

    Args:
        folder: made if missing.
        window: rule of `InputSpec` that a network will cut them by; the pictures are the same.
        seed: of every draw.

    Raises:
        TrainError: the folder holds other faces, or can't be written.
    """
    about = PreparedConfig(
        size_px=SIZE_PX,
        margin=MARGIN,
        window=window,
        code_version=stream.__version__,
        options={"seed": seed},
    )
    rng = np.random.default_rng(seed)
    samples: list[tuple[FaceRecord, bytes]] = []
    for split, n in _SPLITS:
        for i in range(2 * n):
            is_attack = bool(i % 2)
            image, landmarks = smoke_face(rng, screen=is_attack)
            video = f"smoke:{split}/{i:03d}"
            record = FaceRecord.model_validate(
                {
                    "sample_id": video,
                    "dataset": "smoke",
                    "video_id": video,
                    "source_id": video,
                    "split": split,
                    "label": int(is_attack),
                    "attack_type": "replay" if is_attack else None,
                    "frame": 0,
                    "pts_s": 0,
                    "track": 0,
                    "box": (32, 32, 96, 96),
                    "face": (32, 32, 96, 96),
                    "landmarks": landmarks.tolist(),
                    "face_px": 64,
                    "source_sha256": "",
                    "licence": "Apache-2.0 (drawn by this program)",
                }
            )
            samples.append((record, encode_crop(image)))
    with ShardWriter(folder, about, samples_per_shard=len(samples)) as shards:
        if not shards.stored:
            shards.add(samples)
    (folder / "problems.jsonl").touch()


def smoke_face(
    rng: np.random.Generator, *, screen: bool
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draw one smoke face: a loose crop (128, 128, 3) RGB, and its landmarks (5, 2) px.

    Args:
        rng: source of every draw.
        screen: lay a screen's grid over it.
    """
    picture = Image.new("RGB", (SIZE_PX, SIZE_PX), _colour(rng, 60, 200))
    draw = ImageDraw.Draw(picture)
    dx, dy = rng.uniform(-4, 4, 2)
    skin = _colour(rng, 110, 230)
    draw.ellipse((34 + dx, 28 + dy, 94 + dx, 100 + dy), fill=skin)
    landmarks = np.array([[50, 56], [78, 56], [64, 70], [54, 84], [74, 84]]) + np.array([dx, dy])
    dark = _colour(rng, 10, 70)
    for x, y in landmarks[:2]:
        draw.ellipse((x - 5, y - 3, x + 5, y + 3), fill=dark)
    nose, left, right = landmarks[2], landmarks[3], landmarks[4]
    draw.line((nose[0], nose[1] - 10, nose[0] + 2, nose[1]), fill=dark, width=2)
    draw.line((*left, *right), fill=_colour(rng, 60, 140), width=3)
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(1.2)), np.float32)
    if screen:
        phase = rng.integers(_PERIOD_PX, size=2)
        line = np.arange(SIZE_PX) % _PERIOD_PX
        dim = np.ones((SIZE_PX, SIZE_PX), np.float32)
        dim[line == phase[0]] -= _DEPTH
        dim[:, line == phase[1]] -= _DEPTH
        soft = soft * dim[:, :, None]
    noisy = soft + rng.normal(0, 3, soft.shape)
    return np.clip(noisy + 0.5, 0, 255).astype(np.uint8), landmarks.astype(np.float32)


def _colour(rng: np.random.Generator, low: int, high: int) -> tuple[int, int, int]:
    red, green, blue = (int(v) for v in rng.integers(low, high, 3))
    return red, green, blue
