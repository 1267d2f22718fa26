"""The manifest of a folder of prepared faces: an Arrow file, one row a video, its faces in it.

It is mapped into memory, not read: opening ten million faces takes seconds, and all processes of a
machine share the same pages. Any Arrow reader opens it (pandas, Polars, DuckDB).
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import pyarrow as pa
from pydantic import BaseModel, Field, JsonValue, ValidationError, model_validator

from models import ATTACK, one_line, whole_file
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

MANIFEST: Final = "manifest.arrow"
PREPARED: Final = "prepared.json"
_OLD_MANIFEST: Final = "manifest.jsonl"
_FACES_PER_BATCH: Final = 1 << 18  # few batches open quickly

Point = tuple[float, float]


class PreparedConfig(BaseModel, frozen=True, extra="forbid"):
    """How the faces of a folder were cut."""

    size_px: int = Field(ge=32, description="Side of the stored crops.")
    margin: float = Field(gt=0, description="Side of a crop over the longer side of its face box.")
    window: Literal["pad", "inside"] = Field("pad", description="As `models.InputSpec`.")
    code_version: str = Field(description="Of the code that cut them.")
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
    face: tuple[float, float, float, float] = Field(
        description="The box in the stored crop: x1 y1 x2 y2, px of the crop."
    )
    landmarks: tuple[Point, Point, Point, Point, Point] = Field(
        description="Viewer's left eye, right eye, nose, mouth corners, px of the stored crop."
    )
    face_px: float = Field(gt=0, description="Longer side of the box.")
    quality: dict[str, float] = Field(default_factory=dict)
    source_sha256: str = Field(description="Of the file it was cut from; empty: of none.")
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


OF_A_VIDEO: Final = (
    *("dataset", "video_id", "source_id", "subject", "split", "label", "attack_type"),
    *("compression", "attributes", "source_sha256", "licence"),
)
"""The fields of a record that all faces of a video share."""

# Stored as they are.
_OF_A_FACE: Final = {"sample_id", "frame", "pts_s", "track", "box", "face", "face_px"}

_FACE: Final = pa.struct(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("frame", pa.int32(), nullable=False),
        pa.field("pts_s", pa.float64(), nullable=False),
        pa.field("track", pa.int32(), nullable=False),
        pa.field("box", pa.list_(pa.float64(), 4), nullable=False),
        pa.field("face", pa.list_(pa.float64(), 4), nullable=False),
        pa.field("landmarks", pa.list_(pa.float64(), 10), nullable=False),
        pa.field("face_px", pa.float64(), nullable=False),
        pa.field("quality", pa.map_(pa.string(), pa.float64()), nullable=False),
        pa.field("provenance", pa.string()),  # JSON
        pa.field("offset", pa.int64(), nullable=False),  # first byte of the PNG in the shard
        pa.field("size", pa.int32(), nullable=False),  # bytes of the PNG
    ]
)
SCHEMA: Final = pa.schema(
    [
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("source_id", pa.string(), nullable=False),
        pa.field("subject", pa.string()),
        pa.field("split", pa.string()),
        pa.field("label", pa.int8(), nullable=False),
        pa.field("attack_type", pa.string()),
        pa.field("compression", pa.string()),
        pa.field("attributes", pa.map_(pa.string(), pa.string()), nullable=False),
        pa.field("source_sha256", pa.string(), nullable=False),
        pa.field("licence", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("state", pa.string(), nullable=False),  # of the video's file when it was cut
        pa.field("faces", pa.list_(_FACE), nullable=False),
    ]
)


def video_row(
    records: Sequence[FaceRecord], places: Sequence[tuple[int, int]], shard: str, state: str
) -> dict[str, Any]:
    """Return a video's row.

    Args:
        records: of its faces.
        places: first byte and bytes of each face's PNG.
        shard: file name of the shard that holds them.
        state: of the video's file.
    """
    first = records[0].model_dump()
    faces = [
        {
            **record.model_dump(include=_OF_A_FACE),
            "landmarks": [value for point in record.landmarks for value in point],
            "quality": list(record.quality.items()),
            "provenance": json.dumps(record.provenance) if record.provenance else None,
            "offset": offset,
            "size": size,
        }
        for record, (offset, size) in zip(records, places, strict=True)
    ]
    return {
        **{name: first[name] for name in OF_A_VIDEO},
        "attributes": list(records[0].attributes.items()),
        "shard": shard,
        "state": state,
        "faces": faces,
    }


def face_record(video: dict[str, Any], face: dict[str, Any]) -> FaceRecord:
    """Return the record of one face of a row."""
    points = face["landmarks"]
    return FaceRecord.model_validate(
        {
            **{name: video[name] for name in OF_A_VIDEO},
            "attributes": dict(video["attributes"]),
            **{name: face[name] for name in _OF_A_FACE},
            "landmarks": list(zip(points[::2], points[1::2], strict=True)),
            "quality": dict(face["quality"]),
            "provenance": json.loads(face["provenance"]) if face["provenance"] else {},
        }
    )


def read_manifest(path: Path) -> pa.Table:
    """Map a manifest, or a part of one, into memory.

    Raises:
        TrainError: missing, damaged, or of another version.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except FileNotFoundError as error:
        refuse_old(path.parent)
        raise TrainError(f"{path}: missing: the folder is unfinished; prepare it again") from error
    except (OSError, pa.ArrowException) as error:
        raise TrainError(
            f"{path}: can't read the manifest: {error}; prepare the folder again"
        ) from error
    if not table.schema.equals(SCHEMA):
        raise TrainError(
            f"{path}: written by another version, its columns differ; prepare the folder again"
        )
    return table


