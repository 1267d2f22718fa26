"""All measures of one set of samples, each with its variant, threshold, counts and intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, Field

from train.evaluation.metrics.calibration import (
    CLIP,
    ECE_BINS,
    cllr_costs,
    fit_temperature,
    log_likelihood_ratio,
    log_losses,
    min_cllr,
    reliability,
    squared_errors,
)
from train.evaluation.metrics.error_rates import counts_of, error_masks
from train.evaluation.metrics.intervals import percentile_interval, resample, wilson
from train.evaluation.metrics.roc import bpcer_at_apcer, least_acer, roc
from train.evaluation.scores import Level, video_auc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from train.evaluation.metrics.error_rates import ErrorCounts
    from train.evaluation.metrics.roc import Roc
    from train.evaluation.scores import FrameScore, Samples

FPR_LIMITS: Final = (1e-2, 1e-3, 1e-4)
APCER_LIMITS: Final = (0.1, 0.05, 0.01)

# What each measure is; `{}` stands for what follows the colon of its name.
VARIANTS: Final = {
    "apcer": "share of attacks of type {} that is missed (ISO/IEC 30107-3)",
    "apcer_max": "APCER of the worst attack type (ISO/IEC 30107-3)",
    "apcer_pooled": "share of all attacks that is missed, types not told apart",
    "bpcer": "share of bona fide samples that alarm (ISO/IEC 30107-3)",
    "acer": "mean of the worst type's APCER and BPCER",
    "acer_pooled": "mean of pooled APCER and BPCER; some papers print it as ACER",
    "hter": "mean of pooled APCER (FAR) and BPCER (FRR)",
    "accuracy": "share of samples judged rightly; depends on the mix of classes",
    "balanced_accuracy": "mean of the two classes' shares judged rightly",
    "accuracy_at_half": "accuracy at threshold 0.5",
    "balanced_accuracy_at_half": "balanced accuracy at threshold 0.5",
    "auc": "area under the ROC by ranks, ties half",
    "average_precision": "step sum, positive = attack",
    "eer_interpolated": "on straight lines between operating points",
    "eer_nearest": "mean of the two rates where they are closest",
    "eer_convex_hull": "on the ROC's convex hull",
    "tpr_at_fpr": "largest share of attacks detected (positive = attack) where BPCER <= {}",
    "bpcer_at_apcer": "least BPCER where the worst type's APCER <= {}",
    "log_loss": f"natural logarithm, probabilities clipped at {CLIP:g}",
    "brier": "mean squared error of the probability",
    "ece": f"mean calibration error, {ECE_BINS} bins of equal width",
    "ece_equal_mass": f"mean calibration error, {ECE_BINS} bins of as many samples",
    "mce": f"largest calibration error of {ECE_BINS} bins of equal width",
    "cllr": "bits; 0 perfect, 1 no information, more misleading; prior taken out",
    "min_cllr": "Cllr after the best monotone calibration on this very set",
    "calibration_loss": "Cllr less min Cllr",
    "temperature": "what log-odds should still be divided by; 1 where calibrated",
    "dev_auc": "AUC of the videos with a face, by the mean of the network's log-odds before "
    "calibration: what stands in validation.csv",
}

# Measures of the whole curve that are given for each attack type too: `auc:print`.
OF_TYPES: Final = ("auc", "eer_interpolated")

Rate: TypeAlias = "NDArray[np.float64]"
Rule: TypeAlias = Literal["dev_eer", "dev_bpcer", "fixed", "test_eer", "test_best_acer"]
Interval: TypeAlias = tuple[float, float]


class ReportPart(
    BaseModel,
    frozen=True,
    extra="forbid",
    allow_inf_nan=False,  # JSON has neither
    validate_by_name=True,
    validate_by_alias=True,
    serialize_by_alias=True,
):
    """Base of what `report.json` is made of."""


class ChosenThreshold(ReportPart):
    """An operating point and where it comes from."""

    rule: Rule
    value: float | None = Field(description="null: infinite, nothing counts as an attack.")
    source: str = Field(description="For people: which data it was chosen on.")
    oracle: bool = Field(False, description="Chosen on the very data it is used on.")

    @property
    def number(self) -> float:
        """The value, infinity included."""
        return math.inf if self.value is None else self.value


class Measure(ReportPart):
    """One number."""

    name: str = Field(description="Its kind; after a colon the attack type, limit or rule.")
    variant: str = Field(description="Which of the definitions in use this is.")
    value: float | None
    reason: str | None = Field(None, description="Why there is no value.")
    bootstrap95: Interval | None = Field(None, description="By clusters; thresholds stay fixed.")
    wilson95: Interval | None = Field(None, description="Of single rates of videos.")
    threshold: ChosenThreshold | None = Field(
        None, description="null: of the scores, or of the whole curve."
    )
    errors: int | None = Field(
        None, description="Of a single rate: its numerator; the denominator is the two n together."
    )
    n_bona_fide: int = Field(description="Bona fide samples it is computed from.")
    n_attack: int = Field(description="Attacks it is computed from.")


class Confusion(ReportPart):
    """How many samples were judged how at a threshold."""

    threshold: ChosenThreshold
    attacks_detected: int
    attacks_missed: int
    bona_fide_passed: int
    bona_fide_alarmed: int
    missed_by_type: dict[str, int]


class SetMeasures(ReportPart):
    """What is known of one set at one level."""

    name: str = Field(description="`dev`, or the test set's.")
    level: Level
    threshold: ChosenThreshold
    n_bona_fide: int
    n_attack: int
    n_by_type: dict[str, int]
    n_no_face: dict[str, int] = Field(description="Samples without any face, by class.")
    n_clusters: dict[str, int] = Field(description="People or source videos, by class.")
    measures: tuple[Measure, ...] = Field(alias="figures")
    confusion: tuple[Confusion, ...] = Field(description="At every threshold that is shown.")

    def measure(self, name: str) -> Measure | None:
        """Return the measure of this name, if the set has it."""
        return next((measure for measure in self.measures if measure.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """How intervals are made."""

    replicates: int
    seed: int


def set_measures(
    name: str,
    samples: Samples,
    threshold: ChosenThreshold,
    bootstrap: Bootstrap,
    *,
    prior: float,
    dev: Sequence[FrameScore] | None,
) -> SetMeasures:
    """Compute every measure of a set.

    Args:
        name: of the set.
        samples: frames or videos.
        threshold: the operating point.
        bootstrap: of the intervals.
        prior: share of attacks that the probabilities were meant for.
        dev: of the set that weights, calibration and thresholds were chosen on, its frames.
    """
    maker = _Maker(samples, bootstrap)
    oracles = {} if dev else maker.oracles(name)
    measures = [
        *maker.at_threshold(threshold),
        *maker.at_half(),
        *maker.of_the_curve(),
        *maker.of_types(),
        *maker.of_probabilities(prior),
        *(maker.of_dev(dev) if dev else maker.of_oracles(oracles)),
    ]
    labels = samples.labels
    types, counts = np.unique(samples.attack_types[labels == 1], return_counts=True)
    return SetMeasures(
        name=name,
        level=samples.level,
        threshold=threshold,
        n_bona_fide=samples.n_bona_fide,
        n_attack=samples.n_attack,
        n_by_type={str(t): int(n) for t, n in zip(types, counts, strict=True)},
        n_no_face=dict(zip(("bona_fide", "attack"), samples.no_face, strict=True)),
        n_clusters={
            kind: len(np.unique(samples.clusters[labels == label]))
            for kind, label in (("bona_fide", 0), ("attack", 1))
        },
        measures=tuple(measures),
        confusion=tuple(map(maker.confusion, (threshold, _HALF, *oracles.values()))),
    )


def finite(value: float) -> float | None:
    """Return the number, or None where it isn't finite: JSON has no infinity."""
    return float(value) if math.isfinite(value) else None


