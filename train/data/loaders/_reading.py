"""What loaders are given, and what they give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from models import FaceBatch

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

    from train.data.loaders._augmentation import Augmentation
    from train.data.loaders._order import Order
    from train.data.shards import Shards

PairTransform = Callable[
    ["NDArray[np.uint8]", "NDArray[np.float32]", "Generator"],
    tuple["NDArray[np.uint8]", "NDArray[np.uint8]"],
]
"""Loose crop (S, S, 3) RGB, landmarks (5, 2), draws -> bona fide and attack, both (S, S, 3)."""


class Loaded(NamedTuple):
    """One step's batch."""

    batch: FaceBatch
    rows: list[int]  # of the opened shards, one for each picture of the batch


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What is read, in which order, and what is done to it."""

    shards: Shards  # without records: workers need none
    labels: NDArray[np.int64]  # (N,) of every row
    landmarks: NDArray[np.float32]  # (N, 5, 2) of every row
    order: Order
    augmentation: Augmentation

    @classmethod
    def of(cls, shards: Shards, order: Order, augmentation: Augmentation) -> Reading:
        """Take what loaders need from opened shards."""
        records = shards.records
        return cls(
            replace(shards, records=()),
            np.array([record.label for record in records], np.int64),
            np.array([record.landmarks for record in records], np.float32),
            order,
            augmentation,
        )
