"""Nobody is learned from and tested on, whatever the folders, names or protocols say."""

import pytest

from train.data.overlap import (
    LEARNED,
    Identity,
    find_overlaps,
    identities,
    learned_overlaps,
    load_learned,
    save_learned,
    told,
)
from train.data.selection import open_data
from train.errors import TrainError


def _identity(name, sha256="", source=None, subject=None):
    return Identity(f"a:{name}", sha256, f"a:{source or name}", subject)


def _overlaps(ours, theirs, level="subject"):
    return find_overlaps(identities(ours), identities(theirs), level)


# ---- two sides


def test_sides_that_share_nothing_have_no_overlap():
    assert _overlaps([_identity("x", "1")], [_identity("y", "2")]) == []


@pytest.mark.parametrize(
    ("ours", "theirs", "kind"),
    [
        (_identity("x", "1"), _identity("y", "1"), "file"),
        (_identity("x", source="s"), _identity("y", source="s"), "source"),
        (_identity("x", subject="p"), _identity("y", subject="p"), "subject"),
        (_identity("x", "1", "s", "p"), _identity("x", "1", "s", "p"), "video"),
    ],
)
def test_what_is_shared_is_named_once_with_both_videos(ours, theirs, kind):
    (overlap,) = _overlaps([ours], [theirs])
    assert (overlap.kind, overlap.ours, overlap.theirs) == (kind, ours.video_id, theirs.video_id)


def test_files_subjects_and_sources_that_are_not_known_are_not_the_same():
    assert _overlaps([_identity("x")], [_identity("y")]) == []


def test_a_level_says_how_far_to_look_but_equal_files_are_always_found():
    ours, theirs = _identity("x", "1", "s", "p"), _identity("y", "1", "s", "p")
    kinds = {
        level: [overlap.kind for overlap in _overlaps([ours], [theirs], level)]
        for level in ("video", "source", "subject")
    }
    assert kinds == {
        "video": ["file"],
        "source": ["file", "source"],
        "subject": ["file", "source", "subject"],
    }


def test_a_message_counts_and_names_the_first_few():
    many = [_identity(f"x{i}", subject=f"p{i}") for i in range(9)]
    copies = [_identity(f"y{i}", subject=f"p{i}") for i in range(9)]
    message = told(_overlaps(many, copies), "train", "mine")
    assert message.startswith("in train and in test set mine: 9 subjects (p0: a:x0, a:y0, p1")
    assert message.endswith("and 4 more)")


# ---- folders, without a protocol and with one


@pytest.fixture
def three_sides(write_faces, face_record):
    """Write both classes of every side; keyword arguments of a side go to its bona fide face."""

    def written(**sides):
        records = []
        for split in ("train", "dev", "test"):
            records.append(face_record(f"{split}/face", split=split, **sides.get(split, {})))
            records.append(face_record(f"{split}/print", split=split, attack_type="print"))
        return write_faces(records)

    return written


@pytest.mark.parametrize("protocol", [None, "two_folders"])
@pytest.mark.parametrize(
    "same",
    [{"source_sha256": "ab"}, {"subject": "two_folders:ann"}, {"source_id": "two_folders:take1"}],
    ids=["file", "subject", "source"],
)
@pytest.mark.parametrize("sides", [("train", "dev"), ("train", "test"), ("dev", "test")])
def test_what_is_on_two_sides_is_refused_and_named(three_sides, protocol, same, sides):
    folder = three_sides(**dict.fromkeys(sides, same))
    with pytest.raises(TrainError, match=rf"{sides[0]}/face.*{sides[1]}/face.*--allow-overlap"):
        open_data([folder], protocol)


@pytest.mark.parametrize("protocol", [None, "two_folders"])
def test_it_can_be_allowed_and_is_kept_for_the_report(three_sides, protocol, caplog):
    folder = three_sides(train={"subject": "ann"}, test={"subject": "ann"})
    data = open_data([folder], protocol, allow_overlap=True)
    ((names, (overlap,)),) = data.shared.items()
    assert names == ("train", next(iter(data.test)))
    assert (overlap.kind, overlap.shared) == ("subject", "ann")
    assert "overlap allowed" in caplog.text


def test_sides_that_share_nothing_are_opened(three_sides):
    data = open_data([three_sides()], None)
    assert data.shared == {}
    assert {name: len(videos) for name, videos in data.identities.items()} == {
        "train": 2,
        "dev": 2,
        "test": 2,
    }


def test_sources_may_be_shared_where_the_official_lists_share_them(write_faces, face_record):
    known = {"dataset": "celeb_df_v2", "source_id": "celeb_df_v2:id0_0001"}
    records = [
        face_record("Celeb-real/id0_0001.mp4", split="train", **known),
        face_record("Celeb-synthesis/a.mp4", split="train", attack_type="deepfake", **known),
        face_record("Celeb-synthesis/b.mp4", split="test", attack_type="deepfake", **known),
    ]
    assert open_data([write_faces(records)], None).disjoint == "video"


# ---- a run, evaluated elsewhere


def test_an_evaluation_is_compared_with_what_the_run_learned_from(
    tmp_path, three_sides, write_faces, face_record
):
    run = tmp_path / "run"
    run.mkdir()
    learned = open_data([three_sides(train={"source_sha256": "ab"}, dev={"subject": "ann"})], None)
    save_learned(run, learned)
    elsewhere = write_faces(
        [
            face_record("copy", split="test", source_sha256="ab", dataset="b"),
            face_record("ann", split="test", subject="ann", dataset="b"),
            face_record("new", split="test", attack_type="print", dataset="b"),
        ],
        "elsewhere",
    )
    # Its own faces of split train are there, too: without them nothing opens.
    data = open_data([elsewhere, write_faces([face_record("t", dataset="c")], "more")], None)
    shared = learned_overlaps(run, data)
    assert {
        names: [(overlap.kind, overlap.theirs) for overlap in overlaps]
        for names, overlaps in shared.items()
    } == {
        ("the run's train", "test"): [("file", "b:copy")],
        ("the run's dev", "test"): [("subject", "b:ann")],
    }


def test_a_dev_set_that_the_run_was_trained_on_is_found(tmp_path, write_faces, face_record):
    learned = open_data([write_faces([face_record("x", split="train")], "a")], None)
    save_learned(tmp_path, learned)
    as_dev = [
        face_record("x", split="dev"),
        face_record("y", split="dev", attack_type="print"),
        face_record("z", split="train"),
    ]
    shared = learned_overlaps(tmp_path, open_data([write_faces(as_dev, "b")], None))
    assert [name for name, _ in shared] == ["the run's train"]


def test_a_run_on_its_own_data_shares_nothing(tmp_path, three_sides):
    data = open_data([three_sides()], None)
    save_learned(tmp_path, data)
    assert learned_overlaps(tmp_path, data) == {}
    learned = load_learned(tmp_path)
    for part in ("train", "dev"):
        assert learned[part].to_pylist() == data.identities[part].to_pylist()


def test_a_run_without_a_record_is_told_from_one_without_overlap(tmp_path, three_sides):
    assert learned_overlaps(tmp_path, open_data([three_sides()], None)) is None


def test_a_damaged_record_is_an_error_that_names_it(tmp_path, three_sides):
    (tmp_path / LEARNED).write_bytes(b"nothing")
    with pytest.raises(TrainError, match=LEARNED):
        learned_overlaps(tmp_path, open_data([three_sides()], None))
