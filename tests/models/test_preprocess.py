import numpy as np
import pytest
import torch

from models import InputSpec, crop_faces, crop_window


def _gradient(height, width):
    """Red grows by one a column, green by one a row: a crop's values tell where it was cut."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.arange(width)
    image[..., 1] = np.arange(height)[:, None]
    return torch.from_numpy(image)


def test_the_window_is_a_square_around_the_middle_of_the_box():
    left, top, side = crop_window(np.array([10, 20, 30, 60], np.float32), margin=1.5)
    assert (left, top, side) == (-10, 10, 60)


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
