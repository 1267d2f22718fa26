"""Scans of small archives, as people run them: what is read and written, and how it goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import skimage.data
from PIL import Image

from tests.warm_start import WarmStarts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[3]
PROGRAM = ROOT / "run_stream.py"


# Children are forked from the program itself, not from one that has to import all of it again;
# `test_started_as_people_do` is the true way. What is read goes wrong if its name says so.
FORKING = """
import sys, multiprocessing, os, socket, time
import stream.scan.child, stream.scan.scanner
stream.scan.scanner.reading_context = lambda: multiprocessing.get_context("fork")
opens = stream.scan.child.open_decoder
def misbehaving(source, *more, **how):
    path = source.uri.get_secret_value()
    if "abort" in path:
        os.abort()
    if "hang" in path:
        time.sleep(1000)
    if "burn" in path:
        while True:
            pass
    if "greedy" in path:
        bytearray(2**40)
    if "phone" in path:
        socket.create_connection(("127.0.0.1", 9))
    if "write" in path:
        os.write(os.open(path, os.O_WRONLY | os.O_APPEND), b"more")
    return opens(source, *more, **how)
stream.scan.child.open_decoder = misbehaving
from stream.scan.command import main
main(sys.argv[1:])
"""


class Scanned(NamedTuple):
    code: int
    rows: dict[str, dict[str, Any]]  # by file name
    log: str


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmStarts]:
    starts = WarmStarts(
        *("stream.scan.scanner", "stream.scan.report", "stream.analyse", "pyarrow.parquet"),
        *("stream.decode.sampled", "trt_engines.backends.onnx_session"),
    )
    yield starts
    starts.close()


def read_rows(out: Path) -> list[dict[str, Any]]:
    text = (out / "results.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def scan(warm: WarmStarts, tiny_engine: Path, tmp_path: Path) -> Callable[..., Scanned]:
    """Return the function that scans with the tiny engine, into `tmp_path/out` if not told."""

    def run(*arguments: object, out: Path = tmp_path / "out", given: str = "") -> Scanned:
        options = ["--model", tiny_engine, "--out", out, "--readers", 2]
        with warm.start("-c", FORKING, *arguments, *options, cwd=tmp_path) as process:
            _, log = process.communicate(given)
        rows = {}
        if (out / "results.jsonl").exists():
            rows = {Path(row["path"]).name: row for row in read_rows(out)}
        return Scanned(process.wait(), rows, log)

    return run


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
    scan, two_faces, clip, tmp_path
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


def test_odd_names_from_a_list_are_taken_to_the_letter(scan, clip, tmp_path):
    names = [
        b"a b.mp4",
        b"k=v.mp4",
        b"rtsp:x.mp4",
        b"new\nline.mp4",
        b"\xff.mp4",
        b"%d.mp4",
        b"-x.mp4",
    ]
    for name in names:
        os.link(clip, os.fsencode(tmp_path) + b"/" + name)
    (tmp_path / "list").write_bytes(b"\0".join(names))
    done = scan("--from", "list", "--null", "--mode", "keyframes")
    rows = read_rows(tmp_path / "out")
    assert {row["status"] for row in rows} == {"ok"}, done.log
    raw = {bytes.fromhex(r["path_hex"]) if r["path_hex"] else r["path"].encode() for r in rows}
    assert raw == set(names)
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


def test_shards_share_no_file_leave_none_out_and_merge(scan, warm, clip, tmp_path):
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
    scan, warm, tiny_engine, clip, tmp_path
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
        with warm.start("-c", FORKING, *options, "--mode", "keyframes") as process:
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
    scan, write_clip, tmp_path
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


def test_started_as_people_do(warm, two_faces, tiny_engine, tmp_path):
    out = tmp_path / "out"
    command = ["scan", two_faces, "--out", out, "--model", tiny_engine, "--mode", "full"]
    with warm.start(PROGRAM, *command) as process:
        process.communicate()
    assert process.wait() == 0
    (row,) = read_rows(out)
    assert row["verdict"] == "attack"
