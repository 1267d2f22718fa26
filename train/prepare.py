"""Cut the faces of a collection once, with the streaming path's own stages."""

from __future__ import annotations

import csv
import io
import logging
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps

from models._preprocess import crop_faces, crop_window
from train.datasets.prepared import LOOSE, PreparedFace
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from stream.detect import FaceDetector
    from stream.records import FaceDetection
    from train.datasets.collection import ArchiveConfig, ClipConfig, Collection

log = logging.getLogger(__name__)


def prepare(collection: Collection, root: Path, out: Path, detector: FaceDetector) -> int:
    """Write `faces.npy` and `faces.jsonl` to a folder; returns the number of faces.

    Pictures and clips without a usable face are logged and counted, never dropped silently.

    Raises:
        TrainError: a file of the collection is missing, or no face was found at all.
    """
    faces: list[PreparedFace] = []
    images: list[NDArray[np.uint8]] = []
    without = 0
    for source, found in _sources(collection, root, detector):
        if not found:
            without += 1
            log.warning("%s: no face of %d px or more", source, collection.min_face_px)
        for face, image in found:
            faces.append(face)
            images.append(image)
    if not faces:
        raise TrainError(f"{root}: no face found in the whole collection")
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "faces.npy", np.stack(images))
    (out / "faces.jsonl").write_text(
        "".join(face.model_dump_json() + "\n" for face in faces), encoding="utf-8"
    )
    log.info("%d faces, %d pictures or clips without one", len(faces), without)
    return len(faces)


_Found = list[tuple[PreparedFace, "NDArray[np.uint8]"]]


def _sources(
    collection: Collection, root: Path, detector: FaceDetector
) -> Iterator[tuple[str, _Found]]:
    for archive in collection.archives:
        yield from _archive_faces(archive, collection, root, detector)
    for clip in collection.clips:
        yield str(clip.path), _clip_faces(clip, collection, root, detector)


def _archive_faces(
    archive: ArchiveConfig, collection: Collection, root: Path, detector: FaceDetector
) -> Iterator[tuple[str, _Found]]:
    path = root / archive.path
    try:
        pictures = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise TrainError(f"{path}: can't open the archive: {error}") from error
    with pictures:
        rows = csv.DictReader(io.StringIO(pictures.read("manifest.csv").decode()))
        for row in rows:
            if not row["file"].startswith(archive.prefix) or row["split"] not in archive.splits:
                continue
            with Image.open(io.BytesIO(pictures.read(row["file"]))) as picture:
                upright = ImageOps.exif_transpose(picture).convert("RGB")
            image = torch.from_numpy(np.array(upright))
            (detections,) = detector.detect([image], [None])
            x, y, w, h = (float(row[column]) for column in archive.box_columns)
            box = np.array([x, y, x + w, y + h], np.float32)
            known = [d for d in detections if _overlap(d.box, box) > 0.3]
            known.sort(key=lambda d: -_overlap(d.box, box))
            yield (
                f"{archive.path}!{row['file']}",
                [
                    _loose_face(
                        image,
                        detection,
                        source=f"{archive.path}!{row['file']}",
                        group=archive.group,
                        split=archive.splits[row["split"]],
                        frame=0,
                        licence=archive.licence,
                    )
                    for detection in known[:1]
                    if _side(detection) >= collection.min_face_px
                ],
            )


def _clip_faces(
    clip: ClipConfig, collection: Collection, root: Path, detector: FaceDetector
) -> _Found:
    from stream.config import DecodeConfig, SourceConfig
    from stream.decode import open_decoder

    path = root / clip.path
    if not path.is_file():
        raise TrainError(f"{path}: missing; the collection names it")
    source = SourceConfig.model_validate({"id": "clip", "uri": str(path)})
    decode = DecodeConfig(analyse_fps=1 / collection.clip_every_s)
    decoder = open_decoder(source, decode, session=0)
    try:
        frames = [frame for frame in decoder.frames() if frame is not None]
    finally:
        decoder.close()
    step = max(1, len(frames) // collection.clip_frames)
    found: _Found = []
    for frame in frames[::step][: collection.clip_frames]:
        (detections,) = detector.detect([frame.image], [None])
        found += [
            _loose_face(
                frame.image,
                detection,
                source=str(clip.path),
                group=clip.group,
                split=clip.split,
                frame=frame.stamp.index,
                licence=clip.licence,
            )
            for detection in detections
            if _side(detection) >= collection.min_face_px and detection.confidence >= 0.95
        ]
    return found


def _loose_face(
    image: Tensor, detection: FaceDetection, **known: object
) -> tuple[PreparedFace, NDArray[np.uint8]]:
    left, top, side = crop_window(detection.box, LOOSE.margin)
    landmarks = (detection.landmarks - (left, top)) * (LOOSE.size_px / side)
    face = PreparedFace.model_validate(
        {**known, "face_px": _side(detection), "landmarks": landmarks.tolist()}
    )
    crop = crop_faces(image, detection.box[None], LOOSE)[0]
    return face, crop.permute(1, 2, 0).contiguous().numpy()


def _side(detection: FaceDetection) -> float:
    x1, y1, x2, y2 = detection.box
    return float(max(x2 - x1, y2 - y1))


def _overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return the intersection over union of two boxes."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    inner = float(np.prod(np.clip(high - low, 0, None)))
    areas = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]))
    return inner / (areas - inner)
