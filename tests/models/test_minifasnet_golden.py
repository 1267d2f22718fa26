"""MiniFASNet against numbers from running the official code with its published weights.

The weights are their authors' and not in this repository; `tests/golden/minifasnet` holds numbers.
"""

import numpy as np
import pytest
import torch

from models import load_checkpoint

pytestmark = pytest.mark.golden

LAYERS = (
    *("conv1", "conv2_dw", "conv_23", "conv_3", "conv_34", "conv_4", "conv_45", "conv_5"),
    *("conv_6_sep", "conv_6_dw", "linear", "bn"),
)


@pytest.fixture(scope="module", params=["v2", "v1se"])
def variant(request):
    return request.param


@pytest.fixture(scope="module")
def model(variant, minifasnet_file):
    return load_checkpoint("minifasnet", minifasnet_file(variant))


@pytest.fixture(scope="module")
def images(minifasnet_golden):
    rng = np.random.Generator(np.random.PCG64(int(minifasnet_golden["input_seed"])))
    pixels = rng.integers(0, 256, tuple(minifasnet_golden["input_shape"]))
    return torch.from_numpy(pixels.astype(np.float32))


def test_every_layer_equals_the_official_one(model, variant, images, minifasnet_golden):
    found = {}
    for name in LAYERS:
        model.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: found.__setitem__(name, output)
        )
    with torch.inference_mode():
        model(images)
    for name in LAYERS:
        stored = minifasnet_golden[f"{variant}.{name}.gap"]
        shape = tuple(minifasnet_golden[f"{variant}.{name}.shape"])
        assert tuple(found[name].shape) == shape, name
        pooled = found[name].double().flatten(2).mean(2) if len(shape) > 2 else found[name]
        atol = 1e-5 * np.abs(stored).max()
        np.testing.assert_allclose(pooled.numpy(), stored, rtol=0, atol=atol, err_msg=name)


def test_logits_equal_the_official_ones_in_both_precisions(
    model, variant, images, minifasnet_golden
):
    with torch.inference_mode():
        narrow = model(images).logits
        wide = model.double()(images.double()).logits
    model.float()
    np.testing.assert_allclose(narrow, minifasnet_golden[f"{variant}.logits"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(wide, minifasnet_golden[f"{variant}.logits_f64"], rtol=0, atol=1e-12)


def test_the_probability_is_what_the_softmax_leaves_to_attacks(model, images):
    with torch.inference_mode():
        outputs = model(images)
        found = torch.sigmoid(model.attack_logit(outputs))
    torch.testing.assert_close(found, 1 - outputs.logits.softmax(dim=1)[:, 1])
