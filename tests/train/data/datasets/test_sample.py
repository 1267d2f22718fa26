import dataclasses

import pytest

from train.data.datasets._sample import (
    CarvedDevOptions,
    Dataset,
    ListedVideo,
    carve_dev,
    count_by,
)
from train.errors import TrainError


def video(name, *, attack_type=None, split="train", subject=None, **more):
    return ListedVideo(
        dataset="set",
        path=name,
        kind="video",
        attack_type=attack_type,
        split=split,
        source_id=f"set:{name}",
        subject=subject,
        **more,
    )


def people(n):
    return [
        video(f"{i}_{kind}", attack_type=kind, subject=f"set:{i}")
        for i in range(n)
        for kind in (None, "print", "replay")
    ]


def reader(videos):
    return Dataset(
        name="set",
        description="a set",
        source_label_of_bona_fide="none",
        scan=lambda _root, _options: videos,
        options=CarvedDevOptions,
    )


@pytest.mark.parametrize(
    ("attack_type", "label", "family"),
    [(None, 0, None), ("replay", 1, "presentation"), ("faceswap", 1, "digital"), ("own", 1, None)],
)
def test_label_and_family_follow_from_the_attack_type(attack_type, label, family):
    assert (
        video("a", attack_type=attack_type).label,
        video("a", attack_type=attack_type).family,
    ) == (
        label,
        family,
    )


def test_two_stretches_of_one_file_are_two_videos():
    assert video("a", frames=(0, 5)).video_id != video("a", frames=(5, 9)).video_id


def test_a_carved_dev_split_tears_no_subject_apart():
    videos = carve_dev(people(20), 0.1, seed=0)
    split_of = {v.subject: v.split for v in videos}
    assert all(split_of[v.subject] == v.split for v in videos)
    assert sorted(split_of.values()).count("dev") == 2


def test_a_carved_dev_split_does_not_change_when_test_videos_or_order_do():
    dev = {v.path for v in carve_dev(people(20), 0.1, seed=0) if v.split == "dev"}
    others = [*reversed(people(20)), video("t", split="test")]
    assert {v.path for v in carve_dev(others, 0.1, seed=0) if v.split == "dev"} == dev
    assert {v.path for v in carve_dev(people(20), 0.1, seed=1) if v.split == "dev"} != dev


def test_a_carved_dev_split_holds_every_type_that_train_holds():
    kinds = (None, "print", "wig")
    videos = [video(f"{kind}{i}", attack_type=kind) for kind in kinds for i in range(4)]
    counts = count_by(carve_dev(videos, 0.1, seed=0))
    assert {counts["dev", kind or "bona_fide"] for kind in kinds} == {1}


def test_the_only_group_of_a_type_stays_in_train():
    assert [v.split for v in carve_dev([video("a")], 0.5, seed=0)] == ["train"]


def test_an_official_dev_split_is_kept(tmp_path):
    videos = [*people(4), video("d", split="dev")]
    dev = [v.path for v in reader(videos).read(tmp_path) if v.split == "dev"]
    assert dev == ["d"]


def test_no_dev_share_means_no_dev_split(tmp_path):
    assert all(v.split == "train" for v in reader(people(9)).read(tmp_path, {"dev_share": 0}))


def test_a_video_listed_twice_is_refused(tmp_path):
    with pytest.raises(TrainError, match=r"more than once: set:a"):
        reader([video("a"), video("b"), video("a")]).read(tmp_path)


def test_a_folder_that_can_not_be_listed_is_named(tmp_path):
    def scan(root, _options):
        raise PermissionError(13, "Permission denied", str(root))

    dataset = dataclasses.replace(reader([]), scan=scan)
    with pytest.raises(TrainError, match=r"can't be listed: .*Permission denied"):
        dataset.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [("a!b.mp4", "a!b.mp4"), ("J\udcf6rg", "J\\xf6rg"), ("né", "né"), ("a\\b", "a\\b")],
)
def test_ids_are_printable_whatever_the_name(name, text):
    assert video(name).video_id == f"set:{text}"
    assert video(video(name).video_id.removeprefix("set:")).video_id == f"set:{text}"
    video(name).video_id.encode()


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(TrainError, match=r"no video of set found"):
        reader([]).read(tmp_path)
