"""`python -m benchmarks.engine_faces`: faces of videos for `python -m trt_engines build --faces`.

From each video a few faces, evenly over its length, with much around them. Of whom they are and
what they show does not matter here: a network in a lower precision is compared with itself.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

import click
import numpy as np
import torch

from models import InputSpec, box_in_crop, crop_faces, crop_window
from stream.config import DecodeConfig, DetectConfig, SourceConfig
from stream.decode import open_decoder
from stream.stages.detect import open_detector
from trt_engines.backends import OnnxRuntimeConfig
from trt_engines.faces import save_faces

if TYPE_CHECKING:
    from stream.stages.detect import FaceDetector

SUFFIXES: Final = {".avi", ".mkv", ".mov", ".mp4", ".webm"}
PICTURE: Final = InputSpec(size_px=320, margin=3.2)
SMALLEST_FACE_PX: Final = 40


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("videos", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True,
              help="Face file to write.")  # fmt: skip
@click.option("--each", default=5, show_default=True, type=click.IntRange(1),
              help="Most faces of one video.")  # fmt: skip
def main(videos: tuple[Path, ...], out: Path, each: int) -> None:
    """Cut faces out of VIDEOS: files, or folders of them."""
    paths = sorted({path for named in videos for path in _files(named)})
    Random(0).shuffle(paths)
    pictures: list[torch.Tensor] = []
    boxes: list[tuple[float, float, float, float]] = []
    with open_detector(DetectConfig(), OnnxRuntimeConfig()) as detector:
        for path in paths:
            found = _faces(path, detector)
            chosen = [
                found[i] for i in np.linspace(0, len(found) - 1, min(each, len(found))).astype(int)
            ]
            pictures += [picture for picture, _ in chosen]
            boxes += [box for _, box in chosen]
            print(f"{path.name}: {len(chosen)} of {len(found)} faces")
    if not boxes:
        raise click.ClickException(
            f"none of {len(paths)} videos shows a face of {SMALLEST_FACE_PX} px; name others"
        )
    save_faces(out, torch.stack(pictures), torch.tensor(boxes))
    print(f"wrote {out}: {len(boxes)} faces of {len(paths)} videos")


def _files(named: Path) -> list[Path]:
    if named.is_file():
        return [named]
    return [path for path in named.rglob("*") if path.suffix.lower() in SUFFIXES]


def _faces(
    path: Path, detector: FaceDetector
) -> list[tuple[torch.Tensor, tuple[float, float, float, float]]]:
    """Return the largest face of one frame a second: its picture, and its box therein."""
    source = SourceConfig.model_validate({"id": "faces", "uri": str(path)})
    decoder = open_decoder(source, DecodeConfig(analyse_fps=1), session=0)
    found = []
    for frame in decoder.frames():
        if frame is None:
            continue
        (faces,) = detector.detect([frame.image], [None])
        boxes = sorted((f.box for f in faces), key=lambda box: box[2] - box[0])
        if boxes and (boxes[-1][2:] - boxes[-1][:2]).max() >= SMALLEST_FACE_PX:
            window = crop_window(boxes[-1], PICTURE, (frame.stamp.width, frame.stamp.height))
            (picture,) = crop_faces(frame.image, boxes[-1][None], PICTURE)
            found.append((picture, box_in_crop(boxes[-1], window, PICTURE.size_px)))
    decoder.close()
    return found


if __name__ == "__main__":
    main()
