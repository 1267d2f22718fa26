"""The folder is the registry: a module of `train.data.datasets` without a leading underscore."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, cast

from train.data import datasets
from train.data.datasets._sample import LEVELS
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from train.data.datasets._sample import Dataset, Level


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


def disjoint_level(names: Iterable[str]) -> Level:
    """Return what the splits of these data sets do not share; of one that is unknown, subjects."""
    originals = (name.removeprefix("synthetic/") for name in names)
    known = [load_dataset(name).disjoint for name in originals if name in dataset_names()]
    return min([*known, "subject"], key=LEVELS.index)
