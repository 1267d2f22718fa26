"""A list of bona fide clips and zipped pictures, with nobody on both sides."""

import hashlib
import io
import zipfile

import numpy as np
import pytest
import yaml
from PIL import Image

from train.data.datasets.real_faces import DATASET
from train.data.frames import VideoFrames
from train.errors import TrainError

COLLECTION = {
    "clips": [
        {"path": "a.mp4", "people": ["ann"], "split": "train", "licence": "MIT"},
        {"path": "b.mp4", "people": ["bob", "cy"], "split": "dev", "licence": "MIT"},
    ],
    "archives": [
        {
            "path": "faces.zip",
            "prefix": "street/",
            "group": "street",
            "splits": {"train": "train", "val": "dev"},
            "licence": "CC BY 3.0",
        }
    ],
}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").touch()
    picture = io.BytesIO()
    Image.fromarray(np.full((6, 4, 3), 7, np.uint8)).save(picture, "PNG")
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        rows = ["file,split", "street/1.png,train", "street/2.png,val", "street/3.png,heldout"]
        archive.writestr("manifest.csv", "\n".join([*rows, "studio/4.png,train"]))
        archive.writestr("street/1.png", picture.getvalue())
    (tmp_path / "collection.yaml").write_text(yaml.safe_dump(COLLECTION))
    return tmp_path


def test_clips_and_pictures_are_bona_fide_with_split_group_and_licence(root):
    found = {v.video_id.removeprefix("real_faces:"): v for v in DATASET.read(root)}
    assert set(found) == {"a.mp4", "b.mp4", "faces.zip//street/1.png", "faces.zip//street/2.png"}
    assert {v.label for v in found.values()} == {0}
    assert found["b.mp4"].split == found["faces.zip//street/2.png"].split == "dev"
    assert found["b.mp4"].subject == "real_faces:bob+cy"
    assert found["a.mp4"].attributes == {"group": "clip", "licence": "MIT"}
    assert found["faces.zip//street/1.png"].attributes["licence"] == "CC BY 3.0"


def test_a_zipped_picture_is_read_and_hashed_by_itself(root):
    video = next(v for v in DATASET.read(root) if v.member == "street/1.png")
    frames = VideoFrames(video, root, analyse_fps=5)
    (frame,) = frames
    assert frame.image.shape == (6, 4, 3)
    with zipfile.ZipFile(root / "faces.zip") as archive:
        assert frames.sha256() == hashlib.sha256(archive.read("street/1.png")).hexdigest()


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("file,part\na.png,train", "expected the column split"),
        ("\xff\xfe", "can't read the archive"),
    ],
)
def test_a_wrong_table_in_an_archive_is_named(root, table, problem):
    with zipfile.ZipFile(root / "faces.zip", "w") as archive:
        archive.writestr("manifest.csv", table.encode("latin-1"))
    with pytest.raises(TrainError, match=problem):
        DATASET.read(root)


def test_a_wrong_key_of_a_collection_is_named_with_the_nearest(root):
    (root / "collection.yaml").write_text(yaml.safe_dump({**COLLECTION, "clip": []}))
    with pytest.raises(TrainError, match=r"clip: unknown key; did you mean 'clips'"):
        DATASET.read(root)


def test_a_person_in_train_and_dev_is_refused(root):
    both = {**COLLECTION, "clips": [*COLLECTION["clips"], {**COLLECTION["clips"][1]}]}
    both["clips"][2] = {**both["clips"][2], "path": "c.mp4", "split": "train"}
    (root / "collection.yaml").write_text(yaml.safe_dump(both))
    with pytest.raises(TrainError, match="in train and dev at once: bob, cy"):
        DATASET.read(root)


def test_an_absent_clip_is_named(root):
    (root / "a.mp4").unlink()
    with pytest.raises(TrainError, match=r"1 of 2 listed videos are absent: a\.mp4"):
        DATASET.read(root)


def test_the_collection_can_lie_elsewhere(root, tmp_path):
    other = tmp_path / "other.yaml"
    (root / "collection.yaml").rename(other)
    assert len(DATASET.read(root, {"collection": str(other)})) == 4
    with pytest.raises(TrainError, match=r"collection\.yaml: can't read the collection"):
        DATASET.read(root)
