"""The rule of whose frame is analysed next: stated, and simulated on machines of all speeds."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from stream.records import Need
from stream.turns import LONGEST_GAP_S, STEP_S, Candidate, Pace, chosen

candidates = st.lists(
    st.builds(
        Candidate,
        source_id=st.text(min_size=1),
        need=st.sampled_from(Need),
        since_look_s=st.floats(0, 3),
        n_looks=st.integers(0, 3),
    ),
    unique_by=lambda candidate: candidate.source_id,
)


@given(candidates, st.integers(1, 8))
def test_as_many_are_chosen_as_may_be_and_each_once(waiting, at_most):
    taken = chosen(waiting, at_most)
    assert len(taken) == len(set(taken)) == min(len(waiting), at_most)


@given(candidates, st.integers(1, 8))
def test_nobody_gives_way_to_one_who_is_less_urgent(waiting, at_most):
    rank = {Need.UNDECIDED: 1, Need.NOBODY: 2, Need.DECIDED: 3}

    def urgency(candidate):
        overdue = candidate.since_look_s >= LONGEST_GAP_S
        first = 0 if overdue else rank[candidate.need]
        return first, -candidate.since_look_s, candidate.n_looks

    taken = set(chosen(waiting, at_most))
    first = [urgency(c) for c in waiting if c.source_id in taken]
    rest = [urgency(c) for c in waiting if c.source_id not in taken]
    assert not first or not rest or max(first) <= min(rest)


def test_a_face_without_a_verdict_comes_before_one_with_and_both_after_a_forgotten_camera():
    waiting = [
        Candidate("decided", Need.DECIDED, 0.9),
        Candidate("nobody", Need.NOBODY, 0.3),
        Candidate("undecided", Need.UNDECIDED, 0.2),
        Candidate("forgotten", Need.DECIDED, LONGEST_GAP_S),
    ]
    assert chosen(waiting, 4) == ["forgotten", "undecided", "nobody", "decided"]


@dataclass
class Camera:
    """In a simulation: a frame of it waits at every step."""

    need: Need
    looked_at: float = 0.0
    looks: int = 0
    longest_gap_s: float = 0.0


def simulate(needs, *, at_most, steps, step_s=STEP_S):
    """Let a machine take `at_most` frames a step; return the cameras."""
    cameras = {str(i): Camera(need) for i, need in enumerate(needs)}
    for step in range(steps):
        now = (step + 1) * step_s
        waiting = [Candidate(i, c.need, now - c.looked_at, c.looks) for i, c in cameras.items()]
        for i in chosen(waiting, at_most):
            camera = cameras[i]
            camera.longest_gap_s = max(camera.longest_gap_s, now - camera.looked_at)
            camera.looked_at, camera.looks = now, camera.looks + 1
    return list(cameras.values())


@given(st.lists(st.sampled_from(Need), min_size=1, max_size=40), st.integers(1, 10))
def test_no_camera_waits_longer_than_the_gap_and_one_round_of_all(needs, at_most):
    round_s = STEP_S * (len(needs) / at_most + 1)
    for camera in simulate(needs, at_most=at_most, steps=200):
        assert camera.longest_gap_s <= LONGEST_GAP_S + round_s + 1e-6


@given(st.integers(1, 12), st.integers(1, 12), st.integers(4, 12))
def test_undecided_faces_get_the_looks_that_are_left_over(n_undecided, n_decided, at_most):
    needs = [Need.UNDECIDED] * n_undecided + [Need.DECIDED] * n_decided
    cameras = simulate(needs, at_most=at_most, steps=100)
    fewest = min(c.looks for c in cameras if c.need is Need.UNDECIDED)
    most = max(c.looks for c in cameras if c.need is Need.DECIDED)
    assert fewest >= most - 1


@given(st.integers(1, 20), st.integers(1, 10))
def test_equals_get_equally_many_looks(n, at_most):
    looks = [c.looks for c in simulate([Need.UNDECIDED] * n, at_most=at_most, steps=60)]
    assert max(looks) - min(looks) <= 1


def test_a_step_takes_what_the_latest_frames_say_fits_into_it():
    pace = Pace()
    assert pace.at_most() is None
    pace.note(1, 5.0)  # the first run of a network is slow
    assert pace.at_most() == 1
    for _ in range(300):
        pace.note(1, STEP_S / 10.5)
    assert pace.at_most() == 10
    for _ in range(30):
        pace.note(10, STEP_S / 5.5 * 10)
    assert pace.at_most() == 5
