from pathlib import Path

import numpy as np
import pytest
import torch

from models import InputSpec, box_in_crop, crop_faces, crop_window


def _gradient(height, width):
    """Red grows by one a column, green by one a row: a crop's values tell where it was cut."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.arange(width)
    image[..., 1] = np.arange(height)[:, None]
    return torch.from_numpy(image)


def test_the_window_is_a_square_around_the_middle_of_the_box():
    spec = InputSpec(size_px=32, margin=1.5)
    window = crop_window(np.array([10, 20, 30, 60], np.float32), spec, (50, 50))
    assert window == (-10, 10, 60, 60)


def test_a_window_of_the_output_size_copies_the_pixels():
    image = _gradient(100, 120)
    box = np.array([[20, 30, 52, 62]], np.float32)
    crop = crop_faces(image, box, InputSpec(size_px=32, margin=1.0))
    assert torch.equal(crop[0], image[30:62, 20:52].permute(2, 0, 1))


def test_a_crop_keeps_the_continuous_coordinates_when_it_shrinks():
    image = _gradient(200, 200)
    box = np.array([[40, 40, 168, 168]], np.float32)
    crop = crop_faces(image, box, InputSpec(size_px=32, margin=1.0))[0].float()
    # Output pixel i covers source columns 40 + 4 i .. 44 + 4 i, whose mean is 41.5 + 4 i.
    expected = 41.5 + 4 * torch.arange(32)
    assert (crop[0] - expected).abs().max() <= 0.51
    assert (crop[1] - expected[:, None]).abs().max() <= 0.51


def test_fine_texture_averages_out_instead_of_aliasing():
    image = torch.zeros(256, 256, 3, dtype=torch.uint8)
    image[:, ::2] = 255  # stripes one pixel wide
    box = np.array([[0, 0, 250, 250]], np.float32)  # 3.9 source pixels per output pixel
    crop = crop_faces(image, box, InputSpec(size_px=64, margin=1.0)).float()
    assert crop.std() < 16  # plain bilinear sampling gives stripes with a spread above 60


def test_outside_the_frame_the_border_is_repeated():
    image = _gradient(50, 50)
    box = np.array([[-32, 10, 0, 42]], np.float32)
    crop = crop_faces(image, box, InputSpec(size_px=32, margin=1.0))
    assert (crop[0, 0] == 0).all()


@pytest.mark.parametrize("box", [[500, 500, 540, 540], [-90, -90, -50, -50]])
def test_a_box_wholly_outside_gives_the_nearest_pixels_and_no_error(box):
    crop = crop_faces(_gradient(50, 50), np.array([box], np.float32), InputSpec(size_px=32))
    assert crop.shape == (1, 3, 32, 32)


def test_no_boxes_give_an_empty_batch():
    crop = crop_faces(_gradient(50, 50), np.empty((0, 4), np.float32), InputSpec(size_px=32))
    assert crop.shape == (0, 3, 32, 32)


def test_a_box_without_area_is_refused():
    with pytest.raises(ValueError, match="area"):
        crop_faces(_gradient(50, 50), np.array([[5, 5, 5, 5]], np.float32), InputSpec(size_px=32))


def test_faces_cut_together_equal_faces_cut_alone():
    image = _gradient(200, 200)
    boxes = np.array([[10, 10, 60, 60], [50, 40, 190, 180]], np.float32)
    spec = InputSpec(size_px=64)
    together = crop_faces(image, boxes, spec)
    alone = torch.cat([crop_faces(image, box[None], spec) for box in boxes])
    assert torch.equal(together, alone)


# --- windows inside the frame ---

MINIFASNET = np.load(Path(__file__).parents[1] / "golden/minifasnet/io.npz")["crop_windows"]


def inside(margin=2.0, size_px=32, resize="area"):
    return InputSpec(size_px=size_px, margin=margin, window="inside", resize=resize)


@pytest.mark.golden
def test_windows_inside_the_frame_are_those_of_the_original_code():
    assert len(MINIFASNET) == 400
    for width, height, x, y, w, h, scale, left, top, right, bottom in MINIFASNET:
        box = np.array([x, y, x + w, y + h])
        window = crop_window(box, inside(scale), (int(width), int(height)))
        assert window == (left, top, right - left + 1, bottom - top + 1)


def test_a_window_that_would_leave_the_frame_is_shifted_and_keeps_its_size():
    spec = inside(margin=2.0)
    middle = crop_window(np.array([40, 40, 60, 80], np.float32), spec, (200, 200))
    corner = crop_window(np.array([-4, 170, 16, 210], np.float32), spec, (200, 200))
    assert middle == (30, 20, 41, 81)  # both corners' pixels belong to it
    assert corner == (0, 119, 41, 81)


def test_a_window_is_no_larger_than_the_frame_and_keeps_the_proportions_of_the_box():
    window = crop_window(np.array([40, 40, 80, 80], np.float32), inside(4.0), (300, 101))
    assert window == (10, 0, 101, 101)


@pytest.mark.parametrize("box", [(-300, -300, -200, -250), (400, 60, 500, 90)])
def test_a_window_about_a_box_outside_lies_inside(box):
    window = crop_window(np.array(box, np.float32), inside(2.0), (300, 200))
    assert window.left >= 0 <= window.top
    assert window.left + window.width <= 300
    assert window.top + window.height <= 200


def test_a_crop_inside_shows_its_window_and_no_pixel_beside_it():
    image = _gradient(100, 120)
    image[:, 63:] = image[:, :30] = 255
    image[63:] = image[:30] = 255
    box = np.array([[38, 38, 54, 54]], np.float32)  # its window: 30 to 62
    crop = crop_faces(image, box, inside(2.0, size_px=33))
    assert torch.equal(crop[0], image[30:63, 30:63].permute(2, 0, 1))
    assert crop_faces(image, box, inside(2.0, size_px=80))[:, :2].max() == 62


def test_without_averaging_four_pixels_make_one():
    image = torch.randint(0, 256, (301, 301, 3), dtype=torch.uint8)
    box = np.array([[100, 100, 200, 200]], np.float32)  # its window is the frame
    sparse = crop_faces(image, box, inside(3.0, size_px=43, resize="bilinear"))[0]
    # Seven pixels to one: the sample falls on the fourth, whatever the others are.
    assert torch.equal(sparse, image[3::7, 3::7].permute(2, 0, 1))
    assert not torch.equal(crop_faces(image, box, inside(3.0, size_px=43))[0], sparse)


def test_a_face_is_found_again_in_its_crop():
    box = np.array([10, 20, 50, 60], np.float32)
    for spec in (inside(2.0, size_px=100), InputSpec(size_px=100, margin=2.0)):
        window = crop_window(box, spec, (400, 300))
        x1, y1, x2, y2 = box_in_crop(box, window, 100)
        assert (x2 - x1, y2 - y1) == pytest.approx((50, 50), abs=1)
        assert (x1 * window.width / 100 + window.left) == pytest.approx(10)
        assert (y2 * window.height / 100 + window.top) == pytest.approx(60)
