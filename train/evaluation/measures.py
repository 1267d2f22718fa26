"""All figures of one set of samples, each with its variant, threshold, counts and intervals."""

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
from train.evaluation.scores import Level

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from train.evaluation.metrics.error_rates import ErrorCounts
    from train.evaluation.metrics.roc import Roc
    from train.evaluation.scores import Samples

FPR_LIMITS: Final = (1e-2, 1e-3, 1e-4)
APCER_LIMITS: Final = (0.1, 0.05, 0.01)

# What each figure is; `{}` stands for what follows the colon of its name.
VARIANTS: Final = {
    "apcer": "share of attacks of type {} that is missed (ISO/IEC 30107-3)",
    "apcer_max": "apcer of the worst attack type (ISO/IEC 30107-3)",
    "apcer_pooled": "share of all attacks that is missed, types not told apart",
    "bpcer": "share of bona fide samples that alarm (ISO/IEC 30107-3)",
    "acer": "mean of apcer_max and bpcer",
    "acer_pooled": "mean of apcer_pooled and bpcer; some papers print it as ACER",
    "hter": "mean of apcer_pooled (FAR) and bpcer (FRR)",
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
    "min_cllr": "cllr after the best monotone calibration on this very set",
    "calibration_loss": "cllr - min_cllr",
    "temperature": "what log-odds should still be divided by; 1 where calibrated",
}

Rate: TypeAlias = "NDArray[np.float64]"
Rule: TypeAlias = Literal["dev_eer", "dev_bpcer", "fixed", "test_eer", "test_best_acer"]
Interval: TypeAlias = tuple[float, float]


class ChosenThreshold(BaseModel, frozen=True):
    """An operating point and where it comes from."""

    rule: Rule
    value: float | None = Field(description="None: infinite, nothing counts as an attack.")
    source: str = Field(description="For people: which data it was chosen on.")
    oracle: bool = Field(False, description="Chosen on the very data it is used on.")


class Figure(BaseModel, frozen=True):
    """One number."""

    name: str
    variant: str = Field(description="Which of the definitions in use this is.")
    value: float | None
    reason: str | None = Field(None, description="Why there is no value.")
    bootstrap95: Interval | None = Field(None, description="By clusters; thresholds stay fixed.")
    wilson95: Interval | None = Field(None, description="Of single rates of videos.")
    threshold: ChosenThreshold | None = Field(
        None, description="None: of the scores, or of the whole curve."
    )
    n_bona_fide: int = Field(description="Bona fide samples it is computed from.")
    n_attack: int = Field(description="Attacks it is computed from.")


