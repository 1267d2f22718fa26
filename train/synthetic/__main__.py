"""Draw a contact sheet of synthetic attacks: look at it before every training run.

`python -m train.synthetic --faces shared/data/faces/faces_bonafide.zip --out sheet.png`
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from train.augment import degrade
from train.synthetic import LooseCrop, print_attack, replay, self_blend

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_SIDE = 256  # px of a loose crop
_MARGIN = 2.0


def main() -> None:
    """Read faces, make the attacks, write the sheet."""
    parser = argparse.ArgumentParser(prog="python -m train.synthetic", description=__doc__)
    parser.add_argument("--faces", type=Path, required=True, help="folder or zip of pictures")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--rows", type=int, default=8, help="number of faces")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not args.faces.is_dir() and not zipfile.is_zipfile(args.faces):
        parser.error(f"--faces must be a folder or a zip of pictures, got {args.faces}")
    rng = np.random.default_rng(args.seed)
    rows = []
    for image in _pictures(args.faces, rng):
        face = _loose_crop(image)
        if face is not None:
            rows.append(_row(face, rng))
        if len(rows) == args.rows:
            break
    if not rows:
        parser.error(
            f"no face was found in {args.faces}; give a folder or zip of JPEG or PNG portraits"
        )
    Image.fromarray(np.concatenate(rows)).save(args.out)


def _row(face: LooseCrop, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Bona fide, SBI, replay twice, print twice; below each the same after `degrade`."""
    makers = (self_blend, replay, replay, print_attack, print_attack)
    images = [face.image, *(make(face, rng).image for make in makers)]
    return np.concatenate(
        [np.concatenate(images, 1), np.concatenate([degrade(image, rng) for image in images], 1)]
    )


def _pictures(faces: Path, rng: np.random.Generator) -> Iterator[NDArray[np.uint8]]:
    """Yield the pictures of a folder or zip in random order, RGB."""
    suffixes = {".jpg", ".jpeg", ".png"}
    if faces.is_dir():
        names = sorted(str(path) for path in faces.rglob("*") if path.suffix.lower() in suffixes)
        for index in rng.permutation(len(names)):
            yield np.asarray(Image.open(names[index]).convert("RGB"))
        return
    with zipfile.ZipFile(faces) as archive:
        names = sorted(name for name in archive.namelist() if Path(name).suffix.lower() in suffixes)
        for index in rng.permutation(len(names)):
            yield np.asarray(Image.open(io.BytesIO(archive.read(names[index]))).convert("RGB"))


def _loose_crop(image: NDArray[np.uint8]) -> LooseCrop | None:
    """Find the most certain face and cut it with its surroundings; None where there is no face."""
    from facenet_pytorch import MTCNN  # slow to import, and only the sheet needs it

    boxes, _, landmarks = MTCNN(keep_all=False).detect(Image.fromarray(image), landmarks=True)
    if boxes is None:
        return None
    x1, y1, x2, y2 = boxes[0]
    side = _MARGIN * max(x2 - x1, y2 - y1)
    left, top = (x1 + x2 - side) / 2, (y1 + y2 - side) / 2
    pad = int(side)
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
    box = (left + pad, top + pad, left + pad + side, top + pad + side)
    cut = Image.fromarray(padded).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, box=box)
    points = (landmarks[0] - (left, top)) * (_SIDE / side)
    return LooseCrop(np.asarray(cut), points.astype(np.float32))


if __name__ == "__main__":
    main()
