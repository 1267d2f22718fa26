"""Scores of single looks to a verdict per track.

docs/decisions/0010-fusion.md derives the formula for the looks of one detector,
0035-several-detectors.md how several become one probability.

The evidence of one look is the logit of its probability, clipped so that no look decides alone. A
track's evidence is the weighted mean of its looks, shrunk towards "don't know": certainty does not
grow without bound with the number of looks, because what is wrong with a camera is wrong in all of
them. Weights count media time, not frames, so neither frame rate nor dropped frames change them.

An attack is of one kind or the other, and a detector may know only one kind. So the highest of the
detectors' probabilities counts, on their common scale, and bona fide takes all of them.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from models import logit, sigmoid
from stream.errors import ConfigError
from stream.records import Alert, AttackFamily, DetectorScore, TrackScore, Verdict
from stream.stages.align import Scale, aligned, common_scale
from trt_engines.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stream.config import FuseConfig
    from stream.records import AttackScore, QualityProblem, Rejection, Sighting, TrackKey
    from trt_engines.manifest import DecisionThresholds, Manifest

MAX_EVIDENCE: Final = 4.0  # log-odds; a probability of 0.982 is as far as one look goes
MARGIN: Final = 0.1  # of a chosen `enter` over the highest track that may not alarm, in log-odds
HYSTERESIS: Final = 1.0  # between chosen thresholds, in log-odds, at least
ABOUT_EQUAL: Final = 1.0  # log-odds between two detectors of which neither is much surer
_CLIP: Final = float(sigmoid(-MAX_EVIDENCE))


class Evidence:
    """What the looks at one track say together.

    Streaming decides on it, and `train.release.thresholds` chooses thresholds on it.
    """

    def __init__(self, config: FuseConfig) -> None:
        self.n_scores = 0
        self.effective = 0.0  # independent looks that the scores are worth
        self._config = config
        self.last_pts_s: float | None = None  # of the latest look
        self._weighted = 0.0  # sum of weights times log-odds

    def add(self, pts_s: float, probability: float) -> None:
        """Weigh a look by what it adds: nothing right after another, 1 - 1/e after a while.

        Args:
            pts_s: media time, never decreasing.
            probability: 0..1, what the network says of this look.

        Raises:
            ValueError: the probability is not in 0..1.
        """
        if not 0 <= probability <= 1:  # true for NaN, which would silence the track for good
            raise ValueError(f"a score must lie in 0..1, got {probability}: the network is broken")
        weight, kept = 1.0, 1.0
        if self.last_pts_s is not None:
            elapsed_s = pts_s - self.last_pts_s
            weight = -math.expm1(-elapsed_s / self._config.correlation_s)
            kept = math.exp(-elapsed_s / self._config.memory_s)
        self._weighted = self._weighted * kept + weight * float(logit(probability, _CLIP))
        self.effective = self.effective * kept + weight
        self.n_scores += 1
        self.last_pts_s = pts_s

    @property
    def probability(self) -> float | None:
        """Fused probability of an attack, 0..1; None before the first look."""
        if self.n_scores == 0:
            return None
        return float(sigmoid(self._weighted / (self.effective + self._config.prior_looks)))

    @property
    def allows_verdict(self) -> bool:
        """Whether there were enough looks, and worth enough."""
        return (
            self.n_scores >= self._config.min_scores
            and self.effective >= self._config.min_effective
        )


def leave_of(enter: float) -> float:
    """Return the `leave` that belongs to a chosen `enter`: one in log-odds below it, or 0.5."""
    return round(min(0.5, float(sigmoid(logit(enter) - HYSTERESIS))), 4)


def enter_above(peak: float) -> float:
    """Return the lowest `enter` that a track of some peak may not reach, with a margin."""
    return round(max(0.5, float(sigmoid(logit(peak) + MARGIN))), 4)


def highest_probability(config: FuseConfig, look_every_s: float) -> float | None:
    """Return the highest probability that a verdict can rest on within `config.reach_s`.

    It is that of a face whose every look is a sure attack. One that is surely bona fide gets as far
    below 0.5.

    Args:
        config: of fusion.
        look_every_s: media time between two looks, seconds, more than 0.

    Returns:
        0.5..1; None: no verdict is possible so soon after the first look.
    """
    evidence = Evidence(config)
    highest = None
    for look in range(1 + int(config.reach_s / look_every_s + 1e-6)):
        evidence.add(look * look_every_s, 1.0)
        if evidence.allows_verdict:
            highest = max(highest or 0.0, evidence.probability or 0.0)
    return highest


@dataclass(frozen=True, slots=True, kw_only=True)
class Detector:
    """What fusion must know of one attack detector."""

    name: str  # of its engine
    method: str
    family: AttackFamily | None  # of the attacks it was trained to see; None: both, or unknown
    thresholds: DecisionThresholds
    look_every_s: float  # least media time between two looks at a track, seconds, more than 0


def attack_detector(manifest: Manifest, look_every_s: float) -> Detector:
    """Return what fusion must know of the detector that a manifest describes.

    Raises:
        EngineError: the manifest is not an attack detector's.
    """
    if manifest.method is None or manifest.thresholds is None:
        raise EngineError(
            f"{manifest.name}: expected an attack detector with method and thresholds; this "
            "manifest has none: choose another, or export with `python -m train export`"
        )
    return Detector(
        name=manifest.name,
        method=manifest.method,
        family=None if manifest.family is None else AttackFamily(manifest.family),
        thresholds=manifest.thresholds,
        look_every_s=look_every_s,
    )


@dataclass(slots=True)
class _Opinion:
    """What one detector knows of one track."""

    evidence: Evidence
    latest: float | None = None  # probability of the latest look
    problems: Counter[QualityProblem] = field(default_factory=Counter)
    rejected: bool = False  # the latest look was

    @property
    def problem(self) -> QualityProblem | None:
        """The most frequent problem of its looks."""
        return self.problems.most_common(1)[0][0] if self.problems else None


@dataclass(slots=True)
class _Track:
    """What is kept of one track."""

    sighting: Sighting  # the latest
    opinions: list[_Opinion]  # of each detector
    reported_pts_s: float | None = None
    verdict: Verdict = Verdict.UNDECIDED
    family: AttackFamily | None = None
    changes: int = 0
    peak: float | None = None  # highest that a verdict could have rested on


class Fuser:
    """Holds the evidence of every live track.

    Args:
        config: weights, limits and how often to report.
        detectors: one or more, in the order of the configuration; `config.enter` and `config.leave`
            override where their thresholds meet.

    Raises:
        ConfigError: a threshold that no track can reach within `config.reach_s`.
    """

    def __init__(self, config: FuseConfig, detectors: Sequence[Detector]) -> None:
        self._config = config
        self._detectors = detectors
        self._scale = common_scale([detector.thresholds for detector in detectors])
        self.enter = self._scale.enter if config.enter is None else config.enter
        self.leave = self._scale.leave if config.leave is None else config.leave
        check_reach(config, detectors)
        self._own: dict[str, Scale] = {}  # by source
        self._tracks: dict[TrackKey, _Track] = {}

    def update(
        self,
        scores: Sequence[AttackScore],
        rejected: Sequence[Rejection],
        ended: Sequence[TrackKey],
    ) -> list[TrackScore | Alert]:
        """Take in the looks of one step.

        A score is reported when `publish_every_s` of media time has passed since the track's last
        report, before every alert, and once more when the track ends.

        Args:
            scores: of the looks that detectors were given; of a track, all are at one frame.
            rejected: looks that they could not be given.
            ended: tracks that will not be seen again.

        Returns:
            Messages, those of one track in order; a score stands before the alert it caused.

        Raises:
            ValueError: a score is not in 0..1, NaN for one, which would silence its track for good.
        """
        seen: dict[TrackKey, _Track] = {}
        for score in scores:
            track = seen[score.sighting.key] = self._seen(score.sighting)
            opinion = track.opinions[score.detector]
            opinion.evidence.add(score.sighting.stamp.pts_s, score.probability)
            opinion.latest = score.probability
            opinion.rejected = False
        for look in rejected:
            track = seen[look.sighting.key] = self._seen(look.sighting)
            opinion = track.opinions[look.detector]
            opinion.problems[look.problem] += 1
            opinion.rejected = True
        messages = [message for track in seen.values() for message in self._report(track)]
        messages += [
            self._score(last, ended=True)
            for key in ended
            if (last := self._tracks.pop(key, None)) is not None
        ]
        return messages

    def decide_by(self, source_id: str, own: Scale | None) -> None:
        """Set the thresholds of a source, on the common scale; None: those of all.

        To be called while it has no tracks; `check_reach` says which can be reached.
        """
        if own is None:
            self._own.pop(source_id, None)
        else:
            self._own[source_id] = own

    def thresholds_of(self, source_id: str) -> Scale:
        """Return the thresholds that apply to a source."""
        return self._own.get(source_id, Scale(self.enter, self.leave))

    def has_decided(self, key: TrackKey) -> bool:
        """Return whether a live track has a verdict, or can't be judged."""
        track = self._tracks.get(key)
        return track is not None and track.verdict is not Verdict.UNDECIDED

    def stands(self, key: TrackKey) -> bool:
        """Return whether a live track has a verdict, and its latest looks alone speak for it.

        For an attack that is one detector's look, for bona fide those of all.
        """
        track = self._tracks.get(key)
        if track is None:
            return False
        told = [
            aligned(opinion.latest, detector.thresholds, self._scale)
            for opinion, detector in zip(track.opinions, self._detectors, strict=True)
            if opinion.latest is not None
        ]
        match track.verdict:
            case Verdict.BONA_FIDE:
                return all(p < self.leave for p in told)
            case Verdict.ATTACK:
                return any(p >= self.enter for p in told)
            case _:
                return False

    def tracks_of(self, source_id: str) -> list[TrackKey]:
        """Return the keys of a source's live tracks that were looked at, in order."""
        return sorted(key for key in self._tracks if key.source_id == source_id)

    def _seen(self, sighting: Sighting) -> _Track:
        track = self._tracks.get(sighting.key)
        if track is None:
            opinions = [_Opinion(Evidence(self._config)) for _ in self._detectors]
            track = self._tracks[sighting.key] = _Track(sighting, opinions)
        track.sighting = sighting
        return track

    def _report(self, track: _Track) -> list[TrackScore | Alert]:
        previous = track.verdict
        self._decide(track)
        pts_s = track.sighting.stamp.pts_s
        changed = track.verdict is not previous
        last = track.reported_pts_s
        if not changed and last is not None and pts_s - last < self._config.publish_every_s - 1e-3:
            return []
        track.reported_pts_s = pts_s
        score = self._score(track, ended=False)
        if not changed:
            return [score]
        track.changes += 1
        own = self.thresholds_of(track.sighting.key.source_id)
        threshold = own.leave if track.verdict is Verdict.BONA_FIDE else own.enter
        return [
            score,
            Alert(track=score, previous=previous, ordinal=track.changes, threshold=threshold),
        ]

    def _decide(self, track: _Track) -> None:
        """Set the verdict; between the thresholds, and for lack of evidence, it stays."""
        if all(opinion.evidence.n_scores == 0 for opinion in track.opinions):
            age_s = track.sighting.stamp.pts_s - track.sighting.first_pts_s
            if age_s >= self._config.abstain_after_s:
                track.verdict = Verdict.ABSTAIN
            return
        heard = self._heard(track)
        sure = [i for i in heard if track.opinions[i].evidence.allows_verdict]
        told = {i: self._aligned(track, i) for i in sure}
        if told:
            track.peak = max(track.peak or 0.0, *told.values())
        own = self.thresholds_of(track.sighting.key.source_id)
        alarms = {i: p for i, p in told.items() if p >= own.enter}
        if alarms:
            track.verdict, track.family = Verdict.ATTACK, self._family(alarms)
        elif sure == heard and all(p < own.leave for p in told.values()):
            track.verdict, track.family = Verdict.BONA_FIDE, None
        elif track.verdict is Verdict.ABSTAIN:
            track.verdict = Verdict.UNDECIDED

    def _heard(self, track: _Track) -> list[int]:
        """Return the detectors that have a say: those that don't abstain, or else all."""
        heard = [i for i in range(len(track.opinions)) if not self._abstains(track, i)]
        if any(track.opinions[i].evidence.n_scores for i in heard):
            return heard
        return list(range(len(track.opinions)))

    def _abstains(self, track: _Track, detector: int) -> bool:
        """Return whether a detector that knows too little has long not been shown the face.

        What it has once found out stays, however long ago.
        """
        opinion = track.opinions[detector]
        if opinion.evidence.allows_verdict or not opinion.rejected:
            return False
        last_pts_s = opinion.evidence.last_pts_s
        since_s = track.sighting.first_pts_s if last_pts_s is None else last_pts_s
        return track.sighting.stamp.pts_s - since_s >= self._config.abstain_after_s

    def _aligned(self, track: _Track, detector: int) -> float:
        """Return a detector's probability on the common scale; it has scored the track."""
        probability = track.opinions[detector].evidence.probability
        assert probability is not None
        return aligned(probability, self._detectors[detector].thresholds, self._scale)

    def _family(self, alarms: Mapping[int, float]) -> AttackFamily:
        """Return the kind of attack that the surest detector sees, if the others don't dispute it.

        Args:
            alarms: detector -> probability on the common scale.
        """
        surest = max(alarms, key=lambda i: alarms[i])
        near = logit(alarms[surest]) - ABOUT_EQUAL
        families = {self._detectors[i].family for i, p in alarms.items() if logit(p) > near}
        family = self._detectors[surest].family
        return AttackFamily.UNSURE if family is None or families - {family, None} else family

    def _score(self, track: _Track, *, ended: bool) -> TrackScore:
        scored = [i for i in self._heard(track) if track.opinions[i].evidence.n_scores]
        told = {i: self._aligned(track, i) for i in scored}
        leading = max(told, key=lambda i: told[i], default=0)
        abstains = track.verdict is Verdict.ABSTAIN
        problems: Counter[QualityProblem] = Counter()
        for opinion in track.opinions:
            problems += opinion.problems
        return TrackScore(
            sighting=track.sighting,
            n_scores=max(opinion.evidence.n_scores for opinion in track.opinions),
            n_effective=max(opinion.evidence.effective for opinion in track.opinions),
            probability=told.get(leading),
            verdict=track.verdict,
            problem=problems.most_common(1)[0][0] if abstains else None,
            method=self._detectors[leading].method,
            family=track.family,
            detectors=tuple(
                DetectorScore(
                    name=detector.name,
                    method=detector.method,
                    family=detector.family,
                    n_scores=opinion.evidence.n_scores,
                    probability=opinion.evidence.probability,
                    problem=opinion.problem if self._abstains(track, i) else None,
                )
                for i, (detector, opinion) in enumerate(
                    zip(self._detectors, track.opinions, strict=True)
                )
            ),
            ended=ended,
            peak=track.peak,
        )


