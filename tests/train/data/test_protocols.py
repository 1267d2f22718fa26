from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import yaml

from train.data.datasets._registry import dataset_names
from train.data.datasets._sample import ATTACK_FAMILY, BONA_FIDE_TYPE, ListedVideo, count_by
from train.data.protocols import (
    FOLDER,
    load_protocol,
    load_protocols,
    protocol_names,
    resolve,
    resolve_tests,
)
from train.errors import TrainError

PROTOCOL: dict[str, Any] = {
    "description": "a protocol",
    "disjoint": "source",
    "train": {"videos": [{"dataset": "a", "split": "train"}], "frames_per_video": 4},
    "dev": {"videos": [{"dataset": "a", "split": "dev"}], "frames_per_video": 4},
    "test": {"a": {"videos": [{"dataset": "a", "split": "test"}], "frames_per_video": 4}},
    "threshold": {"kind": "dev_eer"},
}


def video(name, split, attack_type=None, **more):
    return ListedVideo(
        **{
            "dataset": "a",
            "path": name,
            "kind": "video",
            "attack_type": attack_type,
            "split": split,
            "source_id": f"a:{name}",
            **more,
        }
    )


def listing():
    return [
        video(f"{split}{kind}", split, kind)
        for split in ("train", "dev", "test")
        for kind in (None, "print", "replay")
    ]


@pytest.fixture
def load(tmp_path):
    """Load a protocol written to a file; keyword arguments replace its keys."""

    def load(**changed):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({**PROTOCOL, **changed}))
        return load_protocols(path)

    return load


@pytest.fixture
def resolved(listings):
    def resolve_named(name):
        protocol = load_protocol(name)
        return resolve(protocol, {name: listings(name) for name in protocol.datasets()})

    return resolve_named


def numbers(videos):
    """Bona fide and attack videos."""
    return [sum(v.label == label for v in videos) for label in (0, 1)]


# ---- the protocols that are shipped


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_protocol_names_known_data_sets_and_attack_types(path):
    for name, protocol in load_protocols(path).items():
        assert set(protocol.datasets()) <= set(dataset_names())
        parts = (protocol.train, protocol.dev, *protocol.test.values())
        for query in (q for part in parts for q in (*part.videos, part.only, part.exclude) if q):
            assert {*(query.attack_type or ())} <= {*ATTACK_FAMILY, BONA_FIDE_TYPE}, name


@pytest.mark.parametrize(
    "name", [n for n in protocol_names() if not n.endswith(("_c40", "_raw")) or "loo" in n]
)
def test_a_shipped_protocol_resolves_on_folders_in_the_official_layouts(name, resolved):
    if name.endswith("_c40"):
        with pytest.raises(TrainError, match=r"no video of .*c40"):  # the folder holds c23 only
            resolved(name)
        return
    found = resolved(name)
    for part in (found.train, found.dev, *found.test.values()):
        assert min(numbers(part)) > 0
    outside = {v.video_id for part in found.test.values() for v in part}
    assert not outside & {v.video_id for v in (*found.train, *found.dev)}


@pytest.mark.parametrize(
    ("name", "train", "dev", "test"),
    [
        ("oulu_1", [240, 960], [180, 720], [120, 480]),
        ("oulu_2", [360, 720], [270, 540], [360, 720]),
        *((f"oulu_3_{i}", [300, 1200], [225, 900], [60, 240]) for i in range(1, 7)),
        *((f"oulu_4_{i}", [200, 400], [150, 300], [20, 40]) for i in range(1, 7)),
    ],
)
def test_oulu_protocols_have_the_documented_counts(name, train, dev, test, resolved):
    found = resolved(name)
    assert numbers(found.train) == train
    assert numbers(found.dev) == dev
    assert numbers(found.test["oulu_npu"]) == test


@pytest.mark.parametrize("name", ["1", "2", *(f"{p}_{i}" for p in (3, 4) for i in range(1, 7))])
def test_oulu_protocols_are_those_of_the_published_lists(name, official, resolved):
    lists = official("oulu_npu") / f"Protocol_{name}"
    found = resolved(f"oulu_{name}")
    for folder, videos in (
        ("train", found.train),
        ("dev", found.dev),
        ("eval", found.test["oulu_npu"]),
    ):
        for kind, label in (("real", 0), ("attack", 1)):
            lines = (lists / folder / f"for_{kind}.lst").read_text().splitlines()
            assert {v.path for v in videos if v.label == label} == {
                f"{line.split()[0]}.avi" for line in lines
            }


