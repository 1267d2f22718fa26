"""Prepared faces and a protocol become the rows that train, choose and test."""

import pytest
import torch
import yaml

from models import build_model
from train.config import DataConfig, Recipe
from train.data.prepare import Problem
from train.data.selection import groups, open_data
from train.data.shards import PreparedConfig, open_shards
from train.errors import TrainError
from train.evaluation.score_model import score_part
from train.evaluation.scores import video_auc
from train.fit.ranks import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))


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
def write(write_faces):
    def written(records, problems=(), prepared=None):
        folder = write_faces(records, prepared=prepared)
        (folder / "problems.jsonl").write_text(
            "".join(problem.model_dump_json() + "\n" for problem in problems)
        )
        return folder

    return written


@pytest.fixture
def both(face_record):
    """Make faces of both classes, each of a video of its own."""

    def records(split, n=2, **known):
        return [
            face_record(f"{split}/{kind}/{i}", split=split, attack_type=kind, **known)
            for kind in (None, "print")
            for i in range(n)
        ]

    return records


@pytest.fixture
def everything(both):
    return [record for split in ("train", "dev", "test") for record in both(split)]


def _names(data, rows):
    return [data.shards.records[row].video_id.removeprefix("two_folders:") for row in rows]


def test_without_a_protocol_the_splits_of_the_data_sets_hold(write, everything):
    data = open_data([write(everything, [_problem("gone", split="test")])], None)
    assert all(name.startswith("train/") for name in _names(data, data.train))
    assert all(name.startswith("dev/") for name in _names(data, data.dev.rows))
    assert all(name.startswith("test/") for name in _names(data, data.test["test"].rows))
    assert [video.path for video in data.test["test"].faceless] == ["gone"]
    assert data.dev.faceless == []


def test_a_protocol_chooses_videos_and_frames(write, everything, face_record):
    frames = [face_record("train/None/0", frame, split="train") for frame in range(1, 40)]
    data = open_data([write([*everything, *frames])], "two_folders")
    assert data.protocol == "two_folders"
    taken = [data.shards.records[row].frame for row in data.train]
    assert len(taken) == 3 + 32  # 32 frames a video at most, evenly
    assert max(taken) == 39


