import pytest

from train.data.datasets.siw import DATASET
from train.errors import TrainError


def test_there_are_4478_clips_of_165_subjects(listings):
    videos = listings("siw")
    assert len(videos) == 4478
    assert len({v.subject for v in videos}) == 165
    assert len({v.subject for v in videos if v.split == "test"}) == 75


SMALL = {
    f"{top}/{kind}/{subject}/{subject}-1-{number}-1-1.mov": ""
    for top, subject in (("Train", "001"), ("Test", "091"))
    for kind, number in (("live", 1), ("spoof", 2))
}


def test_a_name_tells_sensor_type_medium_and_session(planted):
    root = planted({**SMALL, "Train/spoof/007/007-2-3-4-1.mov": ""})
    video = {v.path: v for v in DATASET.read(root)}["Train/spoof/007/007-2-3-4-1.mov"]
    assert (video.attack_type, video.subject) == ("replay", "siw:007")
    assert video.attributes == {"sensor": "2", "medium": "4", "session": "1"}


@pytest.mark.parametrize(
    "path", ["Train/live/001/001-1-2-1-9.mov", "Test/spoof/091/091-1-1-1-9.mov"]
)
def test_a_type_that_the_folder_contradicts_is_refused(path, planted):
    with pytest.raises(TrainError, match="but its name or folder says"):
        DATASET.read(planted({**SMALL, path: ""}))


def test_a_clip_in_another_subjects_folder_is_refused(planted):
    with pytest.raises(TrainError, match=r"002-1-1-1-9\.mov: expected <subject>/"):
        DATASET.read(planted({**SMALL, "Train/live/001/002-1-1-1-9.mov": ""}))
