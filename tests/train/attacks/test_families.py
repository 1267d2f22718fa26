"""Attacks made from bona fide faces; the face is scikit-image's public-domain portrait."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import skimage.data
from click.testing import CliRunner
from PIL import Image
from torchvision.transforms import functional as torchvision_functional

from train.__main__ import main
from train.attacks import FAMILIES, UNIATTACKDATA_SCHEDULES, FaceInScene, LooseCrop, synthesise
from train.attacks._pictures import blend, hsv_shifted, sharpened
from train.attacks.camera import recompress_jpeg
from train.attacks.pairs import SyntheticPairs
from train.attacks.sdsc import sdsc
from train.attacks.self_blend import erode_by_blur
from train.attacks.spsc import twist
from train.data.attack_sheet import Attacked, draw_sheet
from train.errors import TrainError

_SEEDS = 24
_ALL = dict.fromkeys(FAMILIES, 1.0)
_BLENDED = ("sbi", "sdsc")
_RECAPTURED = ("replay", "print")


def _portrait(size):
    """The astronaut, her face's longer side about half of the picture's."""
    box = (120.0, 20.0, 340.0, 240.0)
    portrait = Image.fromarray(skimage.data.astronaut())
    image = np.asarray(portrait.resize((size, size), Image.Resampling.BILINEAR, box=box))
    seen = np.array([[205, 108], [246, 108], [228, 130], [207, 148], [243, 148]], np.float32)
    return LooseCrop(image, (seen - box[:2]) * np.float32(size / 220))


def _flat(level):
    points = np.float32([[96, 100], [160, 100], [128, 128], [100, 160], [156, 160]])
    return LooseCrop(np.full((256, 256, 3), level, np.uint8), points)


def _made(family, face, seed):
    return FAMILIES[family](face, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def face():
    return _portrait(256)


@pytest.fixture(scope="module")
def attacks(face):
    """Some attacks of each family, by seed."""
    return {family: [_made(family, face, seed) for seed in range(_SEEDS)] for family in FAMILIES}


# ---- every family


@pytest.mark.parametrize("family", FAMILIES)
def test_an_attack_keeps_shape_and_type_but_not_the_picture(face, attacks, family):
    for attack in attacks[family]:
        assert attack.family == family
        assert attack.image.shape == face.image.shape
        assert attack.image.dtype == np.uint8
        assert attack.image.flags.c_contiguous
        assert not np.array_equal(attack.image, face.image)


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_generators_make_equal_attacks_and_leave_the_bona_fide_picture_alone(
    face, attacks, family
):
    before = face.image.copy()
    for seed in range(6):
        again = _made(family, face, seed)
        np.testing.assert_array_equal(again.image, attacks[family][seed].image)
        assert again.parameters == attacks[family][seed].parameters
    np.testing.assert_array_equal(face.image, before)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_go_into_json_and_tell_attacks_apart(attacks, family):
    notes = {json.dumps(attack.parameters, allow_nan=False) for attack in attacks[family]}
    assert len(notes) == _SEEDS
    assert len({attack.image.tobytes() for attack in attacks[family]}) == _SEEDS


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [96, 320])
def test_a_crop_of_another_size_is_attacked_alike(family, size):
    crop = _portrait(size)
    for seed in range(3):
        attack = _made(family, crop, seed)
        assert attack.image.shape == (size, size, 3)
        assert attack.mask is None or attack.mask.shape == (size, size)


@pytest.mark.parametrize("family", _BLENDED)
def test_a_mask_covers_the_same_part_of_the_picture_at_any_size(family):
    def middle_and_share(size):
        masks = [_made(family, _portrait(size), seed).mask > 0 for seed in range(12)]
        rows, columns = np.nonzero(np.sum(masks, 0))
        return np.array([rows.mean() / size, columns.mean() / size, np.mean(masks)])

    np.testing.assert_allclose(middle_and_share(96), middle_and_share(320), atol=0.04)


# ---- self-blending and SDSC: pairs around a mask


@pytest.mark.parametrize("family", _BLENDED)
def test_the_mask_lies_between_zero_and_its_strength(attacks, family):
    for attack in attacks[family]:
        strength = attack.parameters["strength"]
        assert attack.mask.dtype == np.float32
        assert attack.mask.min() == 0
        assert 0.7 * strength < attack.mask.max() <= strength + 1e-6


@pytest.mark.parametrize("family", _BLENDED)
def test_a_blended_pair_is_equal_outside_its_mask_and_differs_inside(attacks, family):
    for attack in attacks[family]:
        outside = attack.mask == 0
        assert 0.1 < outside.mean() < 1
        np.testing.assert_array_equal(attack.image[outside], attack.reference[outside])
        assert (attack.image[~outside] != attack.reference[~outside]).any()


@pytest.mark.parametrize("family", _BLENDED)
def test_source_and_target_are_changed_about_equally_often(face, family):
    made = [_made(family, face, seed) for seed in range(60)]
    of_target = [attack.parameters["changed"] == "target" for attack in made]
    assert 15 < sum(of_target) < 45
    for attack, is_target in zip(made, of_target, strict=True):
        if not is_target:
            np.testing.assert_array_equal(attack.reference, face.image)


@pytest.mark.parametrize(
    ("family", "module", "unmoved"),
    [
        ("sbi", "train.attacks.self_blend", lambda source, outline, *_: (source, outline)),
        ("sdsc", "train.attacks.sdsc", None),
    ],
)
def test_an_attack_that_changes_and_moves_nothing_is_the_picture(
    face, monkeypatch, family, module, unmoved
):
    code = sys.modules[module]
    monkeypatch.setattr(code, "_changed", lambda image, *_: image)
    if unmoved:
        monkeypatch.setattr(code, "_moved", unmoved)
    else:
        monkeypatch.setattr(code, "moved", lambda image, *_: image)
    for seed in range(5):
        attack = _made(family, face, seed)
        np.testing.assert_array_equal(attack.image, face.image)
        np.testing.assert_array_equal(attack.reference, face.image)


@pytest.mark.parametrize("family", _BLENDED)
def test_the_masks_middle_follows_the_face(face, family):
    moved = LooseCrop(np.roll(face.image, 30, axis=1), face.landmarks + np.float32([30, 0]))

    def middle(crop):
        masks = [_made(family, crop, seed).mask for seed in range(20)]
        return np.mean([np.average(np.arange(256), weights=mask.sum(0)) for mask in masks])

    assert middle(moved) - middle(face) == pytest.approx(30, abs=2)


@pytest.mark.parametrize("family", _BLENDED)
def test_landmarks_outside_the_picture_are_refused(face, family):
    lost = LooseCrop(face.image, face.landmarks + np.float32(1000))
    with pytest.raises(ValueError, match="landmarks must lie in the picture"):
        _made(family, lost, 0)


@pytest.mark.parametrize("family", _BLENDED)
def test_a_pair_goes_through_one_camera_so_that_it_agrees_away_from_the_face(face, family):
    pairs = SyntheticPairs({family: 1.0})
    border = np.ones((256, 256), bool)
    border[12:-12, 12:-12] = False
    stored = FaceInScene(face.image, face.landmarks, np.array([64, 64, 192, 192]))
    for seed in range(6):
        bona_fide, attack = pairs(stored, lambda: stored, np.random.default_rng(seed))
        apart = np.abs(bona_fide.astype(int) - attack).mean(2)
        assert apart[border].mean() < 1  # an encoder's reaction to the face, at most


def test_a_full_mask_shows_the_source(face):
    mask = np.ones((256, 256), np.float32)
    np.testing.assert_array_equal(blend(255 - face.image, face.image, mask), 255 - face.image)


@pytest.mark.parametrize(("kernel_px", "kept"), [(5, 15_376), (15, 12_996), (25, 10_816)])
def test_the_blur_erodes_a_float_mask_by_its_radius(kernel_px, kept):
    mask = np.zeros((256, 256), np.float32)
    mask[64:192, 64:192] = 1  # 16,384 px
    assert erode_by_blur(mask, kernel_px).sum() == kept


def test_an_empty_mask_stays_empty():
    assert not erode_by_blur(np.zeros((32, 32), np.float32), 5).any()


def test_sharpening_darkens_a_flat_picture_only_as_far_as_its_lightness_says():
    flat = np.full((16, 16, 3), 200, np.uint8)
    assert (sharpened(flat, 0.4, 1.0) == 200).all()
    assert (sharpened(flat, 0.4, 0.5) == 160).all()  # .6 * 200 + .4 * .5 * 200


@pytest.mark.parametrize(
    ("level", "limit", "strengths"),
    [("minor", 0.02, {0.25, 0.5, 0.75, 1.0}), ("major", 0.04, {0.75, 1.0})],
)
def test_sdsc_draws_within_the_limits_of_its_level(face, level, limit, strengths):
    notes = [sdsc(face, np.random.default_rng(seed), level).parameters for seed in range(60)]
    assert {note["strength"] for note in notes} == strengths
    for name, middle in (("stretch_x", 1), ("stretch_y", 1), ("shift_x", 0), ("shift_y", 0)):
        drawn = np.array([note[name] for note in notes]) - middle
        assert 0.8 * limit < np.abs(drawn).max() <= limit + 1e-4


def test_sdsc_tosses_one_coin_for_the_picture_and_one_for_the_mask(face):
    notes = [_made("sdsc", face, seed).parameters for seed in range(60)]
    shifted = [note["shifted"] for note in notes]
    assert set(shifted) == {"", "source", "mask", "source and mask"}


def test_only_blended_attacks_have_a_mask_and_say_where_it_came_from(attacks):
    for family, made in attacks.items():
        for attack in made:
            if family != "restyle":  # of a region, or of all
                assert (attack.mask is not None) == (family in _BLENDED)
            assert ("mask_source" in attack.parameters) == (family in _BLENDED)
            assert str(attack.parameters.get("mask_source", "5_landmarks/")).startswith(
                "5_landmarks/"
            )


# ---- SPSC


def test_moire_equals_the_published_formula_with_truncation():
    y, x = np.mgrid[:8, :8]
    twisted = twist((10 * y + x).astype(np.uint8), 0.05, as_published=True)
    golden = {
        0: [0, 1, 2, 3, 4, 5, 6, 7],
        1: [8, 9, 10, 11, 14, 15, 16, 17],
        4: [38, 39, 40, 41, 44, 44, 45, 46],
        5: [48, 48, 49, 50, 51, 54, 55, 56],
        7: [66, 68, 69, 70, 71, 74, 75, 76],
    }
    for row, values in golden.items():
        assert twisted[row].tolist() == values
    assert twisted.sum(dtype=int) == 2376


def test_no_twist_is_the_identity_unless_as_published(face):
    np.testing.assert_array_equal(twist(face.image, 0.0), face.image)
    y, x = np.mgrid[:8, :8]
    square = (10 * y + x).astype(np.uint8)
    assert 0.05 < (twist(square, 0.0, share=1.0, as_published=True) != square).mean() < 0.2


@pytest.mark.parametrize(
    ("as_published", "still", "moved"), [(False, (30, 40), (40, 30)), (True, (40, 30), (30, 40))]
)
def test_a_wide_picture_is_twisted_about_its_middle_unless_as_published(as_published, still, moved):
    picture = np.random.default_rng(0).integers(0, 256, (60, 80), np.uint8)
    twisted = twist(picture, 0.5, share=1.0, as_published=as_published)
    assert twisted[still] == picture[still]
    assert twisted[moved] != picture[moved]


def test_moire_mixes_a_fifth_of_the_twisted_copy_at_a_published_degree(face, attacks):
    for attack in attacks["moire"]:
        degree = attack.parameters["degree"]
        assert 0.0005 <= degree <= 0.01
        np.testing.assert_array_equal(attack.image, twist(face.image, degree, 0.2))


def _jittered(image, note):
    """What torchvision's own colour jitter makes of the drawn amounts."""
    picture = Image.fromarray(image)
    for name in note["order"].split():
        picture = getattr(torchvision_functional, f"adjust_{name}")(picture, note[name])
    return np.asarray(picture)


