"""Faces are cut by the streaming path's own stages, once, and nothing gets lost."""

import dataclasses
import io
import json
import os
import shutil
import tarfile
import zipfile

import av
import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

import train.data.prepare
from models import InputSpec, crop_faces
from stream.config import DecodeConfig, DetectConfig, SourceConfig
from stream.decode import open_decoder
from stream.stages.detect import open_detector
from train.data.datasets._registry import load_dataset
from train.data.datasets._sample import ListedVideo
from train.data.frames import VideoFrames
from train.data.prepare import PrepareConfig, prepare, read_problems
from train.data.shard_writer import ShardWriter
from train.data.shards import open_shards
from train.errors import TrainError
from trt_engines.backends import OnnxRuntimeConfig

CONFIG = PrepareConfig(frames_per_video=3, size_px=128, margin=1.8)


def _portrait(shift=0):
    return np.ascontiguousarray(np.roll(skimage.data.astronaut()[:320, 60:460], shift, axis=1))


def _write_clip(path, pictures, fps=10):
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps)
        height, width = pictures[0].shape[:2]
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.options = {"crf": "18", "preset": "ultrafast"}
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode())


def _listed(path, kind="video", attack_type=None, **known):
    about = {"dataset": "test", "split": "train", "source_id": f"test:{path}"}
    return ListedVideo(path=path, kind=kind, attack_type=attack_type, **about | known)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    _write_clip(folder / "face.mp4", [_portrait(i) for i in range(20)])
    _write_clip(folder / "empty.mp4", [np.full((240, 320, 3), 90, np.uint8)] * 10)
    (folder / "broken.mp4").write_bytes(b"this is no video")
    Image.fromarray(_portrait()).save(folder / "face.png")
    (folder / "frames").mkdir()
    for i in (9, 10, 2):
        Image.fromarray(_portrait(i)).save(folder / "frames" / f"{i}.png")
    with tarfile.open(folder / "faces.tar.gz", "w:gz") as archive:
        archive.add(folder / "frames", "./fake/7")
    return folder


VIDEOS = [
    _listed("face.mp4"),
    _listed("face.png", "image", "print"),
    _listed("frames", "frames", "deepfake"),
]


@pytest.fixture(scope="module")
def prepared(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "test"
    bad = [_listed("empty.mp4"), _listed("broken.mp4", attack_type="replay"), _listed("gone.mp4")]
    return out, prepare([*VIDEOS, *bad], root, out, CONFIG, workers=0)


def test_every_kind_of_source_gives_its_faces_with_label_and_type(prepared):
    out, done = prepared
    records = open_shards(out).records
    assert done.faces == len(records)
    kinds = {(r.video_id, r.label, r.attack_type) for r in records}
    assert kinds == {
        ("test:face.mp4", 0, None),
        ("test:face.png", 1, "print"),
        ("test:frames", 1, "deepfake"),
    }


def test_frames_are_taken_evenly_from_the_whole_video(prepared):
    records = [r for r in open_shards(prepared[0]).records if r.video_id == "test:face.mp4"]
    assert [r.frame for r in records] == [0, 8, 16]
    assert [r.pts_s for r in records] == pytest.approx([0.0, 0.8, 1.6], abs=1e-3)


def test_stored_pixels_are_those_that_streaming_cuts(prepared, root):
    shards = open_shards(prepared[0])
    row = next(i for i, r in enumerate(shards.records) if r.sample_id == "test:face.mp4@0.1")
    source = SourceConfig.model_validate({"id": "x", "uri": str(root / "face.mp4")})
    decoder = open_decoder(source, DecodeConfig(analyse_fps=5), session=0)
    frame = next(f for f in decoder.frames() if f is not None)
    with open_detector(DetectConfig(min_face_px=40, detect_width=1280), OnnxRuntimeConfig()) as d:
        ((detection,),) = d.detect([frame.image], [None])
    decoder.close()
    spec = InputSpec(size_px=128, margin=1.8)
    expected = crop_faces(frame.image, detection.box[None], spec)[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(shards.crop(row), expected)


def test_landmarks_lie_where_the_stored_crop_shows_the_face(prepared):
    for record in open_shards(prepared[0]).records:
        eye_left, eye_right, nose, *_ = record.landmarks
        assert 30 < eye_left[0] < nose[0] < eye_right[0] < 98
        assert eye_left[1] < nose[1]


def test_videos_without_a_face_are_listed_with_the_reason(prepared):
    out, done = prepared
    found = [json.loads(line) for line in (out / "problems.jsonl").read_text().splitlines()]
    reasons = {p["path"]: p["problem"] for p in found}
    assert len(done.problems) == 3
    assert reasons["empty.mp4"] == "no face of 40 px or more"
    assert "can't be decoded" in reasons["broken.mp4"]
    assert "listed, but absent" in reasons["gone.mp4"]
    attacks = [video for video in read_problems(out) if video.label == 1]
    assert [video.video_id for video in attacks] == ["test:broken.mp4"]


def test_a_second_run_does_nothing(prepared, root):
    out, _ = prepared
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    bad = [_listed("empty.mp4"), _listed("broken.mp4", attack_type="replay"), _listed("gone.mp4")]
    assert prepare([*VIDEOS, *bad], root, out, CONFIG, workers=0) is None
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == before


def test_a_folder_of_other_settings_is_left_alone(prepared, root):
    with pytest.raises(TrainError, match="use another folder"):
        prepare(VIDEOS, root, prepared[0], CONFIG.model_copy(update={"margin": 1.5}), workers=0)


def test_two_workers_write_the_same_bytes_as_this_process(root, tmp_path):
    for workers in (0, 2):
        prepare(VIDEOS, root, tmp_path / str(workers), CONFIG, workers=workers)
    one, two = (sorted((tmp_path / str(w)).glob("*")) for w in (0, 2))
    assert [p.name for p in one] == [p.name for p in two]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True))


