"""Provisional."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stream.records import Alert, TrackScore, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stream.config import FuseConfig
    from stream.records import AttackScore, QualityProblem, Sighting, TrackKey
    from trt_engines.manifest import DecisionThresholds


@dataclass(slots=True)
class _State:
    sighting: Sighting
    evidence: float = 0.0
    effective: float = 0.0
    n_scores: int = 0
    scored_at: float | None = None
    published_at: float | None = None
    verdict: Verdict = Verdict.UNDECIDED
    ordinal: int = 0
    problems: Counter[QualityProblem] = field(default_factory=Counter)


class Fuser:
    """Provisional."""

    def __init__(self, config: FuseConfig, thresholds: DecisionThresholds, method: str) -> None:
        self._c = config
        self._enter = thresholds.enter if config.enter is None else config.enter
        self._leave = thresholds.leave if config.leave is None else config.leave
        self._method = method
        self._tracks: dict[TrackKey, _State] = {}

    def update(
        self,
        scores: Sequence[AttackScore],
        rejected: Sequence[Sighting],
        ended: Sequence[TrackKey],
    ) -> list[TrackScore | Alert]:
        """Provisional."""
        out: list[TrackScore | Alert] = []
        for s in scores:
            st = self._tracks.setdefault(s.sighting.key, _State(s.sighting))
            st.sighting = s.sighting
            t = s.sighting.stamp.pts_s
            e = min(4.0, max(-4.0, math.log(max(s.probability, 1e-6) / max(1 - s.probability, 1e-6))))
            dt = math.inf if st.scored_at is None else t - st.scored_at
            w = 1 - math.exp(-dt / self._c.correlation_s)
            keep = 0.0 if st.scored_at is None else math.exp(-dt / self._c.memory_s)
            st.evidence = st.evidence * keep + w * e
            st.effective = st.effective * keep + w
            st.n_scores += 1
            st.scored_at = t
            out += self._judge(st)
        for r in rejected:
            st = self._tracks.setdefault(r.key, _State(r))
            st.sighting = r
            if r.quality.problem:
                st.problems[r.quality.problem] += 1
            out += self._judge(st)
        for key in ended:
            done = self._tracks.pop(key, None)
            if done:
                out.append(self._score(done, ended=True))
        return out

    def _p(self, st: _State) -> float | None:
        if not st.n_scores:
            return None
        return 1 / (1 + math.exp(-st.evidence / (st.effective + self._c.prior_looks)))

    def _judge(self, st: _State) -> list[TrackScore | Alert]:
        p = self._p(st)
        old = st.verdict
        if p is None:
            if st.sighting.stamp.pts_s - st.sighting.first_pts_s >= self._c.abstain_after_s:
                st.verdict = Verdict.ABSTAIN
        elif st.n_scores >= self._c.min_scores and st.effective >= self._c.min_effective:
            if p >= self._enter:
                st.verdict = Verdict.ATTACK
            elif p < self._leave:
                st.verdict = Verdict.BONA_FIDE
        t = st.sighting.stamp.pts_s
        changed = st.verdict is not old
        if not changed and st.published_at is not None and t - st.published_at < self._c.publish_every_s:
            return []
        st.published_at = t
        score = self._score(st, ended=False)
        if not changed:
            return [score]
        st.ordinal += 1
        threshold = self._enter if st.verdict is Verdict.ATTACK else self._leave
        return [score, Alert(track=score, previous=old, ordinal=st.ordinal, threshold=threshold)]

    def _score(self, st: _State, *, ended: bool) -> TrackScore:
        return TrackScore(
            sighting=st.sighting,
            n_scores=st.n_scores,
            n_effective=st.effective,
            probability=self._p(st),
            verdict=st.verdict,
            problem=st.problems.most_common(1)[0][0] if st.verdict is Verdict.ABSTAIN else None,
            method=self._method,
            ended=ended,
        )
