"""Judge engines before they ship, and say how well they do: measures only, nothing is chosen.

What is judged stands in configs/train/shipped_sets.yaml; what is counted, in `shipped_measures`;
the rules are those of docs/decisions/0036.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from pydantic import Field

from models import InputSpec, file_sha256, whole_file
from stream.records import Verdict
from train.errors import TrainError
from train.evaluation.clip_tracks import frames_of
from train.evaluation.ladder import degraded, first_seconds
from train.evaluation.measures import ReportPart
from train.evaluation.onlookers import look_at, watch
from train.evaluation.provenance import Origin
from train.evaluation.shipped_measures import (
    BONA_FIDE,
    Figures,
    Judged,
    Part,
    Row,
    bona_fide_figures,
    rows_of,
)
from train.evaluation.shipped_sets import (
    Degradation,
    labelled_stills,
    measured_pictures,
    opened_portraits,
)
from trt_engines.manifest import SHIPPED, DecisionThresholds, load_manifest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from stream.records import Frame
    from train.evaluation.clip_tracks import ClipTrack
    from train.evaluation.clips import LabelledClip, LabelledClips
    from train.evaluation.onlookers import Onlooker, Onlookers
    from train.evaluation.shipped_sets import Picture, ShippedSets

log = logging.getLogger(__name__)

PARTS: Final[tuple[Part, ...]] = get_args(Part)
REPORT: Final = "shipped.json"
TABLE: Final = "shipped.txt"
Role: TypeAlias = Literal["judged", "teacher"]

_FLAT: Final = 2.0  # times the false alarms of clean footage that a degradation may cause


class JudgedEngine(ReportPart):
    """An engine as it was judged."""

    name: str = Field(description="Of its column.")
    role: Role
    manifest_sha256: str
    onnx_sha256: str
    method: str
    input: InputSpec
    thresholds: DecisionThresholds = Field(description="Its own; none is chosen here.")


class RungFigures(ReportPart):
    """One engine on degraded bona fide footage."""

    figures: Figures
    flat: bool = Field(description="At most twice as many alarms an hour as on the clean clips.")


class Rung(ReportPart):
    """One degradation of bona fide footage."""

    how: Degradation | Literal["clean"]
    rung: float | None = Field(description="See `LadderRungs`; null: clean.")
    engines: dict[str, RungFigures]


class ShippedReport(ReportPart):
    """What `shipped.json` holds."""

    format: Literal["facewarden/shipped/v1"] = "facewarden/shipped/v1"
    made: Origin
    sets_sha256: dict[str, str] = Field(description="Lists of what was judged on -> digest.")
    engines: tuple[JudgedEngine, ...]
    rows: tuple[Row, ...]
    ladder: tuple[Rung, ...] = Field(description="Empty: not run.")


class LookedAt(ReportPart):
    """One line of the log of looks at test data."""

    date: str = Field(description="Day, UTC.")
    engines: dict[str, str] = Field(description="Name -> digest of the graph.")
    parts: tuple[str, ...] = Field(description="Parts of the report that were computed.")
    code: str
    note: str = Field(description="Who looked, and why.")


def shipped_manifests() -> list[Path]:
    """Return the manifests of the attack detectors that come with the software."""
    found = sorted(SHIPPED.glob("*/*.manifest.json"))
    return [path for path in found if load_manifest(path).method is not None]


def column_names(manifests: Sequence[Path]) -> list[str]:
    """Name engines by folder and manifest, with a digest where that does not tell them apart."""
    names = [f"{p.parent.name}/{p.name.removesuffix('.manifest.json')}" for p in manifests]
    return [
        name if names.count(name) == 1 else f"{name}@{file_sha256(path)[:8]}"
        for name, path in zip(names, manifests, strict=True)
    ]


def judge_parts(
    sets: ShippedSets,
    labelled: LabelledClips,
    root: Path,
    onlookers: Onlookers,
    *,
    parts: Sequence[Part],
    teachers: Sequence[str],
) -> list[Row]:
    """Judge every engine on clips and pictures.

    Args:
        sets: what to judge on.
        labelled: the clips that it names.
        root: folder of the data.
        onlookers: the engines.
        parts: of the data.
        teachers: engines that the others are compared with.

    Raises:
        TrainError: data are missing or damaged.
        SourceError: a clip can't be read.
    """
    judged: dict[Part, dict[str, list[Judged]]] = {}
    if "clips" in parts:
        judged["clips"] = _judge_clips(sets, labelled, root, onlookers)
    if "stills" in parts:
        judged["stills"] = _judge_pictures(labelled_stills(sets, labelled, root), onlookers)
    if "measure" in parts:
        judged["measure"] = _judge_pictures(measured_pictures(sets.measure, root), onlookers)
    if "portraits" in parts:
        with opened_portraits(sets.portraits, root) as portraits:
            judged["portraits"] = _judge_pictures(portraits, onlookers)
    return [row for part, of_part in judged.items() for row in rows_of(part, of_part, teachers)]


def judge_ladder(
    sets: ShippedSets, labelled: LabelledClips, root: Path, onlookers: Onlookers
) -> list[Rung]:
    """Judge every engine on degraded clips of bona fide faces alone; the clean ones come first.

    Raises:
        TrainError: a clip is missing.
        SourceError: a clip can't be read.
    """
    clips = [clip for clip in labelled.clips if clip.label == BONA_FIDE and clip.right is None]
    decode = next(iter(onlookers.of.values())).config.decode
    seconds = sets.ladder.seconds

    def figures(footage: Iterable[Iterable[Frame]]) -> dict[str, Figures]:
        judged: dict[str, list[Judged]] = {name: [] for name in onlookers.of}
        for clip, frames in zip(clips, footage, strict=True):
            for name, tracks in watch(frames, onlookers).items():
                judged[name] += _judge_tracks(sets, clip, tracks, onlookers.of[name])
        return {name: bona_fide_figures(samples) for name, samples in judged.items()}

    clean = figures(first_seconds(root / clip.path, decode, seconds) for clip in clips)
    rungs = [Rung(how="clean", rung=None, engines=_rung_figures(clean, clean))]
    for how, amounts in sets.ladder.rungs.items():
        for rung in amounts:
            of_rung = figures(
                degraded(root / clip.path, decode, seconds, how, rung) for clip in clips
            )
            rungs.append(Rung(how=how, rung=rung, engines=_rung_figures(of_rung, clean)))
            for name, of in of_rung.items():
                log.info(
                    "ladder: %s %g: %s alarmed on %d of %d", how, rung, name, of.errors, of.judged
                )
    return rungs


def _rung_figures(
    of_rung: Mapping[str, Figures], clean: Mapping[str, Figures]
) -> dict[str, RungFigures]:
    return {
        name: RungFigures(
            figures=figures, flat=_per_hour(figures) <= _FLAT * _per_hour(clean[name])
        )
        for name, figures in of_rung.items()
    }


def _per_hour(figures: Figures) -> float:
    return figures.alarms.per_hour if figures.alarms else 0.0


def _judge_clips(
    sets: ShippedSets, labelled: LabelledClips, root: Path, onlookers: Onlookers
) -> dict[str, list[Judged]]:
    judged: dict[str, list[Judged]] = {name: [] for name in onlookers.of}
    decode = next(iter(onlookers.of.values())).config.decode
    for clip in labelled.clips:
        seen = watch(frames_of(root / clip.path, decode), onlookers)
        for name, tracks in seen.items():
            judged[name] += _judge_tracks(sets, clip, tracks, onlookers.of[name])
        log.info("%s: %d tracks", clip.path, len(next(iter(seen.values()))))
    return judged


def _judge_tracks(
    sets: ShippedSets, clip: LabelledClip, tracks: Sequence[ClipTrack], onlooker: Onlooker
) -> Iterator[Judged]:
    """Join the tracks of a clip with the truth."""
    labels = [clip.right if clip.right and t.centre_x > 0.5 else clip.label for t in tracks]
    spans = [
        (t.first_s, t.first_s + t.seen_s)
        for t, label in zip(tracks, labels, strict=True)
        if label == BONA_FIDE
    ]
    sum_s = sum(end - start for start, end in spans)
    share = _covered_s(spans) / sum_s / 3600 if sum_s else 0.0
    for track, label in zip(tracks, labels, strict=True):
        bona_fide = label == BONA_FIDE
        scored = track.n_scores >= onlooker.config.fuse.min_scores
        abstains = track.verdict is Verdict.ABSTAIN
        yield Judged(
            sample=f"{clip.path}#{track.track_id}",
            set=clip.group,
            label=label,
            kind=label,
            person=sets.person(clip.path),
            score=track.last if scored else None,
            alarm=track.alarms > 0,
            problem="" if scored else "abstained" if abstains else "too few looks",
            alarms=track.alarms,
            hours=share * track.seen_s if bona_fide else 0.0,
            verdict_s=track.seconds_to(Verdict.BONA_FIDE if bona_fide else Verdict.ATTACK),
        )


def _covered_s(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of spans of time."""
    covered_s, until_s = 0.0, 0.0
    for start_s, end_s in sorted(spans):
        covered_s += max(0.0, end_s - max(start_s, until_s))
        until_s = max(until_s, end_s)
    return covered_s


