"""What the quality gate is worth: the error of what passes, against the share that is turned away.

Each limit is swept over recorded looks, and so are all together. Beside them stand turning away at
random, which changes nothing, and an oracle that turns away wrong answers first. The error is that
of single looks at the engine's own threshold: the mean of APCER and BPCER, each among the looks of
its class that pass; the share turned away is the mean of both classes' shares, too. Nothing is
chosen here: where limits stand, they are the shipped ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from pydantic import Field
from scipy.stats import rankdata

from stream.config import QualityConfig
from train.errors import TrainError
from train.evaluation.measures import Interval, ReportPart
from train.evaluation.metrics.intervals import percentile_interval, resample
from train.evaluation.shipped_measures import BONA_FIDE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from train.evaluation.recorded_looks import RecordedEngine, RecordedLook, RecordHead

TOGETHER: Final = "all together"
RANDOM: Final = "at random"
ORACLE: Final = "oracle"
MOST: Final = 0.5  # share turned away up to which a curve is drawn and judged
GRID: Final = np.linspace(0, MOST, 101)
_DATA: Final = {
    "labelled clips, look by look": ("clips",),
    "labelled pictures": ("stills", "measure"),
    "degraded bona fide footage": ("degraded_dev",),
}

_REPLICATES: Final = 300
_LEAST_LEFT: Final = 1e-9  # of a class: one that is gone has no error
_SHIPPED: Final = QualityConfig()


@dataclass(frozen=True, slots=True)
class _Criterion:
    """One limit of the gate; the better a face can be seen, the higher the value."""

    value: Callable[[RecordedLook, str], float]  # of a look, for an engine
    least: float  # that passes, as shipped


CRITERIA: Final[Mapping[str, _Criterion]] = {
    "min_face_px": _Criterion(lambda look, _: look.face_px, _SHIPPED.min_face_px),
    "min_sharpness": _Criterion(lambda look, _: look.sharpness, _SHIPPED.min_sharpness),
    "min_brightness": _Criterion(lambda look, _: look.brightness, _SHIPPED.min_brightness),
    "max_brightness": _Criterion(lambda look, _: -look.brightness, -_SHIPPED.max_brightness),
    "max_turn": _Criterion(lambda look, _: -look.turn, -_SHIPPED.max_turn),
    "min_window": _Criterion(lambda look, name: look.window[name], _SHIPPED.min_window),
}


class ClassRate(ReportPart):
    """Errors among the looks of a class, at the shipped limit."""

    turned_away: int
    wrong: int = Field(description="Of those that are turned away.")
    expected: float = Field(
        description="Errors that as many looks of the same sets and kinds have where they pass. No "
        "fewer than `wrong`: the limit finds sets that are hard, and no looks that are."
    )
    passed: int
    errors: int = Field(description="Of those that pass.")


class GateRow(ReportPart):
    """One criterion on one set of looks, judged by one engine."""

    criterion: str = Field(description="Option of `QualityConfig`, or `all together`.")
    bona_fide: ClassRate = Field(description="At the shipped limit.")
    attack: ClassRate | None = Field(description="Likewise; null: there are no attacks.")
    gain: float | None = Field(
        description="Area between the curve and turning away at random, over that of the oracle, "
        f"up to a share of {MOST:g}. 1: as good as the oracle; 0: as random; "
        "below: worse; null: no error could be turned away."
    )
    gain95: Interval | None = Field(description="By person.")
    gain_within: float | None = Field(
        description="The same where as large a share of each set and kind is turned away: a limit "
        "that only tells an easy set from a hard one gains nothing."
    )
    gain_within95: Interval | None
    curve: tuple[float, ...] = Field(description=f"Error at {len(GRID)} shares, 0 to {MOST:g}.")


class GateCurves(ReportPart):
    """All criteria on one set of looks, judged by one engine."""

    data: str
    engine: str
    error: float = Field(description="Of all looks.")
    people: int
    oracle: tuple[float, ...]
    rows: tuple[GateRow, ...]


@dataclass(frozen=True, slots=True)
class _Looks:
    """What one engine made of some looks."""

    values: dict[str, NDArray[np.float64]]  # criterion -> (N,)
    attack: NDArray[np.bool_]
    wrong: NDArray[np.bool_]
    people: list[str]
    cell: NDArray[np.int64]  # (N,) number of its set and kind


def curves_of(head: RecordHead, looks: Sequence[RecordedLook]) -> list[GateCurves]:
    """Sweep the gate's limits over all that was recorded, engine by engine.

    Raises:
        TrainError: no bona fide dev footage was recorded, or nothing else.
    """
    dev = [look for look in looks if look.part == "dev"]
    parts = {
        data: [look for look in looks if look.part in of]
        for data, of in _DATA.items()
        if any(look.part in of for look in looks)
    }
    if not (dev and parts):
        raise TrainError(
            f"recorded parts: {', '.join(head.parts)}; expected dev, and what to judge the gate on"
        )
    return [
        gate_curves(data, of, dev, name, engine)
        for data, of in parts.items()
        for name, engine in head.engines.items()
    ]


def gate_curves(
    data: str,
    looks: Sequence[RecordedLook],
    dev: Sequence[RecordedLook],
    name: str,
    engine: RecordedEngine,
) -> GateCurves:
    """Sweep the gate's limits over looks.

    Args:
        data: what they are of, for people.
        looks: bona fide ones among them; of the attacks those count that the engine was trained to
            see.
        dev: looks at bona fide dev footage: all limits are swept together at the same share of it.
        name: of the engine in the record.
        engine: which.
    """
    seen = _seen(looks, dev, name, engine)
    weights = np.ones((1, len(seen.wrong)))
    drawn = resample(seen.attack.astype(np.int64), seen.people, replicates=_REPLICATES)
    replicates = np.vstack([weights, drawn.draws[:, drawn.cluster]])
    oracle = _curves(np.where(seen.wrong, 0.0, 1.0), seen, replicates)
    oracle_within = _curves(_within(np.where(seen.wrong, 0.0, 1.0), seen.cell), seen, replicates)
    rows = []
    for criterion, values in seen.values.items():
        errors = _curves(values, seen, replicates)
        gain, gain95 = _gain(errors, oracle)
        within, within95 = _gain(
            _curves(_within(values, seen.cell), seen, replicates), oracle_within
        )
        passes = _passes(criterion, seen)
        rows.append(
            GateRow(
                criterion=criterion,
                bona_fide=_rate(passes, seen, attack=False),
                attack=_rate(passes, seen, attack=True) if seen.attack.any() else None,
                gain=gain,
                gain95=gain95,
                gain_within=within,
                gain_within95=within95,
                curve=tuple(errors[0].tolist()),
            )
        )
    return GateCurves(
        data=data,
        engine=name,
        error=float(oracle[0, 0]),
        people=len(set(seen.people)),
        oracle=tuple(oracle[0].tolist()),
        rows=tuple(rows),
    )


def _within(values: NDArray[np.float64], cell: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (N,) the rank of each value within its set and kind, 0..1; equal ones share."""
    ranks = np.empty(len(values))
    for number in np.unique(cell):
        own = cell == number
        ranks[own] = rankdata(values[own]) / own.sum()
    return ranks


