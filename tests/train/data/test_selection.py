"""Prepared faces and a protocol become the rows that train, choose and test."""

import numpy as np
import pytest
import torch

from models import build_model
from train.config import DataConfig, Recipe
from train.data.prepare import Problem
from train.data.selection import groups, open_data
from train.data.shards import FaceRecord, PreparedConfig, ShardWriter, encode_crop
from train.errors import TrainError
from train.evaluation.score_model import score_part
from train.evaluation.scores import video_auc
from train.fit.ranks import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))
ABOUT = PreparedConfig(size_px=64, margin=2.0, code_version="test")


def _record(video, frame=0, **known):
    attack_type = known.pop("attack_type", None)
    dataset = known.pop("dataset", "two_folders")
    return FaceRecord.model_validate(
        {
            "sample_id": f"{dataset}:{video}@{frame}",
            "dataset": dataset,
            "video_id": f"{dataset}:{video}",
            "source_id": f"{dataset}:{video}",
            "split": "train",
            "label": int(attack_type is not None),
            "attack_type": attack_type,
            "frame": frame,
            "pts_s": frame / 25,
            "track": 0,
            "box": (16, 16, 48, 48),
            "landmarks": [(24, 26), (40, 26), (32, 32), (26, 40), (38, 40)],
            "face_px": 32,
            "source_sha256": "",
            "licence": "none",
            **known,
        }
    )


def _problem(path, **known):
    return Problem(
        **{
            "dataset": "two_folders",
            "path": path,
            "source_id": f"two_folders:{path}",
            "subject": None,
            "split": "test",
            "attack_type": None,
            "compression": None,
            "attributes": {},
            "problem": "no face",
            **known,
        }
    )


@pytest.fixture
def write(tmp_path):
    def written(records, problems=(), prepared=ABOUT):
        rng = np.random.default_rng(0)
        with ShardWriter(tmp_path / "faces", prepared) as shards:
            for record in records:
                size = prepared.size_px
                image = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                shards.add([(record, encode_crop(image))])
        (tmp_path / "faces" / "problems.jsonl").write_text(
            "".join(problem.model_dump_json() + "\n" for problem in problems)
        )
        return tmp_path / "faces"

    return written


def _both(split, n=2, **known):
    kinds = (None, "print")
    return [
        _record(f"{split}/{kind}/{i}", split=split, attack_type=kind, **known)
        for kind in kinds
        for i in range(n)
    ]


EVERYTHING = [record for split in ("train", "dev", "test") for record in _both(split)]


def _names(data, rows):
    return [data.shards.records[row].video_id.removeprefix("two_folders:") for row in rows]


def test_without_a_protocol_the_splits_of_the_data_sets_hold(write):
    data = open_data([write(EVERYTHING, [_problem("gone", split="test")])], None)
    assert all(name.startswith("train/") for name in _names(data, data.train))
    assert all(name.startswith("dev/") for name in _names(data, data.dev.rows))
    assert all(name.startswith("test/") for name in _names(data, data.test["test"].rows))
    assert [video.path for video in data.test["test"].faceless] == ["gone"]
    assert data.dev.faceless == []


def test_a_protocol_chooses_videos_and_frames(write):
    frames = [_record("train/None/0", frame, split="train") for frame in range(1, 40)]
    data = open_data([write([*EVERYTHING, *frames])], "two_folders")
    assert data.protocol == "two_folders"
    taken = [data.shards.records[row].frame for row in data.train]
    assert len(taken) == 3 + 32  # 32 frames a video at most, evenly
    assert max(taken) == 39


def test_dev_of_one_class_is_refused(write):
    records = [*_both("train"), _record("dev/a", split="dev")]
    with pytest.raises(TrainError, match="dev faces are of one class only"):
        open_data([write(records)], None)


def test_dev_of_bona_fide_faces_will_do_where_attacks_are_made(write):
    data = open_data([write([*_both("train"), _record("a", split="dev")])], None, synthetic=True)
    assert len(data.dev.rows) == 1


def test_each_class_is_a_group_with_its_own_quota():
    config = DataConfig(prepared=["x"], bona_fide_per_step=3, attacks_per_step=5)
    found = groups(_both("train"), range(4), config)
    assert [(g.name, list(g.rows), g.quota) for g in found] == [
        ("bona fide", [0, 1], 3),
        ("attack", [2, 3], 5),
    ]


