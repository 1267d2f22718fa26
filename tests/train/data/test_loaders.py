"""Both loaders: the same rows and pictures for a seed, from any step on, on any number of ranks."""

import importlib.util
import itertools
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from models import InputSpec, box_in_crop, crop_faces, crop_window
from train.attacks.camera import recompress_jpeg
from train.attacks.pairs import SyntheticPairs, match_tone
from train.data.loaders import (
    AugmentConfig,
    DaliLoaderConfig,
    Group,
    LoaderConfig,
    TorchLoaderConfig,
    open_evaluation_loader,
    open_loader,
)
from train.data.loaders._augmentation import Augmentation
from train.data.loaders._order import training_order
from train.data.shards import PreparedConfig, open_shards
from train.errors import TrainError

TORCH = TorchLoaderConfig(workers=0)
DALI = DaliLoaderConfig(kind="dali")
needs_dali = pytest.mark.skipif(
    importlib.util.find_spec("nvidia.dali") is None, reason="DALI is not installed"
)
both = pytest.mark.parametrize(
    "loader", [TORCH, pytest.param(DALI, marks=needs_dali)], ids=["torch", "dali"]
)

GROUPS = [
    Group("bona fide", range(0, 40, 2), quota=6),
    Group("attack", range(1, 40, 2), quota=4),
]
SPEC = InputSpec(size_px=64, margin=1.3)  # 62.4 px of the stored crop: enlarged
SMALL = InputSpec(size_px=32, margin=1.5)  # 72 px: each pixel the mean of 3 x 3 samples
# LGSC's own recipe, but for the order of its steps (../shared/methods/lgsc.md, 6).
LGSC = {
    "brightness": {"p": 0.5, "low": -32, "high": 32},
    "gain": {"p": 0.5, "low": 0.5, "high": 1.5},
    "saturation": {"p": 0.5, "low": 0.8, "high": 1.2},
    "hue_deg": {"p": 0.5, "low": -16, "high": 16},
    "erase": [
        {"p": 0.5, "count": [1, 2], "area": [0.01, 0.03], "ratio": [0.5, 2], "fill": 80},
        {"p": 0.5, "area": [0.0001, 0.008]},
    ],
    "rotate_deg": {"p": 0.5, "low": -30, "high": 30},
    "trim": {"p": 0.5, "low": 0, "high": 0.12},
    "hflip": 0.5,
}
WITHOUT_JPEG = {
    **LGSC,
    "jitter": {"shift": 0.04, "scale": 0.06},
    "resized_crop": {"area": [0.8, 1]},
    "contrast": {"low": 0.8, "high": 1.2},
    "blur_sigma_px": {"p": 0.5, "low": 0.3, "high": 2},
    "noise_sigma": {"p": 0.5, "low": 1, "high": 5},
}
EVERYTHING = {**WITHOUT_JPEG, "jpeg_quality": {"p": 0.5, "low": 40, "high": 95}}


@pytest.fixture(scope="module")
def shards(tmp_path_factory, stored_faces, write_shards):
    return open_shards(write_shards(tmp_path_factory.mktemp("faces"), stored_faces))


def _load(shards, loader, n_steps=5, groups=GROUPS, spec=SPEC, seed=3, **options):
    options["augment"] = AugmentConfig.model_validate(options.get("augment", {}))
    batches = open_loader(shards, groups, spec, loader, seed=seed, **options)
    return list(itertools.islice(batches, n_steps))


def _differences(ours, theirs):
    pairs = zip(ours, theirs, strict=True)
    return torch.stack([(a.batch.images.int() - b.batch.images.int()).abs() for a, b in pairs])


def _assert_same(ours, theirs):
    assert [loaded.rows for loaded in ours] == [loaded.rows for loaded in theirs]
    assert _differences(ours, theirs).max() == 0


def _one(shards, loader=TORCH, spec=SPEC, row=0, **augment):
    """Return the crop of one face, (3, S, S) int, with this augmentation."""
    (loaded,) = _load(shards, loader, 1, [Group("one", [row], 1)], spec, augment=augment)
    return loaded.batch.images[0].int()


