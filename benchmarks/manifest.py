"""`python -m benchmarks.manifest`: time and memory of opening millions of prepared faces.

The manifest is generated, the shards are empty files of the right length (sparse) with the right
names at their first and last sample. Each measurement is a process of its own, which opens the
folder as a rank of a training run does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import pyarrow as pa

from benchmarks.record import circumstances, command_line, save
from train.data.manifest import MANIFEST, PREPARED, SCHEMA, PreparedConfig, write_manifest
from train.data.selection import open_data
from train.data.shards import BLOCK, open_shards, sample_key

_PER_SHARD: Final = 1024
_STEP: Final = 40 * BLOCK  # of a sample in a shard
_VIDEOS_PER_TABLE: Final = 4096


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--folder",
    "folders",
    type=(int, int),
    multiple=True,
    default=((1_000_000, 32), (1_000_000, 1), (10_000_000, 32), (10_000_000, 1)),
    show_default=True,
    help="Faces, and faces of a video (1: pictures).",
)
def main(folders: tuple[tuple[int, int], ...]) -> None:
    """Measure, print and keep the result."""
    result: dict[str, Any] = {
        "command": command_line("benchmarks.manifest"),
        **circumstances(packages=("numpy", "pyarrow")),
    }
    for size, per_video in folders:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            _generate(Path(folder), size, per_video)
            about: dict[str, Any] = {"generate_s": round(time.perf_counter() - started, 1)}
            about["manifest_mib"] = round((Path(folder) / MANIFEST).stat().st_size / 2**20, 1)
            for what in ("nothing", "shards", "splits", "two_folders"):
                about[what] = _measured(what, folder)
            result[f"{size:_} faces, {per_video} a video"] = about
    click.echo(json.dumps(result, indent=2))
    click.echo(save("manifest", result))


def _measured(what: str, folder: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.manifest", "measure", what, folder]
    return dict(json.loads(subprocess.check_output(command, text=True)))


def measure(what: str, folder: Path) -> None:
    """Open a folder in this process and print what it took."""
    started, cpu_started = time.perf_counter(), time.process_time()
    match what:
        case "shards":
            faces = len(open_shards(folder).records)
        case "splits":
            faces = len(open_data([folder], None).train)
        case "two_folders":
            faces = len(open_data([folder], "two_folders").train)
        case _:
            faces = 0
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (own,) = (line for line in status if line.startswith("RssAnon"))
    print(
        json.dumps(
            {
                "faces": faces,
                "seconds": round(seconds, 2),
                "cpu_s": round(cpu_s, 2),
                "own_mib": round(int(own.split()[1]) / 1024, 1),  # not the mapped file's
            }
        )
    )


def _generate(folder: Path, n_faces: int, per_video: int) -> None:
    about = PreparedConfig(size_px=256, margin=2.0, code_version="benchmark")
    (folder / PREPARED).write_text(about.model_dump_json())
    (folder / "problems.jsonl").touch()
    n_videos = n_faces // per_video
    with write_manifest(folder / MANIFEST) as write:
        for first in range(0, n_videos, _VIDEOS_PER_TABLE):
            write(_table(range(first, min(first + _VIDEOS_PER_TABLE, n_videos)), per_video))
    per_shard = _PER_SHARD // per_video * per_video
    for number in range(-(-n_videos * per_video // per_shard)):
        name = f"shard-{number:05d}.tar"
        faces = min(per_shard, n_videos * per_video - number * per_shard)
        with (folder / name).open("wb") as file:
            for place in (0, faces - 1):
                file.seek(place * _STEP)
                file.write(f"{sample_key(name, place)}.png".encode())
            file.truncate(faces * _STEP)


def _table(videos: range, per_video: int) -> pa.Table:
    """Return rows that look like those of your own data: ten splits of ten, both classes."""
    number = np.arange(videos.start, videos.stop)
    face = np.arange(videos.start * per_video, videos.stop * per_video)
    per_shard = _PER_SHARD // per_video * per_video
    n = len(face)
    names = [f"two_folders:train/bona_fide/some/longer/folder/{v:08d}.mp4" for v in number]
    attack = number % 2 == 1
    frame = np.tile(np.arange(per_video), len(number)) * 5
    faces = pa.StructArray.from_arrays(
        [
            pa.array([f"{names[i // per_video]}@{f}.1" for i, f in enumerate(frame)]),
            pa.array(frame, pa.int32()),
            pa.array(frame / 25),
            pa.array(np.ones(n), pa.int32()),
            pa.FixedSizeListArray.from_arrays(np.random.default_rng(0).random(4 * n) * 200, 4),
            pa.FixedSizeListArray.from_arrays(np.random.default_rng(0).random(10 * n) * 256, 10),
            pa.array(np.full(n, 120.0)),
            pa.MapArray.from_arrays(
                np.arange(0, 3 * n + 1, 3, dtype=np.int32),
                pa.array(["sharpness", "brightness", "turn"] * n),
                np.random.default_rng(0).random(3 * n),
            ),
            pa.nulls(n, pa.string()),
            pa.array(BLOCK + face % per_shard * _STEP, pa.int64()),
            pa.array(np.full(n, 30 * BLOCK), pa.int32()),
        ],
        fields=list(SCHEMA.field("faces").type.value_type),
    )
    offsets = np.arange(0, n + 1, per_video, dtype=np.int32)
    columns = {
        "dataset": ["two_folders"] * len(number),
        "video_id": names,
        "source_id": names,
        "subject": [f"two_folders:{v}" for v in number],
        "split": [("dev", "test")[v // 2 % 10 - 8] if v // 2 % 10 > 7 else "train" for v in number],
        "label": attack.astype(np.int8),
        "attack_type": ["print" if is_attack else None for is_attack in attack],
        "compression": pa.nulls(len(number), pa.string()),
        "attributes": [[("phone", "1")]] * len(number),
        "source_sha256": [f"{v:064x}" for v in number],
        "licence": ["mine"] * len(number),
        "shard": [f"shard-{v * per_video // per_shard:05d}.tar" for v in number],
        "state": ["video |1 0123456789abcdef0123456789abcdef"] * len(number),
        "faces": pa.ListArray.from_arrays(offsets, faces, type=SCHEMA.field("faces").type),
    }
    arrays = [pa.array(columns[field.name], field.type) for field in SCHEMA]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
