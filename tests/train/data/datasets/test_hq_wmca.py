import pytest

from train.data.datasets.hq_wmca import DATASET
from train.errors import TrainError

TABLE = "PROTOCOL-grand_test-curated.csv"


def test_every_type_is_told_from_the_name_and_the_eval_split_is_test(listings):
    videos = listings("hq_wmca")
    assert {v.attack_type for v in videos} == {
        *(None, "glasses", "mask_mannequin", "print", "replay", "mask_rigid", "mask_flexible"),
        *("mask_paper", "wig", "tattoo", "makeup"),
    }
    assert {v.subject for v in videos if v.split == "test"} == {"hq_wmca:0005", "hq_wmca:0006"}
    assert {v.kind for v in videos} == {"hdf5"}


def test_a_recording_in_no_protocol_is_not_listed(planted):
    planted("hq_wmca")
    extra = {"face-station/26.02.19/1_01_0009_0000_00_00_000-0a.hdf5": ""}
    assert len(DATASET.read(planted(extra))) == 66


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (",0,bonafide,", ",1,attack/Print,"),
        (",1,attack/Print,", ",0,bonafide,"),
        ("/Wig", "/Tattoo"),
    ],
)
def test_a_label_that_the_name_contradicts_is_refused(old, new, planted):
    root = planted("hq_wmca")
    (root / TABLE).write_text((root / TABLE).read_text().replace(old, new))
    with pytest.raises(TrainError, match="but its name or folder says"):
        DATASET.read(root)


def test_an_absent_recording_is_named(planted):
    root = planted("hq_wmca")
    next(root.rglob("*_00_00_000-*.hdf5")).unlink()
    with pytest.raises(TrainError, match=r"1 of 66 listed videos are absent"):
        DATASET.read(root)


def test_a_header_is_no_recording(planted):
    root = planted("hq_wmca")
    (root / TABLE).write_text(f"path,label,type,group\n{(root / TABLE).read_text()}")
    assert len(DATASET.read(root)) == 66
