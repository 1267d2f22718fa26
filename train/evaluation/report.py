"""The evaluation report: from tables of scores to one JSON file and one page for people.

The operating point is chosen on dev scores, or given; a threshold chosen on test scores appears
only beside it, marked as an oracle's.
"""

from __future__ import annotations

import base64
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import jinja2
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from train.data.protocols import DevBpcer, DevEer, FixedThreshold, Threshold
from train.errors import TrainError
from train.evaluation.cautions import DEV, warnings_of
from train.evaluation.measures import Bootstrap, ChosenThreshold, SetFigures, finite, set_figures
from train.evaluation.metrics.intervals import REPLICATES, SEED, mean_and_spread
from train.evaluation.metrics.roc import roc
from train.evaluation.plots import report_plots
from train.evaluation.published import ExpectedFigure
from train.evaluation.scores import (
    Aggregate,
    Level,
    NoFace,
    checked_scores,
    frame_samples,
    video_samples,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from train.evaluation.scores import FrameScore, Samples

LEVELS: Final[tuple[Level, ...]] = ("video", "frame")

_SUMMARISED: Final = (
    "auc", "eer_interpolated", "apcer_max", "bpcer", "acer", "hter", "hter:test_eer", "accuracy",
    "accuracy_at_half", "log_loss", "cllr",
)  # fmt: skip
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+&-]*")


class ReportConfig(BaseModel, frozen=True, extra="forbid"):
    """How scores become figures."""

    protocol: str = Field(description="Name of the protocol, for people.")
    threshold: Threshold = Field(description="The rule of the operating point.")
    aggregate: Aggregate = Field("mean", description="How frames make a video's score.")
    no_face: NoFace = Field("half", description="What a video without any face counts as.")
    prior: float = Field(
        0.5, gt=0, lt=1, description="Share of attacks that the probabilities are meant for."
    )
    replicates: int = Field(REPLICATES, ge=100, description="Of the bootstrap.")
    seed: int = Field(SEED, ge=0, description="Of the bootstrap.")


class Comparison(BaseModel, frozen=True):
    """A published figure and ours, in its unit."""

    expected: ExpectedFigure
    ours: float | None
    within_tolerance: bool | None = Field(description="null: nothing to compare.")


class Spread(BaseModel, frozen=True):
    """A figure over the test sets; standard deviation with ddof = 1."""

    figure: str
    level: Level
    mean: float
    standard_deviation: float
    n_sets: int


