import pytest

from train.data.datasets.seq_deepfake import DATASET
from train.errors import TrainError


def test_both_parts_are_listed_with_their_sequences(listings):
    found = {
        (v.attributes["part"], v.attributes["sequence"], v.label) for v in listings("seq_deepfake")
    }
    assert found == {
        (part, sequence, label)
        for part in ("components", "attributes")
        for sequence, label in (("original", 0), ("nose-eye-lip", 1))
    }


@pytest.mark.parametrize("prefix", ["", "train/", "facial_components/images/train/"])
def test_the_table_may_give_more_or_less_of_the_path(prefix, planted):
    root = planted("seq_deepfake")
    table = root / "facial_components" / "annotations" / "train.csv"
    table.write_text(table.read_text().replace("images/train/", prefix))
    assert len(DATASET.read(root)) == 60


@pytest.mark.parametrize(
    ("old", "new"), [("0, 0, 0, 0, 0", "5, 0, 0, 0, 0"), ("1, 2, 4, 0, 0", "0, 0, 0, 0, 0")]
)
def test_a_label_that_the_folder_contradicts_is_refused(old, new, planted):
    root = planted("seq_deepfake")
    table = root / "facial_components" / "annotations" / "test.csv"
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(TrainError, match="but its name or folder says"):
        DATASET.read(root)


def test_a_label_that_is_no_list_is_refused(planted):
    root = planted("seq_deepfake")
    table = root / "facial_components" / "annotations" / "val.csv"
    table.write_text(table.read_text().replace("[1, 2, 4, 0, 0]", "nose"))
    with pytest.raises(TrainError, match="expected a list of numbers as label, found 'nose'"):
        DATASET.read(root)