def _judge_pictures(pictures: Sequence[Picture], onlookers: Onlookers) -> dict[str, list[Judged]]:
    judged = {}
    for name, looks in look_at(pictures, onlookers).items():
        enter = onlookers.of[name].thresholds.enter
        judged[name] = [
            Judged(
                sample=picture.name,
                set=picture.set,
                label=picture.label,
                kind=picture.kind,
                person=picture.person,
                score=look.probability,
                alarm=look.probability is not None and look.probability >= enter,
                problem=look.problem or "",
            )
            for picture, look in zip(pictures, looks, strict=True)
        ]
    log.info("%d pictures", len(pictures))
    return judged


def describe_engines(
    manifests: Mapping[str, Path], onlookers: Onlookers, teachers: Sequence[str]
) -> tuple[JudgedEngine, ...]:
    """Say which engines were judged, by digest."""
    return tuple(
        JudgedEngine(
            name=name,
            role="teacher" if name in teachers else "judged",
            manifest_sha256=file_sha256(manifests[name]),
            onnx_sha256=onlooker.manifest.onnx_sha256,
            method=onlooker.manifest.method or "",
            input=onlooker.manifest.input,
            thresholds=onlooker.thresholds,
        )
        for name, onlooker in onlookers.of.items()
    )


def refuse_engine_folder(out: Path) -> None:
    """Refuse to write measures of test data where an engine lies.

    Raises:
        TrainError: the folder holds a manifest.
    """
    found = next(out.glob("*.manifest.json"), None)
    if found is not None:
        raise TrainError(
            f"{out}: holds an engine ({found.name}); measures of test data must not stand where "
            "thresholds could be taken from them: name another folder with --out"
        )


