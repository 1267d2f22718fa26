import pytest

from train.data.datasets._sample import count_by
from train.data.datasets.celeb_df_v1 import DATASET as V1
from train.data.datasets.celeb_df_v2 import DATASET
from train.errors import TrainError

FILES = {
    "Celeb-real/id0_0000.mp4": "",
    "Celeb-real/id1_0001.mp4": "",
    "YouTube-real/00170.mp4": "",
    "Celeb-synthesis/id0_id1_0000.mp4": "",
    "Celeb-synthesis/id1_id0_0001.mp4": "",
    "List_of_testing_videos.txt": "1 YouTube-real/00170.mp4\n0 Celeb-synthesis/id0_id1_0000.mp4\n",
}


def test_what_is_not_in_the_list_is_training_data(planted):
    videos = DATASET.read(planted(FILES), {"dev_share": 0})
    assert {v.path for v in videos if v.split == "test"} == {
        "YouTube-real/00170.mp4",
        "Celeb-synthesis/id0_id1_0000.mp4",
    }
    assert sum(v.split == "train" for v in videos) == 3


def test_a_fake_has_the_source_and_the_subject_of_its_target(planted):
    by_path = {v.path: v for v in DATASET.read(planted(FILES))}
    real, fake = by_path["Celeb-real/id0_0000.mp4"], by_path["Celeb-synthesis/id0_id1_0000.mp4"]
    assert (real.source_id, real.subject) == (fake.source_id, fake.subject)
    assert fake.attributes == {"donor": "id1"}


def test_dev_is_carved_by_target_identity(listings):
    videos = [v for v in listings("celeb_df_v2") if v.split in ("train", "dev")]
    train, dev = ({v.group for v in videos if v.split == s} for s in ("train", "dev"))
    assert dev
    assert not train & dev


def test_the_official_list_of_v2_gives_178_real_and_340_fake_test_videos(official, planted):
    text = (official("celebdf_v2") / "List_of_testing_videos.txt").read_text()
    files = dict.fromkeys((line.split()[1] for line in text.splitlines()), "")
    videos = DATASET.read(planted({**files, "List_of_testing_videos.txt": text}))
    assert count_by(videos) == {("test", "bona_fide"): 178, ("test", "deepfake"): 340}


def test_a_list_with_reversed_labels_is_refused(planted):
    text = FILES["List_of_testing_videos.txt"].replace("1 ", "x ").replace("0 Ce", "1 Ce")
    files = {**FILES, "List_of_testing_videos.txt": text.replace("x ", "0 ")}
    with pytest.raises(TrainError, match=r"YouTube-real/00170.mp4: listed as fake, but"):
        DATASET.read(planted(files))


def test_folders_may_differ_in_case_from_the_list(planted):
    files = {path.replace("YouTube", "Youtube"): text for path, text in FILES.items()}
    files["List_of_testing_videos.txt"] = FILES["List_of_testing_videos.txt"]
    assert sum(v.split == "test" for v in DATASET.read(planted(files))) == 2


def test_two_folders_that_differ_in_case_only_are_refused(planted):
    with pytest.raises(TrainError, match="both YouTube-real and Youtube-real"):
        DATASET.read(planted({**FILES, "Youtube-real/00001.mp4": ""}))


def test_a_missing_test_list_is_named(planted):
    root = planted(FILES)
    (root / "List_of_testing_videos.txt").unlink()
    with pytest.raises(TrainError, match=r"List_of_testing_videos\.txt: missing"):
        V1.read(root)


def test_a_listed_video_that_is_absent_is_named(planted):
    root = planted(FILES)
    (root / "YouTube-real" / "00170.mp4").unlink()
    with pytest.raises(TrainError, match=r"1 of 2 .* absent: youtube-real/00170\.mp4"):
        DATASET.read(root)


def test_a_row_listed_twice_is_refused(planted):
    text = FILES["List_of_testing_videos.txt"] * 2
    with pytest.raises(TrainError, match="listed more than once"):
        DATASET.read(planted({**FILES, "List_of_testing_videos.txt": text}))
