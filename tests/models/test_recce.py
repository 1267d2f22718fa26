"""RECCE's joints and loss worked by hand, its layouts, and seeded values of our own."""

import math

import pytest
import torch
from torch import nn

from models import FaceBatch, import_state_dict, to_half
from models.recce import (
    Recce,
    RecceConfig,
    RecceOutputs,
    _attend,
    metric_loss,
    reconstruction_loss,
    similarity,
)


def _small(**options):
    """A network whose maps keep their scale from layer to layer, as after training."""
    torch.manual_seed(0)
    model = Recce(RecceConfig(**{"size_px": 64, **options})).eval()
    for name, tensor in model.named_parameters():
        if tensor.ndim >= 2:
            nn.init.normal_(tensor, std=tensor[0].numel() ** -0.5)
        elif name.endswith("weight"):
            nn.init.uniform_(tensor, 0.5, 1.5)
        else:
            nn.init.normal_(tensor, std=0.1)
    for name, tensor in model.named_buffers():
        if name.endswith("running_var"):
            nn.init.uniform_(tensor, 0.5, 1.5)
        elif name.endswith("running_mean"):
            nn.init.normal_(tensor, std=0.1)
    return model


def _faces(n):
    return torch.rand((n, 3, 64, 64), generator=torch.Generator().manual_seed(3)) * 2 - 1


@pytest.mark.parametrize("k", [2, 4])
def test_a_node_attends_to_its_own_patch_as_the_paper_loops(k):
    generator = torch.Generator().manual_seed(k)
    nodes = torch.randn(2, 8, 3, 3, generator=generator)
    pixels = torch.randn(2, 8, 3 * k, 3 * k, generator=generator)
    weight = torch.randn(1, 16, 1, 1, generator=generator)
    expected = torch.empty_like(nodes)
    for n in range(2):
        for i in range(3):
            for j in range(3):
                patch = pixels[n, :, i * k : i * k + k, j * k : j * k + k].flatten(1)  # (8, k * k)
                pairs = torch.cat([nodes[n, :, i, j, None].expand_as(patch), patch])
                shares = (weight.flatten() @ pairs).relu().softmax(0)
                expected[n, :, i, j] = patch @ shares
    torch.testing.assert_close(_attend(nodes, pixels, weight), expected, atol=1e-5, rtol=1e-5)


def test_the_metric_loss_of_three_faces_equals_the_hand_worked_value():
    s = torch.tensor([[1.0, 0.9, 0.4], [0.9, 1.0, 0.6], [0.4, 0.6, 1.0]])
    found = metric_loss(s, torch.tensor([True, True, False]))
    assert found.item() == pytest.approx(1 - 0.9 + 0.5, abs=1e-6)  # mixed pairs: .4 and .6


@pytest.mark.parametrize(
    ("is_bona_fide", "expected"),
    [
        ([True, True], 1 - 0.7),  # no mixed pair
        ([False, False], 1.0),  # two attacks are no pair
        ([True, False], 1 + 0.7),  # no pair of bona fide faces
    ],
)
def test_the_metric_loss_counts_a_kind_of_pairs_that_is_absent_as_zero(is_bona_fide, expected):
    s = torch.tensor([[1.0, 0.7], [0.7, 1.0]])
    assert metric_loss(s, torch.tensor(is_bona_fide)).item() == pytest.approx(expected, abs=1e-5)


def test_the_metric_loss_is_never_negative():
    s = torch.tensor([[1.0, 1.0, -1.0], [1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]])
    assert metric_loss(s, torch.tensor([True, True, False])).item() == 0


def test_faces_are_similar_by_the_direction_of_their_mean_features():
    features = torch.tensor([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])[:, :, None, None]
    expected = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.5], [0.0, 0.5, 1.0]])
    torch.testing.assert_close(similarity(features.expand(3, 2, 4, 4)), expected)


def test_similarity_of_large_half_precision_features_does_not_overflow():
    features = torch.full((2, 700, 1, 1), 1e4, dtype=torch.float16)
    torch.testing.assert_close(similarity(features), torch.ones(2, 2))


def test_reconstruction_of_attacks_is_left_free():
    error = torch.tensor([0.2, 0.9])[:, None, None, None].expand(2, 3, 4, 4)
    found = reconstruction_loss(error, torch.tensor([True, False]))
    assert found.item() == pytest.approx(0.2)
    assert reconstruction_loss(error, torch.tensor([False, False])).item() == 0


def _outputs(logits):
    return RecceOutputs(
        logits=logits,
        reconstruction=torch.empty(0),
        error=torch.tensor([0.2, 0.9])[:, None, None, None].expand(2, 3, 4, 4),
        attention=torch.empty(0),
        features=(torch.ones(2, 2, 1, 1),) * 3,
    )


@pytest.mark.parametrize(
    "logits",
    [
        torch.tensor([[0.0], [math.log(3)]]),
        torch.tensor([[1.0, 1.0], [0.0, math.log(3)]]),
    ],
    ids=["one logit", "two logits"],
)
def test_terms_equal_the_hand_worked_values(logits):
    model = _small(num_classes=logits.shape[1], weight_reconstruction=2.0, weight_metric=3.0)
    outputs = _outputs(logits)
    terms = model.loss_terms(outputs, FaceBatch(torch.empty(0), torch.tensor([0, 1])))
    cross_entropy = (math.log(2) - math.log(0.75)) / 2
    assert terms["classification"].item() == pytest.approx(cross_entropy, rel=1e-5)
    assert terms["reconstruction"].item() == pytest.approx(2 * 0.2, rel=1e-5)
    # Three taps of equal features: no pair of bona fide faces, mixed pairs with similarity 1.
    assert terms["metric"].item() == pytest.approx(3 * 3 * (1 - 0 + 1), rel=1e-5)
    torch.testing.assert_close(model.attack_logit(outputs), torch.tensor([0.0, math.log(3)]))