@pytest.mark.parametrize(
    ("name", "test"),
    [
        ("siw_1", [599, 1462]),
        *((f"siw_2_{i}", [599, n - 599]) for i, n in enumerate((899, 899, 897, 849), start=1)),
        ("siw_3_1", [599, 1148]),
        ("siw_3_2", [599, 314]),
    ],
)
def test_siw_protocols_have_the_documented_test_counts(name, test, resolved):
    assert numbers(resolved(name).test["siw"]) == test


def test_siw_1_trains_on_the_first_60_frames_and_tests_on_all():
    protocol = load_protocol("siw_1")
    assert list(protocol.train.frames_of("siw:x", 0, 400)) == list(range(60))
    assert list(protocol.test["siw"].frames_of("siw:x", 0, 400)) == list(range(400))


def test_siw_2_keeps_the_held_out_medium_and_all_prints_out_of_training(resolved):
    found = resolved("siw_2_3")
    trained = {(v.attack_type, v.attributes["medium"]) for v in found.train if v.label}
    assert trained == {("replay", "1"), ("replay", "2"), ("replay", "4")}
    tested = {(v.attack_type, v.attributes["medium"]) for v in found.test["siw"] if v.label}
    assert tested == {("replay", "3")}


def test_ffpp_intra_has_the_documented_counts(resolved):
    found = resolved("ffpp_intra_c23")
    assert numbers(found.train) == [720, 2880]
    assert numbers(found.dev) == numbers(found.test["ffpp"]) == [140, 560]


def test_a_manipulation_that_is_left_out_neither_trains_nor_chooses(resolved):
    found = resolved("ffpp_loo_face2face_c23")
    others = {("train", "deepfakes"), ("train", "faceswap"), ("train", "neuraltextures")}
    assert {(s, kind) for s, kind in count_by(found.train)} == {*others, ("train", "bona_fide")}
    assert "face2face" not in {v.attack_type for v in found.dev}
    assert count_by(found.test["face2face"]) == {
        ("test", "bona_fide"): 140,
        ("test", "face2face"): 140,
    }


def test_one_manipulation_is_tested_on_each_of_four(resolved):
    found = resolved("ffpp_one_to_all_faceswap_c23")
    assert {v.attack_type for v in found.train} == {None, "faceswap"}
    assert {name: {v.attack_type for v in part} for name, part in found.test.items()} == {
        name: {None, name} for name in ("deepfakes", "face2face", "faceswap", "neuraltextures")
    }


def test_ocim_uses_the_target_in_full_and_the_sources_dev_to_choose(resolved, listings):
    found = resolved("ocim_I")
    assert len(found.test["replay_attack"]) == len(listings("replay_attack")) == 1200
    assert {v.dataset for v in found.train} == {"oulu_npu", "casia_fasd", "msu_mfsd"}
    assert {v.split for v in found.train} == {"train", "test"}
    assert {v.dataset for v in found.dev} == {"oulu_npu", "casia_fasd", "msu_mfsd"}


def test_siw_mv2_trains_on_every_type_but_the_one_left_out(resolved):
    found = resolved("siw_mv2_loo_mask_silicone")
    assert len({v.attack_type for v in found.train} - {None}) == 13
    assert "mask_silicone" not in {v.attack_type for v in (*found.train, *found.dev)}
    assert numbers(found.test["mask_silicone"]) == [20, 8]


def test_uniattack_1_trains_on_one_pool_whatever_is_tested(resolved):
    runs = [resolved(f"uniattack_cao2024_1_{name}") for name in ("ffpp", "oulu_npu", "siw_mv2")]
    assert all(a.train == b.train for a, b in pairwise(runs))
    assert len({v.dataset for v in runs[0].train}) == 6
    assert not {"print", "wig"} & {v.attack_type for v in runs[0].train if v.dataset == "hq_wmca"}
    assert {v.dataset for v in (*runs[1].dev, *runs[1].test["oulu_npu"])} == {"oulu_npu"}