def test_no_face_at_all_is_an_error(root, tmp_path):
    with pytest.raises(TrainError, match="no face found in 1 videos"):
        prepare([_listed("empty.mp4")], root, tmp_path / "out", CONFIG, workers=0)


def test_a_run_that_was_killed_goes_on_after_its_last_complete_shard(root, tmp_path, monkeypatch):
    config = CONFIG.model_copy(update={"samples_per_shard": 1})
    videos = [dataclasses.replace(v, attributes={"copy": str(i)}) for i, v in enumerate(VIDEOS)]
    prepare(videos, root, tmp_path / "whole", config, workers=0)
    partial, add = tmp_path / "partial", ShardWriter.add

    def killed(writer, *what):
        if writer.stored:
            raise KeyboardInterrupt
        add(writer, *what)

    monkeypatch.setattr(ShardWriter, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(videos, root, partial, config, workers=0)
    monkeypatch.undo()
    assert sorted(p.name for p in partial.iterdir()) == [
        *("prepared.json", "shard-00000.arrow", "shard-00000.tar")
    ]
    prepare(videos, root, partial, config, workers=0)
    for path in (tmp_path / "whole").iterdir():
        assert (partial / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_contact_sheet_has_a_row_for_each_type(prepared):
    out, _ = prepared
    with Image.open(out / "contact-sheet.png") as sheet:
        pixels = np.asarray(sheet)
    bands = pixels.reshape(3, -1, *pixels.shape[1:])  # bona fide, deepfake, print
    for band in bands:
        assert (band[:18] < 128).any()  # the title
        assert band[20:132, :112].std() > 20  # a face below it
        assert (band[134:, :112] < 128).any()  # what it is
    assert len({band.tobytes() for band in bands}) == 3


# ---- bringing a folder up to date


@pytest.fixture
def own(tmp_path):
    """A folder of two pictures and a clip, prepared, and the command that prepares it again."""
    root, out = tmp_path / "own", tmp_path / "out"
    root.mkdir()
    for shift, name in enumerate(("a.png", "b.png")):
        Image.fromarray(_portrait(shift)).save(root / name)
    _write_clip(root / "c.mp4", [_portrait(i) for i in range(4)])
    videos = {
        "a.png": _listed("a.png", "image"),
        "b.png": _listed("b.png", "image"),
        "c.mp4": _listed("c.mp4", attack_type="replay"),
    }

    def again():
        return prepare(list(videos.values()), root, out, CONFIG, workers=0)

    assert again().cut == 3
    return root, out, videos, again


@pytest.fixture
def cut_videos(monkeypatch):
    """The names of the videos that are cut from now on."""
    cut = []

    def noted(video, *about):
        cut.append(video.path)
        return real(video, *about)

    real = train.data.prepare._cut_video
    monkeypatch.setattr(train.data.prepare, "_cut_video", noted)
    return cut


def _stored(out):
    shards = open_shards(out)
    return {record.video_id.removeprefix("test:"): record for record in shards.records}


def test_nothing_is_done_where_nothing_changed(own, cut_videos):
    *_, again = own
    assert again() is None
    assert cut_videos == []


def test_a_changed_fact_is_stored_without_cutting_again(own, cut_videos):
    _, out, videos, again = own
    for change in (
        {"subject": "test:ann"},
        {"source_id": "test:take1"},
        {"split": "dev"},
        {"attack_type": "print"},
        {"compression": "c23"},
        {"attributes": {"phone": "1", "licence": "mine"}},
    ):
        videos["a.png"] = dataclasses.replace(videos["a.png"], **change)
        done = again()
        assert (done.cut, done.relabelled, done.dropped) == (0, 1, 0)
        record = _stored(out)["a.png"]
        for name, value in change.items():
            assert getattr(record, name) == value
        assert record.label == videos["a.png"].label
        assert again() is None
    assert record.licence == "mine"
    assert cut_videos == []


def test_a_replaced_picture_is_cut_again_and_nothing_else_is(own, cut_videos):
    root, out, _, again = own
    before = _stored(out)
    Image.fromarray(_portrait(40)).save(root / "a.png")
    assert again().cut == 1
    assert cut_videos == ["a.png"]
    after = _stored(out)
    assert after["a.png"].source_sha256 != before["a.png"].source_sha256
    assert after["a.png"].box != before["a.png"].box
    assert after["b.png"] == before["b.png"]
    assert again() is None


def test_a_picture_replaced_by_one_of_equal_size_and_age_is_noticed(own, cut_videos):
    root, _, _, again = own
    stat = (root / "a.png").stat()
    content = bytearray((root / "a.png").read_bytes())
    content[-20] ^= 1
    (root / "a.png").write_bytes(content)
    os.utime(root / "a.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again()
    assert cut_videos == ["a.png"]


def test_a_touched_file_of_equal_content_is_not_cut_again(own, cut_videos):
    root, _, _, again = own
    for name in ("a.png", "c.mp4"):
        os.utime(root / name)
    assert again() is None
    assert again() is None
    assert cut_videos == []


def test_new_videos_are_added_and_those_that_are_gone_are_dropped_and_named(
    own, cut_videos, caplog
):
    root, out, videos, again = own
    Image.fromarray(_portrait(30)).save(root / "d.png")
    videos["d.png"] = _listed("d.png", "image")
    del videos["b.png"]
    done = again()
    assert (done.cut, done.dropped) == (1, 1)
    assert cut_videos == ["d.png"]
    assert "1 videos are no longer listed and are dropped: test:b.png" in caplog.text
    assert sorted(_stored(out)) == ["a.png", "c.mp4", "d.png"]


def test_a_video_that_was_damaged_is_tried_again_once_its_file_changed(own, cut_videos):
    root, out, videos, again = own
    (root / "d.png").write_bytes(b"nothing")
    videos["d.png"] = _listed("d.png", "image")
    assert len(again().problems) == 1
    assert again() is None
    assert cut_videos == ["d.png"]
    Image.fromarray(_portrait(30)).save(root / "d.png")
    assert again().problems == ()
    assert "d.png" in _stored(out)


def test_a_video_without_a_face_may_be_relabelled_and_is_forgotten_with_the_file(own, cut_videos):
    _, out, videos, again = own
    videos["gone.png"] = _listed("gone.png", "image")
    again()
    videos["gone.png"] = dataclasses.replace(videos["gone.png"], split="dev")
    assert again().problems[0].split == "dev"
    assert cut_videos == ["gone.png"]
    del videos["gone.png"]
    assert again().problems == ()
    assert (out / "problems.jsonl").read_text() == ""


def test_another_frame_rate_is_another_reading(tmp_path, cut_videos):
    frames = tmp_path / "root" / "frames"
    frames.mkdir(parents=True)
    for i in range(4):
        Image.fromarray(_portrait(i)).save(frames / f"{i}.png")
    for fps in (None, 2.0, 2.0):
        prepare(
            [_listed("frames", "frames", fps=fps)],
            *(tmp_path / "root", tmp_path / "out", CONFIG),
            workers=0,
        )
    assert len(cut_videos) == 2


# ---- nobody on two sides


@pytest.mark.parametrize(
    "shared", [{"subject": "test:ann"}, {"source_id": "test:take1"}], ids=["subject", "source"]
)
def test_people_and_sources_on_two_sides_are_refused_before_anything_is_cut(
    root, tmp_path, cut_videos, shared
):
    videos = [
        dataclasses.replace(VIDEOS[0], **shared),
        dataclasses.replace(VIDEOS[1], split="test", **shared),
    ]
    about = (root, tmp_path / "out", CONFIG)
    with pytest.raises(TrainError, match=r"in train and in test: 1 s.*face.mp4, .*face.png"):
        prepare(videos, *about, workers=0)
    assert cut_videos == []
    assert prepare(videos, *about, workers=0, allow_overlap=True).cut == 2


def test_byte_identical_files_on_two_sides_are_refused_and_what_was_cut_is_kept(
    own, cut_videos, caplog
):
    root, out, videos, again = own
    shutil.copy(root / "a.png", root / "copy.png")
    videos["copy.png"] = _listed("copy.png", "image", split="test")
    for _ in range(2):
        with pytest.raises(TrainError, match=r"1 byte-identical files .test:a.png = test:copy.png"):
            again()
    assert cut_videos == ["copy.png"]
    prepare(list(videos.values()), root, out, CONFIG, workers=0, allow_overlap=True)
    assert "overlap allowed" in caplog.text


def test_byte_identical_pictures_on_one_side_are_no_leak(own):
    root, _, videos, again = own
    shutil.copy(root / "a.png", root / "copy.png")
    videos["copy.png"] = _listed("copy.png", "image")
    assert again().cut == 1


def test_clips_in_one_archive_are_not_the_same_file(root, tmp_path):
    archive = tmp_path / "two.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for i in range(2):
            Image.fromarray(_portrait(50 * i)).save(tmp_path / "f.png")
            tar.add(tmp_path / "f.png", f"clip{i}/0.png")
    videos = [
        _listed("two.tar.gz", "frames", member=f"clip{i}", split=split)
        for i, split in enumerate(("train", "test"))
    ]
    videos = [dataclasses.replace(v, source_id=v.video_id) for v in videos]
    assert prepare(videos, tmp_path, tmp_path / "out", CONFIG, workers=0).faces == 2


# ---- one bad input does not end the rest


def _broken(form, damage):
    stored = io.BytesIO()
    Image.fromarray(_portrait()).save(stored, form)
    content = bytearray(stored.getvalue())
    match damage:
        case "cut":
            return content[: len(content) // 3]
        case "zeros":
            content[len(content) // 2 : -1] = bytes(len(content) - 1 - len(content) // 2)
        case "header":
            content[2:60] = bytes(range(58))
    return content


def test_damaged_pictures_are_rows_of_problems_and_the_rest_goes_on(tmp_path):
    forms = ("WEBP", "PNG", "BMP", "JPEG", "TIFF", "PPM", "JPEG2000", "TGA")
    names = []
    for form in forms:
        for damage in ("cut", "zeros", "header"):
            names.append(f"{form}_{damage}.png")
            (tmp_path / names[-1]).write_bytes(_broken(form, damage))
    Image.fromarray(_portrait()).save(tmp_path / "good.png")
    videos = [_listed(name, "image") for name in (*names, "good.png")]
    done = prepare(videos, tmp_path, tmp_path / "out", CONFIG, workers=0)
    stored = _stored(tmp_path / "out")
    assert "good.png" in stored
    # Some decoders give a picture all the same; nothing is lost, and nothing counted twice.
    assert sorted([*stored, *(p.path for p in done.problems)]) == sorted([*names, "good.png"])
    assert len(done.problems) > 15
    assert not any("foreseen" in p.problem for p in done.problems)


def test_an_error_that_nobody_foresaw_is_tried_twice_and_costs_one_video(
    root, tmp_path, monkeypatch
):
    tried = []
    real = VideoFrames.__iter__

    def failing(frames):
        if frames._video.path == "face.png":
            tried.append(1)
            raise ZeroDivisionError("the moon")
        return real(frames)

    monkeypatch.setattr(VideoFrames, "__iter__", failing)
    done = prepare(VIDEOS, root, tmp_path / "out", CONFIG, workers=0)
    assert len(tried) == 2
    ((path, problem),) = [(p.path, p.problem) for p in done.problems]
    assert path == "face.png"
    assert "ZeroDivisionError: the moon" in problem
    monkeypatch.undo()
    done = prepare(VIDEOS, root, tmp_path / "out", CONFIG, workers=0)  # it may have been the disk
    assert (done.cut, done.problems) == (1, ())


def test_an_error_that_passes_costs_nothing(root, tmp_path, monkeypatch):
    real, failed = VideoFrames.__iter__, []

    def failing_once(frames):
        if not failed:
            failed.append(1)
            raise OSError("the network")
        return real(frames)

    monkeypatch.setattr(VideoFrames, "__iter__", failing_once)
    assert prepare(VIDEOS[1:2], root, tmp_path / "out", CONFIG, workers=0).problems == ()


def test_a_file_that_kills_its_process_costs_one_video(tmp_path, monkeypatch):
    """The decoder of a worker dies on one file, as a fault in native code would have it."""
    for name in ("a.png", "b.png", "killer.h5"):
        Image.fromarray(_portrait()).save(tmp_path / name, "PNG")
    (tmp_path / "h5py.py").write_text("import os\nos._exit(11)\n")
    videos = [_listed("a.png", "image"), _listed("killer.h5", "hdf5"), _listed("b.png", "image")]
    monkeypatch.syspath_prepend(tmp_path)  # the workers get the path
    done = prepare(videos, tmp_path, tmp_path / "out", CONFIG, workers=2)
    assert sorted(_stored(tmp_path / "out")) == ["a.png", "b.png"]
    assert [(p.path, p.problem) for p in done.problems] == [
        ("killer.h5", "reading it kills the process")
    ]


# ---- partial media


def _damaged(path, tmp_path, share):
    """Zero a middle part of a clip's media data."""
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    end = content.index(b"moov", start) - 4 if b"moov" in content[start:] else len(content)
    first = start + int(share[0] * (end - start))
    last = start + int(share[1] * (end - start))
    content[first:last] = bytes(last - first)
    (tmp_path / path.name).write_bytes(content)


def test_what_could_be_read_of_a_damaged_clip_counts_and_the_damage_is_noted(root, tmp_path):
    _damaged(root / "face.mp4", tmp_path, (0.55, 1.0))
    (done,) = [prepare([VIDEOS[0]], tmp_path, tmp_path / "out", CONFIG, workers=0)]
    (problem,) = done.problems
    assert problem.faces == done.faces == 3
    assert "damaged" in problem.problem
    assert read_problems(tmp_path / "out") == []  # evaluation counts those without a face
    assert prepare([VIDEOS[0]], tmp_path, tmp_path / "out", CONFIG, workers=0) is None


def test_a_damaged_picture_of_a_clip_costs_that_picture(root, tmp_path):
    shutil.copytree(root / "frames", tmp_path / "frames")
    (tmp_path / "frames" / "3.png").write_bytes(b"no picture")
    done = prepare([VIDEOS[2]], tmp_path, tmp_path / "out", CONFIG, workers=0)
    assert done.faces == 3
    assert "1 of 4 pictures can't be read" in done.problems[0].problem
    assert "3.png" in done.problems[0].problem


def test_an_archive_that_ends_early_gives_what_it_holds(root, tmp_path):
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(root / "frames", "clip")
    archive.write_bytes(archive.read_bytes()[: 2 * archive.stat().st_size // 3])
    frames = VideoFrames(_listed("a.tar", "frames", member="clip"), tmp_path, 25)
    assert 0 < len(list(frames)) < 3
    assert "a.tar//clip: can't be read" in frames.damage


# ---- names


def test_any_legal_name_works(root, tmp_path):
    names = ["wow!", "a.zip!b", "#1 %20 take", "back\\slash", "né", "a:b", "$x", "new\nline", "-v"]
    folder, videos = tmp_path / "root", []
    folder.mkdir()
    for name in names:
        for suffix in (".mp4", ".png"):
            shutil.copy(root / f"face{suffix}", folder / f"{name}{suffix}")
        shutil.copytree(root / "frames", folder / name)
        videos += [
            _listed(f"{name}.mp4"),
            _listed(f"{name}.png", "image", "print"),
            _listed(name, "frames", "deepfake"),
        ]
    done = prepare(videos, folder, tmp_path / "out", CONFIG, workers=0)
    assert done.problems == ()
    stored = open_shards(tmp_path / "out").videos["video_id"].to_pylist()
    assert sorted(stored) == sorted(video.video_id for video in videos)
    assert prepare(videos, folder, tmp_path / "out", CONFIG, workers=0) is None


def test_names_that_are_no_utf8_work_and_are_printable(root, tmp_path):
    folder = tmp_path / "root" / "bona_fide"
    folder.mkdir(parents=True)
    for suffix in ("mp4", "png"):
        name = os.fsencode(folder) + b"/J\xf6rg." + suffix.encode()
        with open(name, "wb") as file:  # noqa: PTH123 - the name is bytes
            file.write((root / f"face.{suffix}").read_bytes())
    (tmp_path / "root" / "attack" / "print").mkdir(parents=True)
    shutil.copy(root / "frames" / "9.png", tmp_path / "root" / "attack" / "print")
    videos = load_dataset("two_folders").read(tmp_path / "root", {"dev_share": 0})
    done = prepare(videos, tmp_path / "root", tmp_path / "out", CONFIG, workers=0)
    assert done.problems == ()
    assert {r.video_id for r in open_shards(tmp_path / "out").records} == {
        "two_folders:bona_fide/J\\xf6rg.mp4",
        "two_folders:bona_fide/J\\xf6rg.png",
        "two_folders:attack/print/9.png",
    }


def test_a_member_of_an_archive_and_a_file_of_that_name_are_two(root, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(root / "face.png", "b!c.png")
    Image.fromarray(_portrait(40)).save(tmp_path / "a.zip!b!c.png")
    videos = [
        _listed("a.zip", "image", member="b!c.png"),
        _listed("a.zip!b!c.png", "image"),
    ]
    assert prepare(videos, tmp_path, tmp_path / "out", CONFIG, workers=0).faces == 2
    assert sorted(_stored(tmp_path / "out")) == ["a.zip!b!c.png", "a.zip//b!c.png"]


# ---- reading


def test_frames_of_a_folder_come_in_the_order_of_their_numbers(root):
    for video in (
        _listed("frames", "frames"),
        _listed("faces.tar.gz", "frames", member="fake/7"),
    ):
        frames = list(VideoFrames(video, root, 25))
        assert len(frames) == 3
        for frame, shift in zip(frames, (2, 9, 10), strict=True):
            assert torch.equal(frame.image, torch.from_numpy(_portrait(shift)))


def test_a_frame_range_limits_a_video(root):
    frames = VideoFrames(_listed("face.mp4", frames=(4, 9)), root, analyse_fps=100)
    assert [frame.stamp.index for frame in frames] == [4, 5, 6, 7, 8]


def test_every_picture_of_a_folder_is_looked_at_unless_a_frame_rate_is_told(tmp_path):
    (tmp_path / "clip").mkdir()
    for i in range(32):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / "clip" / f"{i}.png")
    looked = {
        fps: [
            (f.stamp.index, round(f.stamp.pts_s, 3))
            for f in VideoFrames(_listed("clip", "frames", fps=fps), tmp_path, analyse_fps=5)
        ]
        for fps in (None, 25.0, 5.0)
    }
    assert [index for index, _ in looked[None]] == list(range(32))
    assert looked[None][1] == (1, 0.2)  # as if they were analysed one after the other
    assert [index for index, _ in looked[25.0]] == [0, 5, 10, 15, 20, 25, 30]
    assert looked[25.0][1] == (5, 0.2)
    assert len(looked[5.0]) == 32


@pytest.mark.parametrize(("options", "faces"), [({}, 32), ({"frames_fps": 25}, 7)])
def test_extracted_frames_of_your_own_are_all_used_unless_a_frame_rate_is_told(
    tmp_path, options, faces
):
    clip = tmp_path / "root" / "bona_fide" / "clip"
    clip.mkdir(parents=True)
    for i in range(32):
        Image.fromarray(_portrait(i)[::2, ::2]).save(clip / f"{i}.png")
    videos = load_dataset("two_folders").read(tmp_path / "root", {"dev_share": 0, **options})
    config = CONFIG.model_copy(update={"frames_per_video": 32})
    done = prepare(videos, tmp_path / "root", tmp_path / "out", config, workers=0)
    assert done.faces == faces
    assert len({r.source_id for r in open_shards(tmp_path / "out").records}) == 1


def test_portraits_of_a_folder_are_pictures(tmp_path):
    folder = tmp_path / "root" / "bona_fide" / "people"
    folder.mkdir(parents=True)
    for i in range(5):  # no two in one place: nothing that a tracker would follow
        picture = np.full((500, 900, 3), 40 * i, np.uint8)
        picture[20 + 30 * i : 340 + 30 * i, 110 * i : 110 * i + 400] = _portrait()
        Image.fromarray(picture).save(folder / f"person{i}.png")
    videos = load_dataset("two_folders").read(tmp_path / "root", {"dev_share": 0})
    done = prepare(videos, tmp_path / "root", tmp_path / "out", CONFIG, workers=0)
    assert (done.faces, done.problems) == (5, ())


def test_colour_pictures_of_a_recording_are_read(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "r.hdf5", "w") as recording:
        for i in (0, 10, 2):
            recording[f"Frame_{i}/array"] = np.full((3, 4, 6), i, np.uint8)
        recording.create_group("Frame_11")
    frames = VideoFrames(_listed("r.hdf5", "hdf5"), tmp_path, analyse_fps=25)
    read = list(frames)
    assert [int(frame.image[0, 0, 0]) for frame in read] == [0, 2, 10]
    assert read[0].image.shape == (4, 6, 3)
    assert "1 of 4 frames can't be read" in frames.damage


def test_a_picture_that_cannot_be_read_is_an_error_that_names_it(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(TrainError, match=r"x\.png: can't read the picture"):
        list(VideoFrames(_listed("x.png", "image"), tmp_path, analyse_fps=5))


def _grey(tmp_path, levels, name):
    Image.fromarray(levels).save(tmp_path / name)
    (frame,) = VideoFrames(_listed(name, "image"), tmp_path, analyse_fps=5)
    return frame.image.numpy()


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_grey_pictures_of_16_bits_are_scaled_and_not_clipped(tmp_path, name):
    levels = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    read = _grey(tmp_path, levels, name)
    np.testing.assert_array_equal(read, np.repeat(np.arange(256).reshape(16, 16, 1), 3, axis=2))


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_grey_pictures_of_floating_point_are_scaled(tmp_path, scale):
    levels = (np.arange(256, dtype=np.float32).reshape(16, 16) / 255) * np.float32(scale)
    read = _grey(tmp_path, levels, "deep.tif")
    np.testing.assert_array_equal(read[..., 0], np.arange(256).reshape(16, 16))


def test_grey_levels_of_no_known_scale_are_refused(tmp_path):
    with pytest.raises(TrainError, match="neither 16-bit nor"):
        _grey(tmp_path, np.full((4, 4), 3e9, np.float32), "deep.tif")


def test_a_face_below_the_limit_is_not_stored(tmp_path):
    # 25 px wide in the picture; the detector would still find it.
    small = Image.new("RGB", (320, 240), (90, 90, 90))
    side = 100
    face = Image.fromarray(skimage.data.astronaut()[:220, 100:320]).resize((side, side))
    small.paste(face, (100, 60))
    small.save(tmp_path / "small.png")
    about = ([_listed("small.png", "image")], tmp_path)
    low = CONFIG.model_copy(update={"min_face_px": 20})
    found = prepare(*about, tmp_path / "low", low, workers=0)
    (record,) = open_shards(tmp_path / "low").records
    assert found.faces == 1
    high = CONFIG.model_copy(update={"min_face_px": int(record.face_px) + 1})
    with pytest.raises(TrainError, match="no face found"):
        prepare(*about, tmp_path / "high", high, workers=0)