def test_queries_tell_videos_apart_by_whatever_they_ask_for(write, face_record, tmp_path):
    """Rows come out as they would if every video were asked for by itself."""
    records = []
    for i in range(60):
        split = ("train", "dev", "test")[i % 3]
        kind = (None, "print", "replay")[i // 3 % 3]
        phone, subject = str(i % 4), f"{split}{i % 5}"
        about = {"attributes": {"phone": phone, "take": str(i)}, "subject": subject}
        about["compression"] = ("c23", "c40", None)[i % 7 % 3]
        about |= {"split": split, "attack_type": kind}
        records += [face_record(f"{i:02}", frame, **about) for frame in range(1 + i % 3)]
    query = {
        "dataset": "two_folders",
        "attributes": {"phone": ["1", "3"]},
        "compression": ["c23", "c40"],
    }
    path = tmp_path / "mine.yaml"
    one_side = {"frames_per_video": {"bona_fide": None, "attack": 2}}
    parts = {
        split: {
            "videos": [{**query, "split": split}],
            "exclude": {"subjects": [f"{split}{n}" for n in (0, 3)]},
            **one_side,
        }
        for split in ("train", "dev", "test")
    }
    protocol = {"description": "x", "disjoint": "subject", "threshold": {"kind": "dev_eer"}}
    protocol |= {**parts, "test": {"own": parts["test"]}}
    path.write_text(yaml.safe_dump(protocol))
    data = open_data([write(records)], str(path))
    for split, rows in (
        ("train", data.train),
        ("dev", data.dev.rows),
        ("test", data.test["own"].rows),
    ):
        expected = [
            row
            for row, record in enumerate(data.shards.records)
            if record.split == split
            and record.attributes["phone"] in ("1", "3")
            and record.compression is not None
            and record.subject[-1] not in "03"
        ]
        by_video = {}
        for row in expected:
            by_video.setdefault(data.shards.records[row].video_id, []).append(row)
        kept = [
            r if data.shards.label[r[0]] == 0 or len(r) <= 2 else [r[0], r[2]]
            for r in by_video.values()
        ]
        assert rows == [row for its_rows in kept for row in its_rows]
        assert rows


def test_dev_of_one_class_is_refused(write, both, face_record):
    records = [*both("train"), face_record("dev/a", split="dev")]
    with pytest.raises(TrainError, match="dev faces are of one class only"):
        open_data([write(records)], None)


def test_dev_of_bona_fide_faces_will_do_where_attacks_are_made(write, both, face_record):
    data = open_data([write([*both("train"), face_record("a", split="dev")])], None, synthetic=True)
    assert len(data.dev.rows) == 1


def test_each_class_is_a_group_with_its_own_quota(write, both):
    config = DataConfig(prepared=["x"], bona_fide_per_step=3, attacks_per_step=5)
    found = groups(open_shards(write(both("train"))), range(4), config)
    assert [(g.name, list(g.rows), g.quota) for g in found] == [
        ("bona fide", [0, 1], 3),
        ("attack", [2, 3], 5),
    ]


def test_groups_can_be_data_sets_and_attributes(write, both):
    records = [
        *both("train", attributes={"camera": "a"}),
        *both("train", dataset="msu_mfsd", attributes={"camera": "b"}),
    ]
    shards = open_shards(write(records))
    by_dataset = groups(shards, range(8), DataConfig(prepared=["x"], group_by="dataset"))
    assert [g.name for g in by_dataset] == [
        "bona fide msu_mfsd",
        "bona fide two_folders",
        "attack msu_mfsd",
        "attack two_folders",
    ]
    config = DataConfig(prepared=["x"], group_by="camera", quotas={"a": 7})
    assert [g.quota for g in groups(shards, range(8), config)] == [7, 16, 16, 16]


def test_a_group_that_no_face_has_is_refused(write, both):
    config = DataConfig(prepared=["x"], group_by="camera", quotas={"z": 1})
    shards = open_shards(write(both("train", attributes={"camera": "a"})))
    with pytest.raises(TrainError, match=r"quotas: no face of z; found \['a'\]"):
        groups(shards, range(4), config)
    with pytest.raises(TrainError, match=r"'phone' is no field or attribute.*subject.*camera"):
        groups(shards, range(4), DataConfig(prepared=["x"], group_by="phone"))


def test_training_without_attacks_needs_synthetic_ones(write, face_record):
    shards = open_shards(write([face_record("a")]))
    with pytest.raises(TrainError, match=r"no attacks: set data\.synthetic"):
        groups(shards, [0], DataConfig(prepared=["x"]))
    (only,) = groups(shards, [0], DataConfig(prepared=["x"], synthetic={"sbi": 1.0}))
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


def test_every_face_is_scored_once_and_faceless_videos_are_told(write, everything):
    problem = _problem("gone", attack_type="replay")
    data = open_data([write(everything, [problem])], None)
    scores = _scored(data, data.test["test"])
    assert [(s.video_id, s.label, s.attack_type) for s in scores if s.score is None] == [
        ("two_folders:gone", 1, "replay")
    ]
    seen = [s for s in scores if s.score is not None]
    assert len(seen) == len({s.sample_id for s in seen}) == 4
    assert all(0 <= s.score <= 1 for s in seen)
    assert 0 <= video_auc(scores) <= 1


def test_attacks_made_on_dev_are_named_so(write, face_record):
    about = PreparedConfig(size_px=128, margin=2.0, code_version="test")
    big = {
        "box": (32, 32, 96, 96),
        "face": (32, 32, 96, 96),
        "landmarks": [(48, 52), (80, 52), (64, 64), (52, 80), (76, 80)],
    }
    records = [
        face_record("a", split="train"),
        *(face_record(f"d{i}", split="dev", **big) for i in (0, 1)),
    ]
    data = open_data([write(records, prepared=about)], None, synthetic=True)
    first, second = (_scored(data, data.dev, {"replay": 1.0}) for _ in range(2))
    assert first == second
    made = [s for s in first if s.label == 1]
    assert {s.dataset for s in made} == {"synthetic/two_folders"}
    assert {s.attack_type for s in made} == {"synthetic"}
    assert len(made) == len([s for s in first if s.label == 0]) == 2


def test_a_distorted_part_scores_other_pictures_alike_in_every_run(write, everything):
    data = open_data([write(everything)], None)
    part = data.test["test"]
    damaged = type(part)(part.rows, part.faceless, distorted=True)
    clean, first, second = (_scored(data, p) for p in (part, damaged, damaged))
    assert first == second
    assert all(a.logit != b.logit for a, b in zip(clean, first, strict=True))


@pytest.mark.parametrize(("band", "looks_again"), [((0.0, 1.0), True), ((1.0, 1.0), False)])
def test_undecided_faces_are_looked_at_again_as_the_engine_does(
    write, band, looks_again, everything
):
    data = open_data([write(everything)], None)
    torch.manual_seed(0)
    options = {"backbone": "resnet18", "size_px": 64, "hypotheses": 4, "refinement_steps": 2}
    model = build_model("fghv", {**options, "refinement_band": band})
    first = _scored(data, data.test["test"], model=model)
    refined = _scored(data, data.test["test"], model=model, refine=True)
    assert all((a.score != b.score) == looks_again for a, b in zip(first, refined, strict=True))
    assert [a.logit for a in first] == [b.logit for b in refined]
