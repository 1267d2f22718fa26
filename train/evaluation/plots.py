"""The report's pictures: DET, ROC, score histograms and reliability, as PNG."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from scipy.stats import norm

from train.evaluation.metrics.calibration import reliability
from train.evaluation.metrics.roc import roc

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes

    from train.evaluation.metrics.roc import Roc
    from train.evaluation.scores import Samples

_DET_RANGE: Final = (1e-4, 0.5)
_DET_TICKS: Final = (1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.2, 0.4)
_BONA_FIDE: Final = "#1b7f79"
_ATTACK: Final = "#c8442f"
_DPI: Final = 110
_HISTOGRAM_BINS: Final = 40


def report_plots(sets: Mapping[str, Samples], thresholds: Mapping[str, float]) -> dict[str, bytes]:
    """Draw the sets of one level.

    Args:
        sets: name -> samples, none of them empty.
        thresholds: name -> operating point; infinity where nothing counts as an attack.

    Returns:
        Name of the picture -> PNG.
    """
    curves = {
        name: roc(samples.labels, samples.scores)
        for name, samples in sets.items()
        if samples.n_attack and samples.n_bona_fide
    }
    return {
        "det": _det(curves, sets, thresholds),
        "roc": _roc(curves, sets, thresholds),
        "scores": _histograms(sets, thresholds),
        "reliability": _reliability(sets),
    }


def _det(
    curves: Mapping[str, Roc], sets: Mapping[str, Samples], thresholds: Mapping[str, float]
) -> bytes:
    figure, axes = _square("DET", "BPCER, %", "APCER, all attack types as one, %")
    low, high = (float(norm.ppf(p)) for p in _DET_RANGE)
    axes.plot([low, high], [low, high], color="0.85", linewidth=1, zorder=0)
    for name, curve in curves.items():
        x, y = (norm.ppf(np.clip(rate, 1e-9, 1 - 1e-9)) for rate in (curve.bpcer, curve.apcer))
        axes.plot(x, y, color=_colour(name, sets), label=_short(name), linewidth=1.6)
        at = _index_of(curve, thresholds[name])
        point = np.clip((x[at], y[at]), low, high)
        inside = low <= x[at] <= high and low <= y[at] <= high
        axes.plot(
            *point,
            "o",
            color=_colour(name, sets),
            markersize=6,
            markeredgewidth=1.6,
            fillstyle="full" if inside else "none",  # hollow: it lies beyond the border
            clip_on=False,
        )
    ticks = [float(norm.ppf(p)) for p in _DET_TICKS]
    names = [f"{100 * p:g}" for p in _DET_TICKS]
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.set_xticks(ticks, names)
    axes.set_yticks(ticks, names)
    return _finish(figure, axes, curves)


def _roc(
    curves: Mapping[str, Roc], sets: Mapping[str, Samples], thresholds: Mapping[str, float]
) -> bytes:
    figure, axes = _square("ROC", "BPCER, %", "attacks detected, %")
    axes.plot([0, 100], [0, 100], color="0.85", linewidth=1, zorder=0)
    for name, curve in curves.items():
        x, y = 100 * curve.bpcer, 100 * (1 - curve.apcer)
        label = f"{_short(name)}, AUC {curve.auc():.3f}"
        axes.plot(x, y, color=_colour(name, sets), label=label, linewidth=1.6)
        at = _index_of(curve, thresholds[name])
        axes.plot(x[at], y[at], "o", color=_colour(name, sets), markersize=6, clip_on=False)
    axes.set(xlim=(-1, 101), ylim=(-1, 101))
    return _finish(figure, axes, curves)


def _histograms(sets: Mapping[str, Samples], thresholds: Mapping[str, float]) -> bytes:
    columns = min(4, math.ceil(math.sqrt(len(sets))))
    rows = math.ceil(len(sets) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), layout="constrained")
    cells: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    bins = np.linspace(0, 1, _HISTOGRAM_BINS + 1).tolist()
    for axes, (name, samples) in zip(cells, sets.items(), strict=False):
        for label, colour, kind in ((0, _BONA_FIDE, "bona fide"), (1, _ATTACK, "attack")):
            scores = samples.scores[samples.labels == label]
            if scores.size:
                weights = np.full(scores.size, 100 / scores.size)
                legend = f"{kind} ({scores.size})"
                axes.hist(scores, bins, weights=weights, color=colour, alpha=0.55, label=legend)
        if math.isfinite(thresholds[name]):
            axes.axvline(thresholds[name], color="0.2", linewidth=1.2, linestyle="--")
        axes.set_title(_short(name), fontsize=10)
        axes.set_xlim(0, 1)
        axes.legend(fontsize=8, edgecolor="none", loc="upper center")
        _plain(axes)
    for axes in cells[len(sets) :]:
        axes.set_visible(False)
    figure.supxlabel("score", fontsize=9)
    figure.supylabel("% of the class", fontsize=9)
    return _png(figure)


def _reliability(sets: Mapping[str, Samples]) -> bytes:
    figure, axes = _square("Reliability", "mean score of the bin, %", "attacks in the bin, %")
    axes.plot([0, 100], [0, 100], color="0.85", linewidth=1, zorder=0)
    for name, samples in sets.items():
        bins = reliability(samples.labels, samples.scores)
        axes.plot(
            100 * bins.confidence,
            100 * bins.frequency,
            color=_colour(name, sets),
            linewidth=1,
            alpha=0.6,
            label=f"{_short(name)}, ECE {bins.ece:.3f}",
        )
        # The area of a dot is the share of the samples that lie in its bin.
        axes.scatter(
            100 * bins.confidence,
            100 * bins.frequency,
            s=8 + 500 * bins.n / bins.n.sum(),
            color=_colour(name, sets),
            alpha=0.7,
            linewidths=0,
        )
    axes.set(xlim=(-2, 102), ylim=(-2, 102))
    return _finish(figure, axes, sets)


def _square(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, 5.2), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.set_box_aspect(1)
    _plain(axes)
    axes.grid(color="0.93", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _finish(figure: Figure, axes: Axes, drawn: Mapping[str, object]) -> bytes:
    if drawn:
        axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    else:
        axes.text(0.5, 0.5, "no set has both classes", ha="center", transform=axes.transAxes)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # The file names no program version, so that the same scores give the same bytes.
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def _colour(name: str, sets: Mapping[str, object]) -> tuple[float, float, float, float]:
    palette = colormaps["tab10" if len(sets) <= 10 else "tab20"]
    return palette(list(sets).index(name) % palette.N)


def _index_of(curve: Roc, threshold: float) -> int:
    """Return the operating point that a threshold gives."""
    return int(np.searchsorted(curve.thresholds, threshold))


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"
