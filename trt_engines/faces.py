"""Faces that engines are calibrated and judged on, and what each network is shown of them.

A face file (safetensors) holds `pictures`, (N, 3, S, S) uint8 RGB, each with a face and much around
it, and `boxes`, (N, 4) float32 x1 y1 x2 y2, pixels of its picture. Pictures of one source follow
each other: the first half calibrates, the second judges, so that hardly anybody is in both.
`python -m benchmarks.engine_faces` makes one of videos.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch.nn import functional as F

from models import InputSpec, crop_faces, whole_file
from trt_engines.errors import EngineError
from trt_engines.mtcnn import PARTS

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from trt_engines.manifest import Manifest

# Sides of a face, px, in the copies of a picture that a network of pictures (P-Net) is shown.
_FACE_SIDES_PX: Final = (10, 14, 20)
_SMALLEST_PX: Final = 24


@dataclass(frozen=True, slots=True, eq=False)
class FaceSet:
    """Pictures with one known face each.

    Attributes:
        pictures: (N, 3, S, S) uint8 RGB.
        boxes: (N, 4) float32, pixels of the picture.
        sha256: of the file, or of what would be in it.
    """

    pictures: Tensor
    boxes: Tensor
    sha256: str

    def half(self, which: int) -> FaceSet:
        """Return the first (0: to calibrate) or the second half (1: to judge)."""
        middle = (len(self.boxes) + 1) // 2
        part = slice(None, middle) if which == 0 else slice(middle, None)
        return FaceSet(self.pictures[part], self.boxes[part], self.sha256)

    def some(self, most: int) -> FaceSet:
        """Return at most so many of them, evenly over all."""
        chosen = torch.linspace(0, len(self.boxes) - 1, min(most, len(self.boxes))).long()
        return FaceSet(self.pictures[chosen], self.boxes[chosen], self.sha256)


def save_faces(path: Path, pictures: Tensor, boxes: Tensor) -> None:
    """Write a face file, replacing an old one in one step."""
    content = save({"pictures": pictures.contiguous(), "boxes": boxes.float().contiguous()})
    with whole_file(path) as partial:
        partial.write_bytes(content)


def load_faces(path: Path) -> FaceSet:
    """Read a face file.

    Raises:
        EngineError: missing, or not one.
    """
    how = "make one with `python -m benchmarks.engine_faces`"
    try:
        content = path.read_bytes()
        tensors = load(content)
        pictures, boxes = tensors["pictures"], tensors["boxes"]
    except OSError as error:
        raise EngineError(f"{path}: can't read the face file ({error.strerror}); {how}") from error
    except (SafetensorError, KeyError) as error:
        raise EngineError(f"{path}: not a face file ({error}); {how}") from error
    fits = pictures.ndim == 4 and pictures.shape[1] == 3 and boxes.shape == (len(pictures), 4)
    if not fits or pictures.dtype != torch.uint8 or len(boxes) < 2:
        raise EngineError(
            f"{path}: expected pictures (N >= 2, 3, S, S) uint8 and boxes (N, 4), found "
            f"{tuple(pictures.shape)} {pictures.dtype} and {tuple(boxes.shape)}; {how}"
        )
    return FaceSet(pictures, boxes.float(), hashlib.sha256(content).hexdigest())


def shown(manifest: Manifest, faces: FaceSet) -> list[Tensor]:
    """Return what a network is given of the faces, in batches that it takes.

    An attack detector is given the crops of `crop_faces`. MTCNN's networks, whose manifests name no
    method, are given what the cascade makes of pictures with such faces: small copies of the whole
    (P-Net, which takes any size), or windows about the face and beside it, as they come from the
    network before (R-Net, O-Net).
    """
    spec = manifest.input
    dtype = getattr(torch, spec.dtype)
    if manifest.method is not None:
        images = [_crops(faces.pictures, faces.boxes, spec)]
    elif 2 in PARTS[manifest.name].dynamic:
        images = _copies(faces)
    else:
        images = [_crops(faces.pictures, _windows(faces.boxes), spec)]
    return [batch.to(dtype) for part in images for batch in torch.split(part, manifest.max_batch)]


def _crops(pictures: Tensor, boxes: Tensor, spec: InputSpec) -> Tensor:
    pairs = zip(pictures, boxes.numpy(), strict=True)
    return torch.cat([crop_faces(p.permute(1, 2, 0), box[None], spec) for p, box in pairs])


def _windows(boxes: Tensor) -> Tensor:
    """Move and scale boxes as an earlier network's guesses are; every fourth is beside its face."""
    generator = torch.Generator().manual_seed(0)
    sides = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1, keepdim=True)
    shifts = (torch.rand((len(boxes), 2), generator=generator) - 0.5) * 0.4
    shifts[::4] *= 6
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 + shifts * sides
    halves = sides * (0.4 + 0.25 * torch.rand((len(boxes), 1), generator=generator))
    return torch.cat([centres - halves, centres + halves], dim=1)


def _copies(faces: FaceSet) -> list[Tensor]:
    face_px = float((faces.boxes[:, 2:] - faces.boxes[:, :2]).amax(dim=1).median())
    sides = {
        max(_SMALLEST_PX, round(faces.pictures.shape[-1] * wanted / face_px))
        for wanted in _FACE_SIDES_PX
    }
    whole = faces.pictures.float()
    return [F.interpolate(whole, (side, side), mode="area") for side in sorted(sides)]
