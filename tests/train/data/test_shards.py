"""Prepared faces on disk: complete, the same bytes each time, and honest about damage."""

import io
import json
import resource
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pydantic import ValidationError

from train.data.shard_writer import ShardWriter
from train.data.shards import PreparedConfig, encode_crop, open_shards
from train.errors import TrainError

PREPARED = PreparedConfig(size_px=96, margin=2.0, code_version="test")


@pytest.fixture
def folder(tmp_path, stored_faces, write_shards):
    return write_shards(tmp_path / "faces", stored_faces)


def _contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_faces_come_back_as_they_were_written(folder, stored_faces):
    shards = open_shards(folder)
    assert [path.name for path in shards.files] == [f"shard-0000{i}.tar" for i in range(3)]
    assert shards.prepared == PREPARED
    assert list(shards.records) == [record for record, _ in stored_faces]
    for row, (_, png) in enumerate(stored_faces):
        assert shards.png(row) == png
    with Image.open(io.BytesIO(stored_faces[7][1])) as picture:
        np.testing.assert_array_equal(shards.crop(7), np.asarray(picture))


def test_any_reader_of_tars_finds_each_picture_beside_its_record(folder, stored_faces):
    with tarfile.open(folder / "shard-00001.tar") as tar:
        names = tar.getnames()
        png, record = (tar.extractfile(name).read() for name in names[:2])
    assert names[:3] == ["00001-00000.png", "00001-00000.json", "00001-00001.png"]
    assert png == stored_faces[16][1]
    assert record.decode() == stored_faces[16][0].model_dump_json()


def test_the_same_faces_give_the_same_bytes(folder, tmp_path, stored_faces, write_shards):
    again = write_shards(tmp_path / "again", stored_faces)
    assert _contents(again) == _contents(folder)


def test_an_interrupted_writer_goes_on_and_ends_with_the_same_bytes(folder, tmp_path, stored_faces):
    again = tmp_path / "again"

    def add_up_to(count):
        with ShardWriter(again, PREPARED, samples_per_shard=16) as writer:
            done = set(writer.stored)
            for record, png in stored_faces:
                if record.video_id not in done:
                    writer.add([(record, png)])
                if record.frame == count:
                    raise KeyboardInterrupt
            return len(done)

    with pytest.raises(KeyboardInterrupt):
        add_up_to(20)
    with pytest.raises(TrainError, match="unfinished"):
        open_shards(again)
    assert add_up_to(None) == 16
    assert _contents(again) == _contents(folder)


def test_samples_that_are_added_together_lie_in_one_shard(tmp_path, stored_faces):
    with ShardWriter(tmp_path, PREPARED, samples_per_shard=16) as writer:
        for start in range(0, 40, 10):
            writer.add(stored_faces[start : start + 10])
    assert np.bincount(open_shards(tmp_path).shard).tolist() == [20, 20]


def _video(face_record, name, frames, **known):
    png = encode_crop(np.full((96, 96, 3), len(name), np.uint8))
    return [(face_record(name, frame, **known), png) for frame in frames]


def test_the_faces_of_a_video_are_neighbours_in_the_order_of_their_frames(tmp_path, face_record):
    with ShardWriter(tmp_path, PREPARED) as writer:
        writer.add(_video(face_record, "a", (4, 0, 2)) + _video(face_record, "b", (1,)))
    shards = open_shards(tmp_path)
    assert [record.frame for record in shards.records] == [0, 2, 4, 1]
    assert shards.first.tolist() == [0, 3, 4]
    assert shards.video.tolist() == [0, 0, 0, 1]
    assert shards.videos["video_id"].to_pylist() == ["two_folders:a", "two_folders:b"]


def test_everything_that_a_record_can_hold_comes_back(tmp_path, face_record):
    record = face_record(
        "a",
        subject="ann",
        compression="c23",
        attributes={"phone": "1", "room": "kitchen"},
        quality={"sharpness": 1.5, "turn": -0.25},
        provenance={"of": "b@1", "seed": 3, "parts": ["x", 1.5, None]},
        attack_type="print",
    )
    with ShardWriter(tmp_path, PREPARED) as writer:
        writer.add([(record, encode_crop(np.zeros((96, 96, 3), np.uint8)))])
    assert open_shards(tmp_path).records[0] == record
    assert open_shards(tmp_path).records[-1:] == [record]
    assert open_shards(tmp_path).records.sample_ids([0, 0]) == [record.sample_id] * 2
    with pytest.raises(IndexError):
        open_shards(tmp_path).records[1]


