"""What a run writes down as it goes: losses and validation, as CSV, TensorBoard and a picture."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

from torch.utils.tensorboard import SummaryWriter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class Journal:
    """One run's records; rank 0 has the only one."""

    def __init__(self, run: Path, after_step: int) -> None:
        """Open the run's records; rows after a step, of a run cut off later, are taken out."""
        self._run = run
        for name in ("losses.csv", "validation.csv"):
            _cut(run / name, after_step)
        # TensorBoard hides what was written after the step that a run restarts from.
        self._events: Any = SummaryWriter(str(run / "events"), purge_step=after_step + 1)

    def losses(self, step: int, values: Mapping[str, float]) -> None:
        """Add one row of training losses."""
        self._add("losses", step, values)

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        """Add one row of results on dev."""
        self._add("validation", step, values)

    def close(self) -> None:
        """Draw the losses, and close the files."""
        self._events.close()
        _draw(self._run / "losses.csv", self._run / "losses.png")

    def _add(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        with (self._run / f"{kind}.csv").open("a", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            if file.tell() == 0:
                rows.writerow(["step", *values])
            rows.writerow([step, *values.values()])
        for name, value in values.items():
            self._events.add_scalar(f"{kind}/{name}", value, step)


def _cut(path: Path, after_step: int) -> None:
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *(row for row in rows if int(row[0]) <= after_step)])


def _draw(source: Path, picture: Path) -> None:
    """Draw every loss term over the steps."""
    from matplotlib.figure import Figure

    with source.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for name in rows[0]:
        if name not in ("step", "learning_rate"):
            axes.plot(steps, [float(row[name]) for row in rows], label=name, linewidth=1)
    axes.set(xlabel="step", ylabel="weighted loss term")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)
