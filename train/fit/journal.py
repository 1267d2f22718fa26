"""What a run writes down as it goes: losses and validation, as CSV, TensorBoard and a picture."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any, Self

from torch.utils.tensorboard import SummaryWriter

from models import whole_file
from train.evaluation.curves import NO_LOSSES
from train.fit.mlflow_log import MlflowLog

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from train.config import Recipe
    from train.fit.checkpoint import Change


class Journal:
    """One run's records; rank 0 has the only one."""

    def __init__(self, run: Path, recipe: Recipe, after_step: int, validated: int) -> None:
        """Open the run's records; rows of a run that was cut off later are taken out.

        Args:
            run: its folder.
            recipe: the run's; says which logs there are.
            after_step: rows of losses after it are cut, of changes also its own.
            validated: rows of validations after it are cut.

        Raises:
            TrainError: MLflow is wanted and can't be had.
        """
        self._run = run
        cuts = {"losses": after_step, "validation": validated, "changes": after_step - 1}
        for name, last in cuts.items():
            _cut(run / f"{name}.csv", last)
        # TensorBoard hides what was written after the step that a run restarts from.
        self._events: Any = SummaryWriter(str(run / "events"), purge_step=after_step + 1)
        self._mlflow = MlflowLog(run, recipe) if recipe.mlflow else None

    def losses(self, step: int, values: Mapping[str, float]) -> None:
        """Add one row of training losses."""
        self._add("losses", step, values)

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        """Add one row of results on dev."""
        self._add("validation", step, values)

    def changes(self, step: int, changes: Iterable[Change]) -> None:
        """Add what changed in the recipe when the run went on after a step."""
        for change in changes:
            _append(self._run / "changes.csv", {"after_step": step, **change._asdict()})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the records; draw the losses of a run that is done."""
        self._events.close()
        if self._mlflow is not None:
            self._mlflow.close(finished=kind is None)
        if kind is None:
            _draw(self._run / "losses.csv", self._run / "losses.png")

    def _add(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        _append(self._run / f"{kind}.csv", {"step": step, **values})
        for name, value in values.items():
            self._events.add_scalar(f"{kind}/{name}", value, step)
        if self._mlflow is not None:
            self._mlflow.add(kind, step, values)


def _append(path: Path, row: Mapping[str, Any]) -> None:
    with path.open("a", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, [*row])
        if file.tell() == 0:
            rows.writeheader()
        rows.writerow(row)


def _cut(path: Path, after_step: int) -> None:
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = [*csv.reader(file)] or [[]]
    kept = [row for row in rows if len(row) == len(header) and int(row[0]) <= after_step]
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(([header] if header else []) + kept)


def _draw(source: Path, picture: Path) -> None:
    """Draw every loss term over the steps."""
    from matplotlib.figure import Figure

    if not source.exists():
        return
    with source.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for name in rows[0] if rows else ():
        if name not in ("step", *NO_LOSSES):
            axes.plot(steps, [float(row[name]) for row in rows], label=name, linewidth=1)
    axes.set(xlabel="step", ylabel="weighted loss term")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)
