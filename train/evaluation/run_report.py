"""Score a run's dev and test faces by a protocol, and report on them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

from train.data.overlap import learned_overlaps, told
from train.data.protocols import FixedThreshold, Threshold
from train.data.selection import open_data, open_tests
from train.errors import TrainError
from train.evaluation.cautions import DEV
from train.evaluation.curves import read_curves
from train.evaluation.page import write_report
from train.evaluation.provenance import Provenance, scored_faces, trained_run
from train.evaluation.published import published_for
from train.evaluation.report import ReportConfig, build_report
from train.evaluation.score_model import score_part
from train.evaluation.scores import write_scores
from train.evaluation.worst_cases import pictures_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import nn

    from train.config import Recipe
    from train.data.selection import Data, Part
    from train.evaluation.provenance import Origin
    from train.evaluation.report import Report
    from train.fit.checkpoint import Trained
    from train.fit.ranks import Ranks

log = logging.getLogger(__name__)

_OVERLAPS_SHOWN = "A score on faces that were learned from says nothing of others"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What to evaluate a run on, and how.

    Attributes:
        protocol: name in configs/protocols; None: the recipe's own, or the splits of `prepared`.
        prepared: folders of faces; none: the recipe's own.
        every_split: see `open_tests`.
        allow_overlap: report, instead of refusing, what the tests share with what was learned from.
        threshold: the rule of the operating point; None: the protocol's.
        aggregate: how frames make a video's score.
        worst: worst cases of each class and test set, shown with their faces.
    """

    protocol: str | None
    prepared: Sequence[Path]
    every_split: bool
    allow_overlap: bool
    threshold: Threshold | None
    aggregate: str
    worst: int


class _Dev(NamedTuple):
    """Faces that the threshold is chosen on, and where they are from."""

    data: Data
    part: Part
    prepared: Sequence[Path]
    whose: str


def report_on_run(
    run: Path, trained: Trained, out: Path, ranks: Ranks, wanted: Evaluation, made: Origin
) -> Report:
    """Write `scores/*.jsonl`, `report.html`, `report.json` and the plots; rank 0 alone writes.

    Args:
        run: folder of a finished run.
        trained: its best network.
        out: folder of the report.
        ranks: this process among those of the evaluation; each face is scored once over all.
        wanted: on what, and how.
        made: when, where and by which command.

    Raises:
        TrainError: no weights, no test faces, faces that the protocol asks for are missing, no dev
            faces for a rule that needs them, or an overlap that is not allowed.
    """
    model, recipe, _, calibrated = trained
    prepared = wanted.prepared or recipe.data.prepared
    own = not wanted.prepared and not wanted.protocol
    tests = open_tests(
        prepared,
        recipe.data.protocol if own else wanted.protocol,
        every_split=wanted.every_split,
        allow_overlap=wanted.allow_overlap,
    )
    overlaps = [*_overlaps(run, tests, allow=wanted.allow_overlap)]
    dev = _dev(run, recipe, tests, prepared, own=own, rule=wanted.threshold)
    rule = wanted.threshold or (
        tests.threshold if tests.protocol or not dev else dev.data.threshold
    )
    cast("nn.Module", model).to(ranks.device)

    scores = {
        name: score_part(model, tests, part, recipe, ranks, refine=calibrated)
        for name, part in tests.test.items()
    }
    parts = {
        name: scored_faces(prepared, tests.shards, tests.test[name], rows)
        for name, rows in scores.items()
    }
    dev_scores = None
    if dev:
        dev_scores = score_part(model, dev.data, dev.part, recipe, ranks, refine=calibrated)
        parts = {
            DEV: scored_faces(dev.prepared, dev.data.shards, dev.part, dev_scores),
            **parts,
        }
    report = build_report(
        dev_scores,
        scores,
        ReportConfig(
            protocol=tests.protocol or "splits of the data sets",
            threshold=rule,
            aggregate=wanted.aggregate,
            worst=wanted.worst,
        ),
        published=published_for(tests.protocol, recipe.expected or ()),
        cautions=(*overlaps, *_cautions(trained, dev, foreign=not own)),
        about={
            "run": run.resolve().name,
            "method": recipe.method,
            "options": ", ".join(f"{key} {value}" for key, value in recipe.options.items()),
            "calibration": recipe.calibration if calibrated else "none",
            "dev": dev.whose if dev else "none",
        },
        provenance=Provenance(made=made, run=trained_run(run, trained), data=parts),
    )
    if ranks.writes:
        rows = [row for part in tests.test.values() for row in part.rows]
        crops = pictures_of(report.document.worst.values(), tests.shards, rows, model.input_spec)
        for name, table in {DEV: dev_scores, **scores}.items():
            if table is not None:
                write_scores(out / "scores" / f"{name}.jsonl", table)
        write_report(report, out, curves=read_curves(run), crops=crops)
    return report