def check_reach(config: FuseConfig, detectors: Sequence[Detector]) -> None:
    """Refuse thresholds that no track can reach within `config.reach_s`.

    Raises:
        ConfigError: one of `config`, or of a detector where `config` has none.
    """
    scale = common_scale([detector.thresholds for detector in detectors])
    for detector in detectors:
        _check_reach(config, detector, scale)


def _check_reach(config: FuseConfig, detector: Detector, scale: Scale) -> None:
    """Refuse thresholds that a detector can't reach in time by itself.

    Those of its manifest hold on its own scale, those that were set on the common one.
    """
    looks = f"looks every {detector.look_every_s:g} s"
    highest = highest_probability(config, detector.look_every_s)
    if highest is None:
        raise ConfigError(
            f"fuse: {detector.name}: {looks} allow no verdict within {config.reach_s:g} s "
            f"(fuse.reach_s); lower min_scores ({config.min_scores}) or min_effective "
            f"({config.min_effective:g}), look more often (score.interval_s, decode.analyse_fps), "
            "or raise reach_s"
        )
    ends = 1 - highest, highest
    low, high = (aligned(p, detector.thresholds, scale) for p in ends)
    for name, manifest, given in (
        ("enter", detector.thresholds.enter, config.enter),
        ("leave", detector.thresholds.leave, config.leave),
    ):
        value = manifest if given is None else given
        lowest, most = ends if given is None else (low, high)
        if value <= most if name == "enter" else value > lowest:
            continue
        limit = f"{_floor(high)} or less" if name == "enter" else f"more than {_ceil(low)}"
        whose = "of the engine's manifest" if given is None else "as set"
        raise ConfigError(
            f"fuse.{name}: no track can reach {value:g} ({whose}): in {config.reach_s:g} s "
            f"(fuse.reach_s) of {looks} that are all sure, {detector.name}'s p goes to "
            f"{_ceil(lowest)} or {_floor(most)} and no further; set fuse.{name} to {limit}"
        )


def _floor(probability: float) -> str:
    return f"{math.floor(1000 * probability) / 1000:.3f}"


def _ceil(probability: float) -> str:
    return f"{math.ceil(1000 * probability) / 1000:.3f}"