def write_shipped(report: ShippedReport, table: str, out: Path) -> None:
    """Write `shipped.json` and the table.

    Raises:
        OSError: the folder can't be made, is full, or may not be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, text in ((REPORT, report.model_dump_json(indent=1)), (TABLE, table)):
        with whole_file(out / name) as whole:
            whole.write_text(text + "\n", encoding="utf-8")


def looked_at(report: ShippedReport, note: str) -> LookedAt:
    """Return the line of the log that tells of a report."""
    parts = dict.fromkeys(row.part for row in report.rows)
    return LookedAt(
        date=report.made.date.date().isoformat(),
        engines={engine.name: engine.onnx_sha256[:12] for engine in report.engines},
        parts=(*parts, *(["ladder"] if report.ladder else [])),
        code=report.made.code,
        note=note,
    )


def note_look(looks: Path, look: LookedAt) -> Counter[str]:
    """Add a line to the log of looks at test data; return how often each part was looked at.

    Raises:
        TrainError: the log is damaged.
        OSError: it can't be written.
    """
    with looks.open("a", encoding="utf-8") as lines:
        lines.write(look.model_dump_json() + "\n")
    try:
        known = [json.loads(line) for line in looks.read_text(encoding="utf-8").splitlines()]
        return Counter(part for line in known for part in line["parts"])
    except (ValueError, KeyError, TypeError) as error:
        raise TrainError(f"{looks}: a line is damaged: {error}") from error


def looks_so_far(counted: Mapping[str, int]) -> str:
    """Say how often each part was looked at, as docs/detection.md does."""
    return "looks so far: " + ", ".join(f"{part} {n}" for part, n in counted.items())
