"""What a run writes about itself before it learns: its recipe, and where it comes from."""

from __future__ import annotations

import hashlib
import platform
from typing import TYPE_CHECKING

import numpy as np
import torch
import yaml

import stream
from models import whole_file
from train.data.overlap import save_learned
from train.evaluation.run_record import RunRecord, write_record

if TYPE_CHECKING:
    from pathlib import Path

    from train.config import Recipe
    from train.data.selection import Data
    from train.fit.ranks import Ranks


def describe_run(run: Path, recipe: Recipe, data: Data, ranks: Ranks, faces: str) -> None:
    """Write `recipe.yaml`, `run.json` and `learned_from.parquet`.

    Raises:
        OSError, TrainError: the folder can't be written.
    """
    content = recipe.model_dump(mode="json", exclude_unset=True)
    with whole_file(run / "recipe.yaml") as part:
        part.write_text(
            yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
    save_learned(run, data)
    write_record(
        run,
        RunRecord(
            method=recipe.method,
            recipe_digest=recipe.digest(),
            seed=recipe.seed,
            steps=recipe.steps,
            protocol=data.protocol,
            faces_digest=faces,
            n_train=len(data.train),
            n_dev=len(data.dev.rows),
            processes=ranks.world,
            device=_name(ranks.device),
            facewarden=stream.__version__,
            torch=torch.__version__,
            python=platform.python_version(),
        ),
    )


def faces_digest(data: Data) -> str:
    """Return 12 hex digits that tell the faces of train and dev, and their order, from others.

    Labels, and the sizes of the pictures in bytes, stand for the faces: ten million are digested in
    a second.
    """
    digest = hashlib.sha256()
    for rows in (data.train, data.dev.rows):
        chosen = np.asarray(rows, np.int64)
        digest.update(np.asarray(data.shards.size, np.int64)[chosen].tobytes())
        digest.update(np.asarray(data.shards.label, np.int64)[chosen].tobytes())
        digest.update(b"/")
    return digest.hexdigest()[:12]


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()
