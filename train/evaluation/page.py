"""The report on disk: `report.json`, the pictures, and one page that holds them all."""

from __future__ import annotations

import base64
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

import jinja2
import numpy as np
import yaml

from models import whole_file
from train.evaluation.plots import PIXELS_PER_INCH, draw_curves, draw_plots, draw_types
from train.evaluation.report import LEVELS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from train.evaluation.curves import Curves
    from train.evaluation.measures import SetMeasures
    from train.evaluation.report import Report, ReportDocument
    from train.evaluation.scores import Level, Samples

_LABELS: Final = {
    "apcer": "APCER",
    "apcer_max": "APCER, worst type",
    "apcer_pooled": "APCER, types pooled",
    "bpcer": "BPCER",
    "acer": "ACER",
    "acer_pooled": "ACER, types pooled",
    "hter": "HTER",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "accuracy_at_half": "accuracy at 0.5",
    "balanced_accuracy_at_half": "balanced accuracy at 0.5",
    "auc": "AUC",
    "average_precision": "average precision",
    "eer_interpolated": "EER",
    "eer_nearest": "EER, nearest point",
    "eer_convex_hull": "EER, convex hull",
    "tpr_at_fpr": "TPR at FPR",
    "bpcer_at_apcer": "BPCER at APCER",
    "log_loss": "log loss",
    "brier": "Brier score",
    "ece": "ECE",
    "ece_equal_mass": "ECE, bins of equal mass",
    "mce": "MCE",
    "cllr": "Cllr",
    "min_cllr": "min Cllr",
    "calibration_loss": "calibration loss",
    "temperature": "temperature",
    "dev_auc": "dev AUC",
}
_ORACLES: Final = {
    "hter:test_eer": "HTER at the test set's EER",
    "acer:test_eer": "ACER at the test set's EER",
    "acer:test_best_acer": "ACER, least over all thresholds",
}
_RULES: Final = {
    "dev_eer": "EER on dev",
    "dev_bpcer": "BPCER on dev",
    "fixed": "fixed",
    "test_eer": "EER on the test set itself *",
    "test_best_acer": "least ACER on the test set itself *",
}
# Numbers that are no rates, so that a percent sign would mislead.
_PLAIN: Final = (
    *("auc", "average_precision", "dev_auc", "log_loss", "brier", "ece", "ece_equal_mass", "mce"),
    *("cllr", "min_cllr", "calibration_loss", "temperature"),
)


_PNG_WIDTH: Final = struct.Struct(">I")
_PAGE_PER_INCH: Final = 92  # of a picture's inches, in pixels of the page


def write_report(
    report: Report,
    folder: Path,
    *,
    curves: Curves | None = None,
    crops: Mapping[str, bytes] | None = None,
) -> Path:
    """Write `report.json`, `report.html` and the page's pictures; return the page's path.

    The page holds its pictures and needs no network.

    Args:
        report: what to write.
        folder: made where it is missing.
        curves: of the run that made the weights.
        crops: of worst cases, by sample id: JPEG.

    Raises:
        OSError: the folder can't be made, is full, or may not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    levels = [level for level in LEVELS if not (level == "frame" and _one_frame_each(report))]
    pictures = {name: png for level in levels for name, png in _of_level(report, level).items()}
    run = report.document.provenance.run if report.document.provenance else None
    if run and curves and (curves.losses or curves.validation):
        pictures["curves"] = draw_curves(curves, run.step)
    page = _page(report.document, levels, pictures, crops or {})
    for name, png in pictures.items():
        _write(folder / f"{name}.png", png)
    _write(folder / "report.json", report.document.model_dump_json(indent=1).encode() + b"\n")
    _write(folder / "report.html", page.encode())
    return folder / "report.html"


def _of_level(report: Report, level: Level) -> dict[str, bytes]:
    sets: dict[str, Samples] = {
        name: samples for (name, other), samples in report.samples.items() if other == level
    }
    thresholds = {s.name: s.threshold.number for s in report.document.sets if s.level == level}
    pictures = {f"{level}_{plot}": png for plot, png in draw_plots(sets, thresholds).items()}
    for name, samples in sets.items():
        if samples.n_attack:
            pictures[f"{level}_types_{name}"] = draw_types(samples, thresholds[name])
    return pictures


def _one_frame_each(report: Report) -> bool:
    """Whether every video is a single frame, so that both levels say the same."""
    return all(
        np.array_equal(samples.scores, report.samples[name, "frame"].scores)
        for (name, level), samples in report.samples.items()
        if level == "video"
    )


def _page(
    document: ReportDocument,
    levels: list[Level],
    pictures: Mapping[str, bytes],
    crops: Mapping[str, bytes],
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "label": _label,
        "shown": _shown,
        "rule": _RULES.__getitem__,
        "worst_type": _worst_type,
    }
    run = document.provenance.run if document.provenance else None
    return environment.get_template("report.html.jinja").render(
        document=document,
        levels=levels,
        pictures={name: _data_uri("png", png) for name, png in pictures.items()},
        widths={name: _width(png) for name, png in pictures.items()},
        crops={name: _data_uri("jpeg", jpeg) for name, jpeg in crops.items()},
        recipe=yaml.safe_dump(run.recipe, sort_keys=False) if run else "",
    )


def _label(name: str) -> str:
    """Return what people call a measure."""
    kind, _, rest = name.partition(":")
    return _ORACLES.get(name) or f"{_LABELS[kind]} {rest}".strip()


def _worst_type(of_set: SetMeasures) -> str:
    """Return the attack type that is missed most, with counts; nothing without attacks."""
    of_types = [m for m in of_set.measures if m.name.startswith("apcer:") and m.value is not None]
    if not of_types:
        return ""
    worst = max(of_types, key=lambda measure: measure.value or 0.0)
    return f"{worst.name.partition(':')[2]}: {worst.errors} of {worst.n_attack}"


def _width(png: bytes) -> int:
    """Return how wide the page shows a picture, which has more pixels for fine screens."""
    pixels: int = _PNG_WIDTH.unpack_from(png, 16)[0]
    return round(pixels / PIXELS_PER_INCH * _PAGE_PER_INCH)


def _shown(value: float, name: str) -> str:
    """Return a measure's value as text."""
    return f"{value:.4f}" if name.partition(":")[0] in _PLAIN else f"{100 * value:.2f} %"


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _write(path: Path, content: bytes) -> None:
    with whole_file(path) as whole:
        whole.write_bytes(content)