_AT_ORACLES: Final[Mapping[str, Rule]] = {
    "hter:test_eer": "test_eer",
    "acer:test_eer": "test_eer",
    "acer:test_best_acer": "test_best_acer",
}
_HALF: Final = ChosenThreshold(rule="fixed", value=0.5, source="custom of the literature")


class _Maker:
    """Computes measures of one set, which share its ROC and its bootstrap draws."""

    def __init__(self, samples: Samples, bootstrap: Bootstrap) -> None:
        self._samples = samples
        self._curve = roc(samples.labels, samples.evidence)
        self._resampling = resample(
            samples.labels,
            samples.clusters,
            replicates=bootstrap.replicates,
            seed=bootstrap.seed,
        )

    def at_threshold(self, threshold: ChosenThreshold) -> list[Measure]:
        """Error rates at the operating point."""
        counts, drawn = self._counts(threshold.number)
        n0, n1 = self._samples.n_bona_fide, self._samples.n_attack
        missed, alarms = int(counts.missed.sum()), int(counts.alarms)

        def add(name: str, value: Rate, values: Rate, **counted: Any) -> Measure:
            return self._measure(name, value, values, threshold, **counted)

        return [
            *(
                add(
                    f"apcer:{species}",
                    counts.apcer[k],
                    drawn.apcer[:, k],
                    n=(0, int(counts.attacks[k])),
                    errors=int(counts.missed[k]),
                )
                for k, species in enumerate(counts.types)
            ),
            add("apcer_max", counts.apcer_max, drawn.apcer_max, n=(0, n1)),
            add("apcer_pooled", counts.apcer_pooled, drawn.apcer_pooled, n=(0, n1), errors=missed),
            add("bpcer", counts.bpcer, drawn.bpcer, n=(n0, 0), errors=alarms),
            add("acer", counts.acer, drawn.acer),
            add("acer_pooled", counts.hter, drawn.hter),
            add("hter", counts.hter, drawn.hter),
            add("accuracy", counts.accuracy, drawn.accuracy),
            add("balanced_accuracy", counts.balanced_accuracy, drawn.balanced_accuracy),
        ]

    def at_half(self) -> list[Measure]:
        """Accuracies at 0.5, which papers on deepfakes print."""
        counts, drawn = self._counts(0.5)
        balanced = counts.balanced_accuracy, drawn.balanced_accuracy
        return [
            self._measure("accuracy_at_half", counts.accuracy, drawn.accuracy, _HALF),
            self._measure("balanced_accuracy_at_half", *balanced, _HALF),
        ]

    def confusion(self, threshold: ChosenThreshold) -> Confusion:
        """Return how many samples were judged how."""
        counts, _ = self._counts(threshold.number)
        missed, alarmed = int(counts.missed.sum()), int(counts.alarms)
        return Confusion(
            threshold=threshold,
            attacks_detected=self._samples.n_attack - missed,
            attacks_missed=missed,
            bona_fide_passed=self._samples.n_bona_fide - alarmed,
            bona_fide_alarmed=alarmed,
            missed_by_type=dict(zip(counts.types, counts.missed.tolist(), strict=True)),
        )

    def of_the_curve(self) -> list[Measure]:
        """Measures of all thresholds together."""
        curve, samples = self._curve, self._samples
        ranked = samples.labels, samples.evidence

        def of_replicates(curves: Roc) -> Rate:
            rates = [curves.tpr_at_bpcer(limit) for limit in FPR_LIMITS]
            return np.stack(
                [curves.auc(), curves.average_precision(), curves.eer_interpolated(), *rates]
            )

        auc, precision, eer, *rates = self._resampling.over_rocs(*ranked, of_replicates)
        measures = [
            self._measure("auc", curve.auc(), auc),
            self._measure("average_precision", curve.average_precision(), precision),
            self._measure("eer_interpolated", curve.eer_interpolated(), eer),
            self._measure("eer_nearest", curve.eer_nearest()[0]),
            self._measure("eer_convex_hull", curve.eer_convex_hull()),
        ]
        for limit, drawn in zip(FPR_LIMITS, rates, strict=True):
            name, n = f"tpr_at_fpr:{limit:g}", samples.n_bona_fide
            if limit < 1 / max(n, 1):
                reason = f"needs {1 / limit:.0f} bona fide samples or more, found {n}"
                measures.append(self._measure(name, math.nan, reason=reason))
            else:
                measures.append(self._measure(name, curve.tpr_at_bpcer(limit), drawn))
        for limit in APCER_LIMITS:
            value, _ = bpcer_at_apcer(*ranked, samples.attack_types, limit)
            measures.append(self._measure(f"bpcer_at_apcer:{limit:g}", value))
        return measures

    def of_types(self) -> list[Measure]:
        """Measures of the curve of each attack type, against all bona fide samples."""
        samples = self._samples
        bona_fide = samples.labels == 0

        def of_replicates(curves: Roc) -> Rate:
            return np.stack([curves.auc(), curves.eer_interpolated()])

        measures = []
        for species in np.unique(samples.attack_types[~bona_fide]):
            chosen = bona_fide | (samples.attack_types == species)
            ranked = samples.labels[chosen], samples.evidence[chosen]
            curve, n = roc(*ranked), (samples.n_bona_fide, int((chosen & ~bona_fide).sum()))
            # Frames are many, their types too: intervals of videos alone.
            drawn: list[Rate | None] = [None, None]
            if samples.level == "video":
                drawn = [*self._resampling.of(chosen).over_rocs(*ranked, of_replicates)]
            values = (curve.auc(), curve.eer_interpolated())
            measures += [
                self._measure(f"{kind}:{species}", value, replicates, n=n)
                for kind, value, replicates in zip(OF_TYPES, values, drawn, strict=True)
            ]
        return measures

    def of_probabilities(self, prior: float) -> list[Measure]:
        """How far scores mean what they say."""
        y, p = self._samples.labels, self._samples.scores
        bits = cllr_costs(y, log_likelihood_ratio(p, prior))
        columns = np.stack(
            [log_losses(y, p), squared_errors(y, p), bits * y, bits * (1 - y), y, 1 - y], axis=1
        )
        drawn = self._resampling.sums(columns)
        losses, errors, bits_1, bits_0, n_1, n_0 = np.vstack([columns.sum(0), drawn]).T
        with np.errstate(invalid="ignore"):  # 0 / 0 where a class is missing
            cllr = (bits_1 / n_1 + bits_0 / n_0) / 2
        log_loss, brier = losses / (n_1 + n_0), errors / (n_1 + n_0)
        wide, even = reliability(y, p), reliability(y, p, equal_mass=True)
        least = min_cllr(y, p)
        return [
            self._measure("log_loss", log_loss[0], log_loss[1:]),
            self._measure("brier", brier[0], brier[1:]),
            self._measure("ece", wide.ece),
            self._measure("ece_equal_mass", even.ece),
            self._measure("mce", wide.mce),
            self._measure("cllr", cllr[0], cllr[1:]),
            self._measure("min_cllr", least),
            self._measure("calibration_loss", cllr[0] - least),
        ]

    def of_dev(self, rows: Sequence[FrameScore]) -> list[Measure]:
        """What the set was used for: choosing the weights, calibrating."""
        samples, temperature, area = self._samples, math.nan, math.nan
        if samples.n_bona_fide and samples.n_attack:
            log_odds = log_likelihood_ratio(samples.scores)
            temperature = fit_temperature(log_odds, samples.labels.astype(float))
            area = video_auc(rows)
        return [
            self._measure("temperature", temperature),
            *([self._measure("dev_auc", area)] if samples.level == "video" else []),
        ]

    def oracles(self, name: str) -> dict[Rule, ChosenThreshold]:
        """Return the thresholds chosen on the set itself, of this name."""
        samples = self._samples
        _, at_eer = self._curve.eer_nearest()
        _, at_best = least_acer(samples.labels, samples.evidence, samples.attack_types)
        chosen: dict[Rule, float] = {"test_eer": at_eer, "test_best_acer": at_best}
        return {
            rule: ChosenThreshold(
                rule=rule,
                value=finite(samples.threshold_at(evidence)),
                source=f"{name} itself",
                oracle=True,
            )
            for rule, evidence in chosen.items()
            if not math.isnan(evidence)  # of one class: there is none
        }

    def of_oracles(self, oracles: Mapping[Rule, ChosenThreshold]) -> list[Measure]:
        """Error rates at thresholds chosen on the test set: never an operating point."""
        measures = []
        for name, rule in _AT_ORACLES.items():
            threshold = oracles.get(rule)
            if threshold is None:
                measures.append(self._measure(name, math.nan))
                continue
            counts, drawn = self._counts(threshold.number)
            kind = name.partition(":")[0]
            # No interval for the least ACER: each replicate would have another threshold.
            replicates = getattr(drawn, kind) if rule == "test_eer" else None
            measures.append(self._measure(name, getattr(counts, kind), replicates, threshold))
        return measures

    def _counts(self, threshold: float) -> tuple[ErrorCounts, ErrorCounts]:
        """Return the counts of the set and of every replicate."""
        samples = self._samples
        types, marks = error_masks(samples.labels, samples.scores, samples.attack_types, threshold)
        drawn = np.rint(self._resampling.sums(marks)).astype(np.int64)
        return counts_of(types, marks.sum(0)), counts_of(types, drawn)

    def _measure(
        self,
        name: str,
        value: float | Rate,
        drawn: Rate | None = None,
        threshold: ChosenThreshold | None = None,
        *,
        n: tuple[int, int] | None = None,
        errors: int | None = None,
        reason: str | None = None,
    ) -> Measure:
        """Put a measure together.

        Args:
            name: of `VARIANTS`, with the attack type or the limit after a colon.
            value: NaN where there is none.
            drawn: (B,) of the replicates.
            threshold: where errors were counted.
            n: bona fide samples and attacks it is of, where that isn't the whole set.
            errors: of a single rate, how many there are.
            reason: why there is no value.
        """
        n_bona_fide, n_attack = n or (self._samples.n_bona_fide, self._samples.n_attack)
        known = finite(float(value))
        if known is None and reason is None:
            reason = f"of {n_bona_fide} bona fide samples and {n_attack} attacks"
        # Frames are not independent.
        countable = known is not None and errors is not None and self._samples.level == "video"
        return Measure(
            name=name,
            variant=variant_of(name),
            value=known,
            reason=reason,
            bootstrap95=None if known is None or drawn is None else percentile_interval(drawn),
            wilson95=wilson(errors or 0, n_bona_fide + n_attack) if countable else None,
            threshold=threshold,
            errors=None if known is None else errors,
            n_bona_fide=n_bona_fide,
            n_attack=n_attack,
        )


def variant_of(name: str) -> str:
    """Say what the measure of this name is."""
    kind, _, limit = name.partition(":")
    if kind in OF_TYPES and limit:
        return f"{VARIANTS[kind]}; {limit} against all bona fide samples"
    return VARIANTS[kind].format(limit)
