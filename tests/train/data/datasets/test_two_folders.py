import logging

import pytest

from train.data.datasets import _tree
from train.data.datasets._sample import count_by
from train.data.datasets.two_folders import DATASET
from train.errors import TrainError


def read(root, **options):
    return {v.path: v for v in DATASET.read(root, {"dev_share": 0, **options})}


def empty(*paths):
    return dict.fromkeys(paths, "")


# ---- splits


def test_without_split_folders_everything_trains_and_a_share_is_carved_for_dev(planted, caplog):
    caplog.set_level(logging.INFO)
    names = [f"bona_fide/{i}.mp4" for i in range(10)] + [f"attack/print/{i}.mp4" for i in range(10)]
    counts = count_by(DATASET.read(planted(empty(*names))))
    assert counts == {
        ("train", "bona_fide"): 9,
        ("dev", "bona_fide"): 1,
        ("train", "print"): 9,
        ("dev", "print"): 1,
    }
    assert "no split dev, so 2 videos of 2 subjects or sources are carved from train" in caplog.text


def test_nobody_of_a_table_without_splits_is_carved_apart(planted):
    rows = [
        f"{n}_{take}.mp4,{'attack' if n % 2 else 'bona_fide'},p{n}"
        for n in range(20)
        for take in "ab"
    ]
    table = "\n".join(["path,label,subject", *rows])
    videos = DATASET.read(planted({"videos.csv": table, **empty(*(r.split(",")[0] for r in rows))}))
    splits = {}
    for video in videos:
        splits.setdefault(video.subject, set()).add(video.split)
    assert all(len(split) == 1 for split in splits.values())
    assert {split for (split,) in splits.values()} == {"train", "dev"}


@pytest.mark.parametrize("name", ["dev", "val", "valid", "validation", "Val", "DEV", "devel"])
def test_val_is_dev(planted, name):
    videos = read(planted(empty("train/bona_fide/a.mp4", f"{name}/bona_fide/b.mp4")))
    assert videos[f"{name}/bona_fide/b.mp4"].split == "dev"


def test_two_folders_of_one_split_are_refused(planted):
    root = planted(empty("val/bona_fide/a.mp4", "dev/bona_fide/b.mp4"))
    with pytest.raises(TrainError, match="dev/ and val/ both mean dev"):
        DATASET.read(root)


def test_a_split_with_one_side_is_read_and_said(planted, caplog):
    files = empty("train/bona_fide/a.mp4", "train/attack/print/b.mp4", "test/attack/print/c.mp4")
    videos = read(planted(files))
    assert videos["test/attack/print/c.mp4"].split == "test"
    assert "test/ holds attacks only; test/bona_fide is missing or empty" in caplog.text
    assert "train/ holds" not in caplog.text


@pytest.mark.parametrize("name", ["Bona_Fide", "bona-fide", "bonafide", "BONA FIDE"])
def test_the_folder_of_bona_fide_videos_may_be_spelt_otherwise(planted, name):
    videos = read(planted(empty(f"train/{name}/a.mp4", "train/Attack/print/b.mp4")))
    assert sorted(v.label for v in videos.values()) == [0, 1]


def test_what_lies_beside_the_folders_of_splits_is_in_none_and_said(planted, caplog):
    videos = read(planted(empty("train/bona_fide/a.mp4", "bona_fide/b.mp4")))
    assert videos["bona_fide/b.mp4"].split is None
    assert "1 videos are in no split: bona_fide/b.mp4" in caplog.text


def test_a_folder_of_another_layout_is_refused_by_what_is_there(planted):
    with pytest.raises(TrainError, match=r"expected the folders bona_fide and attack.*found live"):
        DATASET.read(planted(empty("live/a.mp4")))


# ---- pictures and frames


def test_pictures_of_a_deeper_folder_stand_alone_and_stay_on_one_side(planted):
    names = ("bona_fide/a.png", "bona_fide/ann/1.png", "bona_fide/ann/2.png")
    videos = read(planted(empty(*names)))
    assert {path: (v.kind, v.source_id) for path, v in videos.items()} == {
        "bona_fide/a.png": ("image", "two_folders:bona_fide/a.png"),
        "bona_fide/ann/1.png": ("image", "two_folders:bona_fide/ann"),
        "bona_fide/ann/2.png": ("image", "two_folders:bona_fide/ann"),
    }


