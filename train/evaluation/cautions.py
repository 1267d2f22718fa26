"""What a reader must know before believing a report's measures, in plain words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from train.evaluation.measures import SetMeasures
    from train.evaluation.scores import FrameScore, Level

DEV: Final = "dev"  # name of the set that thresholds are chosen on

_NO_FACE_GAP: Final = 0.05
_FEW_CLUSTERS: Final = 20


def cautions_of(
    tables: Mapping[str, Sequence[FrameScore]], sets: Sequence[SetMeasures]
) -> Iterator[str]:
    """Yield what a reader must know before believing the measures.

    Args:
        tables: name of a set -> its scores; `DEV` is the set that the threshold was chosen on.
        sets: the same sets' measures.
    """
    yield from _shared_with_dev(tables)
    videos = {of_set.name: of_set for of_set in sets if of_set.level == "video"}
    for of_set in sets:
        if of_set.level == "video" or not _same_samples(of_set, videos[of_set.name]):
            yield from _of_set(of_set, tables[of_set.name])
    yield from _too_few(videos.values())


def _of_set(of_set: SetMeasures, rows: Sequence[FrameScore]) -> Iterator[str]:
    where = f"{of_set.name}, {of_set.level}s"
    n0, n1 = of_set.n_bona_fide, of_set.n_attack
    if not (n0 and n1):
        missing, left = ("attacks", "BPCER") if n0 else ("bona fide samples", "APCER")
        yield f"{where}: there are no {missing}, so only {left} says anything."
        return
    auc = of_set.measure("auc")
    if auc and auc.value is not None and auc.bootstrap95 and auc.bootstrap95[1] < 0.5:
        yield (
            f"{where}: AUC is {auc.value:.3f}, far below 0.5. Labels or scores are probably "
            "reversed: attack must be 1, and scores must grow with the evidence of an attack."
        )
    if len({row.score for row in rows if row.score is not None}) == 1:
        yield f"{where}: all scores are equal; the detector says the same of everything."
    few = min(of_set.n_clusters.values())
    if few < _FEW_CLUSTERS:
        yield f"{where}: a class has only {few} people or source videos, so intervals are rough."
    blind = [
        of_set.n_no_face[kind] / total if total else 0.0
        for kind, total in _totals(rows, of_set.level).items()
    ]
    if abs(blind[0] - blind[1]) > _NO_FACE_GAP:
        yield (
            f"{where}: no face was found in {blind[0]:.1%} of the bona fide samples and in "
            f"{blind[1]:.1%} of the attacks. Such a difference shifts every measure."
        )
    if of_set.threshold.value is None:
        yield f"{where}: the threshold is infinite, so nothing counts as an attack."


def _too_few(sets: Iterable[SetMeasures]) -> Iterator[str]:
    """Yield which test sets are too small for detection rates at few false alarms."""
    small = [
        f"{of_set.name} ({of_set.n_bona_fide})"
        for of_set in sets
        if of_set.name != DEV
        and of_set.n_bona_fide
        and of_set.n_attack
        and any(m.name.startswith("tpr_at_fpr") and m.value is None for m in of_set.measures)
    ]
    if small:
        yield (
            "TPR at a low FPR needs one bona fide video over FPR or more; too few have "
            f"{', '.join(small)}."
        )


def _same_samples(frames: SetMeasures, videos: SetMeasures) -> bool:
    """Whether every video is a single frame, so that one level says what the other does."""
    return (frames.n_bona_fide, frames.n_attack) == (videos.n_bona_fide, videos.n_attack)


def _shared_with_dev(tables: Mapping[str, Sequence[FrameScore]]) -> Iterator[str]:
    """Yield what dev shares with a test set."""
    if DEV not in tables:
        return
    dev = tables[DEV]
    for name, rows in tables.items():
        if name == DEV:
            continue
        videos = {(r.dataset, r.video_id) for r in dev} & {(r.dataset, r.video_id) for r in rows}
        people = {(r.dataset, r.subject) for r in dev if r.subject is not None} & {
            (r.dataset, r.subject) for r in rows
        }
        if videos:
            yield (
                f"{name}: {len(videos)} of its videos are in dev too. The threshold was chosen on "
                "test scores, and the error rates are not valid."
            )
        elif people:
            yield (
                f"{name}: {len(people)} of its people are in dev too, so the threshold knows them."
            )


def _totals(rows: Sequence[FrameScore], level: Level) -> dict[str, int]:
    """Return how many samples each class has, with a face or without."""
    units = {
        (r.dataset, r.video_id, r.sample_id if level == "frame" else "", r.label) for r in rows
    }
    attacks = sum(unit[3] for unit in units)
    return {"bona_fide": len(units) - attacks, "attack": attacks}
