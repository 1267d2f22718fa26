"""When a number of cameras counts as held, and how the largest such number is found."""

import pytest

from benchmarks.held import judged, largest_held

GOOD = {
    "due": 10_000,
    "dropped": 10,
    "latencies_ms": [500.0] * 20,
    "behind_s": 0.5,
    "cores_used": 1.0,
    "stolen_cores": 0.0,
    "largest_rss_mib": 900.0,
}


@pytest.mark.parametrize("most", range(40))
def test_the_largest_number_that_is_held_is_found_wherever_it_lies(most):
    assert largest_held(lambda n: n <= most, first=4, limit=64) == most


def test_a_search_by_steps_ends_near_the_largest_number_and_not_above_it():
    for most in range(60):
        assert most - 1 <= largest_held(lambda n, m=most: n <= m, first=60, limit=120, step=2)
        assert largest_held(lambda n, m=most: n <= m, first=60, limit=120, step=2) <= most


def test_no_more_cameras_are_tried_than_the_limit():
    tried = []
    assert largest_held(lambda n: tried.append(n) is None, first=4, limit=16) == 16
    assert tried == [4, 8, 16]


def test_cameras_at_all_three_limits_are_held():
    assert judged(10, **GOOD).held


@pytest.mark.parametrize(
    "beyond",
    [{"dropped": 11}, {"latencies_ms": [501.0] * 20}, {"latencies_ms": []}, {"behind_s": 0.51}],
)
def test_cameras_beyond_one_limit_are_not_held(beyond):
    assert not judged(10, **GOOD | beyond).held


def test_the_cost_of_a_camera_is_its_share_of_the_processors_that_were_used():
    assert judged(10, **GOOD).cpu_ms_per_camera_second == pytest.approx(100.0)
