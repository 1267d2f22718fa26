"""Folders in the official layouts of the data sets, with empty files, made here.

No benchmark is available to the tests. Names, depth and counts are the documented ones; split lists
are our own unless a test says that it reads the official ones.
"""

from __future__ import annotations

import json
import os
import random
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import skimage.data
from PIL import Image

from tests.warm_start import WarmStarts
from train.data.datasets._registry import load_dataset
from train.data.shard_writer import ShardWriter
from train.data.shards import FaceRecord, PreparedConfig, encode_crop
from train.data.smoke_faces import write_smoke_faces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from train.data.datasets._sample import ListedVideo

OFFICIAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "splits"

FFPP_METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures")
SIW_MV2 = {  # folder -> token
    "Makeup_Cosmetic": "Makeup_Co",
    "Makeup_Impersonation": "Makeup_Im",
    "Makeup_Obfuscation": "Makeup_Ob",
    "Mask_HalfMask": "Mask_Half",
    "Mannequin": "Mask_Mann",
    "Mask_PaperMask": "Mask_Paper",
    "Silicone": "Mask_Silicone",
    "Mask_TransparentMask": "Mask_Trans",
    "Print": "Paper",
    "Partial_Eye": "Partial_Eye",
    "Partial_FunnyeyeGlasses": "Partial_Funnyeye",
    "Partial_Mouth": "Partial_Mouth",
    "Partial_PaperGlasses": "Partial_Paperglass",
    "Replay": "Replay",
}
MSU_TEST = (1, 13, 14, 23, 24, 26, 28, 29, 30, 32, 33, 35, 36, 37, 39, 42, 48, 49, 50, 51)
HQ_TYPES = {
    "00": "bonafide",
    "01": "Glasses",
    "02": "Mannequin",
    "03": "Print",
    "04": "Replay",
    "05": "Rigidmask",
    "06": "Flexiblemask",
    "07": "Papermask",
    "08": "Wig",
    "09": "Tattoo",
    "10": "Makeup",
}


def plant(root: Path, files: Mapping[str, str]) -> Path:
    """Write files (path -> text) below a root."""
    for folder in {name.rpartition("/")[0] for name in files}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        if text:
            (root / name).write_text(text, encoding="utf-8")
        else:
            os.close(os.open(f"{root}/{name}", os.O_CREAT | os.O_WRONLY))  # thousands: quickly
    return root


def empty(*paths: str) -> dict[str, str]:
    return dict.fromkeys(paths, "")


def ffpp() -> dict[str, str]:
    """All pairs in c23: originals and the four classic methods; one pair of the filmed actors."""
    ids = [f"{i:03}" for i in range(1000)]
    random.Random(0).shuffle(ids)
    pairs = list(zip(ids[::2], ids[1::2], strict=True))
    swaps = [swap for a, b in pairs for swap in (f"{a}_{b}", f"{b}_{a}")]
    scene = "exit_phone_room"
    return {
        "splits/train.json": json.dumps(pairs[:360]),
        "splits/val.json": json.dumps(pairs[360:430]),
        "splits/test.json": json.dumps(pairs[430:]),
        **empty(
            *(f"original_sequences/youtube/c23/videos/{name}.mp4" for name in ids),
            *(
                f"manipulated_sequences/{method}/c23/videos/{swap}.mp4"
                for method, swap in product(FFPP_METHODS, swaps)
            ),
            f"original_sequences/actors/c23/videos/01__{scene}.mp4",
            f"manipulated_sequences/DeepFakeDetection/c23/videos/02_01__{scene}__ABCDEFGH.mp4",
            "manipulated_sequences/Deepfakes/masks/videos/000_001.mp4",
        ),
    }


