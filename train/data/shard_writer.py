"""Writes a folder of prepared faces, and brings one up to date (`train/data/shards.py`)."""

from __future__ import annotations

import fcntl
import io
import itertools
import os
import struct
import tarfile
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc

from models import whole_file
from train.data.manifest import (
    MANIFEST,
    OF_A_VIDEO,
    PREPARED,
    SCHEMA,
    face_record,
    read_manifest,
    read_prepared,
    refuse_old,
    video_row,
    write_manifest,
)
from train.data.shards import BLOCK, PNG_SIGNATURE, sample_key
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from train.data.manifest import FaceRecord, PreparedConfig

_PNG_HEADER: Final = struct.Struct(">8s8xII")  # signature, (length and type), width, height


class StoredVideo(NamedTuple):
    """A video of the folder."""

    known: Mapping[str, Any]  # `OF_A_VIDEO` of its faces' records, and the shard
    state: str  # of its file, as `add` was given it
    faces: int
    part: int  # which table holds it
    row: int  # in the table


class ShardWriter:
    """Writes a folder of shards; a context manager.

    A shard appears under its name once it is complete, with its part of the manifest beside it. A
    writer that is opened on the folder of one that was killed goes on after the last complete
    shard, and the bytes are those of an uninterrupted run if the same videos are added in the same
    order. Leaving the context without an error writes the manifest; until then a folder that was
    complete before stays as it was.

    A shard that holds a video which was dropped or changed is written again without it, so that
    tars and manifest always say the same; nothing is decoded for that.

    Loaders draw a few samples of one shard at a time: add videos in a shuffled order.
    """

    def __init__(
        self, folder: Path, prepared: PreparedConfig, *, samples_per_shard: int = 2048
    ) -> None:
        """Take the place and the settings; entering the context opens or makes the folder."""
        self.folder = folder
        self.finished = False
        self._prepared = prepared
        self._samples_per_shard = samples_per_shard
        self._parts: list[pa.Table] = []
        self._stored: dict[str, StoredVideo] = {}
        self._buffer: list[tuple[Sequence[tuple[FaceRecord, bytes]], str]] = []
        self._dropped: set[str] = set()
        self._changes: dict[str, Mapping[str, Any]] = {}
        self._states: dict[str, str] = {}
        self._untouched = True
        self._next_shard = 0
        self._lock: int | None = None

    def __enter__(self) -> Self:
        """Make the folder, or take up an unfinished or finished one.

        Raises:
            TrainError: the folder holds faces that were prepared otherwise, another process is
                preparing there, or it can't be written.
        """
        try:
            self._open()
        except BaseException:
            self._unlock()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._unlock()

    def _open(self) -> None:
        folder = self.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            refuse_old(folder)
            if (folder / PREPARED).exists():
                _check_same(folder / PREPARED, read_prepared(folder), self._prepared)
            else:
                with whole_file(folder / PREPARED) as path:
                    text = self._prepared.model_dump_json(indent=2) + "\n"
                    path.write_text(text, encoding="utf-8")
            self._lock = os.open(folder / PREPARED, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainError(f"{folder}: another process is preparing faces there") from error
        except OSError as error:
            raise TrainError(f"{folder}: can't prepare faces there: {error}") from error
        self.finished = (folder / MANIFEST).exists()
        names = [MANIFEST] if self.finished else []
        names += sorted(path.name for path in folder.glob("shard-*.arrow"))
        self._untouched = names in ([], [MANIFEST])
        for part, name in enumerate(names):
            self._parts.append(read_manifest(folder / name))
            self._take_up(part)

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_up(self, part: int) -> None:
        """Know the videos of a part; those that an earlier part holds, too, are replaced."""
        for row, (known, faces) in enumerate(_videos(self._parts[part])):
            state = known.pop("state")
            self._stored[known["video_id"]] = StoredVideo(known, state, faces, part, row)
            number = int(known["shard"].removeprefix("shard-").removesuffix(".tar"))
            self._next_shard = max(self._next_shard, number + 1)

    @property
    def stored(self) -> Mapping[str, StoredVideo]:
        """The videos of the folder, by id: those in complete shards, but for the dropped ones."""
        return self._stored

    @property
    def faces(self) -> int:
        """How many there are, in shards and not yet written."""
        waiting = sum(len(samples) for samples, _ in self._buffer)
        return waiting + sum(video.faces for video in self._stored.values())

    def add(self, samples: Sequence[tuple[FaceRecord, bytes]], state: str = "") -> None:
        """Add all faces of a video, or of several.

        Args:
            samples: records with their PNG as of `encode_crop`; faces of a video are neighbours.
            state: of the file they were cut from, to know later whether it changed.

        Raises:
            TrainError: a video is there already, its faces contradict each other, a picture is not
                `size_px` wide and high, or the shard can't be written.
        """
        for _, faces in itertools.groupby(samples, key=lambda sample: sample[0].video_id):
            self._add_video(list(faces), state)
        if sum(len(faces) for faces, _ in self._buffer) >= self._samples_per_shard:
            self._write_shard()

    def drop(self, video_ids: Iterable[str]) -> None:
        """Take videos out of the folder."""
        for video_id in video_ids:
            self._dropped.add(video_id)
            del self._stored[video_id]

    def change(self, video_id: str, state: str, **fields: Any) -> None:
        """Change what is known of a stored video, its pictures remaining as they are.

        Args:
            video_id: of a stored video.
            state: of its file.
            fields: of `OF_A_VIDEO`, with their new values; none: the state alone.
        """
        self._states[video_id] = state
        if fields:
            self._changes[video_id] = fields

    def _add_video(self, samples: list[tuple[FaceRecord, bytes]], state: str) -> None:
        first = samples[0][0]
        waiting = any(faces[0][0].video_id == first.video_id for faces, _ in self._buffer)
        if first.video_id in self._stored or waiting:
            raise TrainError(f"{self.folder}: video {first.video_id!r} was added before")
        counted = Counter(record.sample_id for record, _ in samples)
        if (twice := counted.most_common(1)[0])[1] > 1:
            raise TrainError(f"{self.folder}: sample {twice[0]!r} was added twice")
        for record, png in samples:
            for name in OF_A_VIDEO:
                if getattr(record, name) != getattr(first, name):
                    raise TrainError(
                        f"sample {record.sample_id!r}: {name} {getattr(record, name)!r} "
                        f"contradicts {getattr(first, name)!r} of the same video"
                    )
            _check_png(png, self._prepared.size_px, record.sample_id)
        self._buffer.append((sorted(samples, key=_track_and_frame), state))

    def _finish(self) -> None:
        changed = self._buffer or self._changes or self._states or self._dropped
        if self.finished and self._untouched and not changed:
            return
        dirty = self._dirty_shards()
        self._rewrite(dirty)
        if self._buffer:
            self._write_shard()
        try:
            with write_manifest(self.folder / MANIFEST) as write:
                for part in range(len(self._parts)):
                    write(self._current(part))
            kept = {video.known["shard"] for video in self._stored.values()}
            for path in self.folder.glob("shard-*"):
                if path.name not in kept:  # parts, and shards that nothing refers to any more
                    path.unlink()
        except OSError as error:
            raise TrainError(f"{self.folder}: can't write the manifest: {error}") from error

    def _dirty_shards(self) -> set[str]:
        """Return the shards that hold a video which was dropped, added again, or changed."""
        dirty = {self._stored[video_id].known["shard"] for video_id in self._changes}
        for part, table in enumerate(self._parts):
            ids, shards = table["video_id"].to_pylist(), table["shard"].to_pylist()
            for row, (video_id, shard) in enumerate(zip(ids, shards, strict=True)):
                video = self._stored.get(video_id)
                if video is None or (video.part, video.row) != (part, row):
                    dirty.add(shard)
        return dirty

    def _rewrite(self, dirty: set[str]) -> None:
        """Copy what remains of these shards into new ones, as it is known now."""
        remaining = [video for video in self._stored.values() if video.known["shard"] in dirty]
        for video in remaining:
            video_id = video.known["video_id"]
            (row,) = self._parts[video.part].slice(video.row, 1).to_pylist()
            row |= self._changes.get(video_id, {})
            state = self._states.pop(video_id, video.state)
            samples = []
            with (self.folder / row["shard"]).open("rb") as file:
                for face in row["faces"]:
                    file.seek(face["offset"])
                    samples.append((face_record(row, face), file.read(face["size"])))
            del self._stored[video_id]
            self.add(samples, state)

    def _current(self, part: int) -> pa.Table:
        """Return the rows of a part that stand, with the states that were given since."""
        table = self._parts[part]
        ids = table["video_id"].to_pylist()
        stands = []
        for row, video_id in enumerate(ids):
            video = self._stored.get(video_id)
            stands.append(video is not None and (video.part, video.row) == (part, row))
        states = [
            self._states.get(video_id, state)
            for video_id, state in zip(ids, table["state"].to_pylist(), strict=True)
        ]
        place = SCHEMA.get_field_index("state")
        table = table.set_column(place, SCHEMA.field(place), pa.array(states, pa.string()))
        return table.filter(pa.array(stands, pa.bool_()))

    def _write_shard(self) -> None:
        name = f"shard-{self._next_shard:05d}.tar"
        path = self.folder / name
        rows = []
        try:
            with (
                whole_file(path) as temporary,
                tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
            ):
                place = 0
                for samples, state in self._buffer:
                    places = []
                    for record, png in samples:
                        key = sample_key(name, place)
                        places.append((_add_file(tar, f"{key}.png", png), len(png)))
                        _add_file(tar, f"{key}.json", record.model_dump_json().encode())
                        place += 1
                    records = [record for record, _ in samples]
                    rows.append(video_row(records, places, name, state))
            table = pa.Table.from_pylist(rows, schema=SCHEMA)
            with write_manifest(path.with_suffix(".arrow")) as write:
                write(table)
        except OSError as error:
            raise TrainError(
                f"{path}: can't write the shard ({error}); complete shards are kept: make room and "
                "run the same command again"
            ) from error
        self._untouched = False
        self._buffer = []
        self._parts.append(read_manifest(path.with_suffix(".arrow")))
        self._take_up(len(self._parts) - 1)


_KNOWN: Final = (*OF_A_VIDEO, "shard", "state")


def _videos(table: pa.Table) -> Iterable[tuple[dict[str, Any], int]]:
    """Yield what is known of each video, and how many faces it has."""
    counts = pc.list_value_length(table["faces"]).to_pylist()
    for batch_start in range(0, len(table), 4096):
        rows = table.select(_KNOWN).slice(batch_start, 4096).to_pylist()
        for row, count in zip(rows, counts[batch_start:], strict=False):
            yield row | {"attributes": dict(row["attributes"])}, count


def _track_and_frame(sample: tuple[FaceRecord, bytes]) -> tuple[int, int]:
    return sample[0].track, sample[0].frame


def _check_same(path: Path, its: PreparedConfig, wanted: PreparedConfig) -> None:
    """Refuse other settings, naming each that differs."""
    old, new = (
        {**about.model_dump(exclude={"options"}), **about.options} for about in (its, wanted)
    )
    differ = [
        f"{name} was {old.get(name)!r}, now {new.get(name)!r}"
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    ]
    if differ:
        raise TrainError(
            f"{path}: these faces were prepared otherwise: {'; '.join(differ)}; use another folder"
        )


def _check_png(png: bytes, size_px: int, sample_id: str) -> None:
    if len(png) >= _PNG_HEADER.size:
        signature, width, height = _PNG_HEADER.unpack_from(png)
        if signature == PNG_SIGNATURE and width == height == size_px:
            return
    raise TrainError(f"sample {sample_id!r}: expected a PNG of {size_px} x {size_px} px")


def _add_file(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a file, the same bytes whenever and by whomever; return where its data begins."""
    entry = tarfile.TarInfo(name)  # mtime, uid and gid are 0, the names of the owner empty
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))
    return tar.offset - -(-len(data) // BLOCK) * BLOCK
