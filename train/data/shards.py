"""Prepared faces on disk: WebDataset tars of loose crops, and a manifest that says where each lies.

A folder holds

- `shard-00000.tar`, ...: `00000000.png` + `00000000.json` (the record) a sample, numbered over the
  whole folder, so any WebDataset reader can use them;
- `manifest.jsonl`: one `StoredFace` a line, in the same order; written last, so its presence says
  that the folder is complete;
- `prepared.json`: the `PreparedConfig`.

A loose crop is the square that `crop_faces` cuts with a margin larger than any network's own, so
that augmentation and synthetic attacks have real pixels around the face. PNG: training must see the
pixels that streaming sees.
"""

from __future__ import annotations

import io
import itertools
import struct
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field, JsonValue, ValidationError, model_validator

from models import ATTACK
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

_PNG_HEADER: Final = struct.Struct(">8s8xII")  # signature, (length and type), width, height
_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_PNG_LEVEL: Final = 1  # measured: level 4 is 9 % smaller, takes twice as long, decodes no faster
_BLOCK: Final = 512  # of a tar
_MANIFEST: Final = "manifest.jsonl"
_PREPARED: Final = "prepared.json"
_FORMAT: Final = 2  # 1: records without media time

Point = tuple[float, float]


class PreparedConfig(BaseModel, frozen=True, extra="forbid"):
    """How the faces of a folder were cut."""

    size_px: int = Field(ge=32, description="Side of the stored crops.")
    margin: float = Field(gt=0, description="Side of a crop over the longer side of its face box.")
    code_version: str = Field(description="Of the code that cut them.")
    format: int = Field(_FORMAT, description="Of the folder; another one must be prepared again.")
    options: dict[str, JsonValue] = Field(
        default_factory=dict, description="What else decided which faces are here."
    )


class FaceRecord(BaseModel, frozen=True, extra="forbid"):
    """What is known of one stored face."""

    sample_id: str = Field(min_length=1, description="Unique over all data sets.")
    dataset: str
    video_id: str = Field(description="Unique over all data sets.")
    source_id: str = Field(description="The recording it was made from, or the subject.")
    subject: str | None = None
    split: Literal["train", "dev", "test"] | None
    label: Literal[0, 1] = Field(description="BONA_FIDE or ATTACK.")
    attack_type: str | None = Field(description="None: bona fide.")
    compression: str | None = None
    attributes: dict[str, str] = Field(default_factory=dict)
    frame: int = Field(ge=0, description="Index in the video; 0 for a picture.")
    pts_s: float = Field(ge=0, description="Media time in the video, seconds; 0 for a picture.")
    track: int = Field(ge=0, description="Number of the face within its video.")
    box: tuple[float, float, float, float] = Field(description="x1 y1 x2 y2, px of the frame.")
    landmarks: tuple[Point, Point, Point, Point, Point] = Field(
        description="Viewer's left eye, right eye, nose, mouth corners, px of the stored crop."
    )
    face_px: float = Field(gt=0, description="Longer side of the box.")
    quality: dict[str, float] = Field(default_factory=dict)
    source_sha256: str = Field(description="Of the file it was cut from.")
    licence: str
    provenance: dict[str, JsonValue] = Field(
        default_factory=dict, description="How it came about, where it is not a plain crop."
    )

    @model_validator(mode="after")
    def _label_fits_type(self) -> Self:
        if (self.label == ATTACK) != (self.attack_type is not None):
            raise ValueError(
                f"label {self.label} contradicts attack_type {self.attack_type!r}: an attack has a "
                "type, a bona fide face has none"
            )
        return self


class StoredFace(BaseModel, frozen=True, extra="forbid"):
    """One line of the manifest."""

    shard: str
    offset: Annotated[int, Field(ge=_BLOCK, description="First byte of the PNG in the shard.")]
    size: Annotated[int, Field(gt=0, description="Bytes of the PNG.")]
    record: FaceRecord


def encode_crop(image: NDArray[np.uint8]) -> bytes:
    """Return a stored crop's PNG.

    Args:
        image: (S, S, 3) RGB.
    """
    stored = io.BytesIO()
    Image.fromarray(image).save(stored, "PNG", compress_level=_PNG_LEVEL)
    return stored.getvalue()