def celeb_df() -> dict[str, str]:
    """120 reals and 200 fakes; a fifth of them in the test list, 1 = real."""
    real = [f"Celeb-real/id{i}_{j:04}.mp4" for i in range(20) for j in range(5)]
    youtube = [f"YouTube-real/{i:05}.mp4" for i in range(20)]
    fake = [
        f"Celeb-synthesis/id{i}_id{(i + k) % 20}_{j:04}.mp4"
        for i, j, k in product(range(20), range(5), (1, 2))
    ]
    lines = [f"1 {path}" for path in (real + youtube)[::5]] + [f"0 {path}" for path in fake[::5]]
    return {**empty(*real, *youtube, *fake), "List_of_testing_videos.txt": "\n".join(lines)}


def wild_deepfake() -> dict[str, str]:
    return empty(
        *(
            f"{label}_{split}/{n}/{label}/{sequence}/{frame}.png"
            for label, split, n, sequence, frame in product(
                ("real", "fake"), ("train", "test"), range(4), range(3), range(2)
            )
        )
    )


def dfdc() -> dict[str, str]:
    files: dict[str, str] = {}
    for part in range(2):
        folder = (
            f"dfdc_train_part_{part:02}/dfdc_train_part_{part}" if part else "dfdc_train_part_0"
        )
        metadata = {}
        for i in range(10):
            original = f"real{part}{chr(97 + i)}.mp4"
            metadata[original] = {"label": "REAL", "split": "train", "original": None}
            for j in range(4):
                metadata[f"fake{part}{chr(97 + i)}{j}.mp4"] = {
                    "label": "FAKE",
                    "split": "train",
                    "original": original,
                }
        files |= empty(*(f"{folder}/{name}" for name in metadata))
        files[f"{folder}/metadata.json"] = json.dumps(metadata)
    test = {f"test{chr(97 + i)}.mp4": str(i % 2) for i in range(10)}
    files |= empty(*(f"test/{name}" for name in test))
    rows = [f"{name},{label}" for name, label in test.items()]
    return files | {"test/labels.csv": "\n".join(["filename,label", *rows])}


def dfdc_preview() -> dict[str, str]:
    listed = {}
    for actor in range(8):
        split = "test" if actor > 5 else "train"
        row = {"set": split, "augmentations": [], "target_id": actor}
        for take in range(2):
            listed[f"original_videos/{actor}/{actor}_{take}.mp4"] = {
                **row,
                "label": "real",
                "swapped_id": None,
            }
            for method in "AB":
                listed[f"method_{method}/{actor}/{take}/x_{actor}_{take}.mp4"] = {
                    **row,
                    "label": "fake",
                    "swapped_id": actor + 1,
                }
    return {**empty(*listed), "dataset.json": json.dumps(listed)}


def deeper_forensics() -> dict[str, str]:
    names = [f"{i:03}_M{i % 100:03}.mp4" for i in range(1000)]
    return {
        "lists/splits/train.txt": "\n".join(names[:703]),
        "lists/splits/val.txt": "\n".join(names[703:799]),
        "lists/splits/test.txt": "\n".join(names[799:]),
        **empty(*(f"manipulated_videos/end_to_end/{name}" for name in names)),
    }


def seq_deepfake() -> dict[str, str]:
    files: dict[str, str] = {}
    for part, split in product(
        ("facial_components", "facial_attributes"), ("train", "val", "test")
    ):
        rows = ["file_path,label"]
        for folder, label in (("original", "0, 0, 0, 0, 0"), ("nose-eye-lip", "1, 2, 4, 0, 0")):
            for i in range(5):
                name = f"images/{split}/{folder}/{i:06}.jpg"
                files[f"{part}/{name}"] = ""
                rows.append(f'{name},"[{label}]"')
        files[f"{part}/annotations/{split}.csv"] = "\n".join(rows)
    return files


def oulu_npu() -> dict[str, str]:
    users = {"Train": range(1, 21), "Dev": range(21, 36), "Test": range(36, 56)}
    return empty(
        *(
            f"{split}_files/{phone}_{session}_{user:02}_{file}{suffix}"
            for split, people in users.items()
            for phone, session, user, file in product(range(1, 7), range(1, 4), people, range(1, 6))
            for suffix in ((".avi", ".txt") if user == 1 else (".avi",))
        )
    )