def _always(value):
    return {"low": value, "high": value}


# ---- the same from both


@needs_dali
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_dali_on_a_gpu_gives_nearly_the_faces_of_the_cpu(shards):
    by_cpu, by_gpu = (
        _load(shards, DaliLoaderConfig(kind="dali", device=device)) for device in ("cpu", "gpu")
    )
    assert [loaded.rows for loaded in by_cpu] == [loaded.rows for loaded in by_gpu]
    assert _differences(by_cpu, by_gpu).float().mean() < 1  # another JPEG decoder


@needs_dali
@pytest.mark.parametrize("spec", [SPEC, SMALL], ids=["enlarged", "reduced"])
@pytest.mark.parametrize("augment", [{}, WITHOUT_JPEG], ids=["plain", "augmented"])
def test_both_loaders_give_the_same_faces_within_a_grey_level(shards, spec, augment):
    by_torch, by_dali = (
        _load(shards, loader, spec=spec, augment=augment) for loader in (TORCH, DALI)
    )
    assert [loaded.rows for loaded in by_torch] == [loaded.rows for loaded in by_dali]
    for one, other in zip(by_torch, by_dali, strict=True):
        assert torch.equal(one.batch.labels, other.batch.labels)
    differences = _differences(by_torch, by_dali)
    assert differences.max() <= 1
    assert differences.float().mean() < 0.003


@needs_dali
def test_both_loaders_give_nearly_the_same_faces_with_jpeg(shards):
    # A sample on the edge between two grey levels may fall on either side; JPEG spreads it over
    # its block.
    differences = _differences(
        *(_load(shards, loader, augment=EVERYTHING) for loader in (TORCH, DALI))
    )
    assert differences.float().mean() < 0.02
    assert differences.max() <= 16


@both
@pytest.mark.parametrize("spec", [SPEC, SMALL], ids=["enlarged", "reduced"])
def test_without_augmentation_a_face_is_cut_as_streaming_cuts_it(shards, loader, spec):
    box = np.array([[24, 24, 72, 72]], np.float32)  # the face, half as wide as the stored crop
    for loaded in open_evaluation_loader(shards, range(40), spec, loader, batch=16):
        for row, image in zip(loaded.rows, loaded.batch.images, strict=True):
            streamed = crop_faces(torch.from_numpy(shards.crop(row)), box, spec)[0]
            assert (image.int() - streamed.int()).abs().max() <= 1


# ---- order


@both
def test_a_step_holds_the_quota_of_each_group_with_its_labels(shards, loader):
    for loaded in _load(shards, loader):
        assert loaded.batch.images.shape == (10, 3, 64, 64)
        assert loaded.batch.images.dtype == torch.uint8
        assert loaded.batch.labels.tolist() == [0] * 6 + [1] * 4
        assert [row % 2 for row in loaded.rows] == loaded.batch.labels.tolist()


@both
def test_a_run_that_resumes_sees_what_an_uninterrupted_one_sees(shards, loader, monkeypatch):
    if loader is DALI:  # several pipelines, one after the other
        monkeypatch.setattr("train.data.loaders.dali_shards._SAMPLES_PER_PIPELINE", 13)
    whole = _load(shards, loader, 12, augment=EVERYTHING)
    for step in (1, 5):
        resumed = _load(shards, loader, 12 - step, augment=EVERYTHING, first_step=step)
        _assert_same(resumed, whole[step:])


@both
def test_two_ranks_together_see_the_batch_of_one_process(shards, loader):
    doubled = [Group(group.name, group.rows, 2 * group.quota) for group in GROUPS]
    whole = _load(shards, loader, groups=doubled, augment=EVERYTHING)
    ranks = [_load(shards, loader, augment=EVERYTHING, rank=r, world=2) for r in range(2)]
    for step, together in enumerate(whole):
        first, second = (rank[step] for rank in ranks)
        assert together.rows == first.rows[:6] + second.rows[:6] + first.rows[6:] + second.rows[6:]
        images = [first.batch.images[:6], second.batch.images[:6]]
        images += [first.batch.images[6:], second.batch.images[6:]]
        assert torch.equal(together.batch.images, torch.cat(images))


