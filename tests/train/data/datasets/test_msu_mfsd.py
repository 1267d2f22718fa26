import pytest

from train.data.datasets.msu_mfsd import DATASET
from train.errors import TrainError


def test_there_are_280_videos_of_15_and_20_clients(listings):
    videos = listings("msu_mfsd")
    assert [sum(v.label == label for v in videos) for label in (0, 1)] == [70, 210]
    assert len({v.subject for v in videos if v.split == "test"}) == 20
    assert len({v.subject for v in videos if v.split in ("train", "dev")}) == 15


def test_a_name_tells_camera_and_instrument(listings):
    name = "attack/attack_client001_laptop_SD_ipad_video_scene01.mov"
    video = {v.path: v for v in listings("msu_mfsd")}[name]
    assert (video.attack_type, video.split) == ("replay", "test")
    assert video.attributes == {"camera": "laptop", "medium": "ipad"}


def test_official_lists_that_agree_are_accepted(planted, listings):
    planted("msu_mfsd")
    clients = {
        split: {
            v.subject.partition(":")[2].lstrip("0") for v in listings("msu_mfsd") if v.split in of
        }
        for split, of in (("train", ("train", "dev")), ("test", ("test",)))
    }
    lists = {f"{split}_sub_list.txt": "\n".join(ids) for split, ids in clients.items()}
    assert len(DATASET.read(planted(lists))) == 280


def test_an_official_list_that_differs_is_refused(planted):
    planted("msu_mfsd")
    with pytest.raises(TrainError, match=r"test_sub_list\.txt: contradicts our test split"):
        DATASET.read(planted({"test_sub_list.txt": "01\n02\n"}))


def test_an_absent_video_is_named(planted):
    root = planted("msu_mfsd")
    (root / "real" / "real_client001_android_SD_scene01.mp4").unlink()
    with pytest.raises(TrainError, match=r"1 of 280 .* absent: real/real_client001_android"):
        DATASET.read(root)


def test_an_attack_among_the_real_videos_is_refused(planted):
    planted("msu_mfsd")
    name = "attack_client001_laptop_SD_ipad_video_scene01.mov"
    with pytest.raises(TrainError, match="expected a name of real"):
        DATASET.read(planted({f"real/{name}": ""}))