class SetFigures(BaseModel, frozen=True):
    """What is known of one set at one level."""

    name: str
    level: Level
    threshold: ChosenThreshold
    n_bona_fide: int
    n_attack: int
    n_by_type: dict[str, int]
    n_no_face: dict[str, int] = Field(description="Samples without any face, by class.")
    n_clusters: dict[str, int] = Field(description="People or source videos, by class.")
    figures: tuple[Figure, ...]

    def figure(self, name: str) -> Figure | None:
        """Return the figure of this name, if the set has it."""
        return next((figure for figure in self.figures if figure.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """How intervals are made."""

    replicates: int
    seed: int


def set_figures(
    name: str,
    samples: Samples,
    threshold: ChosenThreshold,
    bootstrap: Bootstrap,
    *,
    prior: float,
    is_dev: bool,
) -> SetFigures:
    """Compute every figure of a set.

    Args:
        name: of the set.
        samples: frames or videos.
        threshold: the operating point.
        bootstrap: of the intervals.
        prior: share of attacks that the probabilities were meant for.
        is_dev: whether it is the set that thresholds and calibration were chosen on.
    """
    maker = _Maker(samples, bootstrap)
    figures = [
        *maker.at_threshold(threshold),
        *maker.at_half(),
        *maker.of_the_curve(),
        *maker.of_probabilities(prior),
        *([maker.temperature()] if is_dev else maker.of_oracles(name)),
    ]
    labels = samples.labels
    types, counts = np.unique(samples.attack_types[labels == 1], return_counts=True)
    return SetFigures(
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
        figures=tuple(figures),
    )


def finite(value: float) -> float | None:
    """Return the number, or None where it isn't finite: JSON has no infinity."""
    return float(value) if math.isfinite(value) else None


class _Maker:
    """Computes figures of one set, which share its ROC and its bootstrap draws."""

    def __init__(self, samples: Samples, bootstrap: Bootstrap) -> None:
        self._samples = samples
        self._curve = roc(samples.labels, samples.scores)
        self._resampling = resample(
            samples.labels,
            samples.clusters,
            replicates=bootstrap.replicates,
            seed=bootstrap.seed,
        )

    def at_threshold(self, threshold: ChosenThreshold) -> list[Figure]:
        """Error rates at the operating point."""
        counts, drawn = self._counts(np.inf if threshold.value is None else threshold.value)
        n0, n1 = self._samples.n_bona_fide, self._samples.n_attack
        missed, alarms = int(counts.missed.sum()), int(counts.alarms)

        def add(name: str, value: Rate, values: Rate, **counted: Any) -> Figure:
            return self._figure(name, value, values, threshold, **counted)

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

    def at_half(self) -> list[Figure]:
        """Accuracies at 0.5, which papers on deepfakes print."""
        half = ChosenThreshold(rule="fixed", value=0.5, source="custom of the literature")
        counts, drawn = self._counts(0.5)
        balanced = counts.balanced_accuracy, drawn.balanced_accuracy
        return [
            self._figure("accuracy_at_half", counts.accuracy, drawn.accuracy, half),
            self._figure("balanced_accuracy_at_half", *balanced, half),
        ]

    def of_the_curve(self) -> list[Figure]:
        """Figures of all thresholds together."""
        curve, samples = self._curve, self._samples
        data = samples.labels, samples.scores

        def drawn_figures(drawn: Roc) -> Rate:
            rates = [drawn.tpr_at_bpcer(limit) for limit in FPR_LIMITS]
            return np.stack(
                [drawn.auc(), drawn.average_precision(), drawn.eer_interpolated(), *rates]
            )

        auc, precision, eer, *rates = self._resampling.over_rocs(*data, drawn_figures)
        found = [
            self._figure("auc", curve.auc(), auc),
            self._figure("average_precision", curve.average_precision(), precision),
            self._figure("eer_interpolated", curve.eer_interpolated(), eer),
            self._figure("eer_nearest", curve.eer_nearest()[0]),
            self._figure("eer_convex_hull", curve.eer_convex_hull()),
        ]
        for limit, drawn in zip(FPR_LIMITS, rates, strict=True):
            name, n = f"tpr_at_fpr:{limit:g}", samples.n_bona_fide
            if limit < 1 / max(n, 1):
                reason = f"needs {1 / limit:.0f} bona fide samples or more, found {n}"
                found.append(self._figure(name, math.nan, reason=reason))
            else:
                found.append(self._figure(name, curve.tpr_at_bpcer(limit), drawn))
        for limit in APCER_LIMITS:
            value, _ = bpcer_at_apcer(*data, samples.attack_types, limit)
            found.append(self._figure(f"bpcer_at_apcer:{limit:g}", value))
        return found

    def of_probabilities(self, prior: float) -> list[Figure]:
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
            self._figure("log_loss", log_loss[0], log_loss[1:]),
            self._figure("brier", brier[0], brier[1:]),
            self._figure("ece", wide.ece),
            self._figure("ece_equal_mass", even.ece),
            self._figure("mce", wide.mce),
            self._figure("cllr", cllr[0], cllr[1:]),
            self._figure("min_cllr", least),
            self._figure("calibration_loss", cllr[0] - least),
        ]

    def temperature(self) -> Figure:
        """Return what the log-odds should still be divided by."""
        samples, value = self._samples, math.nan
        if samples.n_bona_fide and samples.n_attack:
            log_odds = log_likelihood_ratio(samples.scores)
            value = fit_temperature(log_odds, samples.labels.astype(float))
        return self._figure("temperature", value)

    def of_oracles(self, name: str) -> list[Figure]:
        """Error rates at thresholds chosen on the test set: never an operating point."""
        samples = self._samples
        _, at_eer = self._curve.eer_nearest()
        best, at_best = least_acer(samples.labels, samples.scores, samples.attack_types)

        def oracle(rule: Rule, at: float) -> ChosenThreshold:
            source = f"{name} itself"
            return ChosenThreshold(rule=rule, value=finite(at), source=source, oracle=True)

        counts, drawn = self._counts(at_eer)
        eer, least = oracle("test_eer", at_eer), oracle("test_best_acer", at_best)
        return [
            self._figure("hter:test_eer", counts.hter, drawn.hter, eer),
            self._figure("acer:test_eer", counts.acer, drawn.acer, eer),
            self._figure("acer:test_best_acer", best, None, least),
        ]

    def _counts(self, threshold: float) -> tuple[ErrorCounts, ErrorCounts]:
        """Return the counts of the set and of every replicate."""
        samples = self._samples
        types, marks = error_masks(samples.labels, samples.scores, samples.attack_types, threshold)
        drawn = np.rint(self._resampling.sums(marks)).astype(np.int64)
        return counts_of(types, marks.sum(0)), counts_of(types, drawn)

    def _figure(
        self,
        name: str,
        value: float | Rate,
        drawn: Rate | None = None,
        threshold: ChosenThreshold | None = None,
        *,
        n: tuple[int, int] | None = None,
        errors: int | None = None,
        reason: str | None = None,
    ) -> Figure:
        """Put a figure together.

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
        kind, _, limit = name.partition(":")
        countable = (
            known is not None and self._samples.level == "video"
        )  # frames aren't independent
        return Figure(
            name=name,
            variant=VARIANTS[kind].format(limit),
            value=known,
            reason=reason,
            bootstrap95=None if known is None or drawn is None else percentile_interval(drawn),
            wilson95=wilson(errors, n_bona_fide + n_attack)
            if errors is not None and countable
            else None,
            threshold=threshold,
            n_bona_fide=n_bona_fide,
            n_attack=n_attack,
        )