@both
def test_an_epoch_shows_every_face_once_and_the_next_one_in_another_order(shards, loader):
    groups = [Group("all", range(40), 8)]
    rows = [loaded.rows for loaded in _load(shards, loader, 10, groups)]
    epochs = [list(itertools.chain(*rows[:5])), list(itertools.chain(*rows[5:]))]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(40))
    assert epochs[0] != epochs[1] != list(range(40))


def test_a_group_smaller_than_its_quota_is_repeated(shards):
    (loaded,) = _load(shards, TORCH, 1, [Group("few", [5, 7], 5)])
    assert sorted(loaded.rows[:4]) == [5, 5, 7, 7]


def test_another_seed_gives_another_order_and_other_draws(shards):
    one, other = (_load(shards, TORCH, 1, seed=seed)[0].rows for seed in (3, 4))
    assert one != other
    bright, dark = (
        _load(shards, TORCH, 1, [Group("one", [4], 1)], seed=seed, augment=EVERYTHING)[0]
        for seed in (3, 4)
    )
    assert (bright.batch.images.float() - dark.batch.images.float()).abs().mean() > 5


def test_a_batch_mixes_shards_and_no_face_comes_twice_in_an_epoch():
    shard = np.repeat(np.arange(10, dtype=np.int32), 64)
    order = training_order([Group("all", range(640), 32)], shard, seed=0, rank=0, world=1)
    batches = [order.rows(0, step) for step in range(20)]
    assert all(len(set(shard[rows])) >= 3 for rows in batches[:-1])
    assert sorted(np.concatenate(batches)) == list(range(640))


def test_worker_processes_change_nothing(shards):
    workers = TorchLoaderConfig(workers=2, prefetch=1)
    _assert_same(
        _load(shards, workers, augment=EVERYTHING), _load(shards, TORCH, augment=EVERYTHING)
    )


@both
@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_loads_every_row_once_over_all_ranks(shards, loader, world):
    wanted = [row for row in range(40) if row % 7][::-1]
    ranks = [
        list(open_evaluation_loader(shards, wanted, SPEC, loader, batch=4, rank=rank, world=world))
        for rank in range(world)
    ]
    loaded = list(itertools.chain(*ranks))
    assert sorted(itertools.chain(*(step.rows for step in loaded))) == sorted(wanted)
    for step in loaded:
        assert len(step.rows) == len(step.batch.images) == len(step.batch.labels) <= 4
        assert step.batch.labels.tolist() == [row % 2 for row in step.rows]


@both
def test_a_rank_without_rows_to_evaluate_loads_nothing(shards, loader):
    ranks = [
        list(open_evaluation_loader(shards, [3], SPEC, loader, batch=4, rank=rank, world=2))
        for rank in range(2)
    ]
    assert sorted(len(steps) for steps in ranks) == [0, 1]


# ---- augmentation


@both
def test_a_flip_mirrors(shards, loader):
    plain, flipped = (_one(shards, loader, hflip=p) for p in (0.0, 1.0))
    assert (flipped - plain.flip(2)).abs().max() <= 1


def test_a_quarter_turn_turns(shards):
    plain = _one(shards)
    turned = _one(shards, rotate_deg=_always(90))
    assert (turned - torch.rot90(plain, 1, (1, 2))).abs().max() <= 1


def test_a_part_of_the_crop_turns_about_its_own_centre(shards):
    part = {"resized_crop": {"area": [0.3, 0.3]}}
    plain, turned = (_one(shards, rotate_deg=_always(turn), **part) for turn in (0, 180))
    assert (turned - plain.flip((1, 2))).abs().max() <= 1


