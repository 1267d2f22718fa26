"""Prepared faces on disk: WebDataset tars of loose crops, and a manifest that says where each lies.

A folder holds

- `shard-00000.tar`, ...: `00000-00000.png` + `00000-00000.json` (the record) a sample, numbered by
  shard and place, so any WebDataset reader can use them;
- `manifest.arrow`: a row for each video and, in it, its faces (`train/data/manifest.py`); written
  last, so its presence says that the folder is complete;
- `prepared.json`: the `PreparedConfig`.

A loose crop is the square that `crop_faces` cuts with a margin larger than any network's own, so
that augmentation and synthetic attacks have real pixels around the face. PNG: training must see the
pixels that streaming sees. `train/data/shard_writer.py` writes all this.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from train.data.datasets._tree import some
from train.data.manifest import (
    MANIFEST,
    SCHEMA,
    FaceRecord,
    PreparedConfig,
    face_record,
    read_manifest,
    read_prepared,
)
from train.errors import TrainError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["FaceRecord", "PreparedConfig", "Shards", "encode_crop", "open_shards", "sample_key"]

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
BLOCK: Final = 512  # of a tar
_FACES: Final = SCHEMA.field("faces").type.value_type
_PNG_LEVEL: Final = 1  # measured: level 4 is 9 % smaller, takes twice as long, decodes no faster


def encode_crop(image: NDArray[np.uint8]) -> bytes:
    """Return a stored crop's PNG.

    Args:
        image: (S, S, 3) RGB.
    """
    stored = io.BytesIO()
    Image.fromarray(image).save(stored, "PNG", compress_level=_PNG_LEVEL)
    return stored.getvalue()


def sample_key(shard: str, place: int) -> str:
    """Return the name of a sample in a shard, without suffix: unique in its folder."""
    return f"{shard.removeprefix('shard-').removesuffix('.tar')}-{place:05d}"


class FaceRecords(Sequence[FaceRecord]):
    """The records of opened shards, each made when it is asked for."""

    def __init__(self, videos: pa.Table, video: NDArray[np.int32], faces: pa.ChunkedArray) -> None:
        self._videos = videos
        self._video = video
        self._chunks = faces.chunks
        self._starts = np.cumsum([0, *(len(chunk) for chunk in self._chunks)])
        # Views of the mapped files: no copy, and worker processes touch numpy alone.
        self._landmarks = [
            chunk.field("landmarks").flatten().to_numpy().reshape(-1, 5, 2)
            for chunk in self._chunks
        ]
        self._faces = [
            chunk.field("face").flatten().to_numpy().reshape(-1, 4) for chunk in self._chunks
        ]

    def __len__(self) -> int:
        return len(self._video)

    @overload
    def __getitem__(self, row: int) -> FaceRecord: ...
    @overload
    def __getitem__(self, row: slice) -> list[FaceRecord]: ...
    def __getitem__(self, row: int | slice) -> FaceRecord | list[FaceRecord]:
        """Return a row's record."""
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row = row % len(self)
        chunk, place = self._place(row)
        (video,) = self._videos.slice(int(self._video[row]), 1).to_pylist()
        return face_record(video, self._chunks[chunk][place].as_py())

    def sample_ids(self, rows: Sequence[int]) -> list[str]:
        """Return the rows' `sample_id`s, without making their records."""
        column = pa.chunked_array([chunk.field("sample_id") for chunk in self._chunks], pa.string())
        ids: list[str] = column.take(pa.array(rows, pa.int64())).to_pylist()
        return ids

    def landmarks(self, row: int) -> NDArray[np.float32]:
        """Return a row's landmarks, (5, 2) px of the stored crop."""
        chunk, place = self._place(row)
        return np.asarray(self._landmarks[chunk][place], np.float32)

    def face(self, row: int) -> NDArray[np.float64]:
        """Return a row's face box, (4,) x1 y1 x2 y2, px of the stored crop."""
        chunk, place = self._place(row)
        return np.asarray(self._faces[chunk][place])

    def _place(self, row: int) -> tuple[int, int]:
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        return chunk, int(row - self._starts[chunk])


