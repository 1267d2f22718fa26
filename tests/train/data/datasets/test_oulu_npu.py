import pytest

from train.data.datasets._sample import count_by
from train.data.datasets.oulu_npu import DATASET
from train.errors import TrainError


@pytest.fixture
def with_protocol(tmp_path, roots):
    """The generated folder with one protocol file; the videos are links, thousands as they are."""

    def write(name, text):
        for folder in ("Train_files", "Dev_files", "Test_files"):
            (tmp_path / folder).symlink_to(roots("oulu_npu") / folder)
        path = tmp_path / "Protocols" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
        return tmp_path

    return write


def test_there_are_1800_1350_and_1800_videos_a_fifth_of_them_bona_fide(listings):
    counts = count_by(listings("oulu_npu"))
    for split, n in (("train", 360), ("dev", 270), ("test", 360)):
        assert [counts[split, kind] for kind in ("bona_fide", "print", "replay")] == [
            n,
            2 * n,
            2 * n,
        ]


def test_a_name_tells_phone_session_user_and_instrument(listings):
    video = {v.path: v for v in listings("oulu_npu")}["Test_files/1_3_36_4.avi"]
    assert video.attributes == {"phone": "1", "session": "3", "file": "4"}
    assert (video.subject, video.attack_type, video.split) == ("oulu_npu:36", "replay", "test")


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("Protocol_1/Train.txt", ["+1,1_1_01_1", "-1,1_1_01_2", "-1,1_1_01_5"]),
        ("Protocol_1/Test.txt", ["+1,1_3_36_1", "-1,1_3_36_2", "-2,1_3_36_4"]),
        ("Protocol_3/Dev_1.txt", ["+1,2_1_21_1", "-1,2_1_21_4"]),
    ],
)
def test_lists_that_agree_with_the_names_are_accepted(name, lines, with_protocol):
    assert len(DATASET.read(with_protocol(name, "\n".join(lines)))) == 4950


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Protocol_1/Train.txt", "-1,1_1_01_1"),
        ("Protocol_1/Train.txt", "+1,1_1_01_2"),
        ("Protocol_1/Train.txt", "-2,1_1_01_4"),
        ("Protocol_1/Test.txt", "-1,1_3_36_4"),
        ("Protocol_1/Test.txt", "-1,1_1_01_2"),
    ],
)
def test_a_list_that_contradicts_a_name_is_refused(name, line, with_protocol):
    root = with_protocol(name, line)
    with pytest.raises(TrainError, match=rf"Protocol_1.*{line.partition(',')[2]}"):
        DATASET.read(root)


@pytest.fixture
def own_dev(tmp_path, roots):
    """The generated folder, whose dev videos may be changed."""
    source = roots("oulu_npu")
    for folder in ("Train_files", "Test_files"):
        (tmp_path / folder).symlink_to(source / folder)
    (tmp_path / "Dev_files").mkdir()
    for path in (source / "Dev_files").iterdir():
        (tmp_path / "Dev_files" / path.name).touch()
    return tmp_path


def test_a_user_of_another_split_and_an_absent_video_are_named(own_dev):
    (own_dev / "Dev_files" / "6_3_35_5.avi").unlink()
    with pytest.raises(TrainError, match=r"Dev_files: 1 of 1350 .* absent: 6_3_35_5\.avi"):
        DATASET.read(own_dev)
    (own_dev / "Dev_files" / "6_3_36_5.avi").touch()
    with pytest.raises(TrainError, match=r"6_3_36_5\.avi: expected a user of split dev"):
        DATASET.read(own_dev, {"max_missing": 0.1})