def test_uniattack_1_distorted_differs_in_the_test_pictures_only():
    plain = load_protocol("uniattack_cao2024_1_ffpp")
    distorted = load_protocol("uniattack_cao2024_1_distorted_ffpp")
    assert (plain.train, plain.dev, plain.threshold) == (
        distorted.train,
        distorted.dev,
        distorted.threshold,
    )
    assert distorted.test["ffpp"].distortion == "uniattack"
    assert plain.test["ffpp"].distortion is None


def test_uniattack_2_leaves_a_data_set_out(resolved):
    found = resolved("uniattack_cao2024_2_celeb_df")
    assert "celeb_df_v2" not in {v.dataset for v in (*found.train, *found.dev)}
    assert {v.dataset for v in found.test["celeb_df_v2"]} == {"celeb_df_v2"}


def test_uniattack_3_tests_a_type_beside_the_bona_fide_videos_of_its_own_data_set(resolved):
    found = resolved("uniattack_cao2024_3_rigid_mask")
    assert len({v.attack_type for v in found.train} - {None}) == 7
    assert {(v.dataset, v.attack_type) for v in found.test["mask_rigid"]} == {
        ("hq_wmca", None),
        ("hq_wmca", "mask_rigid"),
    }


def test_uniattackdata_is_another_protocol_of_another_data_set(resolved):
    found = resolved("uniattackdata_fang2024_p2.1")
    everything = (*found.train, *found.dev, *found.test["uniattackdata"])
    assert {v.attributes["protocol"] for v in everything} == {"p2.1"}


# ---- what a protocol can't say


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"threshold": {"kind": "test_eer"}}, "threshold.*'dev_eer', 'dev_bpcer', 'fixed'"),
        ({"threshold": {"kind": "dev_eer", "on": "test"}}, "threshold.dev_eer.on: unknown key"),
        ({"selection": "test"}, "selection: unknown key"),
        (
            {"dev": {"videos": [{"dataset": "a", "split": "test"}], "frames_per_video": 1}},
            "dev must name its split, and that can't be test",
        ),
        (
            {"dev": {"videos": [{"dataset": "a"}], "frames_per_video": 1}},
            "dev must name its split, and that can't be test",
        ),
        ({"train": {"videos": [{"split": "train"}], "frames_per_video": 1}}, "name its `dataset`"),
        ({"train": {**PROTOCOL["train"], "sampling": "random"}}, "`seed` belongs to"),
        ({"train": {**PROTOCOL["train"], "seed": 1}}, "`seed` belongs to"),
        ({"train": {**PROTOCOL["train"], "frames_per_video": 0}}, "greater than or equal to 1"),
        ({"disjoint": "nothing"}, "disjoint: Input should be"),
        ({"name": "other"}, "the name is the file's"),
        ({"test": {}}, "test: Dictionary should have at least 1 item"),
        ({"test": {"dev": PROTOCOL["test"]["a"]}}, "a test set can't be named dev"),
        ({"for": {"1": None}}, r"for\.1: expected parameters, found None"),
        ({"disjunct": "source"}, "disjunct: unknown key; did you mean 'disjoint'"),
    ],
)
def test_a_protocol_is_refused_that(changed, message, load):
    with pytest.raises(TrainError, match=message):
        load(**changed)


def test_a_distortion_belongs_to_test_sets_only(load):
    with pytest.raises(TrainError, match=r"train\.distortion: unknown key"):
        load(train={**PROTOCOL["train"], "distortion": "uniattack"})


@pytest.mark.parametrize(
    ("kind", "threshold"),
    [
        ("DevBpcer", {"kind": "dev_bpcer", "at": 0.01}),
        ("FixedThreshold", {"kind": "fixed", "value": 0.5}),
    ],
)
def test_thresholds_come_from_dev_or_are_fixed(kind, threshold, load):
    assert type(load(threshold=threshold)["mine"].threshold).__name__ == kind


def test_a_family_gives_a_protocol_for_each_member(load):
    test = {"$kind": {"videos": [{"dataset": "a", "attack_type": ["bona_fide", "$kind"]}]}}
    test["$kind"]["frames_per_video"] = 1
    members = load(**{"for": {"1": {"kind": "print"}, "2": {"kind": "replay"}}, "test": test})
    assert list(members) == ["mine_1", "mine_2"]
    assert members["mine_2"].name == "mine_2"
    assert members["mine_2"].test["replay"].videos[0].attack_type == ("bona_fide", "replay")