def casia_fasd() -> dict[str, str]:
    clips = [*map(str, range(1, 9)), "HR_1", "HR_2", "HR_3", "HR_4"]
    return empty(
        *(
            f"{split}_release/{subject}/{clip}.avi"
            for split, n in (("train", 20), ("test", 30))
            for subject in range(1, n + 1)
            for clip in clips
        )
    )


def replay_attack() -> dict[str, str]:
    clients = {"train": range(1, 16), "devel": range(16, 31), "test": range(31, 51)}
    lights = ("adverse", "controlled")
    files = []
    for split, people in clients.items():
        for client, light in product(people, lights):
            name = f"client{client:03}_session01"
            files += [
                f"{split}/real/{name}_webcam_authenticate_{light}_{take}.mov" for take in (1, 2)
            ]
            files += [
                f"{split}/attack/{support}/attack_{device}_{name}_{camera}_{medium}_{light}.mov"
                for support in ("fixed", "hand")
                for device, camera, media in (
                    ("print", "highdef", ("photo",)),
                    ("mobile", "mobile", ("photo", "video")),
                    ("highdef", "highdef", ("photo", "video")),
                )
                for medium in media
            ]
        files += [f"enroll/{split}/client{client:03}_x.mov" for client in people]
    return empty(*files)


def msu_mfsd() -> dict[str, str]:
    files = []
    for client, camera in product(
        [*MSU_TEST, *range(2, 12), 21, 22, 34, 53, 54], ("android", "laptop")
    ):
        suffix = "mp4" if camera == "android" else "mov"
        files.append(f"real/real_client{client:03}_{camera}_SD_scene01.{suffix}")
        files += [
            f"attack/attack_client{client:03}_{camera}_SD_{instrument}_scene01.{suffix}"
            for instrument in ("ipad_video", "iphone_video", "printed_photo")
        ]
    return empty(*files, *(f"{file.rpartition('.')[0]}.face" for file in files))


def siw() -> dict[str, str]:
    """The documented numbers of clips, spread over 90 and 75 subjects."""
    train = {("live", 1, 1): 714, ("spoof", 2, 1): 365} | {
        ("spoof", 3, medium): n for medium, n in enumerate((340, 340, 340, 318), start=1)
    }
    test = {("live", 1, 1): 599, ("spoof", 2, 1): 314} | {
        ("spoof", 3, medium): n for medium, n in enumerate((300, 300, 298, 250), start=1)
    }
    files = []
    for top, clips, subjects in (("Train", train, range(1, 91)), ("Test", test, range(91, 166))):
        for (kind, number, medium), n in clips.items():
            for i in range(n):
                subject = f"{subjects[i % len(subjects)]:03}"
                name = f"{subject}-{i // len(subjects) + 1}-{number}-{medium}-1"
                files.append(f"{top}/{kind}/{subject}/{name}.mov")
    return empty(*files)


def siw_mv2() -> dict[str, str]:
    files = [f"Live/Live_{i}.mov" for i in range(60)]
    lists: dict[str, list[str]] = {
        "trainlist_live": [f"Live_{i}" for i in range(40)],
        "testlist_live": [f"Live_{i}" for i in range(40, 60)],
        "trainlist_all": [],
        "testlist_all": [],
    }
    for folder, token in SIW_MV2.items():
        files += [f"Spoof/{folder}/{token}_{i}.mov" for i in range(8)]
        lists["trainlist_all"] += [f"{token}_{i % 5}" for i in range(10)]  # with repeats
        lists["testlist_all"] += [f"{token}_{i}" for i in range(5, 8)]
    return empty(*files) | {f"{name}.txt": "\n".join(stems) for name, stems in lists.items()}