def test_rows_are_found_by_what_their_video_is(tmp_path, face_record):
    with ShardWriter(tmp_path, PREPARED) as writer:
        writer.add(_video(face_record, "a", (0, 1)))
        writer.add(_video(face_record, "b", (0,), split=None, attack_type="print"))
        writer.add(_video(face_record, "c", (0,), split="dev"))
    shards = open_shards(tmp_path)
    assert shards.rows(label=0).tolist() == [0, 1, 3]
    assert shards.rows(label=0, split="dev").tolist() == [3]
    assert shards.rows(split=None).tolist() == [2]
    assert shards.rows(attack_type=None).tolist() == [0, 1, 3]


def test_a_folder_prepared_otherwise_is_refused_by_what_differs(folder):
    other = PREPARED.model_copy(update={"margin": 1.5, "options": {"seed": 3}})
    with (
        pytest.raises(
            TrainError, match=r"prepared.json.*margin was 2.0, now 1.5; seed was None.*another"
        ),
        ShardWriter(folder, other),
    ):
        pass


def test_a_second_process_in_the_same_folder_is_refused(tmp_path, stored_faces):
    with ShardWriter(tmp_path, PREPARED) as writer:
        writer.add(stored_faces[:2])
        with pytest.raises(TrainError, match="another process"), ShardWriter(tmp_path, PREPARED):
            pass
    with ShardWriter(tmp_path, PREPARED) as writer:
        assert len(writer.stored) == 2


# ---- bringing a folder up to date


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def _tar_names(folder):
    names = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            names += [
                json.load(tar.extractfile(n))["video_id"] for n in tar if n.name[-4:] == "json"
            ]
    return names


def test_a_folder_that_nothing_is_done_to_stays_as_it_is(folder):
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with ShardWriter(folder, PREPARED) as writer:
        assert len(writer.stored) == 40
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_more_videos_come_into_more_shards_and_the_old_ones_stay(tmp_path, stored_faces):
    with ShardWriter(tmp_path, PREPARED) as writer:
        writer.add(stored_faces[:16])
    before = (tmp_path / "shard-00000.tar").stat().st_mtime_ns
    with ShardWriter(tmp_path, PREPARED) as writer:
        assert writer.finished
        writer.add(stored_faces[16:20])
    shards = open_shards(tmp_path)
    assert list(shards.records) == [record for record, _ in stored_faces[:20]]
    assert (tmp_path / "shard-00000.tar").stat().st_mtime_ns == before
    assert [path.name for path in shards.files] == ["shard-00000.tar", "shard-00001.tar"]


def test_until_the_end_the_folder_is_what_it_was(folder, stored_faces):
    records = list(open_shards(folder).records)
    with pytest.raises(KeyboardInterrupt), ShardWriter(folder, PREPARED) as writer:
        writer.drop(["test:3"])
        writer.change("test:5", "", split="dev")
        raise KeyboardInterrupt
    assert list(open_shards(folder).records) == records


def test_a_dropped_video_is_in_neither_manifest_nor_tar(folder, stored_faces):
    with ShardWriter(folder, PREPARED) as writer:
        writer.drop(["test:3", "test:20"])
        assert "test:3" not in writer.stored
    shards = open_shards(folder)
    kept = [f"test:{i}" for i in range(40) if i not in (3, 20)]
    assert sorted(_tar_names(folder)) == sorted(kept)
    pngs = {record.video_id: png for record, png in stored_faces}
    ids = [record.video_id for record in shards.records]
    assert sorted(ids) == sorted(kept)
    assert all(shards.png(row) == pngs[video_id] for row, video_id in enumerate(ids))
    # The shard without any of them was not touched; the other two are gone.
    assert _names(folder)[:1] == ["manifest.arrow"]
    assert "shard-00002.tar" in _names(folder)
    assert not {"shard-00000.tar", "shard-00001.tar"} & {*_names(folder)}


def test_a_changed_fact_is_changed_in_manifest_and_tar_and_the_pictures_stay(folder, stored_faces):
    with ShardWriter(folder, PREPARED) as writer:
        writer.change("test:5", "new", split="dev", subject="ann", attributes={"phone": "2"})
    shards = open_shards(folder)
    (row,) = shards.rows(video_id="test:5")
    expected = stored_faces[5][0].model_copy(
        update={"split": "dev", "subject": "ann", "attributes": {"phone": "2"}}
    )
    assert shards.records[row] == expected
    assert shards.png(row) == stored_faces[5][1]
    assert shards.videos["state"].to_pylist().count("new") == 1
    assert len(shards.records) == 40


