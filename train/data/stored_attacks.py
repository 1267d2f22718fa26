"""Store attacks made from prepared bona fide faces, as a prepared folder of their own.

Training makes its attacks as it goes (`train.attacks.pairs`). A stored set is for measuring: what
a detector that learned from other families, or from real attacks, makes of this one. Its data set
is named `synthetic/<data set>`, so that no figure of it can pass for one of real attacks, the
attack type is the family, and each record's provenance says how the picture was made.

    python -m train.data.stored_attacks runs/faces --out runs/faces_moire --families moire \
        --split dev
"""

from __future__ import annotations

import argparse
import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import stream
from models import ATTACK, BONA_FIDE
from train.attacks import FAMILIES, LooseCrop, draw_family
from train.attacks.pairs import SyntheticPairs
from train.data.shards import FaceRecord, PreparedConfig, ShardWriter, encode_crop, open_shards
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.random import Generator

log = logging.getLogger(__name__)


def write_synthetic_faces(
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
    rows = [
        row
        for row, record in enumerate(shards.records)
        if record.label == BONA_FIDE and record.split == split
    ]
    if not rows:
        raise TrainError(f"{prepared}: no bona fide face of split {split} to make attacks of")
    about = PreparedConfig(
        size_px=shards.prepared.size_px,
        margin=shards.prepared.margin,
        code_version=stream.__version__,
        options={
            "synthetic": dict(weights),
            "split": split,
            "seed": seed,
            "of_sha256": hashlib.sha256((prepared / "manifest.jsonl").read_bytes()).hexdigest(),
        },
    )
    with ShardWriter(out, about, samples_per_shard=1024) as writer:
        done = {record.sample_id for record in writer.records}
        for row in rows:
            record = shards.records[row]
            sample_id = f"synthetic/{record.sample_id}"
            if sample_id in done:
                continue
            family = draw_family(_generator(seed, record.video_id), weights)
            face = LooseCrop(shards.crop(row), np.array(record.landmarks, np.float32))
            attack = FAMILIES[family](face, _generator(seed, record.sample_id))
            changed = {
                "sample_id": sample_id,
                "dataset": f"synthetic/{record.dataset}",
                "video_id": f"synthetic/{record.video_id}",
                "label": ATTACK,
                "attack_type": attack.family,
                "provenance": {"made_of": record.sample_id, "seed": seed, **attack.parameters},
            }
            made = FaceRecord.model_validate(record.model_dump() | changed)
            writer.add([(made, encode_crop(attack.image))])
    (out / "problems.jsonl").touch()
    return len(rows)


def _generator(seed: int, name: str) -> Generator:
    """Return the generator of a video or face, whichever others there are."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest))


def main() -> None:
    """Write the attacks, or end with what must be changed."""
    parser = argparse.ArgumentParser(
        prog="python -m train.data.stored_attacks", description=__doc__
    )
    parser.add_argument("prepared", type=Path, help="folder made by `python -m train prepare`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the attacks")
    parser.add_argument(
        "--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="equally likely"
    )
    parser.add_argument("--split", choices=("train", "dev", "test"), default="train")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        n = write_synthetic_faces(
            args.prepared,
            args.out,
            dict.fromkeys(args.families, 1.0),
            split=args.split,
            seed=args.seed,
        )
    except TrainError as error:
        parser.error(str(error))
    log.info("%s: %d synthetic attacks", args.out, n)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
