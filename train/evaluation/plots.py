"""The report's pictures, as PNG: DET, ROC, reliability, histograms, and the curves of a run."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from scipy.stats import norm

from train.evaluation.curves import NO_LOSSES
from train.evaluation.metrics.calibration import reliability
from train.evaluation.metrics.roc import roc

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from train.evaluation.curves import Curve, Curves
    from train.evaluation.metrics.roc import Roc
    from train.evaluation.scores import Samples

_DET_RANGE: Final = (1e-4, 0.5)
_DET_TICKS: Final = (1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.2, 0.4)
_BONA_FIDE: Final = "#1b7f79"
_ATTACK: Final = "#c8442f"
_INK: Final = "0.25"
PIXELS_PER_INCH: Final = 160
_HISTOGRAM_BINS: Final = 25
_COLUMNS: Final = 4  # of histograms at most
_MANY: Final = 40  # points, from which on a curve is smoothed and has no markers


def draw_plots(sets: Mapping[str, Samples], thresholds: Mapping[str, float]) -> dict[str, bytes]:
    """Draw the sets of one level.

    Args:
        sets: name -> samples, none of them empty.
        thresholds: name -> operating point; infinity where nothing counts as an attack.

    Returns:
        Name of the picture -> PNG.
    """
    curves = {
        name: roc(samples.labels, samples.evidence)
        for name, samples in sets.items()
        if samples.n_attack and samples.n_bona_fide
    }
    points = {name: _operating_point(sets[name], thresholds[name]) for name in curves}
    return {
        "det": _det(curves, sets, points),
        "roc": _roc(curves, sets, points),
        "reliability": _reliability(sets),
        "scores": _histograms(sets, thresholds),
    }


def draw_types(samples: Samples, threshold: float) -> bytes:
    """Draw the scores of each attack type beside those of all bona fide samples, as PNG.

    Args:
        samples: of one set, with attacks.
        threshold: the operating point; infinity where nothing counts as an attack.
    """
    types = np.unique(samples.attack_types[samples.labels == 1])
    cells, figure = _grid(len(types))
    for axes, species in zip(cells, types, strict=False):
        attacks = samples.scores[samples.attack_types == species]
        _histogram(axes, samples.scores[samples.labels == 0], attacks, threshold, str(species))
    return _png(figure)


def draw_curves(curves: Curves, kept_step: int) -> bytes:
    """Draw a run's losses, what dev said of it, and its learning rate, as PNG.

    Args:
        curves: at least one of them.
        kept_step: after which the best weights were kept.
    """
    terms = {n: c for n, c in curves.losses.items() if n not in NO_LOSSES}
    dev = {n: c for n, c in curves.validation.items() if n.startswith("dev_")}
    panels = [
        (title, columns, scale)
        for title, columns, scale in (
            ("training loss, weighted terms", terms, _scale_of(terms)),
            ("dev", dev, "linear"),
            *((_words(n), {n: c}, "linear") for n, c in curves.losses.items() if n in NO_LOSSES),
        )
        if columns
    ]
    figure = Figure(figsize=(9.2, 2.5 * len(panels)), layout="constrained")
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, columns, scale) in zip(rows, panels, strict=True):
        for i, (name, curve) in enumerate(columns.items()):
            colour = colormaps["tab10"](i % 10)
            noisy = columns is terms and curve.steps.size > _MANY
            if noisy:
                axes.plot(curve.steps, curve.values, color=colour, linewidth=0.6, alpha=0.3)
            axes.plot(
                curve.steps,
                curve.smoothed() if noisy else curve.values,
                color=colour,
                linewidth=1.6,
                marker=None if curve.steps.size > _MANY else "o",
                markersize=3,
                label=_words(name),
            )
        axes.axvline(kept_step, color=_INK, linewidth=1, linestyle=":", label="weights kept")
        axes.set_yscale(scale)
        if columns is dev:
            axes.set_ylim(top=1.01)
        axes.set_title(title, fontsize=9, loc="left")
        axes.grid(color="0.93", linewidth=0.8)
        axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        _plain(axes)
    rows[-1].set_xlabel("step", fontsize=9)
    return _png(figure)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _scale_of(terms: Mapping[str, Curve]) -> str:
    """Return a logarithmic scale where the terms span orders of magnitude."""
    values = np.concatenate([c.values for c in terms.values()]) if terms else np.ones(1)
    return "log" if values.min() > 0 and values.max() > 100 * values.min() else "linear"


def _det(
    curves: Mapping[str, Roc],
    sets: Mapping[str, Samples],
    points: Mapping[str, tuple[float, float]],
) -> bytes:
    figure, axes = _square("DET", "BPCER, %", "APCER, all attack types as one, %")
    low, high = (float(norm.ppf(p)) for p in _DET_RANGE)
    axes.plot([low, high], [low, high], color="0.85", linewidth=1, zorder=0)
    for name, curve in curves.items():
        x, y = (_probit(rates) for rates in (curve.bpcer, curve.apcer))
        axes.plot(x, y, color=_colour(name, sets), label=_short(name), linewidth=1.6)
        at = _probit(np.array(points[name]))
        inside = bool(((low <= at) & (at <= high)).all())
        axes.plot(
            *np.clip(at, low, high),
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
    curves: Mapping[str, Roc],
    sets: Mapping[str, Samples],
    points: Mapping[str, tuple[float, float]],
) -> bytes:
    figure, axes = _square("ROC", "BPCER, %", "attacks detected, %")
    axes.plot([0, 100], [0, 100], color="0.85", linewidth=1, zorder=0)
    for name, curve in curves.items():
        x, y = 100 * curve.bpcer, 100 * (1 - curve.apcer)
        label = f"{_short(name)}, AUC {curve.auc():.3f}"
        axes.plot(x, y, color=_colour(name, sets), label=label, linewidth=1.6)
        bpcer, apcer = points[name]
        at = 100 * bpcer, 100 * (1 - apcer)
        axes.plot(*at, "o", color=_colour(name, sets), markersize=6, clip_on=False)
    axes.set(xlim=(-1, 101), ylim=(-1, 101))
    return _finish(figure, axes, curves)


def _histograms(sets: Mapping[str, Samples], thresholds: Mapping[str, float]) -> bytes:
    cells, figure = _grid(len(sets))
    for axes, (name, samples) in zip(cells, sets.items(), strict=False):
        bona_fide, attacks = (samples.scores[samples.labels == label] for label in (0, 1))
        _histogram(axes, bona_fide, attacks, thresholds[name], _short(name))
    return _png(figure)


def _grid(n: int) -> tuple[list[Axes], Figure]:
    """Return axes for n histograms, those that are left over hidden, and their figure."""
    columns = min(_COLUMNS, n)
    rows = math.ceil(n / columns)
    figure = Figure(figsize=(max(4.6, 3.6 * columns), 2.9 * rows), layout="constrained")
    cells: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in cells[n:]:
        axes.set_visible(False)
    figure.supxlabel("score", fontsize=9)
    figure.supylabel("% of the class", fontsize=9)
    return cells, figure


def _histogram(
    axes: Axes,
    bona_fide: NDArray[np.float64],
    attacks: NDArray[np.float64],
    threshold: float,
    title: str,
) -> None:
    bins = np.linspace(0, 1, _HISTOGRAM_BINS + 1).tolist()
    for scores, colour, kind in (
        (bona_fide, _BONA_FIDE, "bona fide"),
        (attacks, _ATTACK, "attack"),
    ):
        if scores.size:
            weights = np.full(scores.size, 100 / scores.size)
            legend = f"{kind} ({scores.size})"
            axes.hist(scores, bins, weights=weights, color=colour, alpha=0.55, label=legend)
    if math.isfinite(threshold):
        axes.axvline(
            threshold, color=_INK, linewidth=1.2, linestyle="--", label=f"threshold {threshold:.3g}"
        )
    axes.set_title(title, fontsize=10, pad=22)
    axes.set_xlim(0, 1)
    # Above the axes: inside, it would cover bars of some report or other.
    axes.legend(
        fontsize=7,
        frameon=False,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=3,
        columnspacing=0.9,
        handlelength=1.1,
        handletextpad=0.4,
        borderaxespad=0.2,
    )
    _plain(axes)


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
    figure = Figure(figsize=(4.6, 5.0), layout="constrained")
    axes = figure.subplots()
    figure.suptitle(title, fontsize=11)  # a title of square axes would be cut off
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
        figure.legend(fontsize=8, frameon=False, loc="outside lower center")
    else:
        axes.text(0.5, 0.5, "no set has both classes", ha="center", transform=axes.transAxes)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # The file names no program version, so that the same scores give the same bytes.
    figure.savefig(buffer, format="png", dpi=PIXELS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def _colour(name: str, sets: Mapping[str, object]) -> tuple[float, float, float, float]:
    palette = colormaps["tab10" if len(sets) <= 10 else "tab20"]
    return palette(list(sets).index(name) % palette.N)


def _operating_point(samples: Samples, threshold: float) -> tuple[float, float]:
    """Return BPCER and APCER, all types as one, at a threshold; both classes are there."""
    alarms = samples.scores >= threshold
    bpcer = alarms[samples.labels == 0].mean()
    return float(bpcer), float(1 - alarms[samples.labels == 1].mean())


def _probit(rates: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(norm.ppf(np.clip(rates, 1e-9, 1 - 1e-9)))


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"