def test_a_drawn_margin_takes_the_place_of_the_networks(shards):
    tight = _one(shards, margin=_always(1.1))
    assert torch.equal(tight, _one(shards, spec=InputSpec(size_px=64, margin=1.1)))


def test_margins_are_drawn_over_their_whole_span(shards):
    config = AugmentConfig.model_validate({"margin": {"low": 1.0, "high": 1.5}})
    augmentation = Augmentation(config, shards.prepared, SPEC)
    generators = [np.random.default_rng(seed) for seed in range(200)]
    draws = augmentation.draw(generators, [np.array([24, 24, 72, 72])] * 200)
    margins = draws.matrix[:, 0, 0] * SPEC.size_px / (96 / 2)
    assert 1.0 <= margins.min() < 1.03
    assert 1.47 < margins.max() <= 1.5
    assert np.abs(draws.matrix[:, 0, 0] - draws.matrix[:, 1, 1]).max() == 0


def test_a_margin_beyond_what_is_stored_is_refused(shards):
    with pytest.raises(TrainError, match=r"margin of 2\.2, the prepared ones only 2; prepare"):
        _load(shards, TORCH, augment={"margin": {"low": 1, "high": 2.2}})
    with pytest.raises(ValidationError, match=r"margin: 0\.5\.\.1 leaves 1\.\.inf"):
        AugmentConfig.model_validate({"margin": {"low": 0.5, "high": 1}})


def test_trimming_keeps_the_middle(shards):
    trimmed = _one(shards, trim=_always(0.25))
    inner = _one(shards, spec=InputSpec(size_px=64, margin=0.65))
    assert (trimmed - inner).abs().max() <= 1


def test_a_resized_crop_shows_part_of_the_crop(shards):
    quarter = _one(shards, resized_crop={"area": [0.25, 0.25], "ratio": [1, 1]})
    plain = torch.nn.functional.interpolate(_one(shards)[None].float(), scale_factor=2)[0]
    windows = plain.unfold(1, 64, 1).unfold(2, 64, 1)  # (3, 65, 65, 64, 64)
    misses = (windows - quarter[:, None, None]).abs().mean((0, 3, 4))
    assert misses.min() < 6 < 20 < misses.median()  # the interpolations differ a little


def test_colour_changes_mean_what_they_say(shards):
    plain = _one(shards, spec=SMALL)
    changed = {
        "brightness": plain + 20,
        "gain": plain * 0.5,
        "contrast": (plain - 128) * 0.5 + 128,
    }
    values = {"brightness": 20, "gain": 0.5, "contrast": 0.5}
    for name, expected in changed.items():
        found = _one(shards, spec=SMALL, **{name: _always(values[name])})
        assert (found - expected.clamp(0, 255)).abs().max() <= 1, name
    grey = _one(shards, spec=SMALL, saturation=_always(0))
    with_pil = Image.fromarray(plain.permute(1, 2, 0).to(torch.uint8).numpy()).convert("L")
    assert (grey - torch.from_numpy(np.array(with_pil, np.int32))).abs().max() <= 1


def test_turning_the_hue_keeps_brightness_and_a_whole_turn_keeps_colour(shards):
    luma = torch.tensor([0.299, 0.587, 0.114])
    plain = _one(shards, spec=SMALL).float() * 0.5 + 64
    squeezed = {"contrast": _always(0.5)}  # so that nothing clips
    turned = _one(shards, spec=SMALL, hue_deg=_always(60), **squeezed).float()
    assert (turned - plain).abs().max() > 10
    difference = torch.einsum("c,chw->hw", luma, turned - plain)
    assert difference.abs().max() < 2.5
    there_and_back = [
        _one(shards, spec=SMALL, hue_deg=_always(turn), **squeezed) for turn in (180, -180)
    ]
    assert (there_and_back[0] - there_and_back[1]).abs().max() <= 1


