"""What loaders are given, and what they give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from models import FaceBatch

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

    from train.attacks import FaceInScene
    from train.data.loaders._augmentation import Augmentation
    from train.data.loaders._order import Order
    from train.data.shards import Shards

PairTransform = Callable[
    ["FaceInScene", Callable[[], "FaceInScene"], "Generator"],
    tuple["NDArray[np.uint8]", "NDArray[np.uint8]"],
]
"""A face, what draws another, draws -> bona fide and attack, both (S, S, 3) RGB."""


class Loaded(NamedTuple):
    """One step's batch."""

    batch: FaceBatch
    rows: list[int]  # of the opened shards, one for each picture of the batch


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What is read, in which order, and what is done to it."""

    shards: Shards
    order: Order
    augmentation: Augmentation

    def faces(self, rows: Sequence[int] | NDArray[np.int64]) -> list[NDArray[np.float64]]:
        """Return the boxes of rows, px of the stored crop."""
        return [self.shards.records.face(int(row)) for row in rows]