def test_print_jitter_equals_torchvisions_colour_jitter(face, attacks):
    for attack in attacks["print_jitter"]:
        note = attack.parameters
        np.testing.assert_array_equal(attack.image, _jittered(face.image, note))
        assert abs(note["hue"]) <= 0.4
        assert all(0.6 <= note[name] <= 1.4 for name in ("brightness", "contrast", "saturation"))
    assert len({attack.parameters["order"] for attack in attacks["print_jitter"]}) > 10


def test_spsc_is_moire_and_then_jitter(face, attacks):
    for attack in attacks["spsc"][:6]:
        note = attack.parameters
        expected = _jittered(twist(face.image, note["degree"]), note)
        np.testing.assert_array_equal(attack.image, expected)


def test_a_hue_shift_turns_the_colour_circle_and_leaves_grey():
    colours = np.uint8([[[255, 0, 0], [0, 255, 0], [90, 90, 90]]])
    np.testing.assert_allclose(
        hsv_shifted(colours, 85), [[[0, 255, 0], [0, 0, 255], [90, 90, 90]]], atol=2
    )


# ---- replay and print


@pytest.mark.parametrize("family", _RECAPTURED)
def test_a_recaptured_face_stays_recognisable(face, attacks, family):
    # Coarse luma over the face stays correlated, unless a warp, glare or halftone destroys it.
    def luma(image):
        small = Image.fromarray(image).convert("L").resize((32, 32), Image.Resampling.BOX)
        return np.asarray(small, np.float32)[8:24, 8:24].ravel()

    alike = [np.corrcoef(luma(face.image), luma(attack.image))[0, 1] for attack in attacks[family]]
    assert np.median(alike) > 0.7


