"""`make bench-loaders`: faces a second from shards, by PyTorch and by DALI, and from the video.

The same faces three ways, on all cores: from prepared shards (256 px PNG, margin 2) by each loader
with a usual augmentation (flip, resized crop, colour, JPEG), and by decoding the clip with PyAV and
cutting every fifth frame's face, without augmentation, detection or tracking. Beside the rate
stands the CPU time of a face, which other load on the machine hardly changes.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import av
import click
import numpy as np
import psutil
import torch

from benchmarks.clips import FPS, face_box, write_clip
from benchmarks.record import circumstances, command_line, save
from models import InputSpec, crop_faces
from train.data.loaders import (
    AugmentConfig,
    DaliLoaderConfig,
    Group,
    ResizedCrop,
    TorchLoaderConfig,
    Uniform,
    open_loader,
)
from train.data.shard_writer import ShardWriter
from train.data.shards import FaceRecord, PreparedConfig, encode_crop, open_shards

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from train.data.shards import Shards

_CLIP_S: Final = 10
_EVERY: Final = FPS // 5  # frames
_BATCH: Final = 32
_NETWORK: Final = InputSpec(size_px=256, margin=1.3)
_STORED: Final = InputSpec(size_px=256, margin=2.0)
_AUGMENT: Final = AugmentConfig(
    hflip=0.5,
    resized_crop=ResizedCrop(area=(0.8, 1.0)),
    brightness=Uniform(p=0.5, low=-32, high=32),
    gain=Uniform(p=0.5, low=0.5, high=1.5),
    saturation=Uniform(p=0.5, low=0.8, high=1.2),
    jpeg_quality=Uniform(p=0.5, low=40, high=95),
)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seconds", default=10.0, show_default=True, help="Of each measurement.")
def main(seconds: float) -> None:
    """Measure, print and keep the result."""
    about = circumstances(packages=("av", "numpy", "nvidia-dali-cuda130", "pillow", "torch"))
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        write_clip(clip, _CLIP_S)
        shards = _prepared(clip, Path(folder) / "faces")
        group = Group("all", range(len(shards.records)), _BATCH)
        loaders: dict[str, TorchLoaderConfig | DaliLoaderConfig] = {
            "torch": TorchLoaderConfig(workers=cores),
            "dali": DaliLoaderConfig(kind="dali", threads=cores),
        }
        rates = {}
        for name, config in loaders.items():
            batches = open_loader(shards, [group], _NETWORK, config, seed=0, augment=_AUGMENT)
            rates[name] = _rate((len(loaded.rows) for loaded in batches), seconds)
        torch.set_num_threads(cores)
        videos = itertools.chain.from_iterable(_faces(clip, _NETWORK) for _ in itertools.count())
        rates["video"] = _rate((1 for _ in videos), seconds)
    result = {
        "command": command_line("benchmarks.loaders"),
        **about,
        "faces": len(shards.records),
        "png_kib": round(float(shards.size.mean()) / 1024, 1),
        "loaders": rates,
        "times_video": {
            name: round(rates[name]["faces_per_s"] / rates["video"]["faces_per_s"], 2)
            for name in loaders
        },
    }
    click.echo(json.dumps(result, indent=2))
    click.echo(save("loaders", result))


def _prepared(clip: Path, folder: Path) -> Shards:
    prepared = PreparedConfig(
        size_px=_STORED.size_px, margin=_STORED.margin, code_version="benchmark"
    )
    with ShardWriter(folder, prepared) as writer:
        for number, (box, crop) in enumerate(_faces(clip, _STORED)):
            record = FaceRecord(
                sample_id=str(number),
                dataset="benchmark",
                video_id="clip",
                source_id="clip",
                split="train",
                label=0,
                attack_type=None,
                frame=number * _EVERY,
                pts_s=number * _EVERY / FPS,
                track=0,
                box=tuple(box.tolist()),
                face=(64, 64, 192, 192),
                landmarks=((96, 112), (160, 112), (128, 144), (104, 168), (152, 168)),
                face_px=float(box[3] - box[1]),
                source_sha256="",
                licence="public domain",
            )
            writer.add([(record, encode_crop(crop))])
    return open_shards(folder)


def _faces(clip: Path, spec: InputSpec) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
    """Yield the box and the crop, (S, S, 3), of every fifth frame of the clip."""
    with av.open(str(clip)) as container:
        (video,) = container.streams.video
        video.thread_type = "AUTO"
        for number, frame in enumerate(container.decode(video)):
            if number % _EVERY == 0:
                image = torch.from_numpy(frame.to_ndarray(format="rgb24"))
                box = face_box(number)
                crop = crop_faces(image, box[None], spec)[0]
                yield box, crop.permute(1, 2, 0).contiguous().numpy()


def _rate(counts: Iterator[int], seconds: float) -> dict[str, Any]:
    """Take from an iterator for so long, a first item left out.

    Returns:
        Faces a second, and CPU ms of a face in this process and its children.
    """
    next(counts)
    spent, started = _cpu_s(), time.perf_counter()
    faces, elapsed_s = 0, 0.0
    while elapsed_s < seconds:
        faces += next(counts)
        elapsed_s = time.perf_counter() - started
    cpu_s = _cpu_s() - spent
    return {
        "faces": faces,
        "faces_per_s": round(faces / elapsed_s, 1),
        "cpu_ms_per_face": round(1000 * cpu_s / faces, 2),
    }


def _cpu_s() -> float:
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return float(sum(t.user + t.system for t in times))


if __name__ == "__main__":
    main()