def test_a_parameter_that_a_member_lacks_is_named(load):
    with pytest.raises(TrainError, match=r"\$kind is no parameter; known: type"):
        load(**{"for": {"1": {"type": "print"}}, "description": "$kind"})


def test_an_unknown_protocol_is_refused_with_names_that_begin_alike():
    with pytest.raises(TrainError, match=r"unknown protocol 'oulu_5'; known: oulu_1, oulu_2"):
        load_protocol("oulu_5")


def test_a_protocol_may_be_a_file_of_ones_own(tmp_path, load):
    load()
    assert load_protocol(str(tmp_path / "mine.yaml")).name == "mine"


def test_a_member_of_a_family_of_ones_own_is_named_behind_a_colon(tmp_path, load):
    load(**{"for": {"1": {}, "2": {}}})
    assert load_protocol(f"{tmp_path}/mine.yaml:2").name == "mine_2"
    with pytest.raises(TrainError, match=r"known: .*/mine\.yaml:1, .*/mine\.yaml:2"):
        load_protocol(f"{tmp_path}/mine.yaml")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("no/such.yaml", r"no/such\.yaml: can't read the protocol"),
        ("mine.yml", "unknown protocol 'mine.yml'"),
        ("some/where", "ends in .yaml"),
    ],
)
def test_a_file_that_is_no_protocol_is_named(name, problem):
    with pytest.raises(TrainError, match=problem):
        load_protocol(name)


# ---- resolving


def test_train_dev_and_test_are_what_the_queries_match(load):
    found = resolve(load()["mine"], {"a": listing()})
    assert {v.split for v in found.train} == {"train"}
    assert {v.split for v in found.dev} == {"dev"}
    assert {v.split for v in found.test["a"]} == {"test"}


def test_the_order_of_a_listing_does_not_matter(load):
    protocol = load()["mine"]
    assert resolve(protocol, {"a": listing()}) == resolve(protocol, {"a": listing()[::-1]})


def test_a_video_in_train_and_test_is_refused(load):
    protocol = load(train={"videos": [{"dataset": "a"}], "frames_per_video": 1})["mine"]
    with pytest.raises(TrainError, match=r"in train and in dev: 3 videos .a:dev"):
        resolve(protocol, {"a": listing()})


@pytest.mark.parametrize("ours", ["train", "dev"])
def test_a_source_that_is_tested_too_is_refused(ours, load):
    leak = video("copy", ours, source_id="a:testNone")
    with pytest.raises(TrainError, match=f"in {ours} and in test set a: 1 sources .a:testNone"):
        resolve(load()["mine"], {"a": [*listing(), leak]})


def test_a_source_may_be_shared_where_the_protocol_says_so(load):
    leak = video("copy", "train", source_id="a:testNone")
    assert resolve(load(disjoint="video")["mine"], {"a": [*listing(), leak]})


def test_a_subject_that_is_tested_too_is_refused(load):
    people = [video(f"{v.path}", v.split, v.attack_type, subject="a:" + v.split) for v in listing()]
    protocol = load(disjoint="subject")["mine"]
    assert resolve(protocol, {"a": people})
    leak = video("copy", "train", subject="a:test")
    with pytest.raises(TrainError, match=r"in train and in test set a: .*1 subjects .a:test"):
        resolve(protocol, {"a": [*people, leak]})


def test_disjoint_subjects_can_not_be_claimed_where_they_are_not_told(load):
    with pytest.raises(TrainError, match="claims disjoint subjects, but a does not tell them"):
        resolve(load(disjoint="subject")["mine"], {"a": listing()})


def test_faceforensics_training_videos_show_as_leaks_in_a_test_on_deeperforensics(load, listings):
    protocol = load(
        train={"videos": [{"dataset": "ffpp", "split": "train"}], "frames_per_video": 1},
        dev={"videos": [{"dataset": "ffpp", "split": "dev"}], "frames_per_video": 1},
        test={
            "x": {
                "videos": [
                    {"dataset": "deeper_forensics", "split": "test"},
                    {"dataset": "ffpp", "split": "test", "attack_type": "bona_fide"},
                ],
                "frames_per_video": 1,
            }
        },
    )["mine"]
    with pytest.raises(TrainError, match=r"in train and in test set x: \d+ sources .ffpp:youtube/"):
        resolve(protocol, {name: listings(name) for name in protocol.datasets()})


