"""Who was learned from: no recording and no person may be on two sides.

A run keeps the identities of its training and dev videos (`save_learned`), so that an evaluation
with another protocol, or with other folders, can be compared with them (`learned_overlaps`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models import whole_file
from train.data.datasets._sample import LEVELS, Level
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from train.data.selection import Data

LEARNED: Final = "learned_from.parquet"  # in a run's folder

_WORDS: Final = {
    "file": "byte-identical files",
    "video": "videos",
    "source": "sources",
    "subject": "subjects",
}
_SHOWN: Final = 5
_RUN: Final = "the run's "
_COLUMN_OF: Final = {
    "file": "source_sha256",
    "video": "video_id",
    "source": "source_id",
    "subject": "subject",
}
_SCHEMA: Final = pa.schema(
    [(name, pa.string()) for name in ("video_id", "source_sha256", "source_id", "subject")]
)


class Identity(NamedTuple):
    """By what a video is known again."""

    video_id: str
    source_sha256: str  # of its file; empty: not known
    source_id: str
    subject: str | None  # None: not known


@dataclass(frozen=True, slots=True)
class Overlap:
    """One thing that two sides share.

    Attributes:
        kind: `file` (the same bytes under two names), `video`, `source` or `subject`.
        shared: the digest, or the name.
        ours: a video of the one side that has it.
        theirs: a video of the other side that has it.
    """

    kind: Literal["file", "video", "source", "subject"]
    shared: str
    ours: str
    theirs: str


def identities(videos: Iterable[Identity]) -> pa.Table:
    """Return a table of identities, which the functions here compare; rows as given."""
    return pa.Table.from_pylist([identity._asdict() for identity in videos], schema=_SCHEMA)


def find_overlaps(ours: pa.Table, theirs: pa.Table, level: Level = "subject") -> list[Overlap]:
    """Return what two sides share, each shared thing once.

    Byte-identical files are always looked for. A video that is shared is told as such alone, and
    not also as a file, a source and a subject.

    Args:
        ours: identities of the one side.
        theirs: of the other.
        level: how far to look.
    """
    overlaps: list[Overlap] = []
    overlaps += _shared("video", ours, theirs)
    others = theirs
    if overlaps:
        same = pa.array([overlap.shared for overlap in overlaps])
        others = theirs.filter(pc.invert(pc.is_in(theirs["video_id"], value_set=same)))
    for kind in ("file", *LEVELS[1 : LEVELS.index(level) + 1]):
        overlaps += _shared(kind, ours, others)
    return overlaps


def _shared(kind: Any, ours: pa.Table, theirs: pa.Table) -> list[Overlap]:
    column = _COLUMN_OF[kind]
    keys = _common(ours[column], theirs[column])
    if not len(keys):
        return []
    first, second = (
        dict(_keys_and_videos(side.filter(pc.is_in(side[column], value_set=keys)), column)[::-1])
        for side in (ours, theirs)
    )
    return [Overlap(kind, key, first[key], second[key]) for key in sorted(first)]


def _common(ours: pa.ChunkedArray, theirs: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return what both columns hold, but for empty and null."""
    few, many = sorted((ours, theirs), key=len)  # a table of the few costs less
    few = few.filter(pc.not_equal(few, ""))  # null is neither
    return many.filter(pc.is_in(many, value_set=few, skip_nulls=True)).unique()


def _keys_and_videos(table: pa.Table, column: str) -> list[tuple[str, str]]:
    return list(zip(table[column].to_pylist(), table["video_id"].to_pylist(), strict=True))


