"""Crops of all tracks and sources to batches that the engine takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from stream.records import CropBatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from stream.records import FaceCrop


def batches(crops: Sequence[FaceCrop], max_batch: int) -> Iterator[CropBatch]:
    """Yield the crops in order, at most `max_batch` together, on their common device."""
    for start in range(0, len(crops), max_batch):
        part = tuple(crops[start : start + max_batch])
        device = common_device([crop.image for crop in part])
        images = torch.stack([crop.image.to(device) for crop in part])
        yield CropBatch(crops=part, images=images)


def common_device(images: Sequence[Tensor]) -> torch.device:
    """Return where pictures of several sources come together: a GPU if one of them is there."""
    devices = [image.device for image in images]
    return next((d for d in devices if d.type != "cpu"), torch.device("cpu"))