def test_a_data_set_that_is_not_given_is_named(load):
    with pytest.raises(TrainError, match="mine: needs the data set a"):
        resolve(load()["mine"], {"b": []})


def test_a_query_without_videos_is_named(load):
    with pytest.raises(TrainError, match=r"mine: test a: no video of a among .*'split'"):
        resolve(load()["mine"], {"a": [v for v in listing() if v.split != "test"]})


@pytest.mark.parametrize("field", ["attack_type", "compression"])
def test_a_value_that_no_video_has_is_named(field, load):
    part = {"videos": [{"dataset": "a", "split": "train", field: ["print", "wig"]}]}
    videos = [video(v.path, v.split, v.attack_type, compression="print") for v in listing()]
    with pytest.raises(TrainError, match="mine: train: no video of wig among"):
        resolve(load(train={**part, "frames_per_video": 1})["mine"], {"a": videos})


def test_an_exclusion_that_excludes_nothing_is_refused(load):
    train = {**PROTOCOL["train"], "exclude": {"attributes": {"phone": "7"}}}
    with pytest.raises(TrainError, match="train: `exclude` matches no video"):
        resolve(load(train=train)["mine"], {"a": listing()})


@pytest.mark.parametrize(
    ("part", "attack_type"), [("dev", "bona_fide"), ("dev", "print"), ("test", "bona_fide")]
)
def test_choosing_and_testing_need_both_classes(part, attack_type, load):
    one = {"videos": [{"dataset": "a", "split": part, "attack_type": attack_type}]}
    one["frames_per_video"] = 1
    with pytest.raises(TrainError, match=rf"{part}.* holds one class only"):
        resolve(load(**{part: {"a": one} if part == "test" else one})["mine"], {"a": listing()})


def test_training_on_bona_fide_videos_alone_is_allowed_on_attacks_alone_not(load):
    def train_on(kind):
        train = {"videos": [{"dataset": "a", "split": "train", "attack_type": kind}]}
        return load(train={**train, "frames_per_video": 1})["mine"]

    assert resolve(train_on("bona_fide"), {"a": listing()})
    with pytest.raises(TrainError, match="train holds no bona fide video"):
        resolve(train_on("print"), {"a": listing()})


def test_a_family_of_attacks_can_be_asked_for(load):
    train = {"videos": [{"dataset": "a", "split": "train"}], "exclude": {"family": "presentation"}}
    found = resolve(load(train={**train, "frames_per_video": 1})["mine"], {"a": listing()})
    assert [v.attack_type for v in found.train] == [None]


# ---- frames


def frames(load, **rule):
    train = {"videos": [{"dataset": "a", "split": "train"}], **rule}
    return load(train=train)["mine"].train


@pytest.mark.parametrize(
    ("sampling", "expected"), [("linspace", [0, 33, 66, 99]), ("first_n", [0, 1, 2, 3])]
)
def test_frames_are_sampled_by_rule(sampling, expected, load):
    part = frames(load, frames_per_video=4, sampling=sampling)
    assert list(part.frames_of("a:x", 0, 100)) == expected


def test_classes_may_have_different_numbers_of_frames(load):
    part = frames(load, frames_per_video={"bona_fide": 10, "attack": 2})
    assert len(part.frames_of("a:x", 0, 100)) == 10
    assert part.frames_of("a:x", 1, 100) == [0, 99]


def test_random_frames_depend_on_seed_and_video_only(load):
    def draw(seed, name):
        part = frames(load, frames_per_video=5, sampling="random", seed=seed)
        return part.frames_of(name, 0, 100)

    assert draw(1, "x") == draw(1, "x")
    assert draw(1, "x") != draw(2, "x")
    assert draw(1, "x") != draw(1, "y")
    assert np.all(np.diff(draw(1, "x")) > 0)


def test_a_short_video_gives_all_its_frames(load):
    part = frames(load, frames_per_video=32)
    assert list(part.frames_of("a:x", 0, 3)) == [0, 1, 2]
    assert list(part.frames_of("a:x", 0, 0)) == []


def test_a_protocol_whose_test_data_are_absent_names_them_and_what_is_there():
    message = r"tests on the data set oulu_npu, which is not among the prepared faces \(smoke\)"
    with pytest.raises(TrainError, match=message):
        resolve_tests(load_protocol("oulu_1"), {"smoke": []})