def test_groups_can_be_data_sets_and_attributes():
    records = [
        *_both("train", attributes={"camera": "a"}),
        *_both("train", dataset="msu_mfsd", attributes={"camera": "b"}),
    ]
    by_dataset = groups(records, range(8), DataConfig(prepared=["x"], group_by="dataset"))
    assert [g.name for g in by_dataset] == [
        "bona fide msu_mfsd",
        "bona fide two_folders",
        "attack msu_mfsd",
        "attack two_folders",
    ]
    config = DataConfig(prepared=["x"], group_by="camera", quotas={"a": 7})
    assert [g.quota for g in groups(records, range(8), config)] == [7, 16, 16, 16]


def test_a_group_that_no_face_has_is_refused():
    config = DataConfig(prepared=["x"], group_by="camera", quotas={"z": 1})
    with pytest.raises(TrainError, match=r"quotas: no face of z; found \['a'\]"):
        groups(_both("train", attributes={"camera": "a"}), range(4), config)
    with pytest.raises(TrainError, match="'phone' is no field or attribute"):
        groups(_both("train"), range(4), DataConfig(prepared=["x"], group_by="phone"))


def test_training_without_attacks_needs_synthetic_ones():
    records = [_record("a")]
    with pytest.raises(TrainError, match=r"no attacks: set data\.synthetic"):
        groups(records, [0], DataConfig(prepared=["x"]))
    (only,) = groups(records, [0], DataConfig(prepared=["x"], synthetic={"sbi": 1.0}))
    assert only.name == "bona fide"


def _scored(data, part, synthetic=None, model=None, **how):
    torch.manual_seed(0)
    model = model or build_model("lgsc", {"size_px": 32, "decoder_widths": [4] * 5})
    recipe = Recipe.model_validate(
        {
            "method": "lgsc",
            "data": {"prepared": ["x"], "synthetic": synthetic or {}},
            "loader": {"kind": "torch", "workers": 0},
            "optimiser": {"kind": "adam", "learning_rate": 1.0},
            "steps": 1,
        }
    )
    return score_part(model, data, part, recipe, ALONE, **how)


def test_every_face_is_scored_once_and_faceless_videos_are_told(write):
    problem = _problem("gone", attack_type="replay")
    data = open_data([write(EVERYTHING, [problem])], None)
    scores = _scored(data, data.test["test"])
    assert [(s.video_id, s.label, s.attack_type) for s in scores if s.score is None] == [
        ("two_folders:gone", 1, "replay")
    ]
    seen = [s for s in scores if s.score is not None]
    assert len(seen) == len({s.sample_id for s in seen}) == 4
    assert all(0 <= s.score <= 1 for s in seen)
    assert 0 <= video_auc(scores) <= 1


def test_attacks_made_on_dev_are_named_so(write):
    about = PreparedConfig(size_px=128, margin=2.0, code_version="test")
    big = {
        "box": (32, 32, 96, 96),
        "landmarks": [(48, 52), (80, 52), (64, 64), (52, 80), (76, 80)],
    }
    records = [_record("a", split="train"), *(_record(f"d{i}", split="dev", **big) for i in (0, 1))]
    data = open_data([write(records, prepared=about)], None, synthetic=True)
    first, second = (_scored(data, data.dev, {"replay": 1.0}) for _ in range(2))
    assert first == second
    made = [s for s in first if s.label == 1]
    assert {s.dataset for s in made} == {"synthetic/two_folders"}
    assert {s.attack_type for s in made} == {"synthetic"}
    assert len(made) == len([s for s in first if s.label == 0]) == 2


def test_a_distorted_part_scores_other_pictures_alike_in_every_run(write):
    data = open_data([write(EVERYTHING)], None)
    part = data.test["test"]
    damaged = type(part)(part.rows, part.faceless, distorted=True)
    clean, first, second = (_scored(data, p) for p in (part, damaged, damaged))
    assert first == second
    assert all(a.logit != b.logit for a, b in zip(clean, first, strict=True))


@pytest.mark.parametrize(("band", "looks_again"), [((0.0, 1.0), True), ((1.0, 1.0), False)])
def test_undecided_faces_are_looked_at_again_as_the_engine_does(write, band, looks_again):
    data = open_data([write(EVERYTHING)], None)
    torch.manual_seed(0)
    options = {"backbone": "resnet18", "size_px": 64, "hypotheses": 4, "refinement_steps": 2}
    model = build_model("fghv", {**options, "refinement_band": band})
    first = _scored(data, data.test["test"], model=model)
    refined = _scored(data, data.test["test"], model=model, refine=True)
    assert all((a.score != b.score) == looks_again for a, b in zip(first, refined, strict=True))
    assert [a.logit for a in first] == [b.logit for b in refined]