def test_with_a_frame_rate_the_pictures_of_a_deeper_folder_are_one_clip(planted):
    names = ("bona_fide/a.png", "bona_fide/clip/1.png", "bona_fide/clip/2.png", "bona_fide/b.mp4")
    videos = read(planted(empty(*names)), frames_fps=25)
    assert {path: (v.kind, v.fps) for path, v in videos.items()} == {
        "bona_fide/a.png": ("image", None),
        "bona_fide/clip": ("frames", 25.0),
        "bona_fide/b.mp4": ("video", None),
    }


# ---- what is read, and what is not


def test_common_kinds_of_media_are_read(planted, caplog):
    videos = ["mp4", "MOV", "avi", "mkv", "webm", "m4v", "mpg", "mpeg", "mts", "m2ts", "ts"]
    videos += ["3gp", "wmv", "flv", "ogv", "gif", "vob"]
    pictures = ["png", "JPG", "jpeg", "bmp", "webp", "tif", "TIFF", "jfif", "jp2", "ppm", "avif"]
    names = [f"bona_fide/{suffix}.{suffix}" for suffix in (*videos, *pictures)]
    found = read(planted(empty(*names)))
    assert {path for path, v in found.items() if v.kind == "video"} == set(names[: len(videos)])
    assert {path for path, v in found.items() if v.kind == "image"} == set(names[len(videos) :])
    assert "not read" not in caplog.text


def test_what_is_not_read_is_counted_and_named_by_reason(planted, caplog, monkeypatch):
    heif = {".heic", ".heif", ".hif"}  # as where pillow-heif is not installed
    monkeypatch.setattr(_tree, "IMAGE_SUFFIXES", _tree.IMAGE_SUFFIXES - heif)
    root = planted(
        empty(
            *("bona_fide/a.mp4", "bona_fide/x/b.heic", "bona_fide/n.txt", "attack/print/o.txt"),
            *("attack/readme", "extra/a.mp4", "train.zip"),
        )
    )
    (root / "bona_fide" / "gone.mp4").symlink_to("nowhere.mp4")
    read(root)
    told = "\n".join(record.getMessage() for record in caplog.records)
    for reason, names in (
        (".heic, which needs the package pillow-heif", "bona_fide/x/b.heic"),
        (".txt, no video or picture", "attack/print/o.txt, bona_fide/n.txt"),
        ("no suffix", "attack/readme"),
        ("neither a split nor a class", "extra, train.zip"),
        ("a link that leads nowhere", f"{root}/bona_fide/gone.mp4"),
    ):
        assert f"not read: {len(names.split(', '))} ({reason}): {names}" in told


def test_litter_is_neither_a_face_nor_a_type_nor_worth_a_word(planted, caplog):
    litter = (
        *(".DS_Store", "Thumbs.db", "train/.DS_Store", "train/attack/.DS_Store"),
        *("train/bona_fide/._a.mp4", "train/bona_fide/.a.jpg", "train/bona_fide/desktop.ini"),
        *("train/attack/.ipynb_checkpoints/a.png", "train/attack/print/.git/b.png"),
        *("train/attack/__MACOSX/c.png", "train/attack/print/@eaDir/d.png"),
    )
    videos = read(planted(empty("train/bona_fide/a.mp4", "train/attack/print/b.mp4", *litter)))
    assert sorted(videos) == ["train/attack/print/b.mp4", "train/bona_fide/a.mp4"]
    assert "not read" not in caplog.text


def test_links_are_followed_once(planted, tmp_path_factory, caplog):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in ("a.mp4", "b.png"):
        (elsewhere / name).touch()
    root = planted(empty("bona_fide/here.mp4", "attack/replay/r.mp4"))
    (root / "bona_fide" / "more").symlink_to(elsewhere)
    (root / "bona_fide" / "one.mp4").symlink_to(elsewhere / "a.mp4")
    (root / "attack" / "print").symlink_to(elsewhere)
    (root / "attack" / "replay" / "up").symlink_to(root / "attack")
    (root / "attack" / "replay" / "again").symlink_to(root / "attack" / "replay")
    videos = read(root)
    assert sorted(videos) == [
        *("attack/print/a.mp4", "attack/print/b.png", "attack/replay/r.mp4"),
        *("bona_fide/here.mp4", "bona_fide/more/a.mp4", "bona_fide/more/b.png"),
        "bona_fide/one.mp4",
    ]
    assert "not read: 2 (a link to a folder that is read already)" in caplog.text


