"""Score a run's dev and test faces by a protocol, and report on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, cast

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
    from train.evaluation.curves import Curves
    from train.evaluation.provenance import Origin, ScoredData
    from train.evaluation.report import Report
    from train.evaluation.scores import FrameScore
    from train.fit.checkpoint import Trained
    from train.fit.ranks import Ranks

_OWN: Final = "the run's own"
_NO_DEV: Final = (
    "it has no dev faces to choose a threshold on; give --threshold fixed=0.5, or faces that have "
    "a split dev of both classes"
)
_WORTHLESS: Final = "A score on faces that were learned from says nothing of others"


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

    @property
    def own(self) -> bool:
        """Whether the run is evaluated on what its recipe names."""
        return not self.prepared and self.protocol is None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunReport:
    """A run's report, and what is written beside its numbers."""

    report: Report
    scores: dict[str, list[FrameScore]]  # by set, dev among them
    crops: dict[str, bytes]  # of the worst cases, by sample id: JPEG
    curves: Curves

    def write(self, folder: Path) -> Path:
        """Write `scores/*.jsonl`, `report.json`, `report.html` and the plots; return the page.

        Raises:
            OSError: the folder can't be made, is full, or may not be written.
        """
        for name, rows in self.scores.items():
            write_scores(folder / "scores" / f"{name}.jsonl", rows)
        return write_report(self.report, folder, curves=self.curves, crops=self.crops)


class _Dev(NamedTuple):
    """Faces that the threshold is chosen on, and where they are from."""

    data: Data
    part: Part
    prepared: Sequence[Path]
    whose: str


def report_on_run(
    run: Path, trained: Trained, ranks: Ranks, wanted: Evaluation, made: Origin
) -> RunReport:
    """Score a run's dev and test faces, and compute its report, on every rank.

    Args:
        run: folder of a finished run.
        trained: its best network.
        ranks: this process among those of the evaluation; each face is scored once over all.
        wanted: on what, and how.
        made: when, where and by which command.

    Raises:
        TrainError: no test faces, faces that the protocol asks for are missing, no dev faces for a
            rule that needs them, an overlap that is not allowed, or a damaged journal.
    """
    model, recipe, _, calibrated = trained
    prepared = wanted.prepared or recipe.data.prepared
    tests, dev = _opened(run, recipe, prepared, wanted)
    overlaps = [*_overlaps(run, tests, allow=wanted.allow_overlap)]
    rule = wanted.threshold or (
        tests.threshold if tests.protocol or not dev else dev.data.threshold
    )
    cast("nn.Module", model).to(ranks.device)
    scores: dict[str, list[FrameScore]] = {}
    data: dict[str, ScoredData] = {}
    if dev:
        rows = score_part(model, dev.data, dev.part, recipe, ranks, refine=calibrated)
        scores[DEV] = rows
        data[DEV] = scored_faces(dev.prepared, dev.data.shards, dev.part, rows)
    for name, part in tests.test.items():
        rows = score_part(model, tests, part, recipe, ranks, refine=calibrated)
        scores[name] = rows
        data[name] = scored_faces(prepared, tests.shards, part, rows)
    report = build_report(
        scores.get(DEV),
        {name: scores[name] for name in tests.test},
        ReportConfig(
            protocol=tests.protocol or "splits of the data sets",
            threshold=rule,
            aggregate=wanted.aggregate,
            worst=wanted.worst,
        ),
        published=published_for(tests.protocol, recipe.expected or ()),
        cautions=(*overlaps, *_cautions(trained, dev, wanted)),
        about={
            "run": run.resolve().name,
            "method": recipe.method,
            "options": ", ".join(f"{key} {value}" for key, value in recipe.options.items()),
            "calibration": recipe.calibration if calibrated else "none",
            "dev": dev.whose if dev else "none",
        },
        provenance=Provenance(made=made, run=trained_run(run, trained), data=data),
    )
    tested = [row for part in tests.test.values() for row in part.rows]
    worst = report.document.worst.values()
    return RunReport(
        report=report,
        scores=scores,
        crops=pictures_of(worst, tests.shards, tested, model.input_spec) if ranks.writes else {},
        curves=read_curves(run),
    )


def _opened(
    run: Path, recipe: Recipe, prepared: Sequence[Path], wanted: Evaluation
) -> tuple[Data, _Dev | None]:
    """Return the tests, and the dev faces that their threshold is chosen on.

    Dev is the run's own where it is evaluated on its own faces. Else it is that beside the tests,
    if it holds both classes; else the run's own; None where the rule needs none.

    Raises:
        TrainError: the faces can't be opened, or there is no test or no dev among them.
    """
    if wanted.own:
        data = _own(recipe, allow_overlap=wanted.allow_overlap)
        if not data.test:
            raise TrainError(
                f"{run}: its faces have no split test; give faces that have one, or a protocol"
                " (--prepared, --protocol)"
            )
        if data.dev.rows:
            return data, _Dev(data, data.dev, recipe.data.prepared, _OWN)
        rule = wanted.threshold or data.threshold
        if isinstance(rule, FixedThreshold):
            return data, None
        raise TrainError(f"{run}: {_NO_DEV}")
    tests = open_tests(
        prepared,
        wanted.protocol,
        every_split=wanted.every_split,
        allow_overlap=wanted.allow_overlap,
    )
    if len({int(tests.shards.label[row]) for row in tests.dev.rows}) == 2:
        return tests, _Dev(tests, tests.dev, prepared, "beside the test faces")
    if isinstance(wanted.threshold or tests.threshold, FixedThreshold):
        return tests, None
    try:
        data = _own(recipe, allow_overlap=True)  # checked when it was trained
    except TrainError as error:
        raise TrainError(
            f"{run}: the threshold is chosen on the run's own dev faces, which can't be opened: "
            f"{error}. Bring them, or give --threshold fixed=0.5; `python -m train report --dev` "
            "takes dev scores that an earlier report left in scores/dev.jsonl"
        ) from error
    if not data.dev.rows:
        raise TrainError(f"{run}: {_NO_DEV}")
    return tests, _Dev(data, data.dev, recipe.data.prepared, _OWN)


def _own(recipe: Recipe, *, allow_overlap: bool) -> Data:
    return open_data(
        recipe.data.prepared,
        recipe.data.protocol,
        synthetic=bool(recipe.data.synthetic),
        allow_overlap=allow_overlap,
    )


def _overlaps(run: Path, tests: Data, *, allow: bool) -> Iterator[str]:
    """Yield what a report must say of what the tests share with what was learned from.

    Raises:
        TrainError: they share something, and may not.
    """
    learned = learned_overlaps(run, tests)
    shared = {**(learned or {}), **tests.shared}
    messages = [told(overlaps, *names) for names, overlaps in shared.items()]
    if messages and not allow:
        raise TrainError(
            f"{run}: {'; '.join(messages)}. {_WORTHLESS}: test on others, or go on all the same "
            "with --allow-overlap, and the report will say so"
        )
    for message in messages:
        yield f"Overlap, allowed: {message}. {_WORTHLESS}."
    if learned is None:
        yield (
            "This run kept no record of what it was trained on (an older version made it), so it "
            "could not be checked whether these faces are among it."
        )


def _cautions(trained: Trained, dev: _Dev | None, wanted: Evaluation) -> Iterator[str]:
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
            "attack, and dev's measures are those of the generator."
        )
    if dev.whose == _OWN and not wanted.own:
        yield (
            "The threshold is that of the run's own dev faces, of other recordings than the tests: "
            "error rates at it show how far it carries over; AUC and EER do not depend on it."
        )
