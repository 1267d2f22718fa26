"""Prepared faces: loose crops with landmarks, on disk, as `python -m train prepare` leaves them.

A folder holds `faces.npy`, uint8 (N, 256, 256, 3) RGB, read through memory mapping, and
`faces.jsonl`, one `PreparedFace` a line in the same order. A loose crop is the square of side 2 x
the longer side of the face box, so an attack can be drawn around the face before the network's own,
tighter crop is cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from pydantic import BaseModel

from models._contract import InputSpec
from train.errors import TrainError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LOOSE: Final = InputSpec(size_px=256, margin=2.0)
LOOSE_FACE_BOX: Final = np.array([64, 64, 192, 192], np.float32)  # of every loose crop, px


class PreparedFace(BaseModel, frozen=True, extra="forbid"):
    """What is known of one loose crop."""

    source: str  # archive member or clip, relative to the collection's root
    group: str
    split: Literal["train", "calibration"]
    frame: int  # index in the clip; 0 for a picture
    face_px: float  # longer side of the face box in the source
    landmarks: tuple[tuple[float, float], ...]  # (5, 2), pixels of the loose crop
    licence: str


@dataclass(frozen=True, slots=True)
class PreparedFaces:
    """The folder, opened."""

    faces: tuple[PreparedFace, ...]
    images: NDArray[np.uint8]  # (N, 256, 256, 3) RGB, memory-mapped

    def where(self, split: str) -> list[int]:
        """Return the indices of a split.

        Raises:
            TrainError: it is empty.
        """
        found = [i for i, face in enumerate(self.faces) if face.split == split]
        if not found:
            raise TrainError(f"the prepared faces hold none of split {split!r}")
        return found


def open_prepared(folder: Path) -> PreparedFaces:
    """Open a prepared folder.

    Raises:
        TrainError: missing or incomplete.
    """
    try:
        lines = (folder / "faces.jsonl").read_text(encoding="utf-8").splitlines()
        images = np.load(folder / "faces.npy", mmap_mode="r")
    except (OSError, ValueError) as error:
        raise TrainError(
            f"{folder}: no prepared faces ({error}); run `python -m train prepare` first"
        ) from error
    faces = tuple(PreparedFace.model_validate_json(line) for line in lines)
    if len(faces) != len(images):
        raise TrainError(f"{folder}: {len(faces)} lines but {len(images)} pictures; prepare again")
    return PreparedFaces(faces, images)