def _overlaps(run: Path, tests: Data, *, allow: bool) -> Iterator[str]:
    """Yield what a report must say of what the tests share with what was learned from.

    Raises:
        TrainError: they share something, and may not.
    """
    shared = learned_overlaps(run, tests)
    if shared is None:
        yield (
            "This run kept no record of what it was trained on (an older version made it), so it "
            "could not be checked whether these faces are among it."
        )
        return
    messages = [told(overlaps, *names) for names, overlaps in shared.items()]
    messages += [told(overlaps, *names) for names, overlaps in tests.shared.items()]
    if messages and not allow:
        raise TrainError(
            f"{run}: {'; '.join(messages)}. {_OVERLAPS_SHOWN}: test on others, or go on all the "
            "same with --allow-overlap, and the report will say so"
        )
    for message in messages:
        yield f"Overlap, allowed: {message}. {_OVERLAPS_SHOWN}."


def _dev(
    run: Path,
    recipe: Recipe,
    tests: Data,
    prepared: Sequence[Path],
    *,
    own: bool,
    rule: Threshold | None,
) -> _Dev | None:
    """Return the dev faces: those beside the tests, if of both classes; else the run's own.

    None where the threshold needs none and there are none beside the tests.

    Raises:
        TrainError: the run's own are needed, and are not there.
    """
    labels = {tests.shards.records[row].label for row in tests.dev.rows}
    if not own and len(labels) == 2:
        return _Dev(tests, tests.dev, prepared, "beside the test faces")
    fixed = isinstance(rule or (tests.threshold if tests.protocol else None), FixedThreshold)
    if fixed and not own:
        return None
    try:
        data = open_data(
            recipe.data.prepared,
            recipe.data.protocol,
            synthetic=bool(recipe.data.synthetic),
            allow_overlap=True,  # checked when it was trained
        )
    except TrainError as error:
        raise TrainError(
            f"{run}: the threshold is chosen on the run's own dev faces, which can't be opened: "
            f"{error}. Bring them, or give --threshold fixed=0.5; `python -m train report --dev` "
            "takes dev scores that an earlier report left in scores/dev.jsonl"
        ) from error
    if data.dev.rows:
        return _Dev(data, data.dev, recipe.data.prepared, "the run's own")
    if fixed:
        return None
    raise TrainError(
        f"{run}: it has no dev faces to choose a threshold on; give --threshold fixed=0.5, or "
        "faces that have a split dev of both classes"
    )


def _cautions(trained: Trained, dev: _Dev | None, *, foreign: bool) -> Iterator[str]:
    """Yield what the scores themselves do not show."""
    if not trained.calibrated:
        yield (
            "The run is not calibrated: on dev, attacks did not score higher than bona fide faces. "
            "Ranks may mean something; probabilities and thresholds do not."
        )
    if dev is None:
        return
    if dev.part.synthetic:
        yield (
            "dev: its attacks are made from its bona fide faces, so the threshold knows no real "
            "attack, and dev's figures measure the generator."
        )
    if foreign and dev.whose == "the run's own":
        yield (
            "The threshold is that of the run's own dev faces, of other recordings than the tests: "
            "error rates at it show how far it carries over; AUC and EER do not depend on it."
        )