def test_the_classification_term_rises_again_below_the_flood():
    logits = torch.tensor([[-8.0], [8.0]], requires_grad=True)
    labels = FaceBatch(torch.empty(0), torch.tensor([0, 1]))
    term = _small().loss_terms(_outputs(logits), labels)["classification"]
    assert term.item() == pytest.approx(0.08 - math.log1p(math.exp(-8)), abs=1e-6)
    (slope,) = torch.autograd.grad(term, logits)
    assert slope[0] < 0 < slope[1]  # descent makes the network less sure
    dry = _small(flood=0).loss_terms(_outputs(logits), labels)["classification"]
    assert dry.item() == pytest.approx(math.log1p(math.exp(-8)), abs=1e-6)


def test_noise_reaches_about_half_of_the_training_images_and_not_the_error():
    model = _small(noise_std=0.5).train()
    seen = []
    model.encoder.conv1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    faces = _faces(16)
    with torch.no_grad():
        outputs = model(faces)
        disturbed = (seen[0] != faces).flatten(1).any(1)
        assert 2 <= disturbed.sum() <= 14  # 16 throws of a coin; the seed is fixed
        assert seen[0].abs().max() <= 1
        # The target stays clean.
        assert torch.equal(outputs.error, (faces - outputs.reconstruction).abs())
        model.eval()(faces)
    assert torch.equal(seen[1], faces)


def test_the_explanation_is_half_the_mean_error_at_the_size_of_the_crop():
    model = _small()
    with torch.inference_mode():
        outputs = model(_faces(2))
    found = model.explanation(outputs)
    assert found.shape == (2, 1, 64, 64)
    expected = (outputs.error[1, :, 5, 7].sum() / 6).item()
    assert found[1, 0, 5, 7].item() == pytest.approx(expected)


def test_a_size_that_the_strides_do_not_divide_gives_patches_that_fit_the_nodes():
    with torch.inference_mode():
        outputs = _small(size_px=77)(torch.zeros(1, 3, 77, 77))
    assert [f.shape[-1] for f in outputs.features] == [5, 10, 20]
    assert outputs.reconstruction.shape == (1, 3, 77, 77)


def test_in_half_precision_the_probability_stays_close():
    model = _small()
    faces = _faces(3)
    with torch.inference_mode():
        wide = model(faces)
        half = to_half(model)(faces.half())
    assert half.logits.dtype == torch.float16
    torch.testing.assert_close(half.logits.float(), wide.logits, atol=5e-3, rtol=0)
    torch.testing.assert_close(half.error.float(), wide.error, atol=5e-3, rtol=0)


def _official(model):
    """The model's tensors under the official names, and in the official shapes."""
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith("calibration."):
            continue
        if name in ("reasoning.reweight_ab.weight", "reasoning.reweight_ac.weight"):
            state[name.replace(".weight", ".0.weight")] = value[:, :, 0, 0]
        elif name.startswith(("reasoning.vb_embedding.", "reasoning.vc_embedding.")):
            state[name] = value[:, :, 0, 0]
        else:
            state[name] = value
    return state | {
        "encoder.fc.weight": torch.ones(1000, 2048),
        "encoder.fc.bias": torch.ones(1000),
    }


def test_a_checkpoint_with_official_names_gives_the_same_network():
    model = _small()
    imported = import_state_dict("recce", _official(model), size_px=64)
    with torch.inference_mode():
        assert torch.equal(imported(_faces(1)).logits, model(_faces(1)).logits)


def test_a_deepfakebench_checkpoint_brings_its_size_and_its_two_logits():
    model = _small(num_classes=2)
    state = {f"model.{name}": value for name, value in _official(model).items()}
    state["backbone.conv1.weight"] = torch.ones(32, 3, 3, 3)
    imported = import_state_dict("recce", state)
    assert imported.input_spec.size_px == 256
    assert imported.config.num_classes == 2
    for name, value in model.state_dict().items():
        assert torch.equal(imported.state_dict()[name], value)


def test_imagenet_weights_fill_the_encoder():
    encoder = _small().encoder
    cadene = {
        name: value[:, :, 0, 0] if name.endswith("pointwise.weight") else value
        for name, value in encoder.state_dict().items()
    }
    imported = import_state_dict("recce", cadene | {"fc.weight": torch.ones(1000, 2048)})
    for name, value in encoder.state_dict().items():
        assert torch.equal(imported.encoder.state_dict()[name], value)


def test_the_network_has_the_published_number_of_parameters_but_for_the_unused_classes():
    unused = 1000 * 2048 + 1000
    found = sum(p.numel() for p in _small().parameters())
    assert round((found + unused) / 1e6, 2) == 25.83


def test_a_seeded_network_gives_the_stored_numbers():
    model = _small()
    rows = torch.linspace(-1, 1, 64)
    image = torch.stack([rows[:, None].expand(64, 64), rows.expand(64, 64), rows.outer(rows)])
    with torch.inference_mode():
        found = model(image[None])
    assert found.logits.item() == pytest.approx(SEEDED_LOGIT, abs=1e-5)
    assert found.reconstruction[0, :, 10, 20].tolist() == pytest.approx(SEEDED_PIXEL, abs=1e-5)
    assert found.attention[0, 0, 1, 2].item() == pytest.approx(SEEDED_ATTENTION, abs=1e-5)


SEEDED_LOGIT = 0.008003
SEEDED_PIXEL = [-0.491851, 0.249861, 0.672801]
SEEDED_ATTENTION = 0.651943