@pytest.mark.parametrize(
    ("family", "parts"),
    [
        ("replay", {"stored_jpeg", "layout", "glare", "bezel", "blur_px", "second_jpeg", "gamut"}),
        ("print", {"pitch_px", "glare", "margin", "blur_px", "second_jpeg", "gamut", "droplets"}),
    ],
)
def test_each_physical_part_occurs_and_is_written_down(attacks, family, parts):
    found = [parts & attack.parameters.keys() for attack in attacks[family]]
    assert set().union(*found) == parts


@pytest.mark.parametrize("family", _RECAPTURED)
def test_what_the_second_camera_compressed_hardly_changes_by_the_same_compression(attacks, family):
    change = {True: [], False: []}
    for attack in attacks[family]:
        quality = attack.parameters.get("second_jpeg", 80)
        again = recompress_jpeg(attack.image, quality).astype(int)
        compressed = "second_jpeg" in attack.parameters
        change[compressed].append(np.abs(again - attack.image).mean())
    assert 5 * np.median(change[True]) < np.median(change[False])


@pytest.mark.parametrize("family", _RECAPTURED)
def test_an_edge_of_the_screen_or_sheet_leaves_the_face_whole(attacks, family):
    edges = [a.parameters["edge"] for a in attacks[family] if "edge" in a.parameters]
    assert edges
    assert min(edges) > 0.5  # half sides; the face ends at 0.5


