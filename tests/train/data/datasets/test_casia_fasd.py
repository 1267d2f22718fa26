import pytest

from train.data.datasets._sample import count_by
from train.data.datasets.casia_fasd import DATASET
from train.errors import TrainError


def test_there_are_600_videos_of_50_subjects_in_four_kinds(listings):
    videos = listings("casia_fasd")
    assert len(videos) == 600
    assert len({v.subject for v in videos}) == 50
    kinds = count_by(v for v in videos if v.split == "test")
    assert set(kinds.values()) == {90}
    assert {kind for _, kind in kinds} == {"bona_fide", "warped_print", "cut_print", "replay"}


def test_subject_7_of_the_test_set_is_subject_27(listings):
    video = {v.path: v for v in listings("casia_fasd")}["test_release/7/HR_3.avi"]
    assert (video.subject, video.attack_type) == ("casia_fasd:27", "cut_print")
    assert video.attributes == {"quality": "high"}


def test_an_absent_video_is_named(planted):
    root = planted("casia_fasd")
    (root / "train_release" / "20" / "8.avi").unlink()
    with pytest.raises(TrainError, match=r"train_release: 1 of 240 .* absent: 20/8\.avi"):
        DATASET.read(root)


def test_a_clip_that_is_none_of_the_twelve_is_refused(planted):
    planted("casia_fasd")
    with pytest.raises(TrainError, match=r"train_release/1/9\.avi: expected"):
        DATASET.read(planted({"train_release/1/9.avi": ""}))
