"""Faces are cut by the streaming path's own stages, once, and nothing gets lost."""

import dataclasses
import json
import tarfile

import av
import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from models import InputSpec, crop_faces
from stream.config import DecodeConfig, DetectConfig, SourceConfig
from stream.decode import open_decoder
from stream.stages.detect import open_detector
from train.data.datasets._sample import ListedVideo
from train.data.frames import frames_of
from train.data.prepare import PrepareConfig, prepare, read_problems
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
    return ListedVideo(
        dataset="test",
        path=path,
        kind=kind,
        attack_type=attack_type,
        split="train",
        source_id=f"test:{path}",
        **known,
    )


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
        archive.add(folder / "frames", "fake/7")
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


def test_a_changed_label_is_another_data_set(prepared, root):
    changed = [dataclasses.replace(VIDEOS[0], attack_type="replay"), *VIDEOS[1:]]
    with pytest.raises(TrainError, match="use another folder"):
        prepare(changed, root, prepared[0], CONFIG, workers=0)


def test_two_workers_write_the_same_bytes_as_this_process(root, tmp_path):
    for workers in (0, 2):
        prepare(VIDEOS, root, tmp_path / str(workers), CONFIG, workers=workers)
    one, two = (sorted((tmp_path / str(w)).glob("*")) for w in (0, 2))
    assert [p.name for p in one] == [p.name for p in two]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True))


def test_no_face_at_all_is_an_error(root, tmp_path):
    with pytest.raises(TrainError, match="no face found in 1 videos"):
        prepare([_listed("empty.mp4")], root, tmp_path / "out", CONFIG, workers=0)


def test_a_run_that_was_killed_goes_on_after_its_last_complete_shard(root, tmp_path):
    config = CONFIG.model_copy(update={"samples_per_shard": 1})
    videos = [dataclasses.replace(v, attributes={"copy": str(i)}) for i, v in enumerate(VIDEOS)]
    prepare(videos, root, tmp_path / "whole", config, workers=0)
    partial = tmp_path / "partial"
    prepare(videos, root, partial, config, workers=0)
    # What a kill after the first shard leaves behind.
    faces = (partial / "manifest.jsonl").read_text().splitlines(keepends=True)
    first = [line for line in faces if json.loads(line)["shard"] == "shard-00000.tar"]
    (partial / "manifest.jsonl").unlink()
    (partial / "shard-00000.jsonl").write_text("".join(first))
    for later in list(partial.glob("shard-*.tar")):
        if later.name != "shard-00000.tar":
            later.unlink()
    prepare(videos, root, partial, config, workers=0)
    for path in (tmp_path / "whole").iterdir():
        assert (partial / path.name).read_bytes() == path.read_bytes(), path.name


def test_frames_of_a_folder_come_in_the_order_of_their_numbers(root):
    for path in ("frames", "faces.tar.gz!fake/7"):
        frames = list(frames_of(_listed(path, "frames"), root, analyse_fps=25))
        assert len(frames) == 3
        for frame, shift in zip(frames, (2, 9, 10), strict=True):
            assert torch.equal(frame.image, torch.from_numpy(_portrait(shift)))


def test_a_frame_range_limits_a_video(root):
    frames = frames_of(_listed("face.mp4", frames=(4, 9)), root, analyse_fps=100)
    assert [frame.stamp.index for frame in frames] == [4, 5, 6, 7, 8]


def test_colour_pictures_of_a_recording_are_read(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "r.hdf5", "w") as recording:
        for i in (0, 10, 2):
            recording[f"Frame_{i}/array"] = np.full((3, 4, 6), i, np.uint8)
    frames = list(frames_of(_listed("r.hdf5", "hdf5"), tmp_path, analyse_fps=25))
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [0, 2, 10]
    assert frames[0].image.shape == (4, 6, 3)


def test_a_picture_that_cannot_be_read_is_an_error_that_names_it(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(TrainError, match=r"x\.png: can't read the picture"):
        list(frames_of(_listed("x.png", "image"), tmp_path, analyse_fps=5))