def test_noise_has_the_strength_asked_for_and_is_new_for_each_sample(shards):
    augment = {"contrast": _always(0), "noise_sigma": _always(5)}  # grey but for the noise
    (loaded,) = _load(shards, TORCH, 1, augment=augment)
    noise = loaded.batch.images.float() - 128
    assert noise.std() == pytest.approx(5, abs=0.2)
    assert abs(noise.mean()) < 0.2
    channels = noise.flatten(2).reshape(30, -1)
    assert (torch.corrcoef(channels) - torch.eye(30)).abs().max() < 0.2


def test_blur_smooths(shards):
    def roughness(image):
        return (image[:, 1:] - image[:, :-1]).abs().float().mean()

    assert roughness(_one(shards, blur_sigma_px=_always(2))) < 0.7 * roughness(_one(shards))


def test_jpeg_is_jpeg_of_that_quality(shards):
    plain = _one(shards).permute(1, 2, 0).to(torch.uint8).numpy()
    found = _one(shards, jpeg_quality=_always(30))
    np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), recompress_jpeg(plain, 30))


@both
def test_erased_rectangles_have_their_number_size_and_grey(shards, loader):
    erase = [{"count": [2, 2], "area": [0.02, 0.02], "ratio": [0.5, 2], "fill": 77}]
    augment = {"erase": erase, "gain": _always(0)}  # black but for the rectangles
    for loaded in _load(shards, loader, 3, augment=augment):
        erased = loaded.batch.images == 77
        assert ((loaded.batch.images == 0) | erased).all()
        assert torch.equal(erased[:, 0], erased[:, 2])
        share = erased[:, 0].float().mean((1, 2))
        assert ((share > 0.017) & (share < 0.046)).all()  # two of 2 %, which may overlap


def test_a_probability_leaves_the_other_samples_alone(shards):
    loaded = _load(shards, TORCH, 20, augment={"brightness": {"p": 0.3, **_always(40)}})
    plain = _load(shards, TORCH, 20)
    changed = torch.cat(
        [
            (a.batch.images != b.batch.images).flatten(1).any(1)
            for a, b in zip(loaded, plain, strict=True)
        ]
    )
    assert changed.float().mean() == pytest.approx(0.3, abs=0.1)


@pytest.mark.parametrize(
    ("augment", "problem"),
    [
        ({"gain": {"low": 2, "high": 1}}, "low 2 lies above high 1"),
        ({"gain": {"low": -1, "high": 1}}, "gain: -1..1 leaves 0..inf"),
        ({"jpeg_quality": {"low": 0, "high": 50}}, "jpeg_quality: 0..50 leaves 1..95"),
        ({"erase": [{"area": [0.2, 0.1]}]}, "area"),
        ({"erase": [{"area": [0.1, 0.2], "count": [2, 1]}]}, "count"),
        ({"resized_crop": {"area": [0.5, 1.5]}}, "area"),
        ({"hflip": 1.5}, "less than or equal to 1"),
        ({"flip": 0.5}, "Extra inputs"),
    ],
)
def test_an_impossible_augmentation_is_refused(augment, problem):
    with pytest.raises(ValidationError, match=problem):
        AugmentConfig.model_validate(augment)


# ---- synthetic attacks


def test_a_transform_gives_bona_fide_faces_then_their_attacks_cut_alike(shards):
    def invert(face, other, rng):
        assert face.landmarks.shape == (5, 2)
        assert face.face.tolist() == [24, 24, 72, 72]
        return face.image, 255 - face.image

    augment = {key: WITHOUT_JPEG[key] for key in ("jitter", "rotate_deg", "hflip")}
    (loaded,) = _load(shards, TORCH, 1, GROUPS[:1], augment=augment, transform=invert)
    assert loaded.batch.labels.tolist() == [0] * 6 + [1] * 6
    assert loaded.rows[:6] == loaded.rows[6:]
    bona_fide, attacks = loaded.batch.images.int().split(6)
    assert (bona_fide + attacks - 255).abs().max() <= 1
    (without,) = _load(shards, TORCH, 1, GROUPS[:1], augment=augment)
    assert torch.equal(without.batch.images, bona_fide.to(torch.uint8))