@dataclass(frozen=True, slots=True, eq=False)
class Shards:
    """One or more prepared folders, opened; a row is a face, and those of a video are neighbours.

    Attributes:
        records: what is known of each row.
        files: the shards.
        shard: (N,) index into `files`.
        offset: (N,) first byte of the PNG.
        size: (N,) bytes of the PNG.
        label: (N,) BONA_FIDE or ATTACK.
        video: (N,) number of the row's video.
        videos: V rows, the columns of the manifest but for the faces.
        first: (V + 1,) video v has the rows `first[v]` to `first[v + 1]`, by track, then frame.
        prepared: of the first folder; size and margin are those of all.
    """

    records: FaceRecords
    files: tuple[Path, ...]
    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    size: NDArray[np.int32]
    label: NDArray[np.int8]
    video: NDArray[np.int32]
    videos: pa.Table
    first: NDArray[np.int64]
    prepared: PreparedConfig

    def rows(self, **wanted: str | int | None) -> NDArray[np.int64]:
        """Return the rows whose video has these values, such as `label=0, split="train"`."""
        chosen = np.ones(len(self.videos), bool)
        for name, value in wanted.items():
            column = self.videos[name]
            same = pc.is_null(column) if value is None else pc.equal(column, value)
            chosen &= np.asarray(same.fill_null(False))
        return np.flatnonzero(np.repeat(chosen, np.diff(self.first)))

    def png(self, row: int) -> bytes:
        """Return a row's PNG.

        Raises:
            TrainError: the shard can't be read, or no longer holds the picture.
        """
        path, offset, size = self.files[self.shard[row]], int(self.offset[row]), int(self.size[row])
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(offset)
                png: bytes = file.read(size)
        except OSError as error:
            raise TrainError(f"{path}: can't read the shard: {error}") from error
        if len(png) != size or not png.startswith(PNG_SIGNATURE):
            raise TrainError(f"{path}: no picture at byte {offset}: not the shard of its manifest")
        return png

    def crop(self, row: int) -> NDArray[np.uint8]:
        """Return a row's loose crop, (S, S, 3) RGB.

        Raises:
            TrainError: as `png`, or the picture is damaged.
        """
        try:
            with Image.open(io.BytesIO(self.png(row))) as picture:
                return np.array(picture.convert("RGB"))
        except (OSError, SyntaxError) as error:  # a damaged PNG is a SyntaxError to Pillow
            raise TrainError(
                f"{self.files[self.shard[row]]}: damaged picture at byte {self.offset[row]}: "
                f"{error}; prepare the folder again"
            ) from error


def open_shards(*folders: Path) -> Shards:
    """Open prepared folders as one; rows are in the order of their manifests.

    Raises:
        TrainError: a folder is missing or unfinished, a shard is missing, truncated or not the
            manifest's, a video is in two folders, or sizes and margins differ.
    """
    prepared = [read_prepared(folder) for folder in folders]
    for folder, its in zip(folders, prepared, strict=True):
        ours, first = (
            f"{its_own.size_px} px, margin {its_own.margin:g}, window {its_own.window}"
            for its_own in (its, prepared[0])
        )
        if ours != first:
            raise TrainError(
                f"{folder}: crops of {ours}, but {folders[0]} has {first}; prepare all data sets "
                "of a run alike"
            )
    files: dict[Path, int] = {}
    tables, shards = [], []
    for folder in folders:
        table = read_manifest(folder / MANIFEST)
        codes = table["shard"].combine_chunks().dictionary_encode()
        paths = [folder / name for name in codes.dictionary.to_pylist()]
        numbers = np.array([files.setdefault(path, len(files)) for path in paths], np.int32)
        tables.append(table)
        shards.append(numbers[codes.indices.to_numpy()])
    table = pa.concat_tables(tables)
    if len(folders) > 1:
        _check_once(folders, table["video_id"])
    counts = np.asarray(pc.list_value_length(table["faces"]), np.int64)
    faces = pa.chunked_array([chunk.flatten() for chunk in table["faces"].chunks], _FACES)
    videos = table.drop_columns("faces")
    video = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    opened = Shards(
        FaceRecords(videos, video, faces),
        tuple(files),
        np.repeat(np.concatenate(shards), counts),
        _column(faces, "offset", np.int64),
        _column(faces, "size", np.int32),
        np.repeat(np.asarray(table["label"], np.int8), counts),
        video,
        videos,
        np.concatenate([[0], np.cumsum(counts)]),
        prepared[0],
    )
    _check_shards(opened)
    return opened


def _column(faces: pa.ChunkedArray, name: str, kind: type[np.integer]) -> NDArray[Any]:
    parts = [chunk.field(name).to_numpy() for chunk in faces.chunks]
    return np.concatenate([np.empty(0, kind), *parts])


def _check_once(folders: Sequence[Path], video_ids: pa.ChunkedArray) -> None:
    counted = pc.value_counts(video_ids)
    twice = counted.filter(pc.greater(counted.field("counts"), 1)).field("values").to_pylist()
    if twice:
        raise TrainError(
            f"{', '.join(map(str, folders))}: in more than one of these folders: {some(twice)}"
        )


def _check_shards(shards: Shards) -> None:
    """Compare each shard's length, and the names at its first and last sample, with the manifest.

    Raises:
        TrainError: they differ.
    """
    changes = np.flatnonzero(np.diff(shards.shard)) + 1
    starts = np.concatenate([[0], changes]) if len(shards.shard) else changes
    ends = np.empty(0, np.int64)
    if len(starts):
        ends = np.maximum.reduceat(shards.offset + shards.size, starts)
    stops = [*changes, len(shards.shard)]
    for start, stop, end in zip(starts, stops, ends, strict=False):
        path = shards.files[shards.shard[start]]
        try:
            length = path.stat().st_size
            if length < end:
                raise TrainError(
                    f"{path}: truncated: {length} bytes, its manifest needs {end}; copy it again"
                )
            with path.open("rb") as file:
                for row in (start, stop - 1):
                    key = sample_key(path.name, row - start)
                    file.seek(shards.offset[row] - BLOCK)
                    if not file.read(BLOCK).startswith(f"{key}.png".encode()):
                        raise TrainError(
                            f"{path}: no sample {key}.png at byte {shards.offset[row]}: not the "
                            f"shard that {path.with_name(MANIFEST)} describes"
                        )
        except OSError as error:
            raise TrainError(f"{path}: named by the manifest, can't be read: {error}") from error
