"""Journals to what people and programs read: JSON lines, and a Parquet data set of two tables."""

from __future__ import annotations

import shutil
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from models import whole_file
from stream.errors import ConfigError
from stream.scan.journal import read_rows
from stream.scan.rows import SCHEMA, FileRow

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_ROWS_PER_PART: Final = 5000


def journals_in(folder: Path) -> list[Path]:
    """Return the journals of all shards that were written to a folder of results."""
    return sorted((folder / "journal").glob("*.jsonl"))


def latest_rows(journals: Sequence[Path]) -> Iterator[FileRow]:
    """Yield one row per file: the latest that was written of it.

    Raises:
        ConfigError: a journal is damaged.
    """
    latest: dict[bytes, tuple[str, int, int]] = {}  # path -> when; which journal; where in it
    for number, journal in enumerate(journals):
        for at, row in read_rows(journal):
            found = (row.at, number, at)
            latest[row.raw_path] = max(found, latest.get(row.raw_path, found))
    for number, journal in enumerate(journals):
        for at, row in read_rows(journal):
            if latest[row.raw_path] == (row.at, number, at):
                yield row


def write_results(journals: Sequence[Path], out: Path) -> int:
    """Write results.jsonl, files/*.parquet and tracks/*.parquet anew; return the number of files.

    Each is there whole or as it was before.

    Raises:
        ConfigError: a journal is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folders = {name: out / f".new-{name}" for name in ("files", "tracks")}
    for folder in folders.values():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    n = 0
    schemas = {"files": _files_schema(pa), "tracks": _tracks_schema(pa)}
    with whole_file(out / "results.jsonl") as partial, partial.open("wb") as lines:
        waiting = latest_rows(journals)
        parts = iter(lambda: list(islice(waiting, _ROWS_PER_PART)), [])
        for part, rows in enumerate(parts):
            n += len(rows)
            lines.writelines(row.model_dump_json().encode() + b"\n" for row in rows)
            tables = {"files": map(_file, rows), "tracks": (t for r in rows for t in _tracks(r))}
            for name, values in tables.items():
                table = pa.Table.from_pylist(list(values), schema=schemas[name])
                pq.write_table(table, folders[name] / f"part-{part:05}.parquet")
    for name, folder in folders.items():
        if not any(folder.iterdir()):
            pq.write_table(schemas[name].empty_table(), folder / "part-00000.parquet")
        _replace(folder, out / name)
    return n


def _file(row: FileRow) -> dict[str, Any]:
    return row.model_dump(mode="json", exclude={"tracks"}) | {"path_bytes": row.raw_path}


def _tracks(row: FileRow) -> Iterator[dict[str, Any]]:
    about = {
        "path": row.path,
        "path_bytes": row.raw_path,
        "sha256": row.sha256,
        "mode": row.mode,
        "decoder": row.decoder,
        "models": list(row.models),
        "run_key": row.run_key,
    }
    for track in row.tracks:
        yield about | track.model_dump(mode="json")


def _files_schema(pa: Any) -> Any:
    text, whole, real = pa.string(), pa.int64(), pa.float64()
    columns = {
        "path": text, "path_hex": text, "kind": text, "status": text, "reason": text,
        "attempts": whole, "verdict": text, "p_attack": real, "n_tracks": whole, "n_attack": whole,
        "n_bona_fide": whole, "n_undecided": whole, "n_abstain": whole, "coverage": real,
        "seconds": real, "frames_seen": whole, "frames_analysed": whole, "frames_failed": whole,
        "width": whole, "height": whole, "media": text, "decoder": text, "mode": text, "fps": real,
        "size": whole, "mtime_ns": whole, "sha256": text, "etag": text, "models": pa.list_(text),
        "run_key": text, "version": text, "at": text, "path_bytes": pa.binary(),
    }  # fmt: skip
    return pa.schema(list(columns.items()), metadata={"schema": SCHEMA})


def _tracks_schema(pa: Any) -> Any:
    text, whole, real = pa.string(), pa.int64(), pa.float64()
    evidence = {"name": text, "method": text, "p_attack": real, "n_scores": whole, "abstains": text}
    detector = pa.struct(list(evidence.items()))
    box = pa.struct([(name, real) for name in ("at_s", "x", "y", "w", "h", "p_attack")])
    columns = {
        "path": text, "path_bytes": pa.binary(), "sha256": text, "mode": text, "decoder": text,
        "models": pa.list_(text), "run_key": text, "track": whole, "verdict": text,
        "attack_at_s": real, "p_attack": real, "p_highest": real, "method": text, "family": text,
        "reason": text, "n_scores": whole, "n_effective": real, "single_look": pa.bool_(),
        "first_s": real, "last_s": real, "detectors": pa.list_(detector), "boxes": pa.list_(box),
        "crop": text,
    }  # fmt: skip
    return pa.schema(list(columns.items()), metadata={"schema": SCHEMA})


def _replace(new: Path, old: Path) -> None:
    """Put a folder in the place of another."""
    away = old.with_name(f".old-{old.name}")
    shutil.rmtree(away, ignore_errors=True)
    if old.exists():
        old.rename(away)
    new.rename(old)
    shutil.rmtree(away, ignore_errors=True)


def merge_journals(folders: Sequence[Path]) -> list[Path]:
    """Return the journals of all folders.

    Raises:
        ConfigError: one of them holds none.
    """
    found = []
    for folder in folders:
        journals = journals_in(folder)
        if not journals:
            raise ConfigError(f"{folder}: expected results of `scan` (journal/*.jsonl), found none")
        found += journals
    return found


def collect_crops(folders: Sequence[Path], out: Path) -> None:
    """Copy the pictures of faces in several folders of results to one."""
    for folder in folders:
        for crop in (folder / "crops").glob("*.png"):
            (out / "crops").mkdir(exist_ok=True)
            if folder.resolve() != out.resolve():
                shutil.copyfile(crop, out / "crops" / crop.name)
