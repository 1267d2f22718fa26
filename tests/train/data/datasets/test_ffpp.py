import json
from collections import Counter

import pytest

from train.data.datasets._sample import count_by
from train.data.datasets.ffpp import DATASET
from train.errors import TrainError

METHODS = ("deepfakes", "face2face", "faceswap", "neuraltextures")
PAIRS = {"train": [["033", "097"]], "val": [["001", "002"]], "test": [["003", "004"]]}
YOUTUBE = "original_sequences/youtube/c23/videos"
FACE2FACE = "manipulated_sequences/Face2Face/c23/videos"


def small(**changed):
    """A folder of three pairs, one method, with the splits' JSON."""
    files = {f"{name}.json": json.dumps(pairs) for name, pairs in {**PAIRS, **changed}.items()}
    for ((a, b),) in PAIRS.values():
        files |= dict.fromkeys((f"{YOUTUBE}/{a}.mp4", f"{YOUTUBE}/{b}.mp4"), "")
        files |= dict.fromkeys((f"{FACE2FACE}/{a}_{b}.mp4", f"{FACE2FACE}/{b}_{a}.mp4"), "")
    return files


def test_a_compression_has_720_140_140_originals_and_as_many_of_each_method(listings):
    counts = count_by(v for v in listings("ffpp") if v.attributes["origin"] == "youtube")
    for split, n in (("train", 720), ("dev", 140), ("test", 140)):
        assert [counts[split, kind] for kind in ("bona_fide", *METHODS)] == [n] * 5


def test_the_official_splits_give_the_documented_counts(official, planted):
    lists = official("ffpp")
    files = {}
    for name in ("train", "val", "test"):
        for a, b in json.loads((lists / f"{name}.json").read_text()):
            files |= dict.fromkeys((f"{YOUTUBE}/{a}.mp4", f"{YOUTUBE}/{b}.mp4"), "")
            files |= dict.fromkeys((f"{FACE2FACE}/{a}_{b}.mp4", f"{FACE2FACE}/{b}_{a}.mp4"), "")
    assert count_by(DATASET.read(planted(files), {"splits": str(lists)})) == {
        (split, kind): n
        for split, n in (("train", 720), ("dev", 140), ("test", 140))
        for kind in ("bona_fide", "face2face")
    }


def test_a_manipulated_video_is_known_by_method_compression_target_and_donor(planted):
    video = {v.path: v for v in DATASET.read(planted(small()))}[f"{FACE2FACE}/033_097.mp4"]
    assert (video.attack_type, video.family, video.compression) == ("face2face", "digital", "c23")
    assert (video.source_id, video.attributes["donor"]) == ("ffpp:youtube/033", "097")
    assert video.split == "train"


def test_filmed_actors_are_in_no_split_and_known_by_subject(listings):
    filmed = [v for v in listings("ffpp") if v.attributes["origin"] == "actors"]
    assert {(v.split, v.subject, v.attack_type) for v in filmed} == {
        (None, "ffpp:actors/01", None),
        (None, "ffpp:actors/02", "deepfake_detection"),
    }


def test_masks_are_not_videos(listings):
    assert not [v for v in listings("ffpp") if "masks" in v.path]


@pytest.mark.parametrize("folder", ["raw", "c0"])
def test_c0_is_another_name_of_raw(folder, planted):
    files = {path.replace("/c23/", f"/{folder}/"): text for path, text in small().items()}
    assert {v.compression for v in DATASET.read(planted(files))} == {"raw"}


def test_both_raw_and_c0_are_refused(planted):
    files = {
        path.replace("/c23/", f"/{c}/"): t for path, t in small().items() for c in ("raw", "c0")
    }
    with pytest.raises(TrainError, match="raw and c0 mean the same"):
        DATASET.read(planted(files))


def test_a_root_named_like_a_method_changes_no_label(planted):
    root = planted({f"original_sequences/Deepfakes/{path}": t for path, t in small().items()})
    videos = DATASET.read(root / "original_sequences" / "Deepfakes")
    assert Counter(v.label for v in videos) == {0: 6, 1: 6}


def test_a_missing_split_file_is_named_with_its_source(planted):
    root = planted(small())
    (root / "val.json").unlink()
    with pytest.raises(TrainError, match=r"val\.json.*missing; get it from.*ondyari/FaceForensics"):
        DATASET.read(root)


def test_absent_videos_are_counted_and_named(planted):
    root = planted(small())
    (root / FACE2FACE / "001_002.mp4").unlink()
    (root / FACE2FACE / "004_003.mp4").unlink()
    with pytest.raises(TrainError, match=r"Face2Face/c23.*2 of 6 .* absent: 001_002, 004_003"):
        DATASET.read(root)


def test_absent_videos_can_be_allowed_and_are_logged(planted, caplog):
    root = planted(small())
    (root / FACE2FACE / "001_002.mp4").unlink()
    assert len(DATASET.read(root, {"max_missing": 0.2})) == 11
    assert "1 of 6 listed videos are absent: 001_002" in caplog.text


def test_a_video_in_no_split_is_listed_without_one_and_logged(planted, caplog):
    videos = DATASET.read(planted({**small(), f"{YOUTUBE}/999.mp4": ""}))
    assert [v.split for v in videos if "999" in v.path] == [None]
    assert "1 videos are in no split: 999" in caplog.text


def test_an_id_in_two_splits_is_refused(planted):
    with pytest.raises(TrainError, match=r"listed more than once: 033, 097"):
        DATASET.read(planted(small(test=[["033", "097"]])))


@pytest.mark.parametrize("name", [f"{YOUTUBE}/033_097.mp4", f"{FACE2FACE}/033.mp4"])
def test_a_name_of_the_other_class_is_refused(name, planted):
    with pytest.raises(TrainError, match="expected a name of"):
        DATASET.read(planted({**small(), name: ""}))