def hq_wmca() -> dict[str, str]:
    files: dict[str, str] = {}
    rows = []
    for split, clients in (("train", (1, 2)), ("dev", (3, 4)), ("eval", (5, 6))):
        for client, (number, word) in product(clients, HQ_TYPES.items()):
            path = f"face-station/26.02.19/1_01_{client:04}_0000_{number}_00_000-fad05fcd"
            files[f"{path}.hdf5"] = ""
            label, kind = ("0", "bonafide") if number == "00" else ("1", f"attack/{word}")
            rows.append(f"{path},{label},{kind},{split}")
    return files | {"PROTOCOL-grand_test-curated.csv": "\n".join(rows)}


def celeba_spoof() -> dict[str, str]:
    files: dict[str, str] = {}
    for split, subjects in (("train", range(4)), ("test", range(20, 22))):
        labels = {}
        for subject, number in product(subjects, range(11)):
            kind = "spoof" if number else "live"
            name = f"Data/{split}/{subject}/{kind}/{subject * 100 + number:06}"
            files |= empty(f"{name}.png", f"{name}_BB.txt")
            labels[f"{name}.png"] = [0] * 40 + [
                number,
                int(number > 0),
                int(number > 0),
                int(number > 0),
            ]
        files[f"metas/intra_test/{split}_label.json"] = json.dumps(labels)
    return files


def uniattackdata() -> dict[str, str]:
    files: dict[str, str] = {}
    for protocol, split in product(("p1", "p2.1", "p2.2"), ("train", "dev", "test")):
        names = [f"{protocol}/{split}/{i:06}.png" for i in range(6)]
        files |= empty(*names)
        lines = [f"{name} {int(i > 1)}" for i, name in enumerate(names)]
        files[f"{protocol}/{split}_label.txt"] = "\n".join(lines)
    return files


def two_folders() -> dict[str, str]:
    return empty(
        *(
            f"{split}/{place}/{i}.mp4"
            for split in ("train", "dev", "test")
            for place in ("bona_fide", "attack/print", "attack/hologram")
            for i in range(2)
        )
    )


TREES: dict[str, Callable[[], dict[str, str]]] = {
    "celeb_df_v1": celeb_df,
    "celeb_df_v2": celeb_df,
    **{
        tree.__name__: tree
        for tree in (
            *(casia_fasd, celeba_spoof, deeper_forensics, dfdc, dfdc_preview, ffpp, hq_wmca),
            *(msu_mfsd, oulu_npu, replay_attack, seq_deepfake, siw, siw_mv2, two_folders),
            *(uniattackdata, wild_deepfake),
        )
    },
}


@pytest.fixture(scope="session")
def roots(tmp_path_factory) -> Callable[[str], Path]:
    """Give the generated folder of a data set, written once; tests leave it as it is."""
    return cache(lambda name: plant(tmp_path_factory.mktemp(name), TREES[name]()))


@pytest.fixture(scope="session")
def listings(roots) -> Callable[[str], list[ListedVideo]]:
    """Give the videos of a data set's generated folder, read once."""
    return cache(lambda name: load_dataset(name).read(roots(name)))


@pytest.fixture
def planted(tmp_path) -> Callable[..., Path]:
    """Write a data set's generated folder, or other files, below `tmp_path`."""

    def write(files: str | Mapping[str, str]) -> Path:
        return plant(tmp_path, TREES[files]() if isinstance(files, str) else files)

    return write


@pytest.fixture
def official() -> Callable[[str], Path]:
    """Find a folder of official split lists, beside the checkout; skip where there is none."""

    def find(name: str) -> Path:
        folder = OFFICIAL / name
        if not folder.is_dir():
            pytest.skip(f"needs ../shared/data/splits/{name}")
        return folder

    return find


PREPARED = PreparedConfig(size_px=96, margin=2.0, code_version="test")