def test_a_video_that_was_dropped_may_be_added_again(folder, stored_faces, face_record):
    png = encode_crop(np.zeros((96, 96, 3), np.uint8))
    with ShardWriter(folder, PREPARED) as writer:
        writer.drop(["test:5"])
        writer.add([(stored_faces[5][0], png)])
    shards = open_shards(folder)
    (row,) = shards.rows(video_id="test:5")
    assert shards.png(row) == png
    assert len(shards.records) == len(_tar_names(folder)) == 40


def test_an_update_that_was_killed_goes_on_and_ends_the_same(tmp_path, stored_faces, write_shards):
    folders = [write_shards(tmp_path / name, stored_faces[:32]) for name in ("a", "b")]

    def update(folder, stop):
        with ShardWriter(folder, PREPARED, samples_per_shard=4) as writer:
            writer.drop([v for v in ("test:3",) if v in writer.stored])
            for record, png in stored_faces[32:]:
                if record.video_id not in writer.stored:
                    writer.add([(record, png)])
                if stop and record.frame == 37:
                    raise KeyboardInterrupt

    update(folders[0], stop=False)
    with pytest.raises(KeyboardInterrupt):
        update(folders[1], stop=True)
    update(folders[1], stop=False)
    assert _contents(folders[0]) == _contents(folders[1])
    assert not list(folders[0].glob("shard-*.arrow"))


def test_a_touched_file_changes_its_state_and_rewrites_no_shard(folder):
    tars = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    with ShardWriter(folder, PREPARED) as writer:
        writer.change("test:5", "touched")
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")} == tars
    with ShardWriter(folder, PREPARED) as writer:
        assert writer.stored["test:5"].state == "touched"


# ---- what is refused


@pytest.mark.parametrize(
    ("side", "problem"), [(95, "96 x 96"), (None, "96 x 96")], ids=["size", "no PNG"]
)
def test_a_picture_of_another_size_is_refused(tmp_path, stored_faces, side, problem):
    png = encode_crop(np.zeros((side, side, 3), np.uint8)) if side else b"nothing"
    with (
        ShardWriter(tmp_path, PREPARED) as writer,
        pytest.raises(TrainError, match=problem),
    ):
        writer.add([(stored_faces[0][0], png)])


def test_a_sample_added_twice_is_refused(tmp_path, stored_faces):
    with ShardWriter(tmp_path, PREPARED) as writer:
        with pytest.raises(TrainError, match=r"test:0@0.*twice"):
            writer.add([stored_faces[0], stored_faces[0]])
        writer.add(stored_faces[:1])
        with pytest.raises(TrainError, match=r"'test:0' was added before"):
            writer.add(stored_faces[:1])


def test_faces_of_a_video_that_contradict_each_other_are_refused(tmp_path, face_record):
    png = encode_crop(np.zeros((96, 96, 3), np.uint8))
    faces = [(face_record("a", 0), png), (face_record("a", 1, split="dev"), png)]
    with (
        ShardWriter(tmp_path, PREPARED) as writer,
        pytest.raises(TrainError, match=r"a@1': split 'dev' contradicts 'train'"),
    ):
        writer.add(faces)


@pytest.mark.parametrize(("label", "attack_type"), [(0, "print"), (1, None)])
def test_a_label_that_contradicts_the_attack_type_is_refused(stored_faces, label, attack_type):
    record = stored_faces[0][0]
    with pytest.raises(ValidationError, match="contradicts"):
        type(record).model_validate(
            {**record.model_dump(), "label": label, "attack_type": attack_type}
        )


def test_a_full_disk_leaves_the_complete_shards_and_says_what_to_do(tmp_path, stored_faces):
    with ShardWriter(tmp_path, PREPARED, samples_per_shard=16) as writer:
        writer.add(stored_faces[:16])
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            with pytest.raises(TrainError, match=r"shard-00001.tar.*make room"):
                writer.add(stored_faces[16:])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not list(tmp_path.glob(".*"))
        assert (tmp_path / "shard-00000.tar").exists()


