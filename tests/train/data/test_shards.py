"""Prepared faces on disk: complete, the same bytes each time, and honest about damage."""

import io
import resource
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from train.data.shards import PreparedConfig, ShardWriter, encode_crop, open_shards
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
    assert shards.records == tuple(record for record, _ in stored_faces)
    for row, (_, png) in enumerate(stored_faces):
        assert shards.png(row) == png
    with Image.open(io.BytesIO(stored_faces[7][1])) as picture:
        np.testing.assert_array_equal(shards.crop(7), np.asarray(picture))


def test_any_reader_of_tars_finds_each_picture_beside_its_record(folder, stored_faces):
    with tarfile.open(folder / "shard-00001.tar") as tar:
        names = tar.getnames()
        png, record = (tar.extractfile(name).read() for name in names[:2])
    assert names[:4] == ["00000016.png", "00000016.json", "00000017.png", "00000017.json"]
    assert png == stored_faces[16][1]
    assert record.decode() == stored_faces[16][0].model_dump_json()


def test_the_same_faces_give_the_same_bytes(folder, tmp_path, stored_faces, write_shards):
    again = write_shards(tmp_path / "again", stored_faces)
    assert _contents(again) == _contents(folder)


def test_an_interrupted_writer_goes_on_and_ends_with_the_same_bytes(folder, tmp_path, stored_faces):
    again = tmp_path / "again"

    def add_up_to(count):
        with ShardWriter(again, PREPARED, samples_per_shard=16) as writer:
            done = {record.sample_id for record in writer.records}
            for record, png in stored_faces:
                if record.sample_id not in done:
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


def test_a_finished_folder_takes_no_more_faces_and_stays_as_it_is(folder, stored_faces):
    before = _contents(folder)
    with pytest.raises(TrainError, match="finished"), ShardWriter(folder, PREPARED) as writer:
        writer.add(stored_faces[:1])
    with ShardWriter(folder, PREPARED) as writer:
        assert len(writer.records) == 40
    assert _contents(folder) == before


def test_a_folder_prepared_otherwise_is_refused(folder):
    with pytest.raises(TrainError, match=r"prepared.json.*another folder"):
        ShardWriter(folder, PREPARED.model_copy(update={"margin": 1.5}))


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
    with (
        ShardWriter(tmp_path, PREPARED) as writer,
        pytest.raises(TrainError, match=r"test:0@0.*twice"),
    ):
        writer.add([stored_faces[0], stored_faces[0]])


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
        assert not list(tmp_path.glob("*.partial"))
        assert (tmp_path / "shard-00000.tar").exists()


def test_folders_open_as_one(folder, tmp_path, stored_faces, write_shards):
    first = write_shards(tmp_path / "a", stored_faces[:20])
    second = write_shards(tmp_path / "b", stored_faces[20:])
    shards = open_shards(first, second)
    assert shards.records == open_shards(folder).records
    assert all(shards.png(row) == png for row, (_, png) in enumerate(stored_faces))


def test_folders_that_share_a_sample_are_refused(folder, tmp_path, stored_faces, write_shards):
    other = write_shards(tmp_path / "b", stored_faces[20:])
    with pytest.raises(TrainError, match=r"test:10@20.*twice"):
        open_shards(folder, other)


def test_folders_cut_otherwise_are_refused(folder, tmp_path, stored_faces, write_shards):
    other = PREPARED.model_copy(update={"margin": 1.8})
    tighter = write_shards(tmp_path / "b", stored_faces[:4], other)
    with pytest.raises(TrainError, match=r"b: crops of 96 px with margin 1.8"):
        open_shards(folder, tighter)


def _truncate(folder):
    path = folder / "shard-00001.tar"
    path.write_bytes(path.read_bytes()[:-20_000])


def _of_before_media_time(folder):
    path = folder / "prepared.json"
    path.write_text(path.read_text().replace(',\n  "format": 2', ""))


def _swap(folder):
    shutil.copy(folder / "shard-00000.tar", folder / "shard-00001.tar")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_truncate, "shard-00001.tar: truncated"),
        (lambda folder: (folder / "shard-00001.tar").unlink(), "shard-00001.tar.*can't be read"),
        (_swap, "shard-00001.tar: no sample 00000016.png"),
        (lambda folder: (folder / "manifest.jsonl").unlink(), "manifest.jsonl.*unfinished"),
        (lambda folder: (folder / "manifest.jsonl").write_text("{}\n"), "manifest.jsonl: can't"),
        (lambda folder: (folder / "prepared.json").unlink(), "prepare` first"),
        (_of_before_media_time, "prepared by facewarden test, .* prepare the faces again"),
    ],
    ids=["truncated", "missing", "swapped", "unfinished", "broken manifest", "no folder", "old"],
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
