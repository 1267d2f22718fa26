"""Who was learned from: no recording and no person may be on two sides.

A run keeps the identities of its training and dev videos (`save_learned`), so that an evaluation
with another protocol, or with other folders, can be compared with them (`learned_overlaps`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import pyarrow as pa
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
_COLUMNS: Final = ("part", "video_id", "source_sha256", "source_id", "subject")


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


def find_overlaps(
    ours: Iterable[Identity], theirs: Iterable[Identity], level: Level = "subject"
) -> list[Overlap]:
    """Return what two sides share, each shared thing once.

    Byte-identical files are always looked for. A video that is shared is told as such alone, and
    not also as a file, a source and a subject.

    Args:
        ours: one side.
        theirs: the other.
        level: how far to look.
    """
    kinds = ("file", *LEVELS[: LEVELS.index(level) + 1])
    have: dict[str, dict[str, str]] = {kind: {} for kind in kinds}
    for identity in ours:
        keys = _keys(identity)
        for kind in kinds:
            if key := keys[kind]:
                have[kind].setdefault(key, identity.video_id)
    shared: dict[tuple[str, str], Overlap] = {}
    for identity in theirs:
        keys = _keys(identity)
        same_video = keys["video"] in have["video"]
        for kind in ("video",) if same_video else kinds:
            key = keys[kind]
            if key and key in have[kind] and (kind, key) not in shared:
                shared[kind, key] = Overlap(kind, key, have[kind][key], identity.video_id)  # type: ignore[arg-type]
    return list(shared.values())


def _keys(identity: Identity) -> dict[str, str | None]:
    return {
        "file": identity.source_sha256,
        "video": identity.video_id,
        "source": identity.source_id,
        "subject": identity.subject,
    }


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
    parts: Mapping[str, Iterable[Identity]], level: Level = "subject"
) -> dict[tuple[str, str], list[Overlap]]:
    """Return what train, dev and the test sets of one protocol share, by the names of two parts.

    Args:
        parts: `train`, `dev` and any test sets; test sets may share what they like.
        level: how far to look.
    """
    listed = {name: list(identities) for name, identities in parts.items()}
    tests = [name for name in listed if name not in ("train", "dev")]
    compared = [("train", "dev"), *((ours, test) for ours in ("train", "dev") for test in tests)]
    shared = {
        (ours, theirs): find_overlaps(listed[ours], listed[theirs], level)
        for ours, theirs in compared
        if ours in listed and theirs in listed
    }
    return {names: overlaps for names, overlaps in shared.items() if overlaps}


def save_learned(run: Path, data: Data) -> None:
    """Keep in a run's folder whom it learns from and chooses by.

    Raises:
        TrainError: the folder can't be written.
    """
    rows = [(name, *identity) for name in ("train", "dev") for identity in data.identities[name]]
    table = pa.table(dict(zip(_COLUMNS, map(list, zip(*rows, strict=True)), strict=True)))
    try:
        with whole_file(run / LEARNED) as path:
            pq.write_table(table, path, compression="zstd")
    except OSError as error:
        raise TrainError(f"{run / LEARNED}: can't be written: {error}") from error


def load_learned(run: Path) -> dict[str, list[Identity]] | None:
    """Return whom a run learned from, by part (`train`, `dev`); None: it kept no record.

    Raises:
        TrainError: the record is damaged.
    """
    path = run / LEARNED
    if not path.exists():
        return None
    parts: dict[str, list[Identity]] = {"train": [], "dev": []}
    try:
        for part, *identity in zip(
            *(column.to_pylist() for column in pq.read_table(path, columns=list(_COLUMNS))),
            strict=True,
        ):
            parts[part].append(Identity(*identity))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise TrainError(f"{path}: can't be read: {error}; train again") from error
    return parts


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
    found = {
        (f"{_RUN}{ours}", theirs): find_overlaps(*sides, data.disjoint)
        for (ours, theirs), sides in shared.items()
    }
    return {names: overlaps for names, overlaps in found.items() if overlaps}
