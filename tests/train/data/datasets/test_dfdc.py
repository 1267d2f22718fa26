import json

import pytest

from train.data.datasets.dfdc import DATASET
from train.data.datasets.dfdc_preview import DATASET as PREVIEW
from train.errors import TrainError

PART = "dfdc_train_part_0"
METADATA = {
    "owxbbpjpch.mp4": {"label": "REAL", "split": "train", "original": None},
    "awnfpubqmo.mp4": {"label": "FAKE", "split": "train", "original": "owxbbpjpch.mp4"},
}


def part(metadata):
    files = {f"{PART}/{name}": "" for name in metadata}
    return {**files, f"{PART}/metadata.json": json.dumps(metadata)}


def test_a_part_may_lie_one_folder_deeper(listings):
    parts = {v.path.rpartition("/")[0] for v in listings("dfdc") if v.split != "test"}
    assert parts == {"dfdc_train_part_0", "dfdc_train_part_01/dfdc_train_part_1"}


def test_fakes_stay_with_their_original_when_dev_is_carved(listings):
    split_of = {}
    for video in listings("dfdc"):
        assert split_of.setdefault(video.source_id, video.split) == video.split
    assert set(split_of.values()) == {"train", "dev", "test"}


@pytest.mark.parametrize(
    ("name", "changed"),
    [("owxbbpjpch.mp4", {"label": "FAKE"}), ("awnfpubqmo.mp4", {"label": "REAL"})],
)
def test_a_label_that_the_original_contradicts_is_refused(name, changed, planted):
    metadata = {**METADATA, name: {**METADATA[name], **changed}}
    with pytest.raises(TrainError, match=rf"{name}: listed as"):
        DATASET.read(planted(part(metadata)))


def test_the_official_samples_of_metadata_are_read(official, planted):
    for path in official("dfdc_sample").glob("*.json"):
        metadata = json.loads(path.read_text())
        videos = DATASET.read(planted(part(metadata)), {"dev_share": 0})
        assert [v.label for v in videos] == [1, 1]
        for name in metadata:
            (planted({}) / PART / name).unlink()


def test_test_labels_other_than_0_and_1_are_refused(planted):
    with pytest.raises(TrainError, match="expected the labels 0 and 1, found FAKE"):
        DATASET.read(planted({"test/a.mp4": "", "test/labels.csv": "filename,label\na.mp4,FAKE\n"}))


def test_test_labels_without_their_columns_are_refused(planted):
    with pytest.raises(TrainError, match=r"expected the column label, found filename, y"):
        DATASET.read(planted({"test/a.mp4": "", "test/labels.csv": "filename,y\na.mp4,1\n"}))


def test_a_part_without_metadata_is_named(planted):
    with pytest.raises(TrainError, match=r"dfdc_train_part_0: metadata\.json: missing"):
        DATASET.read(planted({f"{PART}/a.mp4": ""}))


def test_the_repack_of_the_preview_without_method_b_is_refused(planted):
    root = planted("dfdc_preview")
    for path in (root / "method_B").rglob("*.mp4"):
        path.unlink()
    with pytest.raises(TrainError, match=r"16 of 48 listed videos are absent: method_B"):
        PREVIEW.read(root)


def test_a_preview_label_that_the_folder_contradicts_is_refused(planted):
    root = planted("dfdc_preview")
    listed = json.loads((root / "dataset.json").read_text())
    listed["method_A/0/0/x_0_0.mp4"]["label"] = "real"
    (root / "dataset.json").write_text(json.dumps(listed))
    with pytest.raises(TrainError, match=r"method_A/0/0.*listed as real, but .* says method_A"):
        PREVIEW.read(root)
