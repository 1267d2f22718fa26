"""Who watches what: parts for machines, shares for processes, and their threads."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.config import StreamConfig
from stream.processors import processors
from stream.scan.inputs import Selection
from stream.scan.listing import list_items
from stream.shards import part_of
from stream.workers.shares import bounded, cheapest, shares

NAMES = st.lists(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True), unique=True, max_size=40
)


@given(NAMES, st.integers(1, 20))
def test_shards_share_no_source_and_leave_none_out(names, parts):
    taken = [{name for name in names if part_of(name.encode(), parts) == i} for i in range(parts)]
    assert sorted(name for part in taken for name in part) == sorted(names)


def test_the_shard_of_a_source_is_the_same_everywhere_and_always():
    assert [part_of(b"cam%d" % n, 8) for n in range(8)] == [4, 5, 5, 4, 4, 1, 3, 7]


def test_a_scan_and_a_live_stream_agree_on_the_shard_of_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [b"cam%d.mp4" % n for n in range(8)]
    found = {
        item.path: part
        for part in range(3)
        for item in list_items(names, Selection(), shard=(part, 3)).items
    }
    assert found == {name: part_of(name, 3) for name in names}


@pytest.mark.parametrize(
    ("parts", "costs", "index"),
    [
        ([["a"], ["b", "c"]], {"a": 0.9, "b": 0.1, "c": 0.1}, 1),
        ([["a", "b"], ["c"]], {}, 1),  # by count, before costs are known
        ([["a", "b"], ["c"]], {"a": 0.2, "b": 0.2}, 1),  # one that is not known is as the others
        ([["a"], []], {"a": 0.0}, 1),
    ],
)
def test_a_new_source_goes_where_the_others_cost_least(parts, costs, index):
    assert cheapest(parts, costs) == index


@given(NAMES, st.integers(1, 20), st.data())
def test_shares_of_workers_are_disjoint_complete_and_even_in_cost(names, parts, data):
    costs = data.draw(
        st.dictionaries(st.sampled_from(names), st.floats(0.01, 1)) if names else st.just({})
    )
    taken = shares(names, costs, parts)
    assert len(taken) == parts
    assert sorted(name for part in taken for name in part) == sorted(names)
    assert (0 in map(len, taken)) == (len(names) < parts)
    usual = sum(costs.values()) / len(costs) if costs else 1.0
    sums = [sum(costs.get(name, usual) for name in part) for part in taken]
    dearest = max([costs.get(name, usual) for name in names], default=0)
    assert max(sums) - min(sums) <= dearest + 1e-9


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 4),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, 4),
        ({"sys/fs/cgroup/a/b/cpu.max": "250000 100000\n"}, 2),
        ({"sys/fs/cgroup/a/b/cpu.max": "max 100000", "sys/fs/cgroup/a/cpu.max": "3000 1000"}, 3),
        ({"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
    ],
    ids=["no cgroup", "no quota", "its own", "of its parent", "half a processor"],
)
def test_processors_are_those_of_the_affinity_within_the_quota(
    files, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    if files:
        write(tmp_path / "proc/self/cgroup", "0::/a/b\n")
    for name, text in files.items():
        write(tmp_path / name, text)
    assert processors(tmp_path) == expected


def test_the_quota_of_an_older_cgroup_counts_too(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    write(tmp_path / "proc/self/cgroup", "5:memory:/x\n4:cpu,cpuacct:/x\n")
    write(tmp_path / "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "200000\n")
    write(tmp_path / "sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n")
    assert processors(tmp_path) == 2


@pytest.mark.parametrize("backend", ["onnxruntime", "torch", "auto"])
def test_workers_take_no_more_threads_than_their_share(backend):
    config = StreamConfig.model_validate(
        {
            "sources": [{"id": "cam", "uri": "clip.mp4"}],
            "backend": {"kind": backend, "threads": 4},
            "decode": {"threads": 3},
        }
    )
    assert (bounded(config, 2).backend.threads, bounded(config, 2).decode.threads) == (2, 2)
    assert bounded(config, 8) == config


def test_a_backend_without_threads_is_left_alone():
    config = StreamConfig.model_validate(
        {"sources": [{"id": "cam", "uri": "clip.mp4"}], "backend": "tensorrt"}
    )
    assert bounded(config, 1) == config
