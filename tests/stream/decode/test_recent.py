"""The memory of a source's latest packets."""

from __future__ import annotations

import pytest

from stream.config import DecodeConfig, SourceConfig
from stream.decode import open_decoder
from stream.decode.recent import RecentPackets

LIVE = {"preset": "ultrafast", "g": "10", "sc_threshold": "0", "threads": "1"}


@pytest.fixture(scope="module")
def clip(write_clip, tmp_path_factory):
    """4 s, a key frame each 0.4 s."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", n=100, options=LIVE)


def decoded(clip, recent, kind="pyav"):
    config = SourceConfig.model_validate({"id": "cam", "uri": str(clip)})
    return open_decoder(config, DecodeConfig(kind=kind), session=0, recent=recent)


def read(clip, recent, kind="pyav"):
    for _ in decoded(clip, recent, kind).frames():
        pass


@pytest.mark.parametrize("kind", ["pyav", "sampled"])
def test_it_reaches_back_to_the_key_frame_before_its_seconds(clip, kind):
    recent = RecentPackets(1.0, 2**20)
    read(clip, recent, kind)
    cut = recent.cut(0.0, 9.0, 2**20)
    assert cut.starts_s == pytest.approx(2.8)
    assert cut.packets[0].is_key
    assert cut.packets[-1].at_s == pytest.approx(3.96)


def test_it_never_holds_more_than_its_bytes(clip):
    recent = RecentPackets(60.0, 3000)
    largest = 0
    for _ in decoded(clip, recent).frames():
        largest = max(largest, sum(kept.packet.size for kept in recent.cut(0.0, 9.0, 9000).packets))
    assert 0 < largest <= 3000


def test_a_group_that_does_not_fit_is_left_out(clip):
    recent = RecentPackets(60.0, 100)
    read(clip, recent)
    cut = recent.cut(0.0, 9.0, 100)
    assert (cut.packets, cut.starts_s, cut.matroska()) == ([], None, None)


def test_a_cut_gets_what_comes_until_its_end(clip):
    recent = RecentPackets(1.0, 2**20)
    frames = decoded(clip, recent).frames()
    while (frame := next(frames)) is None or frame.stamp.pts_s < 2.0:
        pass
    cut = recent.cut(0.0, 2.4, 2**20)
    assert not cut.complete.is_set()
    for _ in frames:
        pass
    assert cut.complete.is_set()
    assert cut.packets[-1].at_s == pytest.approx(2.88, abs=0.05)  # half a second for reordering


def test_a_cut_begins_at_the_key_frame_before_its_time_and_leaves_out_what_is_later(clip):
    recent = RecentPackets(60.0, 2**20)
    read(clip, recent)
    cut = recent.cut(1.3, 2.0, 2**20)
    assert cut.complete.is_set()
    assert cut.starts_s == pytest.approx(1.2)
    assert cut.packets[-1].at_s == pytest.approx(2.48, abs=0.05)


def test_a_cut_is_complete_when_its_session_is_over(clip):
    recent = RecentPackets(1.0, 2**20)
    frames = decoded(clip, recent).frames()
    while next(frames) is None:
        pass
    cut = recent.cut(0.0, 1000.0, 2**20)
    frames.close()
    assert cut.complete.is_set()


def test_a_cut_with_too_many_bytes_says_that_it_is_short(clip):
    recent = RecentPackets(1.0, 2**20)
    frames = decoded(clip, recent).frames()
    while next(frames) is None:
        pass
    cut = recent.cut(0.0, 1000.0, 5000)
    for _ in frames:
        pass
    assert cut.is_short
    assert sum(kept.packet.size for kept in cut.packets) <= 5000


def test_a_session_forgets_the_one_before(clip):
    recent = RecentPackets(60.0, 2**20)
    read(clip, recent)
    read(clip, recent)
    assert len(recent.cut(0.0, 9.0, 2**20).packets) == 100
