import pytest

from train.data.datasets._sample import count_by
from train.data.datasets.siw_mv2 import DATASET
from train.errors import TrainError

FOLDERS = {  # token -> folder of the release
    "Makeup_Co": "Makeup_Cosmetic",
    "Makeup_Im": "Makeup_Impersonation",
    "Makeup_Ob": "Makeup_Obfuscation",
    "Mask_Half": "Mask_HalfMask",
    "Mask_Mann": "Mannequin",
    "Mask_Paper": "Mask_PaperMask",
    "Mask_Silicone": "Silicone",
    "Mask_Trans": "Mask_TransparentMask",
    "Paper": "Print",
    "Partial_Eye": "Partial_Eye",
    "Partial_Funnyeye": "Partial_FunnyeyeGlasses",
    "Partial_Mouth": "Partial_Mouth",
    "Partial_Paperglass": "Partial_PaperGlasses",
    "Replay": "Replay",
}
# Unique attacks of protocol 1's test list, as documented.
TEST_ATTACKS = {
    "makeup_cosmetic": 24,
    "makeup_impersonation": 22,
    "makeup_obfuscation": 10,
    "mask_half": 20,
    "mask_mannequin": 14,
    "mask_paper": 6,
    "mask_silicone": 8,
    "mask_transparent": 35,
    "print": 56,
    "partial_eye": 23,
    "partial_funny_eye": 64,
    "partial_mouth": 12,
    "partial_paper_glasses": 29,
    "replay": 39,
}


def path_of(stem):
    token = stem.rpartition("_")[0]
    return f"Live/{stem}.mov" if token == "Live" else f"Spoof/{FOLDERS[token]}/{stem}.mov"


def test_the_official_lists_give_the_documented_counts(official, planted):
    lists = official("siw_mv2")
    names = ("trainlist_all", "trainlist_live", "testlist_all", "testlist_live")
    stems = {stem for name in names for stem in (lists / f"{name}.txt").read_text().split()}
    root = planted(dict.fromkeys(map(path_of, stems), ""))
    counts = count_by(DATASET.read(root, {"lists": str(lists), "dev_share": 0, "max_missing": 0}))
    assert (counts["train", "bona_fide"], counts["test", "bona_fide"]) == (531, 265)
    assert {kind: n for (split, kind), n in counts.items() if split == "test" and n != 265} == (
        TEST_ATTACKS
    )


def test_a_stem_that_a_list_repeats_counts_once(listings):
    videos = [v for v in listings("siw_mv2") if v.attack_type == "print"]
    assert len(videos) == 8
    assert sum(v.split == "test" for v in videos) == 3


def test_the_folder_of_prints_has_two_names(planted):
    root = planted("siw_mv2")
    (root / "Spoof" / "Print").rename(root / "Spoof" / "Paper")
    assert sum(v.attack_type == "print" for v in DATASET.read(root)) == 8


def test_listed_stems_that_the_release_lacks_are_logged(planted, caplog):
    root = planted("siw_mv2")
    (root / "Live" / "Live_3.mov").unlink()
    DATASET.read(root)
    assert "1 of 172 listed videos are absent: Live_3" in caplog.text


def test_a_released_video_in_no_list_has_no_split_and_is_logged(planted, caplog):
    planted("siw_mv2")
    videos = DATASET.read(planted({"Live/Live_777.mov": ""}))
    assert [v.split for v in videos if "777" in v.path] == [None]
    assert "1 videos are in no split: Live_777" in caplog.text


@pytest.mark.parametrize("path", ["Spoof/Replay/Paper_99.mov", "Live/Replay_99.mov"])
def test_a_name_that_the_folder_contradicts_is_refused(path, planted):
    planted("siw_mv2")
    with pytest.raises(TrainError, match="but its name or folder says"):
        DATASET.read(planted({path: ""}))


def test_an_attack_in_the_list_of_live_videos_is_refused(planted):
    planted("siw_mv2")
    with pytest.raises(
        TrainError, match=r"testlist_live\.txt: expected live videos, found Replay_9"
    ):
        DATASET.read(planted({"testlist_live.txt": "Replay_9\n"}))


def test_a_stem_in_both_splits_is_refused(planted):
    planted("siw_mv2")
    with pytest.raises(TrainError, match=r"testlist_live\.txt: in another split too: Live_1"):
        DATASET.read(planted({"testlist_live.txt": "Live_1\n"}))


def test_a_missing_list_is_named_with_its_source(planted):
    root = planted("siw_mv2")
    (root / "testlist_all.txt").unlink()
    with pytest.raises(
        TrainError, match=r"testlist_all\.txt.*CHELSEA234/Multi-domain-learning-FAS"
    ):
        DATASET.read(root)
