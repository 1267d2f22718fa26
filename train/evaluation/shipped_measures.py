"""What is counted of shipped engines: errors at their own threshold, ranking, alarms and delays.

No threshold is chosen here, nor is any looked for: the one operating point is the manifest's.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np
from pydantic import Field

from train.evaluation.measures import Interval, ReportPart
from train.evaluation.metrics.intervals import (
    clustered_auc,
    clustered_auc_difference,
    clustered_rate,
    clustered_ratio,
)
from train.evaluation.metrics.roc import roc

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

Part: TypeAlias = Literal["clips", "stills", "measure", "portraits"]

BONA_FIDE: Final = "bona_fide"
ALL_SETS: Final = "all"
_FAMILIES: Final = {  # of the labels, in the order of the report
    BONA_FIDE: None,
    "print": "presentation",
    "replay": "presentation",
    "mask": "presentation",
    "deepfake": "digital",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One track or picture, what it is, and what one engine said."""

    sample: str
    set: str
    label: str
    kind: str
    person: str
    score: float | None  # probability; None: not judged
    alarm: bool  # attack at the engine's threshold; of a track, at some time
    problem: str = ""  # why it was not judged
    alarms: int = 0  # of a track: how often
    hours: float = 0.0  # of a bona fide track: its share of the time with such a face in view
    verdict_s: float | None = None  # of a track: from its beginning to the verdict that is right


class Alarms(ReportPart):
    """False alarms of bona fide video."""

    alarms: int = Field(description="Changes of a verdict to attack.")
    hours: float = Field(description="With at least one bona fide face in view.")
    per_hour: float
    per_hour95: Interval


class Delays(ReportPart):
    """Seconds of media time from a track's first sighting to the right verdict."""

    n: int = Field(description="Tracks that got it.")
    median: float
    p90: float


class LessThan(ReportPart):
    """A difference of two AUCs on the same samples."""

    teacher: str
    value: float
    interval95: Interval = Field(description="By person; too narrow where people are few.")
    n_attack: int
    n_bona_fide: int


class Figures(ReportPart):
    """What one engine's answers amount to."""

    samples: int
    people: int
    judged: int = Field(description="With a score: what the other figures are of.")
    not_judged: dict[str, int] = Field(description="Why -> how many.")
    errors: int = Field(
        description="Bona fide: alarms; attacks: those without an alarm, undecided ones too."
    )
    rate: float | None = Field(description="errors / judged: BPCER of bona fide, APCER of attacks.")
    rate95: Interval | None = Field(description="By person.")
    auc: float | None = Field(None, description="Of attacks, against bona fide of `against`.")
    auc95: Interval | None = Field(None, description="By person.")
    n_bona_fide: int | None = Field(None, description="That the AUC is against.")
    less_teacher: tuple[LessThan, ...] = Field((), description="AUC less that of a teacher.")
    alarms: Alarms | None = None
    delays: Delays | None = None


class Row(ReportPart):
    """One kind of sample of one set."""

    part: Part
    set: str = Field(description="`all`: every set of the part.")
    kind: str = Field(description="`bona_fide`, an attack kind, label or family.")
    against: Literal["own", "all"] | None = Field(
        description="Bona fide of the set itself, or of all sets of the part with such attacks or "
        "with none; null for bona fide."
    )
    engines: dict[str, Figures]


@dataclass(frozen=True, slots=True)
class _Group:
    """Which samples make a row, and which bona fide ones stand against them."""

    set: str
    kind: str
    cells: frozenset[tuple[str, str]]  # set and kind of its samples
    against: Literal["own", "all"] | None
    sets: frozenset[str]  # with the bona fide samples against which it is ranked


def rows_of(
    part: Part, judged: Mapping[str, Sequence[Judged]], teachers: Sequence[str] = ()
) -> list[Row]:
    """Count all there is in a part, set by set and over all sets.

    Args:
        part: its name.
        judged: by engine, the same samples.
        teachers: engines that the others are compared with.
    """
    rows = []
    for group in _groups(next(iter(judged.values()))):
        figures = {name: _figures(group, samples) for name, samples in judged.items()}
        if group.against is not None:
            for name in figures:
                less = _less_teachers(group, name, judged, teachers)
                figures[name] = figures[name].model_copy(update={"less_teacher": less})
        rows.append(
            Row(
                part=part,
                set=group.set,
                kind=group.kind,
                against=group.against,
                engines=figures,
            )
        )
    return rows


def _groups(samples: Iterable[Judged]) -> list[_Group]:
    """Return set by set its bona fide and its kinds of attack; then all sets together.

    Over sets, attacks are ranked against the bona fide of the sets with attacks of their family,
    and of sets without any: another family's bona fide may be of other cameras altogether.
    """
    label_of = {(s.set, s.kind): s.label for s in samples}
    sets = list(dict.fromkeys(name for name, _ in label_of))
    families = {
        name: {_FAMILIES[label] for (of, _), label in label_of.items() if of == name} - {None}
        for name in sets
    }
    alike = {
        family: frozenset(name for name in sets if family in families[name] or not families[name])
        for family in dict.fromkeys(_FAMILIES.values())
        if family is not None
    }
    groups = []
    for (name, kind), label in sorted(
        label_of.items(), key=lambda item: (sets.index(item[0][0]), item[1] != BONA_FIDE)
    ):
        cell, family = frozenset({(name, kind)}), _FAMILIES[label]
        if family is None:
            groups.append(_Group(name, kind, cell, None, frozenset()))
        elif (name, BONA_FIDE) in label_of:
            groups.append(_Group(name, kind, cell, "own", frozenset({name})))
        else:
            groups.append(_Group(name, kind, cell, "all", alike[family]))
    return groups + (_pooled(label_of, alike) if len(sets) > 1 else [])