def test_synthetic_pairs_are_the_same_in_every_run_and_differ_from_their_bona_fides(shards):
    pairs = SyntheticPairs({"sbi": 1, "replay": 1, "print": 1})
    groups = [Group("bona fide", range(0, 40, 2), 4)]
    first, second = (
        _load(shards, loader, 2, groups, transform=pairs)
        for loader in (TORCH, TorchLoaderConfig(workers=1))
    )
    _assert_same(first, second)
    for loaded in first:
        bona_fide, attacks = loaded.batch.images.float().split(4)
        assert ((bona_fide - attacks).abs().mean((1, 2, 3)) > 0.2).all()


def test_evaluation_makes_the_same_attack_of_a_face_on_any_rank(shards):
    def add_noise(face, other, rng):
        noise = rng.integers(0, 128, face.image.shape, np.uint8)
        return face.image, noise + other().image // 2

    def attacks(world):
        found = {}
        for rank in range(world):
            for loaded in open_evaluation_loader(
                shards,
                range(0, 40, 2),
                SPEC,
                TORCH,
                batch=6,
                rank=rank,
                world=world,
                transform=add_noise,
            ):
                half = len(loaded.rows) // 2
                found |= zip(loaded.rows[half:], loaded.batch.images[half:], strict=True)
        return found

    alone, shared = attacks(1), attacks(3)
    assert sorted(alone) == sorted(shared) == list(range(0, 40, 2))
    assert all(torch.equal(alone[row], shared[row]) for row in alone)


def test_a_picture_takes_on_the_tone_of_another():
    rng = np.random.default_rng(0)
    image, like = rng.integers(0, 256, (32, 32, 3), np.uint8), np.full((8, 8, 3), 90, np.uint8)
    like[::2] = 110
    matched = match_tone(image, like)
    np.testing.assert_allclose(matched.mean((0, 1)), 100, atol=1)
    assert matched.std() < 0.5 * image.std()


def test_attacks_are_not_attacked_again(shards):
    with pytest.raises(TrainError, match="bona fide"):
        _load(shards, TORCH, transform=SyntheticPairs({"sbi": 1}))


def test_dali_makes_no_synthetic_attacks(shards):
    with pytest.raises(TrainError, match="kind to torch"):
        _load(shards, DALI, groups=GROUPS[:1], transform=SyntheticPairs({"sbi": 1}))


# ---- windows inside the frame


def _frame():
    """A frame whose pixels tell where they are: red by the column, green by the row."""
    frame = np.zeros((240, 320, 3), np.uint8)
    frame[..., 0] = np.linspace(0, 250, 320).round()
    frame[..., 1] = np.linspace(0, 250, 240).round()[:, None]
    return torch.from_numpy(frame)


BOXES = {
    "middle": (140, 100, 180, 150),
    "at the left edge": (2, 100, 42, 150),
    "in the corner": (270, 190, 312, 236),
    "fills the frame": (60, 10, 250, 230),
}


@pytest.fixture
def inside(face_record, write_faces):
    """A folder of faces of the frame, prepared with windows of four times the face."""
    stored = InputSpec(size_px=176, margin=4.0, window="inside")
    records, pictures = [], []
    for name, box in BOXES.items():
        corners = np.array(box, np.float32)
        window = crop_window(corners, stored, (320, 240))
        face = box_in_crop(corners, window, 176)
        records.append(face_record(name, box=box, face=face, face_px=50))
        crop = crop_faces(_frame(), corners[None], stored)[0]
        pictures.append(crop.permute(1, 2, 0).contiguous().numpy())
    about = PreparedConfig(size_px=176, margin=4.0, window="inside", code_version="test")
    return open_shards(write_faces(records, prepared=about, pictures=pictures))


