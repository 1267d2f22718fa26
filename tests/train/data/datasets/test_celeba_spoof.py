import json

import pytest

from train.data.datasets.celeba_spoof import DATASET
from train.errors import TrainError

TABLE = "metas/intra_test/test_label.json"
LIVE, SPOOF = "Data/test/20/live/002000.png", "Data/test/20/spoof/002007.png"


def relabel(root, path, **numbers):
    labels = json.loads((root / TABLE).read_text())
    for place, value in numbers.items():
        labels[path][int(place[1:])] = value
    (root / TABLE).write_text(json.dumps(labels))
    return root


def test_ten_numbers_are_four_types_told_apart_by_medium(listings):
    attacks = {(v.attack_type, v.attributes.get("medium")) for v in listings("celeba_spoof")}
    assert attacks == {
        (None, None),
        *(("print", medium) for medium in ("photo", "poster", "a4")),
        *(("mask_paper", medium) for medium in ("face", "upper_body", "region")),
        *(("replay", medium) for medium in ("pc", "pad", "phone")),
        ("mask_3d", None),
    }


def test_illumination_and_environment_are_told(planted):
    root = relabel(planted("celeba_spoof"), SPOOF, _41=4, _42=2)
    video = {v.path: v for v in DATASET.read(root)}[SPOOF]
    assert video.attributes == {"illumination": "dark", "environment": "outdoor", "medium": "pc"}


@pytest.mark.parametrize(
    ("path", "numbers"), [(LIVE, {"_43": 1}), (LIVE, {"_40": 7}), (SPOOF, {"_43": 0, "_40": 0})]
)
def test_a_label_that_the_folder_contradicts_is_refused(path, numbers, planted):
    root = relabel(planted("celeba_spoof"), path, **numbers)
    with pytest.raises(TrainError, match=f"{path}: listed as spoof"):
        DATASET.read(root)


def test_a_type_that_does_not_exist_is_refused(planted):
    root = relabel(planted("celeba_spoof"), SPOOF, _40=11)
    with pytest.raises(TrainError, match=f"{SPOOF}: not a label of 44 numbers"):
        DATASET.read(root)


def test_an_absent_picture_is_named(planted):
    root = planted("celeba_spoof")
    (root / SPOOF).unlink()
    with pytest.raises(TrainError, match=rf"Data/test: 1 of 22 .* absent: {SPOOF}"):
        DATASET.read(root)
