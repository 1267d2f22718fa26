"""MiniFASNet without its weights: names, shapes, layouts, log-odds and map."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from models import CheckpointError, FaceBatch, build_model, crop_window, import_state_dict
from models.minifasnet import MiniFasNet, MiniFasNetConfig, MiniFasNetOutputs

VARIANTS = ("v2", "v1se")


def _seeded(variant="v2"):
    torch.manual_seed(0)
    model = MiniFasNet(MiniFasNetConfig(variant=variant)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
    return model


def _faces(n, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, 80, 80), dtype=torch.uint8, generator=generator)


def _as_published(keys, seed=0):
    """A file of the published form: its names behind `module.`, its shapes, numbers of our own."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"module.{name}": torch.zeros((), dtype=torch.int64)
        if kind == "torch.int64"
        else torch.rand(shape, generator=generator)
        for name, shape, kind in keys
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_and_shapes_are_those_of_the_published_file(variant, minifasnet_keys):
    own = {
        name.replace("head.weight", "prob.weight"): list(tensor.shape)
        for name, tensor in MiniFasNet(MiniFasNetConfig(variant=variant)).state_dict().items()
        if not name.startswith("calibration.")
    }
    assert own == {name: shape for name, shape, _ in minifasnet_keys(variant)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_published_file_says_which_variant_it_is(variant, minifasnet_keys):
    state = _as_published(minifasnet_keys(variant))
    model = import_state_dict("minifasnet", state)
    assert model.config.variant == variant
    assert torch.equal(model.head.weight, state["module.prob.weight"])
    assert torch.equal(model.conv_5.model[1].conv.prelu.weight, state[_SLOPES])
    assert model.input_spec.margin == (2.7 if variant == "v2" else 4.0)


_SLOPES = "module.conv_5.model.1.conv.prelu.weight"


def test_a_published_file_of_the_other_variant_is_refused(minifasnet_keys):
    with pytest.raises(CheckpointError, match="another variant of the method: set its options"):
        import_state_dict("minifasnet", _as_published(minifasnet_keys("v1se")), variant="v2")


def test_weights_of_ours_come_back_as_they_were():
    model = _seeded("v1se")
    again = import_state_dict("minifasnet", model.state_dict(), variant="v1se")
    images = model.normalise(_faces(2))
    with torch.inference_mode():
        assert torch.equal(again(images).logits, model(images).logits)


def test_pixels_go_in_as_blue_green_red_from_0_to_255():
    images = _faces(2)
    found = _seeded().normalise(images)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), images.numpy()[:, ::-1].astype(np.float32))


def test_the_window_lies_inside_the_frame_and_is_not_smoothed():
    spec = build_model("minifasnet", {"margin": 3.5}).input_spec
    assert (spec.size_px, spec.margin, spec.window, spec.resize) == (80, 3.5, "inside", "bilinear")
    window = crop_window(np.array([0, 0, 100, 100], np.float32), spec, (400, 300))
    assert window.left == 0
    assert window.top == 0


def test_both_attack_classes_together_stand_against_live():
    logits = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    outputs = MiniFasNetOutputs(logits, torch.empty(0), torch.empty(0))
    expected = [math.log(2), math.log(math.exp(1) + math.exp(3)) - 2]
    np.testing.assert_allclose(_seeded().attack_logit(outputs), expected, rtol=1e-6)


def test_the_loss_is_the_cross_entropy_of_attack_and_bona_fide():
    logits = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    outputs = MiniFasNetOutputs(logits, torch.empty(0), torch.empty(0))
    batch = FaceBatch(torch.empty(0), torch.tensor([0, 1]))
    live_of_first = math.log(3)  # -log of 1 / 3
    attack_of_second = -math.log(1 - math.exp(2) / sum(map(math.exp, (1, 2, 3))))
    (loss,) = _seeded().loss_terms(outputs, batch).values()
    assert float(loss) == pytest.approx((live_of_first + attack_of_second) / 2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_places_of_the_map_add_up_to_the_log_odds(variant):
    model = _seeded(variant)
    with torch.inference_mode():
        outputs = model(model.normalise(_faces(3)))
        shares = torch.special.logit(model.explanation(outputs).double())
    assert shares.shape == (3, 1, 5, 5)
    torch.testing.assert_close(
        shares.sum(dim=(1, 2, 3)), model.attack_logit(outputs).double(), atol=1e-4, rtol=1e-4
    )


def test_a_place_of_the_map_says_what_it_adds():
    """Taken away from the last map, it lowers the log-odds by its share and what all have alike."""
    model = _seeded()
    with torch.inference_mode():
        outputs = model(model.normalise(_faces(1)))
        shares = torch.special.logit(model.explanation(outputs).double())[0, 0]
        lowered = []
        for y, x in ((0, 0), (2, 3)):
            without = outputs.features.clone()
            without[:, :, y, x] = 0
            embedding = model.bn(model.linear(model.conv_6_dw(without).flatten(1)))
            logits = model.head(embedding)
            lowered.append(
                float(
                    (
                        model.attack_logit(outputs)
                        - model.attack_logit(outputs._replace(logits=logits))
                    )[0]
                )
            )
    assert lowered[0] - lowered[1] == pytest.approx(float(shares[0, 0] - shares[2, 3]), rel=0.1)


def test_a_batch_of_one_trains_by_the_running_statistics():
    model = _seeded("v1se")
    images = model.normalise(_faces(1))
    with torch.inference_mode():
        before = model.bn.running_mean.clone()
        assert torch.isfinite(model.train()(images).logits).all()
        assert torch.equal(model.bn.running_mean, before)


def test_a_wrong_variant_is_the_only_thing_said_to_be_wrong():
    with pytest.raises(ValueError, match=r"^options of minifasnet: variant: [^;]*found 'v3'$"):
        build_model("minifasnet", {"variant": "v3"})


def test_another_size_is_refused():
    with pytest.raises(ValueError, match="size_px: Input should be 80, found 96"):
        build_model("minifasnet", {"size_px": 96})