def test_moire_of_a_replay_grows_with_what_was_drawn():
    rough = {"waves": [], "none": []}
    for seed in range(90):
        attack = _made("replay", _flat(128), seed)
        if attack.parameters["moire"] in rough and "edge" not in attack.parameters:
            green = attack.image[64:192, 64:192, 1].astype(float)
            # Rows hold flicker and glare is smooth: what is left along a row is moire.
            rough[attack.parameters["moire"]].append(np.abs(np.diff(green, axis=1)).mean())
    assert np.median(rough["waves"]) > 4 * np.median(rough["none"])


def test_a_display_finer_than_the_camera_leaves_no_grid_but_one_near_it_leaves_moire():
    contrast = {True: [], False: []}
    for seed in range(140):
        attack = _made("replay", _flat(128), seed)
        note = attack.parameters
        if note["moire"] != "grid" or {"edge", "glare", "flicker"} & set(note):
            continue
        spread = attack.image[64:192, 64:192].astype(float).std((0, 1)).max()
        contrast[note["density"] > 1.6].append(spread)
    assert np.median(contrast[True]) < 2
    assert np.median(contrast[False]) > 4


def test_halftone_breaks_up_mid_tones_but_neither_black_ink_nor_white_paper():
    def dots(level):
        spread = []
        for seed in range(24):
            attack = _made("print", _flat(level), seed)
            note = attack.parameters
            if note["screen"] == "halftone" and not {"edge", "folds", "streaks"} & set(note):
                middle = Image.fromarray(attack.image[64:192, 64:192])
                smooth = middle.reduce(8).resize(middle.size)  # glare, shading
                spread.append((np.asarray(middle, float) - np.asarray(smooth)).std())
        return np.median(spread)

    assert dots(110) > 2 * max(dots(0), dots(255))


