"""The folder is the registry: a module of `train.data.datasets` without a leading underscore."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, cast

from train.data import datasets
from train.errors import TrainError

if TYPE_CHECKING:
    from train.data.datasets._sample import Dataset


def dataset_names() -> tuple[str, ...]:
    """Return every data set's name, sorted, without importing any of them."""
    return tuple(
        sorted(m.name for m in iter_modules(datasets.__path__) if not m.name.startswith("_"))
    )


def load_dataset(name: str) -> Dataset:
    """Return the data set of this name.

    Raises:
        TrainError: no such data set; the message lists the known ones.
    """
    if name not in dataset_names():
        raise TrainError(f"unknown data set {name!r}; known: {', '.join(dataset_names())}")
    return cast("Dataset", import_module(f"train.data.datasets.{name}").DATASET)
