"""Pictures of the likeliest attacks, as the first detector saw them; for people, in the report."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models import crop_faces, whole_file

if TYPE_CHECKING:
    from torch import Tensor

    from models import InputSpec
    from stream.records import Frame, TrackScore

MOST_OF_A_FILE: Final = 4
Pixels: TypeAlias = NDArray[np.uint8]  # (H, W, 3) RGB


class CropKeeper:
    """Cuts the worst look at a track, and keeps those of a file that look worst.

    Args:
        folder: where to; made when the first is kept.
        spec: what the first detector is shown of a face.
        above: looks at tracks of a lower probability are not cut, 0..1.
    """

    def __init__(self, folder: Path, spec: InputSpec, above: float) -> None:
        self._folder = folder
        self._spec = spec.model_copy(update={"dtype": "uint8"})
        self._above = above

    def cut(self, frame: Frame, score: TrackScore) -> Tensor | None:
        """Return (3, S, S) uint8 RGB of the look that a score was made at, or None."""
        if score.probability is None or score.probability < self._above:
            return None
        return crop_faces(frame.image, score.sighting.detection.box[None], self._spec)[0]

    def keep(self, path: bytes, track: int, crop: Tensor) -> str:
        """Keep the crop of a track of a file; return the name it has in the folder."""
        name = f"{hashlib.sha256(path).hexdigest()[:24]}-{track}.png"
        self._write(name, png_of(crop.permute(1, 2, 0).numpy()))
        return name

    def _write(self, name: str, png: bytes) -> None:
        write_crop(self._folder, name, png)


class CropSender(CropKeeper):
    """Keeps the crops in memory, for whoever writes them on another machine.

    Attributes:
        pictures: PNG files, by name.
    """

    def __init__(self, spec: InputSpec, above: float) -> None:
        super().__init__(Path(), spec, above)
        self.pictures: dict[str, bytes] = {}

    def _write(self, name: str, png: bytes) -> None:
        self.pictures[name] = png


def write_crop(folder: Path, name: str, png: bytes) -> None:
    """Write a picture to a folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / name) as partial:
        partial.write_bytes(png)


def png_of(picture: NDArray[np.uint8]) -> bytes:
    """Return a picture, (H, W, 3) RGB or (H, W) grey, as a PNG file."""
    png = io.BytesIO()
    Image.fromarray(picture).save(png, "PNG")
    return png.getvalue()


def overlaid(picture: Pixels, evidence: NDArray[np.float32]) -> Pixels:
    """Lay evidence, 0..1 of any size, over a picture in red."""
    height, width = picture.shape[:2]
    grey = Image.fromarray((evidence.clip(0, 1) * 255).astype(np.uint8))
    share = np.asarray(grey.resize((width, height)), np.float32)[..., None] / 255 * 0.5
    red = np.array([255, 0, 0], np.float32)
    mixed: Pixels = (picture.mean(axis=2, keepdims=True) * (1 - share) + red * share).astype(
        np.uint8
    )
    return mixed
