"""Batches of face crops from prepared shards, by PyTorch or NVIDIA DALI.

Both give the same rows in the same order for a seed, and the same pictures within a grey level (see
tests/train/data/test_loaders.py). Both can begin at any step, so a resumed run needs no state of
its loader.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import BaseModel, Field

from models import ATTACK
from train.data.loaders._augmentation import (
    Augmentation,
    AugmentConfig,
    BoxJitter,
    Erase,
    ResizedCrop,
    Uniform,
)
from train.data.loaders._order import Group, Order, evaluation_order, training_order
from train.data.loaders._reading import Loaded, PairTransform, Reading
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from models import InputSpec
    from train.data.shards import Shards

__all__ = [
    "AugmentConfig",
    "BoxJitter",
    "DaliLoaderConfig",
    "Erase",
    "Group",
    "Loaded",
    "LoaderConfig",
    "PairTransform",
    "ResizedCrop",
    "TorchLoaderConfig",
    "Uniform",
    "open_evaluation_loader",
    "open_loader",
]


class TorchLoaderConfig(BaseModel, frozen=True, extra="forbid"):
    """PyTorch worker processes."""

    kind: Literal["torch"] = Field("torch", description="This loader.")
    workers: int = Field(1, ge=0, description="Processes; 0: load between the steps.")
    prefetch: int = Field(2, ge=1, description="Batches ahead, per worker.")


class DaliLoaderConfig(BaseModel, frozen=True, extra="forbid"):
    """NVIDIA DALI."""

    kind: Literal["dali"] = Field(description="This loader.")
    device: Literal["cpu", "gpu"] = Field("cpu", description="Where pictures are decoded.")
    threads: int = Field(1, ge=1, description="CPU threads per group.")
    prefetch: int = Field(2, ge=1, description="Batches ahead.")


LoaderConfig = Annotated[TorchLoaderConfig | DaliLoaderConfig, Field(discriminator="kind")]

_OFF = AugmentConfig()


def open_loader(
    shards: Shards,
    groups: Sequence[Group],
    spec: InputSpec,
    config: TorchLoaderConfig | DaliLoaderConfig,
    *,
    seed: int,
    first_step: int = 0,
    augment: AugmentConfig = _OFF,
    transform: PairTransform | None = None,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Loaded]:
    """Return the endless batches of a training run: of each group its quota, group by group.

    Args:
        shards: what is drawn from.
        groups: rows and quota per rank and step of each.
        spec: of the network.
        config: which loader.
        seed: of the run: order and augmentation depend on it, the step and the rank alone.
        first_step: the step that the first batch belongs to.
        augment: drawn for each sample.
        transform: makes an attack of each bona fide face. A group then gives twice its quota: its
            bona fide faces, then their attacks in the same order.
        rank: of this process.
        world: number of processes.

    Raises:
        TrainError: a group is empty, crops are stored too tight for `spec`, `transform` with DALI
            or with attacks, no DALI or no GPU; and while loading, what a loader can't read.
    """
    for group in groups:
        _check_transform(shards, group.rows, config, transform)
    order = training_order(groups, shards.shard, seed=seed, rank=rank, world=world)
    return _open(
        shards, order, Augmentation(augment, shards.prepared, spec), config, first_step, transform
    )


def open_evaluation_loader(
    shards: Shards,
    rows: Sequence[int],
    spec: InputSpec,
    config: TorchLoaderConfig | DaliLoaderConfig,
    *,
    batch: int,
    rank: int = 0,
    world: int = 1,
    transform: PairTransform | None = None,
) -> Iterator[Loaded]:
    """Return the rows as streaming would cut them, each once over all ranks, none padded.

    Args:
        shards: what is read.
        rows: in any order; they come sorted, neighbours on one rank.
        spec: of the network.
        config: which loader.
        batch: faces per step; the last has what is left.
        rank: of this process.
        world: number of processes.
        transform: as `open_loader`; its draws depend on the place of a row alone.

    Raises:
        TrainError: as `open_loader`.
    """
    _check_transform(shards, rows, config, transform)
    order = evaluation_order(rows, batch, rank=rank, world=world)
    return _open(shards, order, Augmentation(_OFF, shards.prepared, spec), config, 0, transform)


def _check_transform(
    shards: Shards,
    rows: Sequence[int],
    config: TorchLoaderConfig | DaliLoaderConfig,
    transform: PairTransform | None,
) -> None:
    if transform is None:
        return
    if (shards.label[np.asarray(rows, np.int64)] == ATTACK).any():
        raise TrainError("synthetic attacks are made of bona fide faces; a group holds attacks")
    if isinstance(config, DaliLoaderConfig):
        raise TrainError("synthetic attacks are made by the torch loader; set kind to torch")


def _open(
    shards: Shards,
    order: Order,
    augmentation: Augmentation,
    config: TorchLoaderConfig | DaliLoaderConfig,
    first_step: int,
    transform: PairTransform | None,
) -> Iterator[Loaded]:
    reading = Reading(shards, order, augmentation)
    match config:
        case TorchLoaderConfig():
            from train.data.loaders.torch_shards import torch_batches

            return torch_batches(reading, config, first_step, transform)
        case DaliLoaderConfig():
            try:
                from train.data.loaders.dali_shards import dali_batches
            except ImportError as error:
                raise TrainError(
                    f"loader.kind is dali, but DALI can't be imported ({error}): install "
                    "nvidia-dali-cuda130, or set kind to torch"
                ) from error
            return dali_batches(reading, config, first_step)
