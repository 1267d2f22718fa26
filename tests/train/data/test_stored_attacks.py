"""Stored synthetic attacks: marked as such, made of bona fide faces of the named split alone."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

from train.__main__ import main
from train.attacks import FAMILIES
from train.data.selection import open_data
from train.data.shards import PreparedConfig, open_shards
from train.data.stored_attacks import write_synthetic_attacks
from train.errors import TrainError

_WEIGHTS = {"sbi": 1.0, "moire": 1.0}


@pytest.fixture
def faces(tmp_path, stored_faces, write_shards):
    """Ten bona fide faces and ten attacks; four of the bona fide ones are of split dev."""
    some = [
        (record.model_copy(update={"split": "dev" if number < 8 else "train"}), png)
        for number, (record, png) in enumerate(stored_faces[:20])
    ]
    folder = write_shards(tmp_path / "faces", some)
    (folder / "problems.jsonl").touch()
    return folder


def test_each_bona_fide_face_of_the_split_is_attacked_once_and_no_attack_is(tmp_path, faces):
    out = tmp_path / "attacks"
    assert write_synthetic_attacks(faces, out, _WEIGHTS) == 6
    sources = {r.sample_id: r for r in open_shards(faces).records}
    for record in open_shards(out).records:
        source = sources[record.provenance["of"]]
        assert (source.label, source.split) == (0, "train")
        assert (record.label, record.split) == (1, "train")
        assert record.attack_type in _WEIGHTS
        assert record.dataset == "synthetic/test"
        assert record.sample_id == f"synthetic/{source.sample_id}"
        assert record.source_id == source.source_id


def test_the_provenance_holds_the_parameters_of_the_attack(tmp_path, faces):
    write_synthetic_attacks(faces, tmp_path / "attacks", {"moire": 1.0}, seed=3)
    for record in open_shards(tmp_path / "attacks").records:
        assert record.provenance["seed"] == 3
        assert 0.0005 <= record.provenance["degree"] <= 0.01


def test_dev_faces_are_attacked_only_where_that_is_asked_for(tmp_path, faces):
    assert write_synthetic_attacks(faces, tmp_path / "dev", _WEIGHTS, split="dev") == 4
    assert {r.split for r in open_shards(tmp_path / "dev").records} == {"dev"}


def test_a_split_without_bona_fide_faces_is_refused(tmp_path, faces):
    with pytest.raises(TrainError, match="no bona fide face of split test"):
        write_synthetic_attacks(faces, tmp_path / "attacks", _WEIGHTS, split="test")


def test_attacks_are_not_attacked_again(tmp_path, faces):
    write_synthetic_attacks(faces, tmp_path / "once", _WEIGHTS)
    with pytest.raises(TrainError, match="no bona fide face"):
        write_synthetic_attacks(tmp_path / "once", tmp_path / "twice", _WEIGHTS)


def test_a_tight_margin_is_refused(tmp_path, stored_faces, write_shards):
    tight = PreparedConfig(size_px=96, margin=1.3, code_version="test")
    folder = write_shards(tmp_path / "tight", stored_faces[:4], tight)
    with pytest.raises(TrainError, match=r"margin of 1\.8 to 2\.2"):
        write_synthetic_attacks(folder, tmp_path / "attacks", _WEIGHTS)


def test_the_same_call_changes_nothing_and_another_seed_needs_another_folder(tmp_path, faces):
    first, second = tmp_path / "first", tmp_path / "second"
    write_synthetic_attacks(faces, first, _WEIGHTS)
    before = {path.name: path.read_bytes() for path in first.iterdir()}
    write_synthetic_attacks(faces, first, _WEIGHTS)
    write_synthetic_attacks(faces, second, _WEIGHTS)
    assert {path.name: path.read_bytes() for path in first.iterdir()} == before
    assert {path.name: path.read_bytes() for path in second.iterdir()} == before
    with pytest.raises(TrainError, match="use another folder"):
        write_synthetic_attacks(faces, first, _WEIGHTS, seed=1)


def test_an_attack_does_not_depend_on_which_other_faces_there_are(
    tmp_path, faces, stored_faces, write_shards
):
    few = write_shards(tmp_path / "few", stored_faces[8:12])
    write_synthetic_attacks(faces, tmp_path / "a", _WEIGHTS)
    write_synthetic_attacks(few, tmp_path / "b", _WEIGHTS)
    all_, fewer = open_shards(tmp_path / "a"), open_shards(tmp_path / "b")
    rows = {record.sample_id: row for row, record in enumerate(all_.records)}
    for row, record in enumerate(fewer.records):
        np.testing.assert_array_equal(all_.crop(rows[record.sample_id]), fewer.crop(row))


def test_bona_fide_faces_and_their_stored_attacks_make_a_run(tmp_path, faces):
    for split in ("train", "dev"):
        write_synthetic_attacks(faces, tmp_path / split, _WEIGHTS, split=split)
    data = open_data([faces, tmp_path / "train", tmp_path / "dev"], None)
    types = {data.shards.records[row].attack_type for row in data.dev.rows}
    assert types - {None, "print"} <= FAMILIES.keys()
    assert len(data.train) == 12 + 6


def test_the_command_writes_the_families_that_it_names(tmp_path, faces):
    out = tmp_path / "attacks"
    result = CliRunner().invoke(
        main, ["store-attacks", str(faces), "--out", str(out), "--family", "print_jitter"]
    )
    assert result.exit_code == 0, result.output
    assert "6 synthetic attacks" in result.output
    assert {r.attack_type for r in open_shards(out).records} == {"print_jitter"}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["absent"], "no prepared faces"),
        (["faces", "--family", "mask"], "--family: no mask; known"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path, faces, arguments, problem):
    folder, *more = arguments
    argv = ["store-attacks", str(tmp_path / folder), "--out", str(tmp_path / "out"), *more]
    result = CliRunner().invoke(main, argv)
    with pytest.raises(TrainError, match=problem):
        raise result.exception
