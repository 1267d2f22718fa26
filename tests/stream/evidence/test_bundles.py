"""Bundles of real runs: what they hold, that they can be verified and replayed, and tampering."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest
from PIL import Image

from stream.errors import ConfigError
from stream.evidence.bundle import Analysis
from stream.evidence.keeper import MOST_CROPS, MOST_WAITING, EvidenceKeeper
from stream.evidence.replay import replay
from stream.evidence.seal import broken_seals, load_public_key, make_keys
from stream.evidence.store import Store

if TYPE_CHECKING:
    from pathlib import Path

LIVE = {"preset": "ultrafast", "g": "25", "sc_threshold": "0", "threads": "1"}


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(video=0) if p.size]


def analysis_of(bundle: Path) -> Analysis:
    return Analysis.model_validate_json((bundle / "analysis.json").read_bytes())


def test_a_camera_that_is_removed_leaves_whole_bundles_and_no_packets(run_of, two_faces, tmp_path):
    camera = {"id": "cam1", "uri": str(two_faces), "realtime": True, "loop": True}
    run = run_of(tmp_path, two_faces, sources=[camera], evidence={"after_s": 60})
    kept, waited = [], itertools.count()

    def watch(pipeline):
        if not kept:
            kept.append(pipeline._watched[0].source.recent)
        if run.attacks and pipeline.progress().watched:
            assert kept[0].cut(0, 100, 10**9).packets
            pipeline.remove("cam1")
        if not pipeline.progress().watched and (run.bundles or next(waited) == 100):
            assert run.bundles, "it is written, and not only when the run ends"
            run.stop.set()

    run.go(watch)
    assert kept[0].cut(0, 100, 10**9).packets == []
    (bundle,) = run.bundles
    cut, original = packets(bundle / "cut.mkv"), packets(two_faces)
    assert len(cut) / 25 > analysis_of(bundle).at_s
    assert cut == original[: len(cut)]


@pytest.fixture
def bundle(made_bundle, tmp_path):
    """A copy of the bundle, to be changed."""
    (original,) = made_bundle.bundles
    return shutil.copytree(original, tmp_path / original.name)


def test_the_message_of_an_attack_names_its_bundle(made_bundle):
    (attack,) = made_bundle.attacks
    (bundle,) = made_bundle.bundles
    assert attack["evidence"] == bundle.name
    assert json.loads((bundle / "message.json").read_text()) == attack


def test_messages_of_other_verdicts_name_none(made_bundle):
    others = [
        m["evidence"]
        for m in made_bundle.messages
        if m["event"]["type"] == "track.verdict" and m["verdict"]["state"] != "attack"
    ]
    assert others == [None]


def test_nothing_is_kept_unless_it_is_asked_for(run_of, two_faces, tmp_path):
    run = run_of(tmp_path, two_faces)
    run.config = run.config.model_copy(update={"evidence": None})
    run.go()
    assert [m["evidence"] for m in run.attacks] == [None]
    assert not run.store.exists()


def test_a_verdict_that_is_asked_for_makes_a_bundle(run_of, two_faces, tmp_path):
    run = run_of(tmp_path, two_faces, evidence={"verdicts": ["bona_fide"]})
    run.go()
    (bundle,) = run.bundles
    assert analysis_of(bundle).verdict == "bona_fide"


def test_the_video_is_the_packets_as_they_came_from_a_key_frame_on(made_bundle, two_faces):
    (bundle,) = made_bundle.bundles
    cut, original = packets(bundle / "cut.mkv"), packets(two_faces)
    assert cut == original[: len(cut)]
    seen = analysis_of(bundle)
    assert len(cut) / 25 == pytest.approx(seen.at_s + 0.4, abs=0.6)


def test_the_video_begins_at_the_key_frame_before_the_seconds_asked_for(
    run_of, write_two_faces, tmp_path
):
    clip = write_two_faces(tmp_path / "clip.mp4", options=LIVE | {"g": "10"})
    run = run_of(tmp_path, clip, evidence={"before_s": 0.5})
    run.go()
    (bundle,) = run.bundles
    seen = analysis_of(bundle)
    assert seen.cut.starts_s == pytest.approx(0.4 * ((seen.at_s - 0.5) // 0.4))
    assert packets(bundle / "cut.mkv")[0] in packets(clip)[::10]


def test_the_crops_are_the_looks_that_led_to_the_verdict(made_bundle):
    (bundle,) = made_bundle.bundles
    looks = [look for look in analysis_of(bundle).looks if look.crop is not None]
    assert 3 <= len(looks) <= MOST_CROPS
    assert all(look.pts_s <= analysis_of(bundle).at_s for look in looks)
    for look in looks:
        with Image.open(bundle / look.crop) as crop:
            assert crop.size == (32, 32)
        with Image.open((bundle / look.crop).with_suffix("").as_posix() + "-map.png") as seen:
            assert seen.mode == "L"


def test_the_score_curve_goes_on_after_the_verdict(made_bundle):
    (bundle,) = made_bundle.bundles
    seen = analysis_of(bundle)
    assert [f.pts_s for f in seen.frames] == pytest.approx(
        [0.2 * i for i in range(len(seen.frames))]
    )
    assert max(look.pts_s for look in seen.looks) > seen.at_s
    assert seen.curve[-1].verdict == "attack"


def test_a_bundle_holds_no_credentials(run_of, rtsp_camera, write_two_faces, tmp_path):
    clip = write_two_faces(tmp_path / "camera.mp4", options=LIVE)
    url = rtsp_camera(clip).url.replace("rtsp://", "rtsp://admin:s3cret-word@")
    run = run_of(tmp_path, url)
    run.go(lambda _: run.stop.set() if run.store.exists() and run.bundles else None)
    text = b"".join(path.read_bytes() for path in run.bundles[0].rglob("*") if path.is_file())
    assert b"s3cret" not in text
    assert b"127.0.0.1" in text


@pytest.mark.rtsp
def test_an_attack_before_a_camera_can_be_replayed(run_of, rtsp_camera, write_two_faces, tmp_path):
    clip = write_two_faces(tmp_path / "camera.mp4", options=LIVE)
    run = run_of(tmp_path, rtsp_camera(clip).url)
    run.go(lambda _: run.stop.set() if run.store.exists() and run.bundles else None)
    result = replay(run.bundles[0])
    assert result.agrees, result.report()
    assert result.is_whole
    assert result.found == result.looks > 2


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("clip.mp4", {}),
        ("clip.mp4", {"codec": "libx265", "options": {"x265-params": "log-level=none:bframes=2"}}),
        ("clip.ts", {}),
        (
            "clip.webm",
            {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
        ),
        ("clip.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p", "options": {"q": "3"}}),
        (
            "clip.mkv",
            {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "tile-rows=0"}},
        ),
    ],
    ids=["h264", "hevc", "mpeg-ts", "vp9", "mjpeg in avi", "av1"],
)
def test_the_replay_of_a_file_agrees(run_of, write_two_faces, tmp_path, name, how):
    clip = write_two_faces(tmp_path / name, seconds=2.2, **how)
    run = run_of(tmp_path, clip)
    run.go()
    result = replay(run.bundles[0])
    assert result.agrees, result.report()
    assert (result.is_whole, result.verdict_again) == (True, True)
    assert result.found == result.looks
    assert result.largest < 1e-4


def test_a_picture_that_the_file_turns_is_turned_in_the_replay(
    run_of, write_clip, tmp_path, two_faces
):
    """The pictures are stored on their side, and the file says so."""
    with av.open(str(two_faces)) as container:
        upright = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][:55]
    clip = write_clip(
        tmp_path / "clip.mp4",
        n=55,
        size=(224, 400),
        rotation=90,
        picture=lambda number, *_: np.ascontiguousarray(np.rot90(upright[number], -1)),
    )
    run = run_of(tmp_path, clip)
    run.go()
    assert analysis_of(run.bundles[0]).width == 400
    result = replay(run.bundles[0])
    assert result.agrees, result.report()


def test_the_replay_of_a_long_track_compares_what_the_video_shows(
    run_of, write_two_faces, tmp_path
):
    clip = write_two_faces(tmp_path / "clip.mp4", options=LIVE | {"g": "5"})
    run = run_of(tmp_path, clip, evidence={"before_s": 0.6, "after_s": 1.5})
    run.go()
    result = replay(run.bundles[0])
    assert not result.is_whole
    assert "before the video begins" in result.report()


def test_a_stream_that_no_file_takes_is_analysed_and_its_bundle_holds_no_video(
    run_of, two_faces, tmp_path, monkeypatch, caplog
):
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("'matroska' format does not support it")

    monkeypatch.setattr(
        "av.container.OutputContainer.add_stream_from_template", refuse, raising=True
    )
    run = run_of(tmp_path, two_faces)
    run.go()
    (bundle,) = run.bundles
    assert analysis_of(bundle).cut is None
    assert not (bundle / "cut.mkv").exists()
    assert "hold no video" in caplog.text
    with pytest.raises(ConfigError, match="holds no video"):
        replay(bundle)


def test_the_replay_finds_what_was_changed_and_signed_again(bundle):
    path = bundle / "analysis.json"
    seen = json.loads(path.read_text())
    for look in seen["looks"]:
        look["probability"] = 0.5
    path.write_text(json.dumps(seen))
    result = replay(bundle)
    assert not result.agrees
    assert "a look's probability differs" in result.report()


def test_the_replay_asks_for_an_engine_that_is_not_here(bundle):
    path = bundle / "producer.json"
    made = json.loads(path.read_text())
    made["engines"][0]["onnx_sha256"] = "ab" * 32
    path.write_text(json.dumps(made))
    with pytest.raises(Exception, match=r"engine tiny \(graph abababababab\) is not here"):
        replay(bundle)


def test_an_untouched_bundle_is_unbroken(bundle, evidence_key):
    public = evidence_key.with_name(evidence_key.name + ".pub")
    assert broken_seals(bundle, load_public_key(public)) == []


def change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def add(path: Path) -> None:
    path.write_text("more")


spoil = add


def turn_into_link(path: Path) -> None:
    moved = path.rename(path.parent.parent / path.name)
    path.symlink_to(moved)


@pytest.mark.parametrize(
    ("tamper", "name", "says"),
    [
        (change, "cut.mkv", "cut.mkv: was changed"),
        (change, "message.json", "message.json: was changed"),
        (change, "crops/01-0.png", "crops/01-0.png: was changed"),
        (os.unlink, "cut.mkv", "cut.mkv: missing"),
        (add, "crops/99-0.png", "crops/99-0.png: was added"),
        (change, "manifest.json", "manifest.sig: does not fit"),
        (change, "manifest.sig", "manifest.sig: does not fit"),
        (os.unlink, "manifest.sig", "manifest.sig: missing"),
        (spoil, "public_key.pem", "public_key.pem: no public key"),
        (turn_into_link, "cut.mkv", "cut.mkv: expected a plain file"),
    ],
)
def test_tampering_is_named(bundle, tamper, name, says):
    tamper(bundle / name)
    assert any(line.startswith(says) for line in broken_seals(bundle)), broken_seals(bundle)


def test_a_renamed_bundle_is_named(bundle):
    moved = bundle.rename(bundle.parent / "another")
    assert broken_seals(moved) == [f"manifest.json: is of the bundle {bundle.name}, not of another"]


def test_a_bundle_signed_by_somebody_else_is_named(bundle, tmp_path):
    stranger = load_public_key(make_keys(tmp_path / "stranger"))
    (line,) = broken_seals(bundle, stranger)
    assert line.startswith("public_key.pem: signed by the key")


def test_the_command_line_tells_broken_from_whole(bundle, evidence_key):
    def verify(*options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "stream.evidence", "verify", bundle, *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    whole = verify("--key", f"{evidence_key}.pub")
    assert (whole.returncode, whole.stderr) == (0, "")
    change(bundle / "cut.mkv")
    broken = verify()
    assert (broken.returncode, broken.stdout.splitlines()[0][:20]) == (1, "cut.mkv: was changed")
    assert verify("--key", bundle / "none").returncode == 2


def test_only_the_user_may_read_a_bundle(made_bundle):
    (bundle,) = made_bundle.bundles
    for path in (made_bundle.store, bundle, *bundle.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_verdicts_faster_than_the_disk_are_dropped_counted_and_logged(
    run_of, write_two_faces, tmp_path, monkeypatch, caplog
):
    """Writing stands still until the end; the analysis does not."""
    clip = write_two_faces(tmp_path / "clip.mp4", seconds=1.6)
    goes_on = threading.Event()
    write = EvidenceKeeper._write
    monkeypatch.setattr(EvidenceKeeper, "_write", lambda *how: (goes_on.wait(60), write(*how))[1])
    sources = [{"id": f"cam{n}", "uri": str(clip)} for n in range(2 * MOST_WAITING + 3)]
    run = run_of(tmp_path, clip, sources=sources, evidence={"after_s": 0, "cut_mb": 1})

    def release(pipeline) -> None:
        if len(pipeline.progress().sources) == len(sources) and all(
            not status.state.is_up for status in pipeline.progress().sources.values()
        ):
            goes_on.set()

    run.go(release)
    assert len(run.attacks) == len(sources)
    dropped = [r.message for r in caplog.records if "is dropped" in r.message]
    assert len(run.bundles) + len(dropped) == len(sources)
    assert dropped
    assert (
        dropped[-1].split(", ")[1]
        == f"{len(dropped)} so far: writing can't keep up with the verdicts"
    )


def test_a_full_disk_costs_the_bundle_and_nothing_else(
    run_of, two_faces, tmp_path, monkeypatch, caplog
):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stream.evidence.store._sync", fail)
    run = run_of(tmp_path, two_faces)
    run.go()
    assert len(run.attacks) == 1
    assert run.bundles == []
    assert any("can't be written" in r.message for r in caplog.records)


def test_bundles_that_are_too_many_go_while_the_stream_runs(run_of, two_faces, tmp_path):
    first = run_of(tmp_path, two_faces)
    first.go()
    (old,) = first.bundles
    size = Store(first.store).bundles()[0].size
    again = run_of(tmp_path, two_faces, evidence={"keep_gb": 1.5 * size / 1e9})
    os.utime(old / "manifest.json", (0, 1))
    old.rename(old.with_name("20200101T000000Z-old"))
    again.go()
    assert [b.name[:4] for b in again.bundles] != ["2020"]
    assert len(again.bundles) == 1
