"""Several runs beside each other: recipe, seed, dev AUC, and the test measures of their reports."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, Field, ValidationError

from models import one_line, whole_file
from train.errors import TrainError
from train.evaluation.metrics.intervals import mean_and_spread
from train.evaluation.run_record import RUN_RECORD, read_record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SEEDS: Final = "seeds.json"  # in the folder of a run of several seeds

_MEASURES: Final = ("auc", "eer_interpolated", "apcer_max", "bpcer")  # of videos, per test set


class RunMeasures(BaseModel, frozen=True):
    """One run, as far as it got.

    `recipe` and `faces` are digests: runs that share both, and the protocol, differ in the seed.
    """

    run: str = Field(description="Its folder.")
    method: str
    recipe: str
    faces: str
    protocol: str | None
    seed: int
    steps: int = Field(description="That the recipe asks for.")
    best_step: int | None = Field(description="Of the kept weights; null: never validated.")
    measures: dict[str, float] = Field(description="`dev_auc`, and `<test set> <measure>`.")


class Spread(BaseModel, frozen=True):
    """Runs that differ in the seed; standard deviation with ddof = 1."""

    recipe: str
    runs: tuple[str, ...]
    mean: dict[str, float]
    standard_deviation: dict[str, float]


class Comparison(BaseModel, frozen=True):
    """What `seeds.json` holds."""

    runs: tuple[RunMeasures, ...]
    spreads: tuple[Spread, ...]


class _Measure(BaseModel):
    name: str
    value: float | None


class _Set(BaseModel):
    name: str
    level: str
    measures: tuple[_Measure, ...] = Field(alias="figures")


class _Report(BaseModel):
    """What of `report.json` is read here."""

    sets: tuple[_Set, ...]


def compare_runs(folders: Sequence[Path]) -> Comparison:
    """Read what runs have written about themselves.

    Args:
        folders: of runs, or of several seeds of one.

    Raises:
        TrainError: no folder of a run, or a file in it is damaged.
    """
    runs = [_read(run) for folder in folders for run in _runs_of(folder)]
    alike: dict[tuple[str, str, str | None], list[RunMeasures]] = {}
    for run in runs:
        alike.setdefault((run.recipe, run.faces, run.protocol), []).append(run)
    spreads = [_spread(members) for members in alike.values() if len(members) > 1]
    return Comparison(runs=tuple(runs), spreads=tuple(spreads))


def summarise_seeds(folder: Path) -> Comparison:
    """Compare the seeds of a run, and keep the result in `seeds.json`.

    Raises:
        TrainError: as `compare_runs`.
    """
    compared = compare_runs([folder])
    with whole_file(folder / SEEDS) as part:
        part.write_text(compared.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return compared


def as_rows(compared: Comparison) -> list[list[str]]:
    """Return a table of text, the first row its head; missing values are empty."""
    names = list(dict.fromkeys(name for run in compared.runs for name in run.measures))
    rows = [["run", "method", "recipe", "seed", "steps", "best_step", *names]]
    for run in compared.runs:
        about = [run.run, run.method, run.recipe, str(run.seed), str(run.steps)]
        best = "" if run.best_step is None else str(run.best_step)
        rows.append([*about, best, *_numbers(run.measures, names)])
    for spread in compared.spreads:
        of = f"of {len(spread.runs)}"
        for what, values in (("mean", spread.mean), ("deviation", spread.standard_deviation)):
            rows.append([f"{what} {of}", "", spread.recipe, "", "", "", *_numbers(values, names)])
    return rows


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """Return a table with columns that line up."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    return "\n".join(lines)


def as_csv(rows: Sequence[Sequence[str]]) -> str:
    """Return a table as CSV."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def _numbers(measures: Mapping[str, float], names: Sequence[str]) -> list[str]:
    return [f"{measures[name]:.4f}" if name in measures else "" for name in names]


def _runs_of(folder: Path) -> list[Path]:
    if (folder / RUN_RECORD).exists():
        return [folder]
    seeds = sorted(
        (path.parent for path in folder.glob(f"seed-*/{RUN_RECORD}")),
        key=lambda run: int(run.name.removeprefix("seed-")),
    )
    return seeds or [folder]


def _read(run: Path) -> RunMeasures:
    record = read_record(run)
    best = _best_on_dev(run / "validation.csv")
    return RunMeasures(
        run=str(run),
        method=record.method,
        recipe=record.recipe_digest,
        faces=record.faces_digest,
        protocol=record.protocol,
        seed=record.seed,
        steps=record.steps,
        best_step=None if best is None else best[1],
        measures=({} if best is None else {"dev_auc": best[0]}) | _tested(run),
    )


def _best_on_dev(path: Path) -> tuple[float, int] | None:
    """Return dev AUC and step of the best validation, of equals the latest."""
    if not path.exists():
        return None
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [(float(row["dev_auc"]), int(row["step"])) for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise TrainError(f"{path}: damaged: {error}") from error
    return max(rows, default=None)


def _tested(run: Path) -> dict[str, float]:
    path = run / "report" / "report.json"
    if not path.exists():
        return {}
    try:
        report = _Report.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise TrainError(f"{path}: {one_line(error, _Report)}") from error
    return {
        f"{tested.name} {measure.name}": measure.value
        for tested in report.sets
        if tested.level == "video" and tested.name != "dev"
        for measure in tested.measures
        if measure.name in _MEASURES and measure.value is not None
    }


def _spread(runs: Sequence[RunMeasures]) -> Spread:
    shared = [name for name in runs[0].measures if all(name in run.measures for run in runs)]
    found = {name: mean_and_spread([run.measures[name] for run in runs]) for name in shared}
    return Spread(
        recipe=runs[0].recipe,
        runs=tuple(run.run for run in runs),
        mean={name: mean for name, (mean, _) in found.items()},
        standard_deviation={name: deviation for name, (_, deviation) in found.items()},
    )
