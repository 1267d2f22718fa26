"""Score a run's dev and test faces by a protocol, and report on them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, cast

from train.data.selection import open_data
from train.errors import TrainError
from train.evaluation.page import write_report
from train.evaluation.published import published_for
from train.evaluation.report import ReportConfig, build_report
from train.evaluation.score_model import score_part
from train.evaluation.scores import write_scores

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

    from train.data.selection import Part
    from train.evaluation.report import Report
    from train.evaluation.scores import FrameScore
    from train.fit.checkpoint import Trained
    from train.fit.ranks import Ranks

log = logging.getLogger(__name__)


def report_on_run(
    run: Path,
    trained: Trained,
    out: Path,
    ranks: Ranks,
    *,
    protocol: str | None,
    prepared: Sequence[Path],
) -> Report:
    """Write `scores/*.jsonl`, `report.html`, `report.json` and the plots; rank 0 alone writes.

    Args:
        run: folder of a finished run.
        trained: its best network.
        out: folder of the report.
        ranks: this process among those of the evaluation; each face is scored once over all.
        protocol: name in configs/protocols; None: the recipe's own.
        prepared: folders of faces; none: the recipe's own.

    Raises:
        TrainError: no weights, no test faces, or faces that the protocol asks for are missing.
    """
    model, recipe, _, calibrated = trained
    if not calibrated:
        log.warning("%s: not calibrated: ranks mean something, probabilities do not", run)
    data = open_data(
        prepared or recipe.data.prepared,
        protocol or recipe.data.protocol,
        synthetic=bool(recipe.data.synthetic),
    )
    if not data.test:
        raise TrainError(
            f"{run}: its faces have no split test; give faces that have one, or a protocol"
            " (--prepared, --protocol)"
        )
    cast("nn.Module", model).to(ranks.device)

    def scored(part: Part) -> list[FrameScore]:
        return score_part(model, data, part, recipe, ranks, refine=calibrated)

    dev = scored(data.dev) if data.dev.rows else None
    tests = {name: scored(part) for name, part in data.test.items()}
    report = build_report(
        dev,
        tests,
        ReportConfig(protocol=data.protocol or "splits of the data sets", threshold=data.threshold),
        published=published_for(data.protocol, recipe.expected or ()),
        about={
            "run": run.name,
            "method": recipe.method,
            "options": ", ".join(f"{key} {value}" for key, value in recipe.options.items()),
            "calibration": recipe.calibration if calibrated else "none",
        },
    )
    if ranks.writes:
        for name, rows in {"dev": dev, **tests}.items():
            if rows is not None:
                write_scores(out / "scores" / f"{name}.jsonl", rows)
        write_report(report, out)
    return report