def _pooled(
    label_of: Mapping[tuple[str, str], str], alike: Mapping[str, frozenset[str]]
) -> list[_Group]:
    groups = []
    for label, family in _FAMILIES.items():
        cells = frozenset(cell for cell, of in label_of.items() if of == label)
        if cells:
            groups.append(
                _Group(ALL_SETS, label, cells, None, frozenset())
                if family is None
                else _Group(ALL_SETS, label, cells, "all", alike[family])
            )
    for family, sets in alike.items():
        cells = frozenset(cell for cell, label in label_of.items() if _FAMILIES[label] == family)
        if len({label_of[cell] for cell in cells}) > 1:
            groups.append(_Group(ALL_SETS, f"{family} attacks", cells, "all", sets))
    return groups


def bona_fide_figures(samples: Sequence[Judged]) -> Figures:
    """Count the errors of samples that are all bona fide."""
    return _errors(samples, attacks=False).model_copy(update={"alarms": _alarms(samples)})


def _figures(group: _Group, samples: Sequence[Judged]) -> Figures:
    own = [s for s in samples if (s.set, s.kind) in group.cells]
    if group.against is None:
        return bona_fide_figures(own)
    bona_fide = _scored_bona_fide(group, samples)
    attacks = [s for s in own if s.score is not None]
    figures = _errors(own, attacks=True).model_copy(update={"n_bona_fide": len(bona_fide)})
    if not (attacks and bona_fide):
        return figures
    labels, scores, people = _classes(attacks, bona_fide)
    return figures.model_copy(
        update={
            "auc": float(roc(labels, scores).auc()),
            "auc95": clustered_auc(labels, scores, people),
        }
    )


def _errors(samples: Sequence[Judged], *, attacks: bool) -> Figures:
    scored = [s for s in samples if s.score is not None]
    errors = np.array([s.alarm is not attacks for s in scored], bool)
    return Figures(
        samples=len(samples),
        people=len({s.person for s in samples}),
        judged=len(scored),
        not_judged=Counter(s.problem for s in samples if s.score is None),
        errors=int(errors.sum()),
        rate=float(errors.mean()) if scored else None,
        rate95=clustered_rate(errors, [s.person for s in scored]) if scored else None,
        delays=_delays(samples),
    )


def _scored_bona_fide(group: _Group, samples: Sequence[Judged]) -> list[Judged]:
    return [
        s for s in samples if s.score is not None and s.label == BONA_FIDE and s.set in group.sets
    ]


def _classes(
    attacks: Sequence[Judged], bona_fide: Sequence[Judged]
) -> tuple[NDArray[np.int64], NDArray[np.float64], list[str]]:
    """Return label, score and person of each."""
    both = [*attacks, *bona_fide]
    labels = np.repeat([1, 0], [len(attacks), len(bona_fide)])
    return labels, np.array([s.score for s in both], float), [s.person for s in both]


def _less_teachers(
    group: _Group, name: str, judged: Mapping[str, Sequence[Judged]], teachers: Sequence[str]
) -> tuple[LessThan, ...]:
    """Compare with each teacher on the samples that both judged, drawn together."""
    return tuple(
        less
        for teacher in teachers
        if name not in teachers
        and (less := _less_than(group, judged[name], teacher, judged[teacher])) is not None
    )


def _less_than(
    group: _Group, ours: Sequence[Judged], teacher: str, theirs: Sequence[Judged]
) -> LessThan | None:
    scores_of = {s.sample: s.score for s in theirs if s.score is not None}
    both = [s for s in ours if s.score is not None and s.sample in scores_of]
    attacks = [s for s in both if (s.set, s.kind) in group.cells]
    bona_fide = _scored_bona_fide(group, both)
    if not (attacks and bona_fide):
        return None
    labels, scores, people = _classes(attacks, bona_fide)
    other = np.array([scores_of[s.sample] for s in [*attacks, *bona_fide]], float)
    return LessThan(
        teacher=teacher,
        value=float(roc(labels, scores).auc() - roc(labels, other).auc()),
        interval95=clustered_auc_difference(labels, scores, other, people),
        n_attack=len(attacks),
        n_bona_fide=len(bona_fide),
    )


def _alarms(bona_fide: Sequence[Judged]) -> Alarms | None:
    """Count false alarms over the time that bona fide faces were in view; None: no video."""
    hours = np.array([s.hours for s in bona_fide])
    if not hours.sum() > 0:
        return None
    alarms = np.array([s.alarms for s in bona_fide], np.int64)
    return Alarms(
        alarms=int(alarms.sum()),
        hours=float(hours.sum()),
        per_hour=float(alarms.sum() / hours.sum()),
        per_hour95=clustered_ratio(alarms, hours, [s.person for s in bona_fide]),
    )


def _delays(samples: Sequence[Judged]) -> Delays | None:
    delays = [s.verdict_s for s in samples if s.verdict_s is not None]
    if not delays:
        return None
    return Delays(
        n=len(delays), median=float(np.median(delays)), p90=float(np.percentile(delays, 90))
    )
