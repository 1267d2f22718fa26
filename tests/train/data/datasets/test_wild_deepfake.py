import shutil
import tarfile

import pytest

from train.data.datasets.wild_deepfake import DATASET
from train.errors import TrainError


def pack(root, mode):
    """Turn each <n> folder into <n>.tar.gz, as the release has it, with `./` before the names."""
    for folder in list(root.glob("*_*/*")):
        with tarfile.open(f"{folder}.tar.gz", mode) as archive:
            archive.add(folder, arcname=f"./{folder.name}")
        shutil.rmtree(folder)


@pytest.mark.parametrize("mode", ["w:gz", "w:"])
def test_archives_hold_the_sequences_that_the_folders_hold(mode, planted):
    root = planted("wild_deepfake")
    unpacked = DATASET.read(root, {"dev_share": 0})
    pack(root, mode)  # "w:" is plain tar in spite of the name
    packed = DATASET.read(root, {"dev_share": 0})
    assert {v.path.split("/")[1] for v in packed} == {f"{n}.tar.gz" for n in range(4)}
    assert {v.member for v in packed} == {v.path.split("/", 1)[1] for v in unpacked}
    assert [(v.label, v.split, v.source_id) for v in packed] == [
        (v.label, v.split, v.source_id) for v in unpacked
    ]


def test_sequences_of_one_archive_have_one_source(listings):
    real = [v for v in listings("wild_deepfake") if v.path.startswith("real_train/2/")]
    assert len(real) == 3
    assert {v.source_id for v in real} == {"wild_deepfake:real_train/2"}


def test_an_archive_beside_its_unpacked_folder_counts_once(planted):
    root = planted("wild_deepfake")
    n = len(DATASET.read(root))
    with tarfile.open(root / "real_train" / "0.tar.gz", "w:gz") as archive:
        archive.add(root / "real_train" / "0", arcname="./0")
    assert len(DATASET.read(root)) == n


def test_fakes_in_a_folder_of_real_videos_are_refused(planted):
    root = planted("wild_deepfake")
    (root / "real_train" / "0" / "real").rename(root / "real_train" / "0" / "fake")
    with pytest.raises(TrainError, match=r"listed as real_train, but its name or folder says fake"):
        DATASET.read(root)


def test_litter_is_neither_an_archive_nor_a_sequence(planted):
    root = planted("wild_deepfake")
    n = len(DATASET.read(root))
    for name in (".DS_Store", "._0.tar.gz", "Thumbs.db"):
        (root / "real_train" / name).touch()
    litter = root / "real_train" / "0" / "real" / ".ipynb_checkpoints"
    litter.mkdir()
    (litter / "1.png").touch()
    assert len(DATASET.read(root)) == n


def test_a_damaged_archive_is_named(planted):
    root = planted("wild_deepfake")
    (root / "real_train" / "9.tar.gz").write_bytes(b"damaged")
    with pytest.raises(TrainError, match=r"9\.tar\.gz: can't read the archive"):
        DATASET.read(root)
