"""Scans of small archives, as people run them: what is read and written, and how it goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import skimage.data
from PIL import Image

from stream.config import DecodeConfig
from stream.scan.inputs import Item, Selection
from stream.scan.listing import list_items
from stream.scan.policy import Mode, ScanLimits
from stream.scan.scanner import ScanPlan, scan_one
from stream.subscribe import Subscription
from tests.stream.publish.receiver import Receiver

ROOT = Path(__file__).parents[3]
PROGRAM = ROOT / "run_stream.py"


def test_an_archive_is_scanned_into_rows_tables_and_a_report(scan, two_faces, clip, tmp_path):
    archive = tmp_path / "archive"
    (archive / "below").mkdir(parents=True)
    (archive / "below" / "faces.mp4").hardlink_to(two_faces)
    (archive / "bars.mp4").hardlink_to(clip)
    (archive / "notes.txt").write_text("no video")
    (archive / "empty.mkv").touch()
    (archive / "link.mp4").symlink_to(two_faces)
    done = scan(archive, "--mode", "full")
    assert done.code == 3, done.log
    assert set(done.rows) == {"faces.mp4", "bars.mp4", "empty.mkv"}
    faces, bars, empty = (done.rows[name] for name in ("faces.mp4", "bars.mp4", "empty.mkv"))
    assert (faces["status"], faces["verdict"], faces["coverage"]) == ("ok", "attack", 1.0)
    assert (faces["n_tracks"], faces["n_attack"], faces["n_bona_fide"]) == (2, 1, 1)
    assert (faces["frames_seen"], faces["frames_analysed"], faces["seconds"]) == (75, 15, 2.8)
    dark, bright = faces["tracks"]
    assert (dark["verdict"], bright["verdict"]) == ("attack", "bona_fide")
    assert dark["attack_at_s"] is not None
    assert bright["attack_at_s"] is None
    assert [box["at_s"] for box in dark["boxes"]] == sorted({b["at_s"] for b in dark["boxes"]})
    assert len(dark["boxes"]) >= 3
    assert dark["boxes"][0]["x"] > 0.5 > bright["boxes"][0]["x"]
    assert (bars["verdict"], bars["tracks"], bars["coverage"]) == ("no_face", [], 0.0)
    assert (empty["status"], empty["reason"]) == ("unreadable", "empty")
    files = pq.read_table(tmp_path / "out" / "files").to_pylist()
    assert {(f["path"], f["sha256"]) for f in files} == {
        (r["path"], r["sha256"]) for r in done.rows.values()
    }
    tracks = pq.read_table(tmp_path / "out" / "tracks").to_pylist()
    assert [t["boxes"] for t in tracks] == [dark["boxes"], bright["boxes"]]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "archive/below/faces.mp4" in page
    assert page.count("data:image/jpeg;base64,") == 2  # the worst look, and where the evidence is
    assert "http" not in page


def test_a_finished_file_is_scanned_again_only_if_it_or_the_options_changed(
    scan, two_faces, clip, tmp_path, read_rows
):
    archive = tmp_path / "archive"
    archive.mkdir()
    (archive / "a.mp4").write_bytes(clip.read_bytes())
    (archive / "b.mp4").write_bytes(clip.read_bytes())
    assert "2 files scanned, 0 known" in scan(archive, "--mode", "keyframes").log
    assert "0 files scanned, 2 known" in scan(archive, "--mode", "keyframes").log
    os.utime(archive / "b.mp4", (1, 1))
    assert "0 files scanned, 2 known" in scan(archive, "--mode", "keyframes").log
    (archive / "a.mp4").write_bytes(two_faces.read_bytes())
    again = scan(archive, "--mode", "keyframes")
    assert "1 files scanned, 1 known" in again.log
    assert len(read_rows(tmp_path / "out")) == 2
    assert again.rows["a.mp4"]["size"] == two_faces.stat().st_size
    assert "2 files scanned, 0 known" in scan(archive, "--mode", "keyframes", "--fps", 2).log


def test_attacks_end_with_code_10_if_asked_for_and_crops_can_be_left_out(scan, two_faces, tmp_path):
    done = scan(two_faces, "--mode", "full", "--fail-on", "attack", "--no-crops")
    assert done.code == 10
    assert not (tmp_path / "out" / "crops").exists()
    assert "data:image" not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "expected PATH"),
        (["x.mp4", "--shard", "3/3"], "--shard 3/3: expected I/N"),
        (["x.mp4", "--limit", "cpus=1"], "--limit"),
        (["--from", "absent.txt"], "--from absent.txt: can't be read"),
    ],
)
def test_a_wrong_argument_gets_one_line_and_code_2(scan, arguments, complaint):
    done = scan(*arguments)
    assert done.code == 2
    assert complaint in done.log
    assert len(done.log.splitlines()) == 1


def test_odd_names_from_a_list_are_taken_to_the_letter(scan, clip, tmp_path, read_rows):
    names = [
        b"a b.mp4",
        b"k=v.mp4",
        b"rtsp:x.mp4",
        b"new\nline.mp4",
        b"\xff.mp4",
        b"%d.mp4",
        b"-x.mp4",
        b"<b>&.mp4",
    ]
    for name in names:
        os.link(clip, os.fsencode(tmp_path) + b"/" + name)
    (tmp_path / "list").write_bytes(b"\0".join(names))
    done = scan("--from", "list", "--null", "--mode", "keyframes")
    rows = read_rows(tmp_path / "out")
    assert {row["status"] for row in rows} == {"ok"}, done.log
    raw = {bytes.fromhex(r["path_hex"]) if r["path_hex"] else r["path"].encode() for r in rows}
    assert raw == set(names)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;.mp4" in page
    assert "<b>" not in page
    assert done.code == 0


def test_stills_are_one_look_each_and_turned_upright(scan, tmp_path):
    portrait = Image.fromarray(skimage.data.astronaut()[:230, 115:335]).resize((440, 460))
    dark = Image.fromarray((np.asarray(portrait) * 0.4).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    dark.rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif)
    portrait.save(tmp_path / "bright.webp")
    Image.new("RGB", (400, 400)).save(tmp_path / "none.png")
    done = scan("turned.jpg", "bright.webp", "none.png", "--limit", "still_pixels=1000000")
    turned, bright, none = (done.rows[n] for n in ("turned.jpg", "bright.webp", "none.png"))
    assert (turned["kind"], turned["verdict"], turned["n_tracks"]) == ("still", "attack", 1)
    assert (turned["width"], turned["height"]) == (440, 460)
    assert (turned["tracks"][0]["n_scores"], turned["tracks"][0]["single_look"]) == (1, True)
    assert bright["verdict"] == "bona_fide"
    assert none["verdict"] == "no_face"


def test_shards_share_no_file_leave_none_out_and_merge(scan, warm, clip, tmp_path, read_rows):
    archive = tmp_path / "archive"
    archive.mkdir()
    for number in range(7):
        (archive / f"{number}.mp4").hardlink_to(clip)
    found = []
    for part in range(3):
        scan(archive, "--mode", "keyframes", "--shard", f"{part}/3")
        journal = tmp_path / "out" / "journal" / f"{part}-of-3.jsonl"
        found += [json.loads(line)["path"] for line in journal.read_text().splitlines()]
    assert len(found) == len(set(found)) == 7
    merge = ["scan", "merge", tmp_path / "out", "--out", tmp_path / "merged"]
    with warm.start(PROGRAM, *map(str, merge)) as process:
        process.communicate()
    assert process.wait() == 0
    assert sorted(row["path"] for row in read_rows(tmp_path / "merged")) == sorted(found)
    assert pq.read_table(tmp_path / "merged" / "files").num_rows == 7


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_without_a_loss_or_a_repetition(
    scan, warm, tiny_engine, clip, tmp_path, read_rows, forking
):
    archive = tmp_path / "archive"
    archive.mkdir()
    for number in range(30):
        (archive / f"{number}.mp4").hardlink_to(clip)

    def lines_of(journal):
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    out = tmp_path / "out"
    options = [archive, "--out", out, "--model", tiny_engine, "--readers", 2]
    generator = random.Random(5)
    journal = out / "journal" / "all.jsonl"
    for _ in range(10):
        wanted = min(28, lines_of(journal) + generator.randrange(1, 4))
        with warm.start("-c", forking, *options, "--mode", "keyframes") as process:
            while lines_of(journal) < wanted:
                time.sleep(0.005)
            time.sleep(generator.random() * 0.05)
            process.kill()
    with journal.open("ab") as file:
        file.write(b'{"path":"half')
    finished = journal.read_bytes().count(b"\n")
    done = scan(archive, "--mode", "keyframes")
    assert done.code == 0
    assert f"{30 - finished} files scanned, {finished} known" in done.log
    assert len(read_rows(out)) == len(done.rows) == 30
    lines = journal.read_text(encoding="utf-8").splitlines()
    assert len({json.loads(line)["path"] for line in lines}) == len(lines) == 30


def test_a_file_that_misbehaves_costs_itself_alone(scan, clip, tmp_path):
    names = [
        "abort.mp4",
        "burn.mp4",
        "good.mp4",
        "greedy.mp4",
        "hang.mp4",
        "phone.mp4",
        "write.mp4",
    ]
    for name in names:
        (tmp_path / name).hardlink_to(clip)
    limits = ["--limit", "cpu_s=1", "--limit", "silent_s=10"]
    done = scan(*names, *limits, "--mode", "keyframes")
    assert done.code == 3
    ends = {name: (row["status"], row["attempts"]) for name, row in done.rows.items()}
    assert ends == {
        "abort.mp4": ("crashed", 2),
        "burn.mp4": ("timeout", 1),
        "good.mp4": ("ok", 1),
        "greedy.mp4": ("too_large", 1),
        "hang.mp4": ("timeout", 2),
        "phone.mp4": ("unreadable", 1),
        "write.mp4": ("unreadable", 1),
    }
    assert "SIGABRT" in done.rows["abort.mp4"]["reason"]
    assert "Operation not permitted" in done.rows["phone.mp4"]["reason"]
    assert "cpu_s" in done.rows["burn.mp4"]["reason"]


def test_what_is_larger_or_longer_than_allowed_says_so_and_keeps_what_was_read(
    scan, write_clip, two_faces, tmp_path
):
    large = write_clip(tmp_path / "large.mp4", n=2, size=(640, 480))
    ages = write_clip(tmp_path / "ages.mkv", times_s=[0, 1, 2, 100_000])
    limits = ["--limit", "max_pixels=200000", "--limit", "duration_s=50000"]
    done = scan(large, ages, two_faces, *limits, "--mode", "sample")
    assert done.rows["large.mp4"]["status"] == "too_large"
    assert "640x480 exceeds 200000 pixels" in done.rows["large.mp4"]["reason"]
    assert done.rows["ages.mkv"]["status"] == "too_large"
    assert done.rows["ages.mkv"]["frames_analysed"] == 3
    assert done.rows["two_faces.mp4"]["status"] == "ok"


def damage(kind: int, whole: bytes, generator: random.Random) -> bytes:
    """Return a file that is damaged in one of seven ways."""
    data = bytearray(whole)
    match kind:
        case 0:  # cut off
            return whole[: generator.randrange(len(whole))]
        case 1:  # bits flipped everywhere
            for _ in range(20):
                data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        case 2:
            return b""
        case 3:  # the wrong suffix
            return generator.randbytes(500)
        case 4:  # no index, or what is left of it
            data[-200:] = bytes(200)
        case 5:  # its beginning
            data[: generator.randrange(64)] = generator.randbytes(64)
        case _:  # numbers that lie: sizes, durations, dimensions
            at = generator.randrange(len(data) - 4)
            data[at : at + 4] = b"\xff\xff\xff\x7f"
    return bytes(data)


@pytest.mark.slow
def test_two_hundred_damaged_files_are_two_hundred_rows_and_no_good_file_is_lost(
    scan, write_clip, tmp_path, read_rows
):
    archive = tmp_path / "archive"
    archive.mkdir()
    how = {"n": 10, "size": (160, 96)}
    wholes = [
        write_clip(tmp_path / f"whole{suffix}", **how) for suffix in (".mp4", ".mkv", ".ts", ".avi")
    ]
    fragments = {"movflags": "frag_keyframe+empty_moov"}
    wholes.append(write_clip(tmp_path / "fragments.mp4", container_options=fragments, **how))
    generator = random.Random(11)
    for number in range(200):
        whole = wholes[number % len(wholes)]
        content = damage(number % 7, whole.read_bytes(), generator)
        (archive / f"{number}{whole.suffix}").write_bytes(content)
    for whole in wholes:
        (archive / f"good-{whole.name}").hardlink_to(whole)
    done = scan(archive, "--mode", "keyframes", "--limit", "silent_s=60")
    assert len(done.rows) == len(read_rows(tmp_path / "out")) == 205, done.log
    good = [row for name, row in done.rows.items() if name.startswith("good-")]
    assert [(row["status"], row["frames_analysed"]) for row in good] == [("ok", 1)] * 5
    ends = {row["status"] for row in done.rows.values()}
    assert {"ok", "unreadable"} <= ends <= {"ok", "unreadable", "too_large"}, done.log


@pytest.mark.rtsp
def test_a_file_is_judged_as_the_live_stream_judges_it(
    scan, warm, write_two_faces, tiny_engine, rtsp_camera, tmp_path
):
    options = {"preset": "ultrafast", "g": "25", "sc_threshold": "0", "threads": "1"}
    path = write_two_faces(tmp_path / "faces.mp4", seconds=3, options=options)
    rows = scan(path, "--mode", "full").rows["faces.mp4"]["tracks"]
    messages = tmp_path / "live.jsonl"
    once = rtsp_camera(path).url.replace("play_count=0", "play_count=1")
    live = [f"cam={once}", "--model", tiny_engine, "--sink", f"jsonl:{messages}"]
    with warm.start(PROGRAM, *live) as process:
        while not (messages.exists() and messages.read_text().count('"track.end"') >= 2):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.communicate()
    said = [json.loads(line) for line in messages.read_text(encoding="utf-8").splitlines()]
    ends = {m["track"]["id"]: m for m in said if m["event"]["type"] == "track.end"}
    scanned = sorted((row["boxes"][0]["x"] > 0.4, row["verdict"]) for row in rows)
    streamed = sorted((m["bbox"]["x"] > 0.4, m["verdict"]["state"]) for m in ends.values())
    assert scanned == streamed == [(False, "bona_fide"), (True, "attack")]
    for row in rows:
        (same,) = [
            m for m in ends.values() if (m["bbox"]["x"] > 0.4) == (row["boxes"][0]["x"] > 0.4)
        ]
        assert same["verdict"]["p_attack"] == pytest.approx(row["p_attack"], abs=0.1)


def test_started_as_people_do(warm, two_faces, tiny_engine, tmp_path, read_rows):
    out = tmp_path / "out"
    command = ["scan", two_faces, "--out", out, "--model", tiny_engine, "--mode", "full"]
    with warm.start(PROGRAM, *command) as process:
        process.communicate()
    assert process.wait() == 0
    (row,) = read_rows(out)
    assert row["verdict"] == "attack"


def test_key_frames_show_where_to_look_closer(scan, write_clip, tmp_path):
    portrait = np.asarray(
        Image.fromarray(skimage.data.astronaut()[:230, 115:335]).resize((130, 130))
    )
    dark = (portrait * 0.4 + 20).astype(np.uint8)

    def draw(number, width, height):
        picture = np.random.default_rng(number).normal(90, 6, (height, width, 3)).clip(0, 255)
        picture = picture.astype(np.uint8)
        if 50 <= number < 90:
            picture[30:160, 100:230] = dark
        return picture

    options = {"preset": "ultrafast", "g": "10", "sc_threshold": "0", "threads": "1"}
    how = {"n": 160, "fps": 10, "size": (320, 192), "picture": draw, "options": options}
    write_clip(tmp_path / "some.mp4", **how)
    key = scan("some.mp4", "--mode", "keyframes", "--fps", 2, out=tmp_path / "key")
    closer = scan("some.mp4", "--mode", "keyframes", "--then", "sample", "--fps", 2)
    first, row = key.rows["some.mp4"], closer.rows["some.mp4"]
    assert (first["mode"], row["mode"]) == ("keyframes", "keyframes+sample")
    assert (first["frames_analysed"], row["frames_analysed"]) == (16, 16 + 11)  # 4 s to 9 s
    assert row["verdict"] == "attack"
    (track,) = row["tracks"]
    assert (track["first_s"], track["last_s"]) == (5.0, 8.5)
    assert track["n_scores"] == 8
    assert row["frames_seen"] < 16 + 60
    assert (row["seconds"], row["coverage"]) == (15.0, 0.25)


def test_without_a_face_nothing_is_looked_at_again(scan, clip):
    done = scan(clip, "--mode", "keyframes", "--then", "sample")
    row = done.rows["clip.mp4"]
    assert (row["mode"], row["frames_analysed"]) == ("keyframes", 2)


def test_heic_is_read_where_its_library_is(scan, tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs the extra heic")
    portrait = Image.fromarray(skimage.data.astronaut()[:230, 115:335]).resize((440, 460))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise; in HEIC, the library does it
    pillow_heif.register_heif_opener()
    portrait.save(tmp_path / "upright.heic", quality=80)
    portrait.rotate(90, expand=True).save(tmp_path / "turned.HEIC", exif=exif.tobytes())
    (tmp_path / "cut.heic").write_bytes((tmp_path / "upright.heic").read_bytes()[:3000])
    done = scan("upright.heic", "turned.HEIC", "cut.heic")
    sizes = {n: (r["status"], r["width"], r["height"]) for n, r in done.rows.items()}
    assert sizes == {
        "upright.heic": ("ok", 440, 460),
        "turned.HEIC": ("ok", 440, 460),
        "cut.heic": ("unreadable", None, None),
    }, done.log
    assert done.rows["turned.HEIC"]["verdict"] == done.rows["upright.heic"]["verdict"]


@pytest.mark.parametrize("fits", [True, False])
def test_a_picture_fits_if_its_own_pixels_do_whatever_the_decoder_pads_it_to(
    scan, write_clip, tmp_path, fits
):
    write_clip(tmp_path / "odd.mp4", n=2, size=(90, 34))  # decoded to 96x48
    limit = 90 * 34 if fits else 90 * 34 - 1
    (row,) = scan("odd.mp4", "--limit", f"max_pixels={limit}").rows.values()
    assert row["status"] == ("ok" if fits else "too_large")


@pytest.mark.redis
def test_results_are_published_once_a_file_and_read_by_the_subscriber(
    scan, redis_server, two_faces, tmp_path
):
    (tmp_path / "empty.mkv").touch()
    (tmp_path / "faces.mp4").hardlink_to(two_faces)
    files = ["empty.mkv", "faces.mp4"]
    redis = {"REDIS_URL": redis_server.url}
    done = scan(*files, "--mode", "full", "--sink", "redis", env=redis)
    assert done.code == 3, done.log

    def published():
        entries = redis_server.client.xrange("facewarden:scans")
        return [json.loads(fields[b"metadata"]) for _, fields in entries]

    messages = published()
    assert {m["file"]["path"]: m["verdict"]["state"] for m in messages} == {
        "empty.mkv": "no_face",
        "faces.mp4": "attack",
    }
    (faces,) = [m for m in messages if m["file"]["path"] == "faces.mp4"]
    assert faces["file"]["sha256"] == done.rows["faces.mp4"]["sha256"]
    assert [track["state"] for track in faces["tracks"]] == ["attack", "bona_fide"]
    assert "1 files" not in scan(*files, "--mode", "full", "--sink", "redis", env=redis).log
    assert len(published()) == 2
    # What is lost from the journal is scanned, and said, again: under the same name.
    (tmp_path / "out" / "journal" / "all.jsonl").unlink()
    scan(*files, "--mode", "full", "--sink", "redis", env=redis)
    assert len(published()) == 4
    with Subscription(
        redis_server.url, group="tests", streams=["scans"], from_start=True
    ) as subscribed:
        read = [next(subscribed)["event"]["id"] for _ in range(2)]
    assert sorted(read) == sorted({m["event"]["id"] for m in published()})


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.close()


def test_results_go_to_the_webhooks_of_the_configuration_if_that_is_asked_for(
    scan, receiver, two_faces, tmp_path
):
    (tmp_path / "faces.mp4").hardlink_to(two_faces)
    config = tmp_path / "stream.yaml"
    hook = {
        "kind": "webhook", "url": f"http://127.0.0.1:{receiver.port}/hook", "allow_http": True,
        "allow_private": True, "secret": "whsec_" + "A" * 32, "messages": ["alerts"],
    }  # fmt: skip
    config.write_text(json.dumps({"sinks": [hook]}))
    options = ["--mode", "keyframes", "--config", config]
    done = scan("faces.mp4", *options)
    assert "the webhooks of --config get nothing of this scan: add --sink webhook" in done.log
    assert receiver.requests == []
    (tmp_path / "out" / "journal" / "all.jsonl").unlink()
    receiver.answer = lambda _: (503, {})
    done = scan("faces.mp4", *options, "--sink", "webhook")
    assert done.code == 1
    assert "1 scan results are kept in" in done.log
    receiver.answer = lambda _: (204, {})
    done = scan("faces.mp4", *options, "--sink", "webhook")
    assert done.code == 0, done.log
    (_, _, body) = receiver.requests[-1]
    said = json.loads(body)
    assert said["event"]["type"] == "scan.result"
    assert said["file"]["path"].endswith("faces.mp4")
    assert said["file"]["sha256"] == done.rows["faces.mp4"]["sha256"]


def test_a_webhook_that_is_not_configured_is_refused_with_what_to_do(scan, clip):
    done = scan("clip.mp4", "--sink", "webhook")
    assert done.code == 2
    assert "expected its address in --config (sinks: [{kind: webhook, url: ...}])" in done.log


@pytest.mark.redis
def test_results_wait_on_disk_while_redis_is_away_and_are_sent_by_the_next_run(
    scan, redis_server, clip, tmp_path
):
    config = tmp_path / "stream.yaml"
    config.write_text(f"sinks: [{{kind: redis, url: '{redis_server.url}'}}]\n")
    options = ["--mode", "keyframes", "--sink", "redis", "--config", config]
    redis_server.kill()
    done = scan(clip, *options)
    assert done.code == 1
    assert "1 scan results are kept" in done.log
    assert done.rows["clip.mp4"]["status"] == "ok"
    redis_server.restart()
    assert scan(clip, *options).code == 0
    ((_, fields),) = redis_server.client.xrange("facewarden:scans")
    assert json.loads(fields[b"metadata"])["file"]["path"] == str(clip)


def test_an_engine_that_spreads_files_gets_a_row_for_each(open_analyser, two_faces, tmp_path):
    (item,) = list_items([bytes(two_faces)], Selection()).items
    plan = ScanPlan(
        mode=Mode.FULL,
        fps=5.0,
        decode=DecodeConfig(),
        closer=None,
        limits=ScanLimits(),
        follow_links=False,
        readers=1,
        folder=tmp_path,
        run_key="key",
        models=(),
    )
    analyser = open_analyser()
    row = scan_one(plan, lambda _: analyser, item)
    assert (row.status, row.verdict, row.n_tracks) == ("ok", "attack", 2)
    assert row.raw_path == bytes(two_faces)
    gone = scan_one(plan, lambda _: analyser, Item(b"gone.mp4", 1, 1))
    assert gone.status == "unreadable"


def test_globs_say_what_of_folders_is_taken_and_what_is_named_is_taken_anyway(tmp_path):
    for name in ("a/one.mp4", "a/b/two.mp4", "a/b/three.JPG", "a/four.bin", "a/b/five"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def taken(*paths, **globs):
        items = list_items([bytes(tmp_path / path) for path in paths], Selection(**globs)).items
        return [os.path.relpath(os.fsdecode(item.path), tmp_path / "a") for item in items]

    assert taken("a") == ["b/three.JPG", "b/two.mp4", "one.mp4"]
    assert taken("a", exclude=("b/*",)) == ["one.mp4"]
    assert taken("a", exclude=("*.mp4",)) == ["b/three.JPG"]
    assert taken("a", include=("four*", "b/five")) == ["b/five", "four.bin"]
    assert taken("a", include=("*.mp4",), exclude=("two*",)) == ["one.mp4"]
    assert taken("a/four.bin", "a/b", "a/b/two.mp4", exclude=("*",)) == ["b/two.mp4", "four.bin"]