class ShardWriter:
    """Writes a folder of shards; a context manager.

    A shard appears under its name once it is complete, with its part of the manifest beside it. A
    writer that is opened on the folder of one that was killed goes on after the last complete
    shard, and the bytes are those of an uninterrupted run if the same samples are added in the
    same order. Leaving the context without an error writes the manifest.

    Loaders draw a few samples of one shard at a time: add videos in a shuffled order.
    """

    def __init__(
        self, folder: Path, prepared: PreparedConfig, *, samples_per_shard: int = 2048
    ) -> None:
        """Make the folder, or take up an unfinished or finished one.

        Raises:
            TrainError: the folder holds faces that were prepared otherwise, or can't be written.
        """
        self._folder = folder
        self._prepared = prepared
        self._samples_per_shard = samples_per_shard
        self._buffer: list[tuple[FaceRecord, bytes]] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / _PREPARED).exists():
                if (found := _read_prepared(folder)) != prepared:
                    raise TrainError(
                        f"{folder / _PREPARED}: prepared with {found!r}, now asked for "
                        f"{prepared!r}; use another folder"
                    )
            else:
                _replace(folder / _PREPARED, prepared.model_dump_json(indent=2) + "\n")
        except OSError as error:
            raise TrainError(f"{folder}: can't prepare faces there: {error}") from error
        manifest = folder / _MANIFEST
        self._finished = manifest.exists()
        parts = [manifest] if self._finished else sorted(folder.glob("shard-*.jsonl"))
        self._lines = [face for part in parts for face in _read_manifest(part)]
        self._n_shards = len({face.shard for face in self._lines})
        self._ids = {face.record.sample_id for face in self._lines}

    @property
    def records(self) -> tuple[FaceRecord, ...]:
        """All faces of the folder: on opening those in complete shards, then those added too."""
        written = (face.record for face in self._lines)
        return (*written, *(record for record, _ in self._buffer))

    def add(self, samples: Sequence[tuple[FaceRecord, bytes]]) -> None:
        """Add samples that belong together, such as those of a video: they share a shard's fate.

        Args:
            samples: records with their PNG as of `encode_crop`.

        Raises:
            TrainError: the folder is finished, a `sample_id` was added before, a picture is not
                `size_px` wide and high, or the shard can't be written.
        """
        if self._finished:
            raise TrainError(f"{self._folder}: finished; prepare more faces into another folder")
        for record, png in samples:
            if record.sample_id in self._ids:
                raise TrainError(f"{self._folder}: sample {record.sample_id!r} was added twice")
            _check_png(png, self._prepared.size_px, record.sample_id)
            self._ids.add(record.sample_id)
        self._buffer += samples
        if len(self._buffer) >= self._samples_per_shard:
            self._write_shard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None and not self._finished:
            self._finish()

    def _finish(self) -> None:
        if self._buffer:
            self._write_shard()
        try:
            _replace(self._folder / _MANIFEST, _jsonl(self._lines))
            for part in self._folder.glob("shard-*.jsonl"):
                part.unlink()
        except OSError as error:
            raise TrainError(f"{self._folder}: can't write the manifest: {error}") from error

    def _write_shard(self) -> None:
        path = self._folder / f"shard-{self._n_shards:05d}.tar"
        partial = path.with_suffix(".partial")
        lines = []
        try:
            with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
                for number, (record, png) in enumerate(self._buffer, start=len(self._lines)):
                    offset = _add_file(tar, f"{number:08d}.png", png)
                    _add_file(tar, f"{number:08d}.json", record.model_dump_json().encode())
                    lines.append(
                        StoredFace(shard=path.name, offset=offset, size=len(png), record=record)
                    )
            partial.replace(path)
            _replace(path.with_suffix(".jsonl"), _jsonl(lines))
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise TrainError(
                f"{path}: can't write the shard ({error}); complete shards are kept: make room and "
                "run the same command again"
            ) from error
        self._lines += lines
        self._n_shards += 1
        self._buffer = []


