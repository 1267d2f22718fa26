import pytest

from train.data.datasets.two_folders import DATASET
from train.errors import TrainError


def read(root):
    return {v.path: v for v in DATASET.read(root)}


def test_without_split_folders_videos_are_in_no_split(planted):
    videos = read(planted({"bona_fide/a.mp4": "", "attack/print/x/b.MOV": ""}))
    assert {path: (v.attack_type, v.split) for path, v in videos.items()} == {
        "bona_fide/a.mp4": (None, None),
        "attack/print/x/b.MOV": ("print", None),
    }


def test_pictures_in_a_deeper_folder_are_one_clip(planted):
    files = ("bona_fide/a.png", "bona_fide/clip/1.png", "bona_fide/clip/2.png", "bona_fide/n.txt")
    videos = read(planted(dict.fromkeys(files, "")))
    assert {path: v.kind for path, v in videos.items()} == {
        "bona_fide/a.png": "image",
        "bona_fide/clip": "frames",
    }


def test_a_video_beside_the_folders_of_types_is_refused(planted):
    with pytest.raises(TrainError, match=r"attack/b\.mp4: expected a folder for each type"):
        read(planted({"bona_fide/a.mp4": "", "attack/b.mp4": ""}))


def test_a_table_tells_what_folders_cannot(planted):
    table = (
        "path,label,attack_type,split,subject,source,first_frame,last_frame\n"
        "c/a.mp4,bona_fide,,train,anna,,,\n"
        "c/b.mp4,attack,replay,test,anna,take3,0,99\n"
        "c/b.mp4,attack,,test,,,100,199\n"
    )
    videos = DATASET.read(
        planted({"videos.csv": table, "c/a.mp4": "", "c/b.mp4": "", "c/d.mp4": ""})
    )
    assert [(v.attack_type, v.split, v.subject, v.source_id, v.frames) for v in videos] == [
        (None, "train", "two_folders:anna", "two_folders:anna", None),
        ("replay", "test", "two_folders:anna", "two_folders:take3", (0, 100)),
        ("unspecified", "test", None, "two_folders:c/b.mp4", (100, 200)),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.mp4,real,,,", "expected label bona_fide or attack"),
        ("a.mp4,attack,print,val,", "split train, dev, test or none; found 'attack' and 'val'"),
        ("a.mp4,bona_fide,print,train,", "listed as bona_fide, but .* says print"),
        ("attack/print/a.mp4,bona_fide,,,", "listed as bona_fide, but .* says attack"),
        ("a.mp4,attack,,,five", "frames are numbers"),
        ("a.mp4,attack,,,9", "no frame from 9 to 3"),
        ("b.mp4,attack,,,", r"1 of 1 listed videos are absent: b\.mp4"),
    ],
)
def test_a_wrong_row_is_refused(row, message, planted):
    table = f"path,label,attack_type,split,first_frame,last_frame\n{row},3\n"
    root = planted({"videos.csv": table, "a.mp4": "", "attack/print/a.mp4": ""})
    with pytest.raises(TrainError, match=message):
        DATASET.read(root)


def test_columns_that_are_not_known_leave_blanks(planted):
    (video,) = DATASET.read(planted({"videos.csv": "path,label\na.mp4,attack\n", "a.mp4": ""}))
    assert (video.attack_type, video.split, video.subject) == ("unspecified", None, None)