# ---- drawing by weight


def test_families_are_drawn_by_weight(face):
    rng = np.random.default_rng(0)
    drawn = [synthesise(face, rng, {"sbi": 3, "print": 1, "replay": 0}).family for _ in range(80)]
    assert set(drawn) == {"sbi", "print"}
    assert 45 < drawn.count("sbi") < 75


def test_equal_generators_draw_the_same_attack(face):
    first, second = (synthesise(face, np.random.default_rng(5), _ALL) for _ in range(2))
    assert first.parameters == second.parameters
    np.testing.assert_array_equal(first.image, second.image)


@pytest.mark.parametrize("protocol", UNIATTACKDATA_SCHEDULES)
def test_a_published_schedule_names_families_and_leaves_some_faces_alone(face, protocol):
    shares = UNIATTACKDATA_SCHEDULES[protocol]
    assert 0 < sum(shares.values()) < 1
    assert synthesise(face, np.random.default_rng(0), shares).family in shares


@pytest.mark.parametrize("weights", [{}, {"sbi": 0.0}, {"sbi": -1.0, "print": 2.0}, {"mask": 1.0}])
def test_impossible_weights_are_refused(face, weights):
    with pytest.raises(ValueError, match="weights must be"):
        synthesise(face, np.random.default_rng(0), weights)


@pytest.mark.parametrize(
    ("image", "landmarks"),
    [
        (np.zeros((256, 128, 3), np.uint8), np.zeros((5, 2), np.float32)),
        (np.zeros((256, 256, 3), np.float32), np.zeros((5, 2), np.float32)),
        (np.zeros((256, 256, 3), np.uint8), np.zeros((4, 2), np.float32)),
    ],
)
def test_a_loose_crop_of_the_wrong_kind_is_refused(image, landmarks):
    with pytest.raises(ValueError, match="must"):
        LooseCrop(image, landmarks)


# ---- contact sheets


def test_a_sheet_shows_every_family_and_says_how_each_attack_was_made():
    rng = np.random.default_rng(0)
    face = _portrait(96)
    made = [Attacked(face.image, [make(face, rng) for make in FAMILIES.values()])] * 2
    sheet, lines = draw_sheet(made, rng)
    assert sheet.shape[1] == 96 * (1 + len(FAMILIES))
    assert sheet.shape[0] > 4 * 96  # two rows, each with what a camera makes of it, and captions
    told = [json.loads(line) for line in lines]
    assert [t["family"] for t in told] == [*FAMILIES, *FAMILIES]
    assert [t["row"] for t in told] == [0] * len(FAMILIES) + [1] * len(FAMILIES)
    assert all(t["parameters"] for t in told)


def _command(*arguments):
    return CliRunner().invoke(main, ["attack-sheet", *map(str, arguments)])


def test_the_command_draws_the_faces_that_train(tmp_path, stored_faces, write_shards):
    folder = write_shards(tmp_path / "faces", stored_faces[:6])
    out = tmp_path / "sheet.png"
    result = _command("--prepared", folder, "--out", out, "--rows", 2)
    assert result.exit_code == 0, result.output
    with Image.open(out) as sheet:
        assert sheet.width == 96 * (1 + len(FAMILIES))
    assert len((tmp_path / "sheet.jsonl").read_text().splitlines()) == 2 * len(FAMILIES)


@pytest.mark.parametrize(
    ("level", "name", "problem"),
    [(128, "flat.png", "no face was found"), (None, "absent.png", r"absent\.png")],
)
def test_the_command_says_what_is_wrong_with_a_picture(tmp_path, level, name, problem):
    if level is not None:
        Image.fromarray(_flat(level).image).save(tmp_path / name)
    result = _command("--picture", tmp_path / name, "--out", tmp_path / "s.png")
    with pytest.raises(TrainError, match=problem):
        raise result.exception
    assert not (tmp_path / "s.png").exists()


def test_the_command_takes_a_picture_or_prepared_faces(tmp_path):
    result = _command("--picture", "a.png", "--prepared", "b", "--out", tmp_path / "s.png")
    assert result.exit_code == 2
    assert "not both" in result.output
