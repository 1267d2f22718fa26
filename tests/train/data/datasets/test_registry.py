import pytest

from models import ATTACK, BONA_FIDE
from train.data.datasets._registry import dataset_names, load_dataset
from train.data.datasets._sample import ATTACK_FAMILY
from train.errors import TrainError

# One file of each class, as the data set itself names it; paths of the generated folders.
KNOWN = {
    "casia_fasd": ("test_release/7/HR_1.avi", "test_release/7/HR_3.avi"),
    "celeb_df_v1": ("YouTube-real/00007.mp4", "Celeb-synthesis/id0_id1_0000.mp4"),
    "celeb_df_v2": ("Celeb-real/id3_0004.mp4", "Celeb-synthesis/id0_id1_0000.mp4"),
    "celeba_spoof": ("Data/test/20/live/002000.png", "Data/test/20/spoof/002007.png"),
    "deeper_forensics": (None, "manipulated_videos/end_to_end/033_M033.mp4"),
    "dfdc": ("test/testa.mp4", "test/testb.mp4"),
    "dfdc_preview": ("original_videos/3/3_0.mp4", "method_A/3/0/x_3_0.mp4"),
    "ffpp": (
        "original_sequences/actors/c23/videos/01__exit_phone_room.mp4",
        "manipulated_sequences/DeepFakeDetection/c23/videos/02_01__exit_phone_room__ABCDEFGH.mp4",
    ),
    "hq_wmca": (
        "face-station/26.02.19/1_01_0001_0000_00_00_000-fad05fcd.hdf5",
        "face-station/26.02.19/1_01_0001_0000_07_00_000-fad05fcd.hdf5",
    ),
    "msu_mfsd": (
        "real/real_client001_android_SD_scene01.mp4",
        "attack/attack_client001_laptop_SD_ipad_video_scene01.mov",
    ),
    "oulu_npu": ("Test_files/1_3_36_1.avi", "Test_files/1_3_36_4.avi"),
    "replay_attack": (
        "test/real/client041_session01_webcam_authenticate_adverse_1.mov",
        "test/attack/hand/attack_print_client041_session01_highdef_photo_adverse.mov",
    ),
    "seq_deepfake": (
        "facial_components/images/test/original/000001.jpg",
        "facial_components/images/test/nose-eye-lip/000001.jpg",
    ),
    "siw": ("Train/live/001/001-1-1-1-1.mov", "Test/spoof/091/091-1-3-2-1.mov"),
    "siw_mv2": ("Live/Live_3.mov", "Spoof/Print/Paper_3.mov"),
    "two_folders": ("train/bona_fide/0.mp4", "test/attack/hologram/1.mp4"),
    "uniattackdata": ("p2.1/dev/000000.png", "p2.1/dev/000005.png"),
    "wild_deepfake": ("real_test/2/real/1", "fake_train/2/fake/1"),
}


@pytest.mark.parametrize("name", dataset_names())
def test_a_data_set_has_the_name_of_its_module(name):
    dataset = load_dataset(name)
    assert dataset.name == name
    assert dataset.description
    assert dataset.source_label_of_bona_fide


def test_files_of_known_labels_stand_above_for_every_benchmark():
    assert set(dataset_names()) - {"real_faces"} == set(KNOWN)  # that one has no attack


def test_an_unknown_data_set_is_refused_with_the_known_names():
    with pytest.raises(TrainError, match=r"unknown data set 'ffp'.*ffpp"):
        load_dataset("ffp")


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_file_of_each_class_has_its_label(name, listings):
    label_of = {video.path: video.label for video in listings(name)}
    bona_fide, attack = KNOWN[name]
    assert bona_fide is None or label_of[bona_fide] == BONA_FIDE == 0
    assert label_of[attack] == ATTACK == 1


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_listed_lies_at_its_path_and_is_the_same_when_read_again(name, roots, listings):
    types = {*ATTACK_FAMILY, "unspecified", "hologram", None}
    for video in listings(name):
        assert video.dataset == name
        assert (roots(name) / video.path).exists()
        assert video.source_id.startswith((f"{name}:", "ffpp:"))
        assert video.attack_type in types
    assert load_dataset(name).read(roots(name)) == listings(name)


@pytest.mark.parametrize("name", KNOWN)
def test_a_wrong_root_is_refused_naming_what_is_there(name, tmp_path):
    (tmp_path / "holiday").mkdir()
    with pytest.raises(TrainError, match=r"expected.*found holiday|missing; get it from"):
        load_dataset(name).read(tmp_path)
    with pytest.raises(TrainError, match="found none"):
        load_dataset(name).read(tmp_path / "nowhere")


def test_an_unknown_option_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(TrainError, match=r"options of ffpp: split: .*known: max_missing, splits"):
        load_dataset("ffpp").read(tmp_path, {"split": "x"})
