"""Draw a contact sheet of synthetic attacks: look at it before every training run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from models import BONA_FIDE, InputSpec, crop_faces, crop_window, whole_file
from stream.config import DetectConfig
from stream.stages.detect import open_detector
from train.attacks import FAMILIES, REDRAWN, SCENES, FaceInScene, LooseCrop, SyntheticAttack
from train.attacks.autoencoder import load_autoencoder
from train.attacks.camera import degrade
from train.data.frames import read_picture
from train.data.manifest import read_prepared
from train.data.shards import open_shards
from train.errors import TrainError
from trt_engines.backends import OnnxRuntimeConfig

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from train.attacks.autoencoder import FaceAutoencoder

_SPEC = InputSpec(size_px=256, margin=2.0)  # of a face cut from a picture
_CAPTION_PX = 16


def write_attack_sheet(
    out: Path,
    *,
    picture: Path | None = None,
    prepared: Path | None = None,
    autoencoders: Sequence[Path] = (),
    rows: int = 4,
    seed: int = 0,
) -> None:
    """Write a sheet as PNG, and beside it, as `.jsonl`, how each attack was made.

    Args:
        out: PNG to write.
        picture: with a face; the best one is taken.
        prepared: folder of faces instead; with windows inside the frame, of attacks in scenes.
            Neither: the astronaut of scikit-image.
        autoencoders: draw the families that need them, too.
        rows: draws of each family.
        seed: of every draw.

    Raises:
        TrainError: no face, one of the `autoencoders` is none, or a file can't be read or written.
    """
    rng = np.random.default_rng(seed)
    networks = [load_autoencoder(path) for path in autoencoders]
    if prepared is None:
        made = _with_families([_best_face(_picture(picture))] * rows, networks, rng)
    elif read_prepared(prepared).window == "inside":
        made = _with_scenes(_prepared_faces(prepared, rows, rng), rng)
    else:
        faces = _prepared_faces(prepared, rows, rng)
        crops = [LooseCrop(face.image, face.landmarks) for face in faces]
        made = _with_families(crops, networks, rng)
    sheet, lines = draw_sheet(made, rng)
    try:
        with whole_file(out) as path:
            Image.fromarray(sheet).save(path, "PNG")
        with whole_file(out.with_suffix(".jsonl")) as path:
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise TrainError(f"{out}: can't be written: {error}") from error


class Attacked(NamedTuple):
    """A bona fide picture (S, S, 3) and the attacks made of it, in the order of their makers."""

    bona_fide: NDArray[np.uint8]
    attacks: list[SyntheticAttack]


def _with_families(
    faces: Sequence[LooseCrop], networks: Sequence[FaceAutoencoder], rng: np.random.Generator
) -> list[Attacked]:
    """Attack each face; where networks redraw, perhaps by the next one."""
    made = []
    for face, other in zip(faces, [*faces[1:], faces[0]], strict=True):
        attacks = [make(face, rng) for make in FAMILIES.values()]
        if networks:
            attacks += [make(face, other, networks, rng) for make in REDRAWN.values()]
        made.append(Attacked(face.image, attacks))
    return made


def _with_scenes(faces: Sequence[FaceInScene], rng: np.random.Generator) -> list[Attacked]:
    """Attack each face before the scene of the next."""
    behind = [*faces[1:], faces[0]]
    return [
        Attacked(face.image, [make(face, other, rng) for make in SCENES.values()])
        for face, other in zip(faces, behind, strict=True)
    ]


def draw_sheet(
    made: Sequence[Attacked], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], list[str]]:
    """Draw each face beside its attacks, and below what a camera makes of them.

    Args:
        made: of one size, with attacks of the same makers.
        rng: Source of every draw.

    Returns:
        The sheet, RGB, and a line of JSON for each attack: row, family, parameters.
    """
    size = made[0].bona_fide.shape[0]
    names = ["bona fide", *(attack.family for attack in made[0].attacks)]
    captions = Image.new("RGB", (len(names) * size, _CAPTION_PX), "white")
    for column, name in enumerate(names):
        ImageDraw.Draw(captions).text((column * size + 4, 2), name, "black")
    rows, lines = [np.asarray(captions)], []
    for row, (bona_fide, attacks) in enumerate(made):
        images = [bona_fide, *(attack.image for attack in attacks)]
        camera = int(rng.integers(2**63))
        filmed = [degrade(image, np.random.default_rng(camera)) for image in images]
        rows += [np.concatenate(images, 1), np.concatenate(filmed, 1)]
        lines += [
            json.dumps({"row": row, "family": attack.family, "parameters": attack.parameters})
            for attack in attacks
        ]
    return np.concatenate(rows), lines


def _prepared_faces(folder: Path, n: int, rng: np.random.Generator) -> list[FaceInScene]:
    shards = open_shards(folder)
    rows = shards.rows(label=BONA_FIDE, split="train")
    if not len(rows):
        raise TrainError(f"{folder}: no bona fide face of split train")
    records = shards.records
    return [
        FaceInScene(shards.crop(row), records.landmarks(row), records.face(row))
        for row in rng.permutation(rows)[:n]
    ]


def _picture(path: Path | None) -> NDArray[np.uint8]:
    if path is not None:
        try:
            return read_picture(path.read_bytes())
        except (OSError, TrainError) as error:
            raise TrainError(f"{path}: {error}") from error
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
        (detections,) = detector.detect([frame], [None])
    if not detections:
        raise TrainError("no face was found in the picture; give one with a larger face")
    best = detections[0]
    left, top, side, _ = crop_window(best.box, _SPEC, (frame.shape[1], frame.shape[0]))
    crop = crop_faces(frame, best.box[None], _SPEC)[0]
    points = (best.landmarks - (left, top)) * (_SPEC.size_px / side)
    return LooseCrop(crop.permute(1, 2, 0).contiguous().numpy(), points.astype(np.float32))