def _seen(
    looks: Sequence[RecordedLook],
    dev: Sequence[RecordedLook],
    name: str,
    engine: RecordedEngine,
) -> _Looks:
    of_family = [look for look in looks if counts(look.label, engine)]
    values = {
        criterion: np.array([of.value(look, name) for look in of_family])
        for criterion, of in CRITERIA.items()
    }
    ranks = [
        np.searchsorted(np.sort([of.value(look, name) for look in dev]), values[criterion], "right")
        for criterion, of in CRITERIA.items()
    ]
    attack = np.array([look.label != BONA_FIDE for look in of_family])
    alarm = np.array([look.probability[name] >= engine.thresholds.enter for look in of_family])
    return _Looks(
        values={**values, TOGETHER: np.min(ranks, axis=0).astype(float)},
        attack=attack,
        wrong=alarm != attack,
        people=[look.person for look in of_family],
        cell=np.unique([f"{look.set}/{look.label}" for look in of_family], return_inverse=True)[1],
    )


def counts(label: str, engine: RecordedEngine) -> bool:
    """Return whether a look is one that the engine should get right."""
    digital = label == "deepfake"
    return label == BONA_FIDE or engine.family in (None, "digital" if digital else "presentation")


def _passes(criterion: str, seen: _Looks) -> NDArray[np.bool_]:
    names = CRITERIA if criterion == TOGETHER else (criterion,)
    passes = [seen.values[name] >= CRITERIA[name].least for name in names]
    return np.asarray(np.all(passes, axis=0), bool)


def _rate(passes: NDArray[np.bool_], seen: _Looks, *, attack: bool) -> ClassRate:
    own = seen.attack == attack
    expected = 0.0
    for cell in np.unique(seen.cell[own & ~passes]):
        alike = own & (seen.cell == cell)
        if (alike & passes).any():
            expected += float(seen.wrong[alike & passes].mean() * (alike & ~passes).sum())
    return ClassRate(
        turned_away=int((own & ~passes).sum()),
        wrong=int((own & ~passes & seen.wrong).sum()),
        expected=expected,
        passed=int((own & passes).sum()),
        errors=int((own & passes & seen.wrong).sum()),
    )


def _curves(
    values: NDArray[np.float64], seen: _Looks, weights: NDArray[np.float64 | np.int64]
) -> NDArray[np.float64]:
    """Return (B, len(GRID)) the error of what passes as ever better looks are turned away.

    Equal values go at the same time: a part of them is a random one.

    Args:
        values: (N,) what is low is turned away first.
        seen: the looks.
        weights: (B, N) how often each look counts, in each replicate.
    """
    order = np.argsort(values, kind="stable")
    ends = np.append(np.diff(values[order]) > 0, True)  # of looks that are equally good
    classes = [seen.attack == side for side in (False, True) if (seen.attack == side).any()]

    def gone(part: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how much of a part is turned away, after each block."""
        return np.append(0.0, np.cumsum(part[order])[ends])

    errors = np.empty((len(weights), len(GRID)))
    for row, weight in zip(errors, weights, strict=True):
        parts = [own * weight / (own * weight).sum() for own in classes]
        share = np.mean([gone(part) for part in parts], axis=0)
        of_class = []
        for part in parts:
            wrong = part * seen.wrong
            left = 1 - np.interp(GRID, share, gone(part))
            wrong_left = wrong.sum() - np.interp(GRID, share, gone(wrong))
            of_class.append(wrong_left / np.maximum(left, _LEAST_LEFT))
        row[:] = np.mean(of_class, axis=0)
    return errors


def _gain(
    errors: NDArray[np.float64], oracle: NDArray[np.float64]
) -> tuple[float | None, Interval | None]:
    """Return how far a curve lies below its first value, over how far the oracle's does.

    Args:
        errors: (B, len(GRID)), the first of all looks, the others of replicates.
        oracle: likewise.
    """
    saved, most = ((curve[:, :1] - curve).sum(axis=1) for curve in (errors, oracle))
    gains = np.divide(saved, most, out=np.full_like(most, np.nan), where=most > _LEAST_LEFT)
    if np.isnan(gains[0]):
        return None, None
    return float(gains[0]), percentile_interval(gains[1:])
