"""What a run wrote down while it trained, as curves for the report."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from train.errors import TrainError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

NO_LOSSES: Final = ("learning_rate", "loss_scale")  # columns of losses.csv

_SPAN: Final = 0.05  # share of the points that a smoothed value is the mean of


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """One column over the steps.

    Attributes:
        steps: (N,) ascending.
        values: (N,) finite.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    def smoothed(self) -> NDArray[np.float64]:
        """Return (N,) the mean of each value and its neighbours, as many on both sides."""
        window = np.ones(max(1, round(_SPAN * self.values.size)))
        counts = np.convolve(np.ones_like(self.values), window, "same")  # fewer at the ends
        return np.convolve(self.values, window, "same") / counts


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """Of one run, by column: `losses.csv` and `validation.csv`."""

    losses: dict[str, Curve]
    validation: dict[str, Curve]


def read_curves(run: Path) -> Curves:
    """Read a run's journal; a file that it does not have gives no curve.

    Raises:
        TrainError: unreadable; the message names file and line.
    """
    return Curves(_read(run / "losses.csv"), _read(run / "validation.csv"))


def _read(path: Path) -> dict[str, Curve]:
    if not path.exists():
        return {}
    columns: dict[str, list[tuple[int, float]]] = {}
    line = 1
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file, strict=True):
                line += 1
                step = int(row.pop("step"))
                for name, value in row.items():
                    if value:  # a column that came later, or ended
                        columns.setdefault(name, []).append((step, float(value)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise TrainError(f"{path}: line {line}: can't read the run's journal: {error}") from error
    return {
        name: Curve(np.array([step for step, _ in points]), np.array([v for _, v in points]))
        for name, points in columns.items()
    }
