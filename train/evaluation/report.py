"""The evaluation report's numbers: from tables of scores to what `report.json` holds.

The operating point is chosen on dev scores, or given; a threshold chosen on test scores appears
only beside it, marked as an oracle's.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import Field, TypeAdapter, ValidationError

from train.data.protocols import DevBpcer, DevEer, FixedThreshold, Threshold
from train.errors import TrainError
from train.evaluation.cautions import DEV, cautions_of
from train.evaluation.measures import (
    Bootstrap,
    ChosenThreshold,
    ReportPart,
    SetMeasures,
    finite,
    set_measures,
)
from train.evaluation.metrics.intervals import REPLICATES, SEED, mean_and_spread
from train.evaluation.metrics.roc import roc
from train.evaluation.provenance import Provenance
from train.evaluation.published import PublishedMeasure
from train.evaluation.scores import (
    VIDEO_SCORE,
    Aggregate,
    Level,
    NoFace,
    checked_scores,
    frame_samples,
    video_samples,
)
from train.evaluation.worst_cases import WorstCases, worst_cases

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from train.evaluation.scores import FrameScore, Samples

LEVELS: Final[tuple[Level, ...]] = ("video", "frame")

_SUMMARISED: Final = (
    "auc", "eer_interpolated", "apcer_max", "bpcer", "acer", "hter", "hter:test_eer", "accuracy",
    "accuracy_at_half", "log_loss", "cllr",
)  # fmt: skip
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+&-]*")


class ReportConfig(ReportPart):
    """How scores become measures."""

    protocol: str = Field(description="Name of the protocol, for people.")
    threshold: Threshold = Field(description="The rule of the operating point.")
    aggregate: Aggregate = Field(VIDEO_SCORE, description="How frames make a video's score.")
    no_face: NoFace = Field("half", description="What a video without any face counts as.")
    prior: float = Field(
        0.5, gt=0, lt=1, description="Share of attacks that the probabilities are meant for."
    )
    replicates: int = Field(REPLICATES, ge=100, description="Of the bootstrap.")
    seed: int = Field(SEED, ge=0, description="Of the bootstrap.")
    worst: int = Field(6, ge=0, description="Worst cases of each class and test set.")


class Comparison(ReportPart):
    """A published figure and ours, in its unit."""

    published: PublishedMeasure = Field(alias="expected")
    ours: float | None
    within_tolerance: bool | None = Field(description="null: nothing to compare.")


class Spread(ReportPart):
    """A measure over the test sets; standard deviation with ddof = 1."""

    measure: str = Field(alias="figure")
    level: Level
    mean: float
    standard_deviation: float
    n_sets: int


class ReportDocument(ReportPart):
    """What is written as JSON."""

    format: Literal["facewarden/report/v1"] = "facewarden/report/v1"
    about: dict[str, str] = Field(description="What was evaluated, for people.")
    config: ReportConfig
    cautions: tuple[str, ...] = Field(
        alias="warnings", description="What to know before believing the measures."
    )
    sets: tuple[SetMeasures, ...] = Field(description="Dev, if given, and the test sets.")
    over_test_sets: tuple[Spread, ...]
    published: tuple[Comparison, ...] = Field(alias="expected")
    worst: dict[str, WorstCases] = Field(description="By test set.")
    provenance: Provenance | None


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
    published: Sequence[PublishedMeasure] = (),
    cautions: Sequence[str] = (),
    about: Mapping[str, str] | None = None,
    provenance: Provenance | None = None,
) -> Report:
    """Compute every measure of every set, for frames and for videos.

    The threshold of frames is chosen on dev frames, that of videos on dev videos.

    Args:
        dev: scores of the development set; needed by rules that choose on it.
        tests: name -> scores; at least one.
        config: how.
        published: figures to set beside ours.
        cautions: what the scores do not show; they stand before those that they do.
        about: what was evaluated, for people.
        provenance: where the scores come from.

    Raises:
        TrainError: no test set, scores that `checked_scores` refuses, a set without any face, a
            name unfit for a file, or dev data that the threshold's rule can't choose on.
    """
    tables = {} if dev is None else {DEV: _checked(DEV, dev)}
    for name, rows in tests.items():
        check_name(name)
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
        set_measures(
            name,
            of_set,
            thresholds[level],
            bootstrap,
            prior=config.prior,
            dev=tables[DEV] if name == DEV else None,
        )
        for (name, level), of_set in samples.items()
    )
    document = ReportDocument(
        about=dict(about or {}),
        config=config,
        cautions=(
            *cautions,
            *cautions_of(tables, sets),
            *_without_counterpart(published, sets),
        ),
        sets=sets,
        over_test_sets=tuple(_spreads(sets)),
        published=tuple(_compared(measure, sets) for measure in published),
        worst={
            name: worst_cases(
                tables[name], config.aggregate, thresholds["video"].number, config.worst
            )
            for name in tests
        },
        provenance=provenance,
    )
    return Report(document=document, samples=samples)


def check_name(name: str) -> None:
    """Refuse what can't name a test set.

    Raises:
        TrainError: unfit for a file's name, or taken.
    """
    if name == DEV or not _FILE_NAME.fullmatch(name):
        raise TrainError(
            f"{name!r} can't name a test set: letters, digits and ._+&- only, and not {DEV!r}"
        )


def choose_threshold(rule: Threshold, dev: Samples | None) -> ChosenThreshold:
    """Apply the rule of an operating point to development samples.

    Raises:
        TrainError: no dev samples, or not of the classes that the rule needs.
    """
    if isinstance(rule, FixedThreshold):
        return ChosenThreshold(rule="fixed", value=rule.value, source="given")
    needed = "both classes" if isinstance(rule, DevEer) else "bona fide samples"
    if dev is None or not dev.n_bona_fide or (isinstance(rule, DevEer) and not dev.n_attack):
        has = f"{dev.n_bona_fide} and {dev.n_attack} attacks" if dev else "no dev scores"
        raise TrainError(
            f"threshold rule {rule.kind} needs {needed} in the dev set, found {has}; give such a "
            "set or a fixed threshold"
        )
    curve = roc(dev.labels, dev.evidence)
    counts = f"{dev.n_bona_fide} bona fide {dev.level}s and {dev.n_attack} attacks of dev"
    if isinstance(rule, DevBpcer):
        evidence = curve.threshold_at_bpcer(rule.at)
        source = f"lowest with BPCER <= {rule.at:g} on {counts}"
    else:
        evidence = curve.eer_nearest()[1]
        source = f"EER (nearest operating point) on {counts}"
    return ChosenThreshold(rule=rule.kind, value=finite(dev.threshold_at(evidence)), source=source)


def parse_threshold(text: str) -> Threshold:
    """Read `dev_eer`, `dev_bpcer=0.01` or `fixed=0.5`.

    Raises:
        TrainError: anything else.
    """
    kind, _, number = text.partition("=")
    key = {"dev_bpcer": "at", "fixed": "value"}.get(kind, "number")
    values = {key: number} if number else {}
    try:
        rule: Threshold = _THRESHOLD.validate_python({"kind": kind, **values})
    except ValidationError as error:
        raise TrainError(
            f"threshold rule {text!r}: expected dev_eer, dev_bpcer=0.01 or fixed=0.5"
        ) from error
    return rule


_THRESHOLD: Final[TypeAdapter[Threshold]] = TypeAdapter(Threshold)


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of `report.json`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **ReportDocument.model_json_schema(mode="serialization"),
    }


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


def _spreads(sets: Sequence[SetMeasures]) -> Iterator[Spread]:
    """Yield mean and spread of the measures that every one of several test sets has."""
    for level in LEVELS:
        tests = [s for s in sets if s.level == level and s.name != DEV]
        for name in _SUMMARISED:
            values = [
                measure.value
                for measure in (s.measure(name) for s in tests)
                if measure and measure.value is not None
            ]
            if len(values) == len(tests) > 1:
                mean, spread = mean_and_spread(values)
                yield Spread(
                    measure=name,
                    level=level,
                    mean=mean,
                    standard_deviation=spread,
                    n_sets=len(values),
                )


def _compared(published: PublishedMeasure, sets: Sequence[SetMeasures]) -> Comparison:
    of_set = [s for s in sets if (s.name, s.level) == (published.test, published.level)]
    measure = of_set[0].measure(published.metric) if of_set else None
    if measure is None or measure.value is None:
        return Comparison(published=published, ours=None, within_tolerance=None)
    ours = measure.value * (100 if published.unit == "percent" else 1)
    if published.value is None or published.tolerance is None:
        return Comparison(published=published, ours=ours, within_tolerance=None)
    near = abs(ours - published.value) <= published.tolerance
    return Comparison(published=published, ours=ours, within_tolerance=near)


def _without_counterpart(
    published: Sequence[PublishedMeasure], sets: Sequence[SetMeasures]
) -> Iterator[str]:
    known = {(s.name, s.level, measure.name) for s in sets for measure in s.measures}
    for item in published:
        if (item.test, item.level, item.metric) not in known:
            yield (
                f"The published {item.metric!r} of test set {item.test!r}, {item.level}s, "
                "has no counterpart in this report."
            )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(json_schema(), indent=1) + "\n")