def test_a_video_beside_the_folders_of_types_is_refused(planted):
    with pytest.raises(TrainError, match=r"attack/b\.mp4: expected a folder for each type"):
        read(planted(empty("bona_fide/a.mp4", "attack/b.mp4")))


# ---- the table


def test_a_table_tells_what_folders_cannot(planted):
    table = (
        "path,label,attack_type,split,subject,source,first_frame,last_frame,fps\n"
        "c/a.mp4,bona_fide,,train,anna,,,,\n"
        "c/b.mp4,attack,replay,test,anna,take3,0,99,\n"
        "c/b.mp4,attack,,val,,,100,199,\n"
        "c/clip,attack,,,,,,,12.5\n"
    )
    videos = DATASET.read(
        planted({"videos.csv": table, **empty("c/a.mp4", "c/b.mp4", "c/d.mp4", "c/clip/1.png")})
    )
    assert [(v.attack_type, v.split, v.subject, v.source_id, v.frames) for v in videos] == [
        (None, "train", "two_folders:anna", "two_folders:anna", None),
        ("replay", "test", "two_folders:anna", "two_folders:take3", (0, 100)),
        ("unspecified", "dev", None, "two_folders:c/b.mp4", (100, 200)),
        ("unspecified", None, None, "two_folders:c/clip", None),
    ]
    assert (videos[3].kind, videos[3].fps) == ("frames", 12.5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.mp4,real,,,,,", "expected label bona_fide or attack"),
        ("a.mp4,attack,print,eval,,,", "split train, dev, test or none; found 'attack' and 'eval'"),
        ("a.mp4,bona_fide,print,train,,,", "listed as bona_fide, but .* says print"),
        ("attack/print/a.mp4,bona_fide,,,,,", "listed as bona_fide, but .* says attack"),
        ("a.mp4,attack,,,five,3,", "first_frame is a number, found 'five'"),
        ("a.mp4,attack,,,9,3,", "no frame from 9 to 3"),
        ("a.mp4,attack,,,1.5,3,", "no frame from 1.5 to 3"),
        ("a.mp4,attack,,,nan,3,", "no frame from nan to 3"),
        ("a.mp4,attack,,,9,,", "first_frame and last_frame belong together"),
        ("a.mp4,attack,,,,9,", "first_frame and last_frame belong together"),
        ("a.mp4,attack,,,,,25", "fps is of a folder of frames"),
        ("b.mp4,attack,,,,,", r"1 of 1 listed videos are absent: b\.mp4"),
        ("a.mp4,attack,,,,,,,", "line 2: more cells than columns"),
    ],
)
def test_a_wrong_row_is_refused(row, message, planted):
    table = f"path,label,attack_type,split,first_frame,last_frame,fps\n{row}\n"
    root = planted({"videos.csv": table, "a.mp4": "", "attack/print/a.mp4": ""})
    with pytest.raises(TrainError, match=message):
        DATASET.read(root)


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        ("attacktype", "unknown column 'attacktype'; did you mean 'attack_type'"),
        ("subject_id", "unknown column 'subject_id'; did you mean 'subject'"),
        ("Split", "unknown column 'Split'; did you mean 'split'"),
        ("zzz", "unknown column 'zzz'; known: attack_type, first_frame"),
        ("label", "columns: listed more than once: label"),
    ],
)
def test_a_column_that_is_not_known_is_refused_with_the_nearest(planted, column, problem):
    root = planted({"videos.csv": f"path,label,{column}\na.mp4,attack,x\n", "a.mp4": ""})
    with pytest.raises(TrainError, match=problem):
        DATASET.read(root)


def test_blanks_around_the_names_of_columns_do_not_matter(planted):
    root = planted({"videos.csv": "path, label , split\na.mp4,attack,test\n", "a.mp4": ""})
    (video,) = DATASET.read(root)
    assert (video.attack_type, video.split, video.subject) == ("unspecified", "test", None)


def test_a_table_names_files_whose_names_are_no_utf8(tmp_path):
    (tmp_path / "videos.csv").write_bytes(b"path,label\nJ\xf6rg.mp4,bona_fide\n")
    (tmp_path / "J\udcf6rg.mp4").touch()
    (video,) = DATASET.read(tmp_path)
    assert video.video_id == "two_folders:J\\xf6rg.mp4"


def test_a_table_in_utf16_is_refused(tmp_path):
    (tmp_path / "videos.csv").write_text("path,label\n", encoding="utf-16")
    with pytest.raises(TrainError, match="no UTF-8"):
        DATASET.read(tmp_path)