def told(overlaps: Iterable[Overlap], ours: str, theirs: str) -> str:
    """Say what is shared, by kind, counted, the first few named.

    Args:
        overlaps: at least one.
        ours: name of the one side: `train`, `dev`, or one that `learned_overlaps` gives.
        theirs: name of the other side, or of a test set.
    """
    by_kind: dict[str, list[Overlap]] = {}
    for overlap in overlaps:
        by_kind.setdefault(overlap.kind, []).append(overlap)
    parts = []
    for kind in (kind for kind in _WORDS if kind in by_kind):
        shared = sorted(by_kind[kind], key=lambda overlap: (overlap.ours, overlap.theirs))
        named = ", ".join(_named(overlap) for overlap in shared[:_SHOWN])
        more = f" and {len(shared) - _SHOWN} more" if len(shared) > _SHOWN else ""
        parts.append(f"{len(shared)} {_WORDS[kind]} ({named}{more})")
    return f"in {_part(ours)} and in {_part(theirs)}: " + "; ".join(parts)


def _part(name: str) -> str:
    known = name in ("train", "dev", "test") or name.startswith(_RUN)
    return name if known else f"test set {name}"


def _named(overlap: Overlap) -> str:
    match overlap.kind:
        case "video":
            return overlap.shared
        case "file":
            return f"{overlap.ours} = {overlap.theirs}"
        case _:
            return f"{overlap.shared}: {overlap.ours}, {overlap.theirs}"


def find_shared(
    parts: Mapping[str, pa.Table], level: Level = "subject"
) -> dict[tuple[str, str], list[Overlap]]:
    """Return what train, dev and the test sets of one protocol share, by the names of two parts.

    Args:
        parts: identities of `train`, `dev` and any test sets, which may share what they like.
        level: how far to look.
    """
    tests = [name for name in parts if name not in ("train", "dev")]
    compared = [("train", "dev"), *((ours, test) for ours in ("train", "dev") for test in tests)]
    shared = {
        (ours, theirs): find_overlaps(parts[ours], parts[theirs], level)
        for ours, theirs in compared
    }
    return {names: overlaps for names, overlaps in shared.items() if overlaps}


def save_learned(run: Path, data: Data) -> None:
    """Keep in a run's folder whom it learns from and chooses by.

    Raises:
        TrainError: the folder can't be written.
    """
    parts = [
        data.identities[name].append_column("part", pa.array([name] * len(data.identities[name])))
        for name in ("train", "dev")
        if len(data.identities[name])
    ]
    try:
        with whole_file(run / LEARNED) as path:
            pq.write_table(pa.concat_tables(parts), path, compression="zstd")
    except OSError as error:
        raise TrainError(f"{run / LEARNED}: can't be written: {error}") from error


def load_learned(run: Path) -> dict[str, pa.Table] | None:
    """Return whom a run learned from, by part (`train`, `dev`); None: it kept no record.

    Raises:
        TrainError: the record is damaged.
    """
    path = run / LEARNED
    if not path.exists():
        return None
    try:
        table = pq.read_table(path, columns=[*_SCHEMA.names, "part"])
        return {
            name: table.filter(pc.equal(table["part"], name)).select(_SCHEMA.names)
            for name in ("train", "dev")
        }
    except (OSError, pa.ArrowException) as error:
        raise TrainError(f"{path}: can't be read: {error}; train again") from error


def learned_overlaps(run: Path, data: Data) -> dict[tuple[str, str], list[Overlap]] | None:
    """Return what an evaluation shares with what a run learned from; None: it kept no record.

    A test set may hold nobody of the run's train and dev; a dev set, which gives thresholds, nobody
    of its train.

    Args:
        run: folder of the run.
        data: of the evaluation.
    """
    learned = load_learned(run)
    if learned is None:
        return None
    shared = {("train", "dev"): (learned["train"], data.identities["dev"])}
    for name in data.test:
        for part in ("train", "dev"):
            shared[part, name] = (learned[part], data.identities[name])
    overlaps = {
        (f"{_RUN}{ours}", theirs): find_overlaps(*sides, data.disjoint)
        for (ours, theirs), sides in shared.items()
    }
    return {names: between for names, between in overlaps.items() if between}
