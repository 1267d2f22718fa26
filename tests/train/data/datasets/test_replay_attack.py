import pytest

from train.data.datasets._sample import count_by
from train.data.datasets.replay_attack import DATASET
from train.errors import TrainError


def test_there_are_60_60_80_bona_fide_videos_and_300_300_400_attacks(listings):
    counts = count_by(listings("replay_attack"))
    for split, real in (("train", 60), ("dev", 60), ("test", 80)):
        attacks = [counts[split, kind] for kind in ("print", "digital_photo", "replay")]
        assert (counts[split, "bona_fide"], attacks) == (real, [real, 2 * real, 2 * real])


def test_enrolment_videos_are_not_listed(listings):
    assert not [v for v in listings("replay_attack") if "enroll" in v.path]


def test_a_name_tells_device_support_light_and_client(listings):
    name = "test/attack/hand/attack_print_client041_session01_highdef_photo_adverse.mov"
    video = {v.path: v for v in listings("replay_attack")}[name]
    assert (video.attack_type, video.subject) == ("print", "replay_attack:041")
    assert video.attributes == {"device": "print", "support": "hand", "light": "adverse"}


def test_folders_may_carry_the_prefix_of_some_downloads(planted, tmp_path):
    root = planted("replay_attack")
    for name in ("train", "devel", "test"):
        (root / name).rename(root / f"replayattack-{name}")
    assert len(DATASET.read(root)) == 1200


def test_a_client_with_too_few_videos_is_named(planted):
    root = planted("replay_attack")
    (root / "test/real/client041_session01_webcam_authenticate_adverse_1.mov").unlink()
    with pytest.raises(TrainError, match=r"1 of 1200 .* replay_attack:041 has 3 of 4 bona fide"):
        DATASET.read(root)


def test_an_attack_among_the_real_videos_is_refused(planted):
    planted("replay_attack")
    name = "attack_print_client041_session01_highdef_photo_adverse.mov"
    with pytest.raises(TrainError, match=r"test/real/attack_print.*expected a name of real"):
        DATASET.read(planted({f"test/real/{name}": ""}))
