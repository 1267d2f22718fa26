"""The quality gate's curves as a picture and as a table."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

from matplotlib import colormaps
from matplotlib.figure import Figure

from models import whole_file
from train.evaluation.gate import CRITERIA, GRID, ORACLE, RANDOM, TOGETHER
from train.evaluation.plots import PIXELS_PER_INCH

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from train.evaluation.gate import GateCurves
    from train.evaluation.measures import Interval

PICTURE: Final = "gate.png"
TABLE: Final = "gate.txt"
_INK: Final = "0.25"
_NAME, _AWAY, _REST, _GAIN = 16, 48, 20, 22  # widths of the table's columns


def write_gate(curves: Sequence[GateCurves], out: Path) -> str:
    """Write `gate.png` and `gate.txt`; returns the table.

    Raises:
        OSError: the folder can't be made, is full, or may not be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    table = table_of(curves)
    with whole_file(out / TABLE) as whole:
        whole.write_text(table + "\n", encoding="utf-8")
    with whole_file(out / PICTURE) as whole:
        whole.write_bytes(draw(curves))
    return table


def table_of(curves: Sequence[GateCurves]) -> str:
    """Say of every criterion what its shipped limit turns away, and what its order is worth."""
    lines = []
    for of in curves:
        lines += [
            f"{of.data}, {of.engine}: error {100 * of.error:.1f} % of all looks, "
            f"{of.people} people",
            f"{'':{_NAME}}{'turned away, wrong (expected)':{_AWAY}}"
            f"{'wrong of the rest':{_REST}}{'gain':{_GAIN}}gain within sets",
        ]
        for row in of.rows:
            classes = {"bona fide": row.bona_fide, "attacks": row.attack}
            known = {name: rate for name, rate in classes.items() if rate is not None}
            away = ", ".join(
                f"{name} {rate.turned_away}"
                + (f", {rate.wrong} ({rate.expected:.1f})" if rate.turned_away else "")
                for name, rate in known.items()
            )
            rest = ", ".join(f"{rate.errors}/{rate.passed}" for rate in known.values())
            lines.append(
                f"{row.criterion:{_NAME}}{away:{_AWAY}}{rest:{_REST}}"
                f"{_gain(row.gain, row.gain95):{_GAIN}}{_gain(row.gain_within, row.gain_within95)}"
            )
        lines.append("")
    return "\n".join(lines).rstrip()


def _gain(gain: float | None, interval: Interval | None) -> str:
    if gain is None or interval is None:
        return "-"
    return f"{gain:+.2f} [{interval[0]:+.2f}, {interval[1]:+.2f}]"


def draw(curves: Sequence[GateCurves]) -> bytes:
    """Draw error against share turned away, as PNG: a row for each data set, a column an engine."""
    data = list(dict.fromkeys(of.data for of in curves))
    engines = list(dict.fromkeys(of.engine for of in curves))
    figure = Figure(figsize=(5.2 * len(engines), 3.9 * len(data)), layout="constrained")
    grid = figure.subplots(len(data), len(engines), squeeze=False)
    for of in curves:
        axes = grid[data.index(of.data), engines.index(of.engine)]
        _draw_one(axes, of)
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    stored = io.BytesIO()
    figure.savefig(stored, format="png", dpi=PIXELS_PER_INCH, metadata={"Software": None})
    return stored.getvalue()


def _draw_one(axes: Axes, of: GateCurves) -> None:
    colours = dict(zip(CRITERIA, colormaps["tab10"].colors, strict=False))  # type: ignore[attr-defined]
    axes.axhline(of.error, color=_INK, linewidth=1, linestyle=":", label=RANDOM)
    axes.plot(GRID, of.oracle, color=_INK, linewidth=1, linestyle="--", label=ORACLE)
    for row in of.rows:
        together = row.criterion == TOGETHER
        colour = "black" if together else colours[row.criterion]
        axes.plot(
            GRID, row.curve, color=colour, linewidth=2 if together else 1.2, label=row.criterion
        )
    axes.set_title(f"{of.data}\n{of.engine}", fontsize=9)
    axes.set_xlabel("share turned away", fontsize=8)
    axes.set_ylabel("error of what passes", fontsize=8)
    axes.set_xlim(0, GRID[-1])
    axes.set_ylim(0, None)
    axes.tick_params(labelsize=7)
