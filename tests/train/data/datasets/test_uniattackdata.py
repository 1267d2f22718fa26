import pytest

from train.data.datasets.uniattackdata import DATASET
from train.errors import TrainError


def test_protocols_are_kept_apart(listings):
    videos = listings("uniattackdata")
    assert {v.attributes["protocol"] for v in videos} == {"p1", "p2.1", "p2.2"}
    assert all(v.path.startswith(f"{v.attributes['protocol']}/") for v in videos)


def test_types_are_not_told_so_the_family_is_not_known(listings):
    assert {v.family for v in listings("uniattackdata")} == {None}


def test_without_test_labels_the_test_split_is_left_out_and_logged(planted, caplog):
    root = planted("uniattackdata")
    (root / "p2.1" / "test_label.txt").unlink()
    videos = [v for v in DATASET.read(root) if v.attributes["protocol"] == "p2.1"]
    assert {v.split for v in videos} == {"train", "dev"}
    assert "p2.1/test_label.txt: no labels, so 6 test pictures are left out" in caplog.text


def test_missing_dev_labels_are_named(planted):
    root = planted("uniattackdata")
    (root / "p1" / "dev_label.txt").unlink()
    with pytest.raises(TrainError, match=r"p1/dev_label\.txt: missing; get it from"):
        DATASET.read(root)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("p1/dev/000000.png", "expected '<path> <0 or 1>'"),
        ("p1/dev/000000.png live", "expected '<path> <0 or 1>'"),
        ("p1/train/000000.png 0", "lies in another split"),
        ("p1/dev/000777.png 0", "1 of 1 listed videos are absent: 000777.png"),
    ],
)
def test_a_wrong_line_is_refused(line, message, planted):
    planted("uniattackdata")
    with pytest.raises(TrainError, match=message):
        DATASET.read(planted({"p1/dev_label.txt": line}))