class ReportDocument(BaseModel, frozen=True):
    """What is written as JSON."""

    format: Literal["facewarden/report/v1"] = "facewarden/report/v1"
    about: dict[str, str] = Field(description="What was evaluated: run, weights, code.")
    config: ReportConfig
    warnings: tuple[str, ...]
    sets: tuple[SetFigures, ...] = Field(description="Dev, if given, and the test sets.")
    over_test_sets: tuple[Spread, ...]
    expected: tuple[Comparison, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Report:
    """A report, and the samples its pictures are drawn from."""

    document: ReportDocument
    samples: Mapping[tuple[str, Level], Samples]


def build_report(
    dev: Iterable[FrameScore] | None,
    tests: Mapping[str, Iterable[FrameScore]],
    config: ReportConfig,
    *,
    expected: Sequence[ExpectedFigure] = (),
    about: Mapping[str, str] | None = None,
) -> Report:
    """Compute every figure of every set, for frames and for videos.

    The threshold of frames is chosen on dev frames, that of videos on dev videos.

    Args:
        dev: scores of the development set; needed by rules that choose on it.
        tests: name -> scores; at least one.
        config: how.
        expected: published figures to set beside ours.
        about: what was evaluated, for people.

    Raises:
        TrainError: no test set, scores that `checked_scores` refuses, a set without any face, a
            name unfit for a file, or dev data that the threshold's rule can't choose on.
    """
    tables = {} if dev is None else {DEV: _checked(DEV, dev)}
    for name, rows in tests.items():
        if name == DEV or not _FILE_NAME.fullmatch(name):
            raise TrainError(
                f"{name!r} can't name a test set: letters, digits and ._+&- only, and not {DEV!r}"
            )
        tables[name] = _checked(name, rows)
    if not tests:
        raise TrainError("a report needs the scores of at least one test set")
    samples = {
        (name, level): _samples(name, level, rows, config)
        for level in LEVELS
        for name, rows in tables.items()
    }
    bootstrap = Bootstrap(replicates=config.replicates, seed=config.seed)
    thresholds = {
        level: choose_threshold(config.threshold, samples.get((DEV, level))) for level in LEVELS
    }
    sets = tuple(
        set_figures(
            name, found, thresholds[level], bootstrap, prior=config.prior, is_dev=name == DEV
        )
        for (name, level), found in samples.items()
    )
    document = ReportDocument(
        about=dict(about or {}),
        config=config,
        warnings=(*warnings_of(tables, sets), *_without_counterpart(expected, sets)),
        sets=sets,
        over_test_sets=tuple(_spreads(sets)),
        expected=tuple(_compared(item, sets) for item in expected),
    )
    return Report(document=document, samples=samples)


def write_report(report: Report, folder: Path) -> Path:
    """Write `report.json`, `report.html` and the page's pictures; return the page's path.

    The page holds its pictures and needs no network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, bytes] = {}
    for level in LEVELS:
        sets = {name: s for (name, other), s in report.samples.items() if other == level}
        thresholds = {s.name: _as_number(s) for s in report.document.sets if s.level == level}
        for name, png in report_plots(sets, thresholds).items():
            pictures[f"{level}_{name}"] = png
    page = _page(report.document, pictures)
    for name, png in pictures.items():
        _write(folder / f"{name}.png", png)
    _write(folder / "report.json", report.document.model_dump_json(indent=1).encode() + b"\n")
    _write(folder / "report.html", page.encode())
    return folder / "report.html"


def choose_threshold(rule: Threshold, dev: Samples | None) -> ChosenThreshold:
    """Apply the rule of an operating point to development samples.

    Raises:
        TrainError: no dev samples, or not of the classes that the rule needs.
    """
    if isinstance(rule, FixedThreshold):
        return ChosenThreshold(rule="fixed", value=rule.value, source="given")
    needed = "both classes" if isinstance(rule, DevEer) else "bona fide samples"
    if dev is None or not dev.n_bona_fide or (isinstance(rule, DevEer) and not dev.n_attack):
        found = f"{dev.n_bona_fide} and {dev.n_attack} attacks" if dev else "no dev scores"
        raise TrainError(
            f"threshold rule {rule.kind} needs {needed} in the dev set, found {found}; give such a "
            "set or a fixed threshold"
        )
    curve = roc(dev.labels, dev.scores)
    counts = f"{dev.n_bona_fide} bona fide {dev.level}s and {dev.n_attack} attacks of dev"
    if isinstance(rule, DevBpcer):
        value = curve.threshold_at_bpcer(rule.at)
        source = f"lowest with BPCER <= {rule.at:g} on {counts}"
    else:
        value = curve.eer_nearest()[1]
        source = f"EER (nearest operating point) on {counts}"
    return ChosenThreshold(rule=rule.kind, value=finite(value), source=source)


def parse_threshold(text: str) -> Threshold:
    """Read `dev_eer`, `dev_bpcer=0.01` or `fixed=0.5`.

    Raises:
        TrainError: anything else.
    """
    kind, _, number = text.partition("=")
    values = {"dev_bpcer": {"at": number}, "fixed": {"value": number}}.get(kind, {})
    try:
        rule: Threshold = _THRESHOLD.validate_python({"kind": kind, **values})
    except ValidationError as error:
        raise TrainError(
            f"threshold rule {text!r}: expected dev_eer, dev_bpcer=0.01 or fixed=0.5"
        ) from error
    return rule


_THRESHOLD: Final[TypeAdapter[Threshold]] = TypeAdapter(Threshold)


def _checked(name: str, rows: Iterable[FrameScore]) -> list[FrameScore]:
    try:
        return checked_scores(rows)
    except TrainError as error:
        raise TrainError(f"{name}: {error}") from error


def _samples(name: str, level: Level, rows: Sequence[FrameScore], config: ReportConfig) -> Samples:
    if all(row.score is None for row in rows):
        raise TrainError(f"{name}: no face was found in any of {len(rows)} frames")
    if level == "frame":
        return frame_samples(rows)
    return video_samples(rows, config.aggregate, config.no_face)


def _as_number(figures: SetFigures) -> float:
    value = figures.threshold.value
    return math.inf if value is None else value


def _spreads(sets: Sequence[SetFigures]) -> Iterator[Spread]:
    """Yield mean and spread of the figures that every one of several test sets has."""
    for level in LEVELS:
        tests = [s for s in sets if s.level == level and s.name != DEV]
        for name in _SUMMARISED:
            values = [f.value for f in (s.figure(name) for s in tests) if f and f.value is not None]
            if len(values) == len(tests) > 1:
                mean, spread = mean_and_spread(values)
                yield Spread(
                    figure=name, level=level, mean=mean, standard_deviation=spread,
                    n_sets=len(values),
                )  # fmt: skip


def _compared(expected: ExpectedFigure, sets: Sequence[SetFigures]) -> Comparison:
    figures = [s for s in sets if (s.name, s.level) == (expected.test, expected.level)]
    figure = figures[0].figure(expected.metric) if figures else None
    if figure is None or figure.value is None:
        return Comparison(expected=expected, ours=None, within_tolerance=None)
    ours = figure.value * (100 if expected.unit == "percent" else 1)
    if expected.value is None or expected.tolerance is None:
        return Comparison(expected=expected, ours=ours, within_tolerance=None)
    near = abs(ours - expected.value) <= expected.tolerance
    return Comparison(expected=expected, ours=ours, within_tolerance=near)


def _without_counterpart(
    expected: Sequence[ExpectedFigure], sets: Sequence[SetFigures]
) -> Iterator[str]:
    known = {(s.name, s.level, figure.name) for s in sets for figure in s.figures}
    for item in expected:
        if (item.test, item.level, item.metric) not in known:
            yield (
                f"The expected figure {item.metric!r} of test set {item.test!r}, {item.level}s, "
                "has no counterpart in this report."
            )


def _page(document: ReportDocument, pictures: Mapping[str, bytes]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(
        document=document,
        levels=LEVELS,
        images={name: base64.b64encode(png).decode() for name, png in pictures.items()},
    )


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
