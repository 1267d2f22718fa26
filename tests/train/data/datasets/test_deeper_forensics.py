import pytest

from train.data.datasets._sample import count_by
from train.data.datasets.deeper_forensics import DATASET
from train.errors import TrainError

SPLITS = ("train", "val", "test")


def test_a_variant_has_703_96_and_201_attacks(listings):
    counts = count_by(listings("deeper_forensics"))
    assert [counts[s, "deepfake"] for s in ("train", "dev", "test")] == [703, 96, 201]
    assert counts.total() == 1000


def test_variants_are_told_apart_and_donors_recordings_are_not_listed(planted):
    lists = {f"lists/splits/{name}.txt": f"00{i}_M1.mp4" for i, name in enumerate(SPLITS)}
    names = [f"00{i}_M1.mp4" for i in range(3)]
    variants = ("end_to_end_level_5", "reenact_postprocess")
    paths = [f"manipulated_videos/{variant}/{name}" for variant in variants for name in names]
    root = planted({**lists, **dict.fromkeys(paths, ""), "source_videos/M1/light/x.mp4": ""})
    videos = DATASET.read(root)
    assert [v.path for v in videos] == sorted(paths)
    assert {v.attributes["variant"] for v in videos} == set(variants)
    (root / paths[0]).unlink()
    with pytest.raises(TrainError, match=r"end_to_end_level_5: 1 of 3 .* absent: 000_M1\.mp4"):
        DATASET.read(root)


def test_a_fake_has_the_source_of_the_faceforensics_video_it_was_made_from(listings):
    originals = {v.source_id for v in listings("ffpp") if v.attributes["origin"] == "youtube"}
    assert {v.source_id for v in listings("deeper_forensics")} <= originals