def test_folders_open_as_one(folder, tmp_path, stored_faces, write_shards):
    first = write_shards(tmp_path / "a", stored_faces[:20])
    second = write_shards(tmp_path / "b", stored_faces[20:])
    shards = open_shards(first, second)
    assert list(shards.records) == list(open_shards(folder).records)
    assert all(shards.png(row) == png for row, (_, png) in enumerate(stored_faces))


def test_folders_that_share_a_video_are_refused(folder, tmp_path, stored_faces, write_shards):
    other = write_shards(tmp_path / "b", stored_faces[20:])
    with pytest.raises(TrainError, match=r"in more than one of these folders: test:20, test:21"):
        open_shards(folder, other)


def test_folders_cut_otherwise_are_refused(folder, tmp_path, stored_faces, write_shards):
    other = PREPARED.model_copy(update={"margin": 1.8})
    tighter = write_shards(tmp_path / "b", stored_faces[:4], other)
    with pytest.raises(
        TrainError,
        match=r"b: crops of 96 px, margin 1\.8, window pad, but .* has 96 px, margin 2, ",
    ):
        open_shards(folder, tighter)


def _truncate(folder):
    path = folder / "shard-00001.tar"
    path.write_bytes(path.read_bytes()[:-20_000])


def _cut_manifest(folder):
    path = folder / "manifest.arrow"
    path.write_bytes(path.read_bytes()[:-100])


def _other_version(folder):
    table = pa.table({"video_id": ["a"]})
    with pa.ipc.new_file(str(folder / "manifest.arrow"), table.schema) as writer:
        writer.write_table(table)


def _swap(folder):
    shutil.copy(folder / "shard-00000.tar", folder / "shard-00001.tar")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_truncate, "shard-00001.tar: truncated"),
        (lambda folder: (folder / "shard-00001.tar").unlink(), "shard-00001.tar.*can't be read"),
        (_swap, "shard-00001.tar: no sample 00001-00000.png"),
        (lambda folder: (folder / "manifest.arrow").unlink(), "manifest.arrow.*unfinished"),
        (lambda folder: (folder / "manifest.arrow").write_text("{}\n"), "manifest.arrow: can't"),
        (_cut_manifest, "manifest.arrow: can't"),
        (_other_version, "manifest.arrow: written by another version"),
        (lambda folder: (folder / "prepared.json").unlink(), "prepare` first"),
    ],
    ids=[
        *("truncated", "missing", "swapped", "unfinished", "broken manifest", "cut manifest"),
        *("other version", "no folder"),
    ],
)
def test_a_damaged_folder_is_refused_by_the_name_of_its_file(folder, damage, problem):
    damage(folder)
    with pytest.raises(TrainError, match=problem):
        open_shards(folder)


def test_a_damaged_picture_is_refused_by_the_name_of_its_shard(folder):
    shards = open_shards(folder)
    path = shards.files[1]
    content = bytearray(path.read_bytes())
    start = int(shards.offset[20])
    content[start + 60 : start + 400] = bytes(340)
    path.write_bytes(content)
    shards.crop(19)
    with pytest.raises(TrainError, match=r"shard-00001.tar: damaged picture"):
        shards.crop(20)


@pytest.mark.parametrize(
    ("dataset", "command"),
    [
        ("ffpp", "prepare --dataset ffpp --root DIR --out {} --set size_px=460 --set margin=2.0"),
        ("smoke", "smoke-faces --out {}"),
        ("synthetic/ffpp", "store-attacks PREPARED --out {}"),
    ],
)
def test_a_folder_of_an_earlier_version_is_refused_with_the_command_that_replaces_it(
    tmp_path, dataset, command
):
    line = {"shard": "shard-00000.tar", "offset": 512, "size": 9, "record": {"dataset": dataset}}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    old = {"videos_sha256": "ab", "size_px": 460, "margin": 2.0, "faces": "main"}
    about = PreparedConfig(size_px=460, margin=2.0, code_version="0", options=old)
    (tmp_path / "prepared.json").write_text(about.model_dump_json())
    before = _contents(tmp_path)
    with pytest.raises(TrainError, match="earlier version") as error:
        open_shards(tmp_path)
    assert f"python -m train {command.format(tmp_path)}" in str(error.value)
    with (
        pytest.raises(TrainError, match="earlier version"),
        ShardWriter(tmp_path, PREPARED) as writer,
    ):
        writer.add([])
    assert _contents(tmp_path) == before