@dataclass(frozen=True, slots=True, eq=False)
class Shards:
    """One or more prepared folders, opened; row i is `records[i]`."""

    records: tuple[FaceRecord, ...]
    files: tuple[Path, ...]  # the shards
    shard: NDArray[np.int32]  # (N,) index into `files`
    offset: NDArray[np.int64]  # (N,) first byte of the PNG
    size: NDArray[np.int64]  # (N,) bytes of the PNG
    prepared: PreparedConfig  # of the first folder; size and margin are those of all

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
        if len(png) != size or not png.startswith(_PNG_SIGNATURE):
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
            manifest's, a `sample_id` occurs twice, or sizes and margins differ.
    """
    prepared = [_read_prepared(folder) for folder in folders]
    for folder, found in zip(folders, prepared, strict=True):
        if (found.size_px, found.margin) != (prepared[0].size_px, prepared[0].margin):
            raise TrainError(
                f"{folder}: crops of {found.size_px} px with margin {found.margin:g}, but "
                f"{folders[0]} has {prepared[0].size_px} px and {prepared[0].margin:g}; prepare "
                "all data sets of a run alike"
            )
    faces: list[StoredFace] = []
    files: dict[Path, int] = {}
    shard: list[int] = []
    for folder in folders:
        listed = _read_manifest(folder / _MANIFEST)
        _check_shards(folder, listed)
        shard += [files.setdefault(folder / face.shard, len(files)) for face in listed]
        faces += listed
    seen: set[str] = set()
    for face in faces:
        if face.record.sample_id in seen:
            raise TrainError(
                f"{', '.join(map(str, folders))}: sample {face.record.sample_id!r} occurs twice"
            )
        seen.add(face.record.sample_id)
    return Shards(
        tuple(face.record for face in faces),
        tuple(files),
        np.array(shard, np.int32),
        np.array([face.offset for face in faces], np.int64),
        np.array([face.size for face in faces], np.int64),
        prepared[0],
    )


def _check_shards(folder: Path, faces: Sequence[StoredFace]) -> None:
    """Compare each shard's length, and the names at its first and last sample, with the manifest.

    Raises:
        TrainError: they differ.
    """
    numbered = enumerate(faces)
    for name, listed in itertools.groupby(numbered, key=lambda item: item[1].shard):
        path, samples = folder / name, list(listed)
        end = samples[-1][1].offset + samples[-1][1].size
        try:
            length = path.stat().st_size
            if length < end:
                raise TrainError(
                    f"{path}: truncated: {length} bytes, its manifest needs {end}; copy it again"
                )
            with path.open("rb") as file:
                for number, face in (samples[0], samples[-1]):
                    file.seek(face.offset - _BLOCK)
                    if not file.read(_BLOCK).startswith(f"{number:08d}.png".encode()):
                        raise TrainError(
                            f"{path}: no sample {number:08d}.png at byte {face.offset}: not the "
                            f"shard that {folder / _MANIFEST} describes"
                        )
        except OSError as error:
            raise TrainError(f"{path}: named by the manifest, can't be read: {error}") from error


def _read_prepared(folder: Path) -> PreparedConfig:
    path = folder / _PREPARED
    try:
        found = PreparedConfig.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainError(
            f"{folder}: no prepared faces ({error}); run `python -m train prepare` first"
        ) from error
    except ValidationError as error:
        raise TrainError(f"{path}: {error}") from error
    if found.format != _FORMAT or "format" not in found.model_fields_set:
        raise TrainError(
            f"{folder}: prepared by facewarden {found.code_version}, whose folders this version "
            "can't read; prepare the faces again, into another folder"
        )
    return found


def _read_manifest(path: Path) -> list[StoredFace]:
    try:
        with path.open(encoding="utf-8") as file:
            return [StoredFace.model_validate_json(line) for line in file]
    except FileNotFoundError as error:
        raise TrainError(f"{path}: missing: the folder is unfinished; prepare it again") from error
    except (OSError, ValidationError) as error:
        raise TrainError(f"{path}: can't read the manifest: {error}") from error


def _check_png(png: bytes, size_px: int, sample_id: str) -> None:
    if len(png) >= _PNG_HEADER.size:
        signature, width, height = _PNG_HEADER.unpack_from(png)
        if signature == _PNG_SIGNATURE and width == height == size_px:
            return
    raise TrainError(f"sample {sample_id!r}: expected a PNG of {size_px} x {size_px} px")


def _add_file(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a file, the same bytes whenever and by whomever; return where its data begins."""
    entry = tarfile.TarInfo(name)  # mtime, uid and gid are 0, the names of the owner empty
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))
    return tar.offset - -(-len(data) // _BLOCK) * _BLOCK


def _jsonl(lines: Sequence[StoredFace]) -> str:
    return "".join(line.model_dump_json() + "\n" for line in lines)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
