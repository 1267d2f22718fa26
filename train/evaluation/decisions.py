"""Two ways from looks to a verdict, on the same recorded looks: fusion, and Wald's test.

Fusion (docs/decisions/0010) is a shrunken, time-weighted mean of log-odds, held against thresholds
that bona fide dev tracks set. Wald's sequential probability ratio test (1945) adds log-likelihood
ratios until the sum leaves an interval that two error rates set. It takes looks for independent, so
the sum is scaled to what the looks are worth: n_eff = n / (1 + 2 sum_k (1 - k/n) rho_k), with the
correlation rho_k = track + (1 - track) exp(-k dt / decay_s) of looks k apart. `track` is what all
looks at a track have in common: it never averages out, so n_eff stays below 1 / track.

Likelihoods, correlation and bounds come from bona fide footage of split dev and from synthetic
attacks made of it. Nothing is chosen on what is compared.
"""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np
import torch
from scipy.optimize import least_squares
from sklearn.linear_model import LogisticRegression

from models import InputSpec, box_in_crop, crop_faces, crop_window, logit, sigmoid
from stream.config import FuseConfig, QualityConfig
from stream.stages.fuse import MAX_EVIDENCE, Evidence
from train.attacks import SCENES, FaceInScene
from train.data.datasets._registry import load_dataset
from train.evaluation.clip_tracks import frames_of
from train.evaluation.metrics.intervals import clustered_auc, clustered_auc_difference
from train.evaluation.metrics.roc import roc
from train.evaluation.recorded_looks import RecordedLook, look_over, recorded
from train.evaluation.shipped_measures import BONA_FIDE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from stream.records import Frame, Sighting
    from train.evaluation.onlookers import Onlookers
    from trt_engines.manifest import DecisionThresholds

_STORED: Final = InputSpec(size_px=256, margin=4.2, window="inside", resize="bilinear")
_SCENES: Final = {
    "dev": ("tablet", "photo"),  # those that recipes keep for dev
    "train": ("phone", "monitor", "paper", "paper_mask"),
}
_LABELS: Final = {"tablet": "replay", "phone": "replay", "monitor": "replay", "paper_mask": "mask"}
_DRAWS: Final = {"dev": 2, "train": 1}  # of each scene, for each track
_FUSE: Final = FuseConfig()
_GATE: Final = QualityConfig()
_CLIP: Final = float(sigmoid(-12.0))
_MARGIN: Final = 0.1  # of a bound over the highest dev track, as `train.release.thresholds`
ALPHA: Final = 1 / 200  # of bona fide tracks that may alarm
BETA: Final = 1 / 3  # of attacks that may be called bona fide
_DT: Final = 0.4  # seconds between looks

Verdict: TypeAlias = Literal["attack", "bona_fide"]


@dataclass(frozen=True, slots=True)
class Looks:
    """The looks at one track that pass the quality gate."""

    sample: str
    label: str
    person: str
    first_s: float
    times: NDArray[np.float64]  # (N,) media time
    odds: NDArray[np.float64]  # (N,) log-odds that the engine says


@dataclass(frozen=True, slots=True)
class Course:
    """What a decider made of a track, look by look."""

    statistic: NDArray[np.float64]  # (N,) log-odds or sum of log-likelihood ratios
    allowed: NDArray[np.bool_]  # (N,) whether a verdict might have been given

    @property
    def last(self) -> float:
        """At the end."""
        return float(self.statistic[-1])

    @property
    def peak(self) -> float:
        """Highest that could have decided."""
        return float(self.statistic[self.allowed].max(initial=-math.inf))


@dataclass(frozen=True, slots=True)
class Correlation:
    """Of the log-likelihood ratios of looks at one track."""

    track: float  # 0..1, what all looks share
    decay_s: float  # of the rest

    def worth(self, n: float, dt: float = _DT) -> float:
        """Return how many independent looks n looks are worth."""
        k = np.arange(1, max(math.ceil(n), 1))
        rho = self.track + (1 - self.track) * np.exp(-k * dt / self.decay_s)
        return float(n / (1 + 2 * ((1 - k / n).clip(0) * rho).sum()))


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Log-odds of an engine -> log-likelihood ratio, clipped as evidence is."""

    slope: float
    offset: float

    def ratio(self, odds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (N,) log-likelihood ratios."""
        return np.clip(self.slope * odds + self.offset, -MAX_EVIDENCE, MAX_EVIDENCE)


# ---- open footage ------------------------------------------------------------------------------