def _face(number: int) -> tuple[FaceRecord, bytes]:
    """A loose crop of the portrait, each a little elsewhere; odd ones are labelled as attacks."""
    x, y = np.random.default_rng(number).uniform((80, 0), (160, 60))
    portrait = Image.fromarray(skimage.data.astronaut())
    crop = portrait.resize((96, 96), Image.Resampling.BILINEAR, box=(x, y, x + 220, y + 220))
    record = FaceRecord(
        sample_id=f"test:{number}@{number}",
        dataset="test",
        video_id=f"test:{number}",
        source_id=f"test:{number}",
        split="train",
        label=number % 2,
        attack_type="print" if number % 2 else None,
        frame=number,
        pts_s=number / 25,
        track=0,
        box=(x, y, x + 110, y + 110),
        face=(24, 24, 72, 72),
        landmarks=((36, 40), (60, 40), (48, 50), (38, 60), (58, 60)),
        face_px=110,
        source_sha256=f"{number:064}",
        licence="public domain",
    )
    return record, encode_crop(np.asarray(crop))


def _record(video: str, frame: int = 0, **known: object) -> FaceRecord:
    attack_type = known.pop("attack_type", None)
    dataset = known.pop("dataset", "two_folders")
    return FaceRecord.model_validate(
        {
            "sample_id": f"{dataset}:{video}@{frame}",
            "dataset": dataset,
            "video_id": f"{dataset}:{video}",
            "source_id": f"{dataset}:{video}",
            "split": "train",
            "label": int(attack_type is not None),
            "attack_type": attack_type,
            "frame": frame,
            "pts_s": frame / 5,
            "track": 0,
            "box": (16, 16, 48, 48),
            "face": (16, 16, 48, 48),
            "landmarks": [(24, 26), (40, 26), (32, 32), (26, 40), (38, 40)],
            "face_px": 32,
            "source_sha256": "",
            "licence": "none",
            **known,
        }
    )


@pytest.fixture(scope="session")
def face_record() -> Callable[..., FaceRecord]:
    """Make the record of a face, by the name of its video; keyword arguments change it."""
    return _record


@pytest.fixture
def write_faces(tmp_path: Path) -> Callable[..., Path]:
    """Write a prepared folder with these records, of noise or of pictures, below `tmp_path`."""

    def written(
        records: Sequence[FaceRecord],
        name: str = "faces",
        prepared: PreparedConfig | None = None,
        pictures: Sequence[NDArray[np.uint8]] | None = None,
    ) -> Path:
        about = prepared or PreparedConfig(size_px=64, margin=2.0, code_version="test")
        if pictures is None:
            shape = (len(records), about.size_px, about.size_px, 3)
            pictures = [*np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)]
        samples = [(r, encode_crop(p)) for r, p in zip(records, pictures, strict=True)]
        with ShardWriter(tmp_path / name, about) as shards:
            shards.add(sorted(samples, key=lambda sample: sample[0].video_id))
        (tmp_path / name / "problems.jsonl").touch()
        return tmp_path / name

    return written


@pytest.fixture(scope="session")
def stored_faces() -> list[tuple[FaceRecord, bytes]]:
    """40 faces of 96 px, as `ShardWriter` takes them."""
    return [_face(number) for number in range(40)]


@pytest.fixture(scope="session")
def write_shards() -> Callable[..., Path]:
    """Write faces to a folder of shards, 16 in each."""

    def write(
        folder: Path,
        faces: Sequence[tuple[FaceRecord, bytes]],
        prepared: PreparedConfig = PREPARED,
    ) -> Path:
        with ShardWriter(folder, prepared, samples_per_shard=16) as shards:
            for face in faces:
                shards.add([face])
        return folder

    return write


@pytest.fixture(scope="session")
def faces(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """32 drawn faces of each class for dev and for test, three times as many to train on."""
    return made_once("smoke_faces", write_smoke_faces)


@pytest.fixture(scope="session")
def warm() -> Iterator[WarmStarts]:
    """Start programs of training with their imports done."""
    starts = WarmStarts(
        *("torch.distributed.run", "train.data.selection", "train.evaluation.run_report"),
        *("train.fit.loop", "train.release.calibrate"),
    )
    yield starts
    starts.close()
