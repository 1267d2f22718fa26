"""Crops of all tracks and sources to batches that the engine takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from stream.records import CropBatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stream.records import FaceCrop


def batches(crops: Sequence[FaceCrop], max_batch: int) -> Iterator[CropBatch]:
    """Yield the crops in order, at most `max_batch` together."""
    for start in range(0, len(crops), max_batch):
        part = tuple(crops[start : start + max_batch])
        yield CropBatch(crops=part, images=torch.stack([crop.image for crop in part]))
