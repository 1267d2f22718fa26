"""Draw a contact sheet of synthetic attacks: look at it before every training run.

`python -m train.attacks --out sheet.png` draws them of the astronaut of scikit-image,
`--picture FILE` of the best face in a picture, `--prepared DIR` of faces that a run will learn
from. Beside the sheet, `sheet.jsonl` says how each attack was made.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps

from models import BONA_FIDE, InputSpec, crop_faces, crop_window
from stream.config import DetectConfig
from stream.stages.detect import open_detector
from train.attacks import FAMILIES, LooseCrop
from train.attacks.camera import degrade
from train.data.shards import open_shards
from train.errors import TrainError
from trt_engines.backends import OnnxRuntimeConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_SPEC = InputSpec(size_px=256, margin=2.0)  # of a face cut from a picture
_CAPTION_PX = 16


def main() -> None:
    """Find the faces, make the attacks, write the sheet."""
    parser = argparse.ArgumentParser(prog="python -m train.attacks", description=__doc__)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--picture", type=Path, help="any picture with a face")
    source.add_argument("--prepared", type=Path, help="folder made by `python -m train prepare`")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--rows", type=int, default=4, help="draws of each family")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    try:
        if args.prepared:
            faces = _prepared_faces(args.prepared, args.rows, rng)
        else:
            faces = [_best_face(_picture(args.picture))] * args.rows
    except (TrainError, OSError) as error:
        parser.error(str(error))
    sheet, lines = draw_sheet(faces, rng)
    Image.fromarray(sheet).save(args.out, "PNG")
    args.out.with_suffix(".jsonl").write_text("".join(f"{line}\n" for line in lines))


def draw_sheet(
    faces: Sequence[LooseCrop], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], list[str]]:
    """Draw each face beside an attack of every family, and below what a camera makes of them.

    Args:
        faces: Bona fide, of one size.
        rng: Source of every draw.

    Returns:
        The sheet, RGB, and a line of JSON for each attack: row, family, parameters.
    """
    size = faces[0].image.shape[0]
    captions = Image.new("RGB", ((1 + len(FAMILIES)) * size, _CAPTION_PX), "white")
    for column, name in enumerate(("bona fide", *FAMILIES)):
        ImageDraw.Draw(captions).text((column * size + 4, 2), name, "black")
    rows, lines = [np.asarray(captions)], []
    for row, face in enumerate(faces):
        attacks = [make(face, rng) for make in FAMILIES.values()]
        images = [face.image, *(attack.image for attack in attacks)]
        camera = int(rng.integers(2**63))
        filmed = [degrade(image, np.random.default_rng(camera)) for image in images]
        rows += [np.concatenate(images, 1), np.concatenate(filmed, 1)]
        lines += [
            json.dumps({"row": row, "family": attack.family, "parameters": attack.parameters})
            for attack in attacks
        ]
    return np.concatenate(rows), lines


def _prepared_faces(folder: Path, n: int, rng: np.random.Generator) -> list[LooseCrop]:
    shards = open_shards(folder)
    rows = [
        row
        for row, record in enumerate(shards.records)
        if record.label == BONA_FIDE and record.split == "train"
    ]
    if not rows:
        raise TrainError(f"{folder}: no bona fide face of split train")
    return [
        LooseCrop(shards.crop(row), np.array(shards.records[row].landmarks, np.float32))
        for row in rng.permutation(rows)[:n]
    ]


def _picture(path: Path | None) -> NDArray[np.uint8]:
    if path is not None:
        with Image.open(path) as picture:
            return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    try:
        from skimage.data import astronaut  # of the extra `dev`, and only this needs it
    except ImportError as error:
        raise TrainError(
            "the astronaut needs scikit-image; install it, or give --picture"
        ) from error
    return np.asarray(astronaut())  # type: ignore[no-untyped-call]  # scikit-image has no types


def _best_face(image: NDArray[np.uint8]) -> LooseCrop:
    """Cut the most certain face as `prepare` does."""
    frame = torch.from_numpy(image)
    with open_detector(DetectConfig(), OnnxRuntimeConfig()) as detector:
        (found,) = detector.detect([frame], [None])
    if not found:
        raise TrainError("no face was found in the picture; give one with a larger face")
    left, top, side = crop_window(found[0].box, _SPEC.margin)
    crop = crop_faces(frame, found[0].box[None], _SPEC)[0]
    points = (found[0].landmarks - (left, top)) * (_SPEC.size_px / side)
    return LooseCrop(crop.permute(1, 2, 0).contiguous().numpy(), points.astype(np.float32))


if __name__ == "__main__":
    main()