def open_looks(collection: Path, root: Path, onlookers: Onlookers) -> Iterator[RecordedLook]:
    """Look at the bona fide footage of a collection, and at attacks made from every track of it.

    An attack's instrument, light and camera are drawn once for a track; the face on it moves.
    """
    decode = next(iter(onlookers.of.values())).config.decode
    videos = [
        v
        for v in load_dataset("real_faces").read(root, {"collection": collection})
        if v.kind == "video"
    ]
    videos.sort(key=lambda video: str(video.split))
    behind: dict[str, FaceInScene] = {}
    for video in [*reversed(videos), *videos]:  # first only for a scene from another clip
        split = str(video.split)
        only_scene = video.path not in behind
        for frame, look in look_over(frames_of(root / video.path, decode), onlookers):
            face = _stored(frame, look.sighting)
            if only_scene:
                behind[video.path] = face
                break
            what = {"set": split, "person": video.subject or video.path, "part": "dev"}
            track = f"{video.path}#{look.sighting.key.track_id}"
            yield recorded(look, onlookers, label=BONA_FIDE, sample=track, **what)
            others = sorted(path for path in behind if path != video.path)
            scene_of = behind[others[zlib.crc32(track.encode()) % len(others)]]
            for scene in _SCENES[split]:
                for draw in range(_DRAWS[split]):
                    rng = np.random.default_rng([zlib.crc32(f"{track} {scene}".encode()), draw])
                    image = torch.from_numpy(SCENES[scene](face, scene_of, rng).image)
                    box = face.face.astype(np.float32)[None]
                    said = {
                        name: o.probability(crop_faces(image, box, o.manifest.input))
                        for name, o in onlookers.of.items()
                    }
                    yield recorded(
                        look,
                        onlookers,
                        label=_LABELS.get(scene, "print"),
                        sample=f"{track} {scene} {draw}",
                        **what,
                    ).model_copy(update={"probability": said})


def _stored(frame: Frame, sighting: Sighting) -> FaceInScene:
    """Cut a face with its surroundings, as `prepare` does."""
    box, size = sighting.detection.box, (frame.stamp.width, frame.stamp.height)
    window = crop_window(box, _STORED, size)
    (crop,) = crop_faces(frame.image, box[None], _STORED)
    scale = _STORED.size_px / np.array([window.width, window.height])
    points = (sighting.detection.landmarks - (window.left, window.top)) * scale
    return FaceInScene(
        crop.permute(1, 2, 0).contiguous().numpy(),
        points.astype(np.float32),
        np.array(box_in_crop(box, window, _STORED.size_px)),
    )


def tracks_of(looks: Iterable[RecordedLook], engine: str) -> list[Looks]:
    """Return the tracks with a look that passes the quality gate as shipped."""
    by_track: defaultdict[str, list[RecordedLook]] = defaultdict(list)
    for look in looks:
        if (
            look.face_px >= _GATE.min_face_px
            and look.sharpness >= _GATE.min_sharpness
            and _GATE.min_brightness <= look.brightness <= _GATE.max_brightness
            and look.turn <= _GATE.max_turn
            and look.window[engine] >= _GATE.min_window
        ):
            by_track[look.sample].append(look)
    return [
        Looks(
            sample,
            its[0].label,
            its[0].person,
            its[0].first_s,
            np.array([look.pts_s for look in its]),
            np.asarray(logit(np.array([look.probability[engine] for look in its]), _CLIP)),
        )
        for sample, its in by_track.items()
    ]


# ---- what Wald's test needs ---------------------------------------------------------------------


def fit_likelihood(tracks: Sequence[Looks]) -> Likelihood:
    """Fit log-likelihood ratios by Platt's map; classes weigh the same, and so do their tracks."""
    odds = np.concatenate([t.odds for t in tracks])
    attack = np.concatenate([np.full(len(t.odds), t.label != BONA_FIDE) for t in tracks])
    weights = np.concatenate([np.full(len(t.odds), 1 / len(t.odds)) for t in tracks])
    for of_class in (attack, ~attack):
        weights[of_class] /= weights[of_class].sum()
    fit = LogisticRegression(C=math.inf, tol=1e-8).fit(
        odds[:, None], attack, sample_weight=weights * len(odds)
    )
    return Likelihood(float(fit.coef_[0, 0]), float(fit.intercept_[0]))


