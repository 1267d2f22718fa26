"""Store synthetic attacks of prepared bona fide faces, as a prepared folder of their own.

Training makes its attacks as it goes (`train.attacks.pairs`). A stored set is for measuring: what
a detector that learned from other families, or from real attacks, makes of this one. Its data set
is named `synthetic/<data set>`, so that no figure of it can pass for one of real attacks, the
attack type is the family, and each record's provenance says how the picture came about. No camera
films these attacks, for none films the bona fide faces beside them either.
"""

from __future__ import annotations

import hashlib
import itertools
from typing import TYPE_CHECKING

import numpy as np

import stream
from models import ATTACK, BONA_FIDE
from train.attacks import FAMILIES, LooseCrop, draw_family
from train.attacks.pairs import SyntheticPairs
from train.data.shard_writer import ShardWriter
from train.data.shards import FaceRecord, PreparedConfig, encode_crop, open_shards
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.random import Generator

    from train.data.shards import Shards


def write_synthetic_attacks(
    prepared: Path,
    out: Path,
    weights: Mapping[str, float],
    *,
    split: str = "train",
    seed: int = 0,
) -> int:
    """Make one attack of each bona fide face of a split; a video's faces share a family.

    Args:
        prepared: folder of faces with a margin of about 2.
        out: folder for the attacks; finished or unfinished ones of the same call are taken up.
        weights: as `train.attacks.synthesise` takes them.
        split: "train", or "dev" or "test" where the attacks are to be measured on, not learned.
        seed: of every draw, together with the names of video and face.

    Returns:
        Number of attacks in the folder.

    Raises:
        TrainError: the split has no bona fide face, the margin does not fit, or `out` holds
            something else.
    """
    shards = open_shards(prepared)
    SyntheticPairs(weights).check(shards.prepared)
    rows = shards.rows(label=BONA_FIDE, split=split).tolist()
    if not rows:
        raise TrainError(f"{prepared}: no bona fide face of split {split} to make attacks of")
    about = PreparedConfig(
        size_px=shards.prepared.size_px,
        margin=shards.prepared.margin,
        window=shards.prepared.window,
        code_version=stream.__version__,
        options={
            "synthetic": dict(weights),
            "split": split,
            "seed": seed,
            "of_sha256": _digest(shards, rows),
        },
    )
    with ShardWriter(out, about, samples_per_shard=1024) as writer:
        by_video = itertools.groupby(rows, key=lambda row: shards.records[row].video_id)
        for video_id, its_rows in by_video:
            if f"synthetic/{video_id}" not in writer.stored:
                writer.add([_attack(shards, row, weights, seed) for row in its_rows])
    (out / "problems.jsonl").touch()
    return len(rows)


def _attack(
    shards: Shards, row: int, weights: Mapping[str, float], seed: int
) -> tuple[FaceRecord, bytes]:
    record = shards.records[row]
    family = draw_family(_generator(seed, record.video_id), weights)
    face = LooseCrop(shards.crop(row), shards.records.landmarks(row))
    attack = FAMILIES[family](face, _generator(seed, record.sample_id))
    changed = {
        "sample_id": f"synthetic/{record.sample_id}",
        "dataset": f"synthetic/{record.dataset}",
        "video_id": f"synthetic/{record.video_id}",
        "label": ATTACK,
        "attack_type": attack.family,
        "provenance": {"of": record.sample_id, "seed": seed, **attack.parameters},
    }
    record = FaceRecord.model_validate(record.model_dump() | changed)
    return record, encode_crop(attack.image)


def _digest(shards: Shards, rows: Sequence[int]) -> str:
    """Return what changes when a face or its picture does."""
    digest = hashlib.sha256()
    for row in rows:
        record = shards.records[row]
        digest.update(f"{record.sample_id} {record.source_sha256}\n".encode())
    return digest.hexdigest()


def _generator(seed: int, name: str) -> Generator:
    """Return the generator of a video or face, whichever others there are."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest))
