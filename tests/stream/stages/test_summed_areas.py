import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from stream.stages.summed_areas import SummedAreas


def summed(pictures):
    return SummedAreas([torch.from_numpy(p) for p in pictures], torch.device("cpu"))


def _torch_area(picture, window, height, width):
    x1, y1, x2, y2 = window
    part = torch.from_numpy(picture[y1:y2, x1:x2].copy()).permute(2, 0, 1)[None].float()
    return F.interpolate(part, (height, width), mode="area")[0].numpy()


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_windows_are_resized_as_torch_does_at_every_ratio(data):
    height, width = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x2, y2 = data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height))
    size = data.draw(st.integers(1, 50)), data.draw(st.integers(1, 50))
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)

    areas = summed([picture])
    (found,) = areas.resized(np.array([0]), np.array([[x1, y1, x2, y2]]), *size)

    np.testing.assert_allclose(found, _torch_area(picture, (x1, y1, x2, y2), *size), atol=1e-3)


def test_windows_come_from_their_own_pictures_of_several_sizes():
    rng = np.random.default_rng(0)
    pictures = [
        rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((30, 50), (7, 9), (64, 31))
    ]
    which = np.array([2, 0, 1, 0])
    windows = np.array([[3, 5, 30, 60], [0, 0, 50, 30], [1, 1, 9, 7], [10, 2, 11, 29]])

    found = summed(pictures).resized(which, windows, 12, 10)

    for result, picture, window in zip(found, which, windows, strict=True):
        expected = _torch_area(pictures[picture], window, 12, 10)
        np.testing.assert_allclose(result, expected, atol=1e-3)


def test_white_picture_stays_white_although_its_sum_overflows():
    picture = np.full((2910, 2910, 3), 255, np.uint8)  # 255 * 2910**2 > 2**31
    areas = summed([picture])
    found = areas.resized(np.array([0]), np.array([[0, 0, 2910, 2910]]), 24, 24)
    np.testing.assert_array_equal(found, 255.0)


def test_no_pictures_and_no_windows_give_an_empty_batch():
    found = summed([]).resized(np.empty(0, np.intp), np.empty((0, 4), np.intp), 24, 24)
    assert found.shape == (0, 3, 24, 24)