def fit_correlation(tracks: Sequence[Looks], likelihood: Likelihood) -> Correlation:
    """Fit the correlation of looks at bona fide tracks about the mean of all, by least squares.

    A pair of looks of a track weighs one over the number of that track's pairs.
    """
    own = [(t.times, likelihood.ratio(t.odds)) for t in tracks if len(t.odds) > 1]
    mean = float(np.mean([x.mean() for _, x in own]))
    variance = float(np.mean([((x - mean) ** 2).mean() for _, x in own]))
    apart, product, weight = [], [], []
    for times, x in own:
        i, j = np.triu_indices(len(x), 1)
        apart.append(times[j] - times[i])
        product.append((x[i] - mean) * (x[j] - mean) / variance)
        weight.append(np.full(len(i), 1 / len(i)))
    dt, rho, w = map(np.concatenate, (apart, product, weight))

    def off(p: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.sqrt(w) * (p[0] + (1 - p[0]) * np.exp(-dt / p[1]) - rho)

    fit = least_squares(off, [0.5, 1.0], bounds=([0.0, 0.05], [0.999, 20.0]))
    return Correlation(float(fit.x[0]), float(fit.x[1]))


# ---- the deciders --------------------------------------------------------------------------------


def fused(track: Looks) -> Course:
    """Return the log-odds of the stream's fused probability."""
    evidence = Evidence(_FUSE)
    said, allowed = [], []
    for pts_s, odds in zip(track.times, track.odds, strict=True):
        evidence.add(float(pts_s), float(sigmoid(odds)))
        said.append(float(logit(evidence.probability or 0.0)))
        allowed.append(evidence.allows_verdict)
    return Course(np.array(said), np.array(allowed))


def tested(track: Looks, likelihood: Likelihood, correlation: Correlation | None) -> Course:
    """Return Wald's sum with the memory of fusion; None: looks are taken for independent."""
    total, n, last_s = 0.0, 0.0, None
    sums = []
    for pts_s, ratio in zip(track.times, likelihood.ratio(track.odds), strict=True):
        kept = 1.0 if last_s is None else math.exp(-(pts_s - last_s) / _FUSE.memory_s)
        total, n, last_s = total * kept + ratio, n * kept + 1, pts_s
        sums.append(total / n * (n if correlation is None else correlation.worth(n)))
    return Course(np.array(sums), np.ones(len(sums), bool))


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where a decider gives its verdicts."""

    attack: float
    bona_fide: float

    def verdicts(self, course: Course) -> list[Verdict | None]:
        """Return the verdict after each look; between the bounds it stays."""
        verdict: Verdict | None = None
        verdicts: list[Verdict | None] = []
        for value, allowed in zip(course.statistic, course.allowed, strict=True):
            if allowed and value >= self.attack:
                verdict = "attack"
            elif allowed and value < self.bona_fide:
                verdict = "bona_fide"
            verdicts.append(verdict)
        return verdicts


WALD: Final = Bounds(math.log((1 - BETA) / ALPHA), math.log(BETA / (1 - ALPHA)))


def bounds_of_manifest(thresholds: DecisionThresholds) -> Bounds:
    """Return an engine's own thresholds, as log-odds."""
    return Bounds(float(logit(thresholds.enter)), float(logit(thresholds.leave)))


def bounds_on_dev(courses: Iterable[Course]) -> Bounds:
    """Return the lowest bound at which no bona fide dev track alarms; bona fide a logit lower."""
    attack = max(max(course.peak for course in courses) + _MARGIN, 0.0)
    return Bounds(attack, min(attack - 1.0, 0.0))


# ---- the table -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Decider:
    """A way to decide, with its own bounds and those that dev's bona fide tracks set."""

    name: str
    course: Callable[[Looks], Course]
    bounds: Mapping[str, Bounds]


def compare(
    open_footage: Sequence[RecordedLook],
    clips: Sequence[RecordedLook],
    engine: str,
    thresholds: DecisionThresholds,
    labels: Sequence[str],
) -> str:
    """Return a table for people.

    Args:
        open_footage: of `open_looks`.
        clips: labelled clips.
        engine: its name in the records.
        thresholds: its own.
        labels: of the attacks that it was trained to see.
    """
    dev = tracks_of((look for look in open_footage if look.set == "dev"), engine)
    bona_fide = [t for t in dev if t.label == BONA_FIDE]
    likelihood = fit_likelihood(dev)
    whole = fit_correlation(bona_fide, likelihood)
    local = Correlation(0.0, whole.decay_s)
    worth, worth_local = (
        ", ".join(f"{of.worth(n):.2f}" for n in (3, 8, 20)) for of in (whole, local)
    )
    lines = [
        f"{engine}: dev: {len(bona_fide)} bona fide tracks, {len(dev) - len(bona_fide)} synthetic "
        f"attacks; ratio = {likelihood.slope:.3f} log-odds {likelihood.offset:+.3f}; correlation "
        f"{whole.track:.2f} + {1 - whole.track:.2f} exp(-dt / {whole.decay_s:.2f} s): 3, 8, 20 "
        f"looks are worth {worth}; without what a track shares {worth_local}"
    ]
    wald = {
        "Wald, independent": lambda t: tested(t, likelihood, None),
        "Wald, decaying": lambda t: tested(t, likelihood, local),
        "Wald, effective": lambda t: tested(t, likelihood, whole),
    }
    own = {"fusion": bounds_of_manifest(thresholds), **dict.fromkeys(wald, WALD)}
    deciders = [
        Decider(name, way, {"own": own[name], "dev": bounds_on_dev(map(way, bona_fide))})
        for name, way in {"fusion": fused, **wald}.items()
    ]
    elsewhere = [look for look in open_footage if look.set == "train"]
    for of_set, looks in (("labelled clips", clips), ("open clips, not dev", elsewhere)):
        kept = [
            t
            for t in tracks_of(looks, engine)
            if t.label in (BONA_FIDE, *labels) and len(t.odds) >= _FUSE.min_scores
        ]
        if kept:
            lines += [f"\n{of_set}", *_of_tracks(kept, deciders)]
        if looks is elsewhere:
            lines += _of_switches(kept, deciders)
    return "\n".join(lines)


def _of_tracks(tracks: Sequence[Looks], deciders: Sequence[Decider]) -> Iterator[str]:
    y = np.array([t.label != BONA_FIDE for t in tracks])
    people = [t.person for t in tracks]
    hours = sum(t.times[-1] - t.first_s for t in tracks if t.label == BONA_FIDE) / 3600
    yield f"{(~y).sum()} bona fide tracks in {60 * hours:.1f} min, {y.sum()} attacks"
    of_fusion = np.array([deciders[0].course(t).last for t in tracks])
    for decider in deciders:
        courses = [decider.course(t) for t in tracks]
        last = np.array([course.last for course in courses])
        auc = float(roc(y.astype(np.int64), last).auc())
        low, high = clustered_auc(y.astype(np.int64), last, people)
        less = clustered_auc_difference(y.astype(np.int64), last, of_fusion, people)
        yield (
            f"{decider.name:20} AUC {auc:.3f} [{low:.2f}, {high:.2f}], "
            f"less that of fusion [{less[0]:+.3f}, {less[1]:+.3f}]"
        )
        for which, bounds in decider.bounds.items():
            said = [bounds.verdicts(course) for course in courses]
            alarms = sum(
                now == "attack" != before
                for v, attack in zip(said, y, strict=True)
                if not attack
                for before, now in pairwise([None, *v])
            )
            alarmed = np.array(["attack" in v for v in said])
            cleared = np.array(["bona_fide" in v for v in said])
            yield (
                f"  {which:4} {bounds.bona_fide:6.2f} {bounds.attack:6.2f}: bona fide alarmed "
                f"{alarmed[~y].sum()} ({alarms / hours:.0f} an hour), cleared {cleared[~y].sum()} "
                f"in {_seconds(tracks, said, 'bona_fide')}; attacks caught {alarmed[y].sum()} in "
                f"{_seconds(tracks, said, 'attack')}, cleared {(cleared & ~alarmed)[y].sum()}"
            )


def _seconds(
    tracks: Sequence[Looks], said: Sequence[Sequence[Verdict | None]], verdict: Verdict
) -> str:
    """Return the median time to a verdict, of the tracks for which it is right and came."""
    found = [
        t.times[v.index(verdict)] - t.first_s
        for t, v in zip(tracks, said, strict=True)
        if (t.label == BONA_FIDE) is (verdict == "bona_fide") and verdict in v
    ]
    return f"{np.median(found):.1f} s" if found else "-"


def _of_switches(tracks: Sequence[Looks], deciders: Sequence[Decider]) -> Iterator[str]:
    """Tell when an attack is noticed on a track that began as a bona fide face."""
    bona_fide = {t.sample: t for t in tracks if t.label == BONA_FIDE}
    joined = []
    for t in tracks:
        before = bona_fide.get(t.sample.split(" ")[0])
        if t.label != BONA_FIDE and before is not None:
            times = np.r_[before.times, t.times + before.times[-1] + _DT - t.times[0]]
            odds = np.r_[before.odds, t.odds]
            whole = Looks(t.sample, t.label, t.person, before.first_s, times, odds)
            joined.append((len(before.odds), whole))
    yield f"bona fide first, then an attack on the same track: {len(joined)} tracks"
    for decider in deciders:
        for which, bounds in decider.bounds.items():
            delays = []
            for n, t in joined:
                said = bounds.verdicts(decider.course(t))
                if "attack" not in said[:n] and "attack" in said[n:]:
                    delays.append(t.times[n + said[n:].index("attack")] - t.times[n])
            after = f"{np.median(delays):.1f} s" if delays else "-"
            yield f"  {decider.name:20} {which:4}: noticed {len(delays)}, after {after} (median)"