@both
@pytest.mark.parametrize("margin", [1.5, 2.7, 4.0])
def test_training_cuts_the_windows_that_streaming_cuts(inside, loader, margin):
    spec = InputSpec(size_px=64, margin=margin, window="inside")
    (loaded,) = open_evaluation_loader(inside, range(4), spec, loader, batch=4)
    boxes = np.array([inside.records[row].box for row in loaded.rows], np.float32)
    streamed = crop_faces(_frame(), boxes, spec)
    assert (loaded.batch.images.int() - streamed.int()).abs().max() <= 4  # of 250 over the frame


@both
def test_a_jittered_box_takes_its_window_along_and_inside(inside, loader):
    spec = InputSpec(size_px=64, margin=2.7, window="inside")
    augment = AugmentConfig.model_validate({"jitter": {"shift": 0.3, "scale": 0.2}})
    groups = [Group("all", range(4), 4)]
    steps = open_loader(inside, groups, spec, loader, seed=0, augment=augment)
    images = torch.cat([next(steps).batch.images for _ in range(8)]).int()
    across = images[:, 0].amax((1, 2)) - images[:, 0].amin((1, 2))
    assert len(set(across.tolist())) > 8  # larger and smaller
    assert (images[:, 0].diff(dim=2) >= 0).all()  # no border is repeated, nothing is mirrored
    assert (images[:, 0, :, -1] - images[:, 0, :, -4] > 0).all()


def test_faces_of_another_window_rule_are_refused(shards, inside):
    with pytest.raises(TrainError, match="--set window=inside"):
        _load(shards, TORCH, spec=InputSpec(size_px=64, margin=1.3, window="inside"))
    with pytest.raises(TrainError, match="--set window=pad"):
        _load(inside, TORCH, spec=SPEC, groups=[Group("all", range(4), 1)])


# ---- what is refused


def test_a_network_that_sees_more_than_is_stored_is_refused(shards):
    with pytest.raises(TrainError, match=r"margin of 2\.5.*only 2"):
        _load(shards, TORCH, spec=InputSpec(size_px=64, margin=2.5))


@pytest.mark.parametrize(
    "groups",
    [[], [Group("a", [], 1)], [Group("a", [1], 0)], [Group("a", [1], 1), Group("a", [2], 1)]],
    ids=["none", "empty", "no quota", "one name twice"],
)
def test_groups_that_give_nothing_or_share_a_name_are_refused(shards, groups):
    with pytest.raises(TrainError, match="group"):
        _load(shards, TORCH, groups=groups)


@pytest.mark.parametrize(
    "loader",
    [TORCH, TorchLoaderConfig(workers=1), pytest.param(DALI, marks=needs_dali)],
    ids=["torch", "torch worker", "dali"],
)
def test_a_damaged_picture_ends_loading_with_the_name_of_its_shard(
    tmp_path, stored_faces, write_shards, loader
):
    shards = open_shards(write_shards(tmp_path, stored_faces))
    content = bytearray(shards.files[1].read_bytes())
    start = int(shards.offset[20])
    content[start + 60 : start + 400] = bytes(340)
    shards.files[1].write_bytes(content)
    batches = open_evaluation_loader(shards, range(40), SPEC, loader, batch=8)
    with pytest.raises(TrainError, match=r"shard-00001\.tar"):
        list(batches)


def test_without_dali_the_error_says_what_to_do(shards, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.delitem(sys.modules, "train.data.loaders.dali_shards", raising=False)
    with pytest.raises(TrainError, match="install nvidia-dali"):
        _load(shards, DALI)


@needs_dali
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_dali_on_a_gpu_that_is_not_there_is_refused(shards):
    with pytest.raises(TrainError, match="finds no GPU"):
        _load(shards, DaliLoaderConfig(kind="dali", device="gpu"))


def test_an_option_of_the_other_loader_is_refused():
    loader = TypeAdapter(LoaderConfig)
    assert loader.validate_python({"kind": "dali", "threads": 3}).threads == 3
    with pytest.raises(ValidationError, match="workers"):
        loader.validate_python({"kind": "dali", "workers": 3})