@contextmanager
def write_manifest(path: Path) -> Iterator[Callable[[pa.Table], None]]:
    """Yield what takes rows, table by table; the file is there once all are written.

    Raises:
        OSError: it can't be written.
    """
    with (
        whole_file(path) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_file(file, SCHEMA) as writer,
    ):
        waiting: list[pa.Table] = []
        faces = 0

        def flush() -> None:
            nonlocal faces
            if waiting:
                writer.write_table(pa.concat_tables(waiting).combine_chunks())
            waiting.clear()
            faces = 0

        def add(table: pa.Table) -> None:
            nonlocal faces
            waiting.append(table)
            faces += sum(len(chunk.flatten()) for chunk in table["faces"].chunks)
            if faces >= _FACES_PER_BATCH:
                flush()

        yield add
        flush()


def read_prepared(folder: Path) -> PreparedConfig:
    """Return how the faces of a folder were cut.

    Raises:
        TrainError: there are none.
    """
    refuse_old(folder)
    path = folder / PREPARED
    try:
        return PreparedConfig.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise TrainError(
            f"{folder}: no prepared faces ({error}); run `python -m train prepare` first"
        ) from error
    except ValidationError as error:
        raise TrainError(f"{path}: {one_line(error, PreparedConfig)}") from error


def refuse_old(folder: Path) -> None:
    """Refuse a folder that an earlier version prepared.

    Raises:
        TrainError: it is one; the message holds the command that makes it anew.
    """
    if (folder / MANIFEST).exists() or not (folder / _OLD_MANIFEST).exists():
        return
    try:
        line = (folder / _OLD_MANIFEST).read_text(encoding="utf-8").partition("\n")[0]
        dataset = str(json.loads(line)["record"]["dataset"])
        options = dict(json.loads((folder / PREPARED).read_bytes())["options"])
    except (OSError, ValueError, LookupError, TypeError):
        dataset, options = "NAME", {}
    if dataset == "smoke":
        command = f"smoke-faces --out {folder}"
    elif dataset.startswith("synthetic/"):
        command = f"store-attacks PREPARED --out {folder}"
    else:
        command = f"prepare --dataset {dataset} --root DIR --out {folder}" + "".join(
            f" --set {name}={value}" for name, value in options.items() if name != "videos_sha256"
        )
    raise TrainError(
        f"{folder}: prepared by an earlier version ({_OLD_MANIFEST}); make it anew: rm -r {folder} "
        f"&& python -m train {command}"
    )
