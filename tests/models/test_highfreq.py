"""HighFreq's parts worked by hand, its options, and seeded values that need no golden folder."""

import copy
import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from models import FaceBatch, import_state_dict, load_imagenet_encoders, to_half
from models._xception import Xception
from models.highfreq import (
    CosineHead,
    HighFreq,
    HighFreqConfig,
    HighFreqOutputs,
    SmallHighFreq,
    _DualAttention,
    _Fusion,
    _HighPass,
    _ImageHighPass,
    am_softmax,
    build,
)

SIZE = 64


def _faces(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, SIZE, SIZE, generator=generator) * 2 - 1


@pytest.fixture(scope="module")
def model():
    """A seeded network whose attention gates are open and whose batch norms have seen faces."""
    torch.manual_seed(7)
    network = HighFreq(HighFreqConfig(size_px=SIZE))
    for attention in (network.dual_cma0, network.dual_cma1):
        nn.init.constant_(attention.gamma1, 0.5)
        nn.init.constant_(attention.gamma2, -0.5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # plain averages over all batches, here one
    with torch.inference_mode():
        network.train()(_faces(4))
    return network.eval()


def _outputs(logits):
    nothing = torch.empty(0)
    return HighFreqOutputs(logits, nothing, nothing, nothing)


@pytest.mark.parametrize(
    ("channels", "channel", "gains"),
    [  # of the three filters that the channel sees: KB has 4, KV 8, KH 2
        (32, 9, (4, 4, 4)),
        (32, 10, (4, 4, 8)),
        (32, 11, (8, 8, 8)),
        (32, 21, (8, 2, 2)),
        (32, 22, (2, 2, 2)),
        (64, 20, (4, 4, 4)),
        (64, 21, (4, 8, 8)),
        (64, 42, (8, 8, 2)),
        (64, 43, (2, 2, 2)),
    ],
)
def test_a_channel_sees_the_filters_that_published_weights_were_trained_with(
    channels, channel, gains
):
    point = torch.zeros(1, channels, 9, 9)
    point[0, channel, 4, 4] = 1.0
    response = _HighPass(channels)(point)
    per_map = response.abs().sum(dim=(0, 2, 3))
    mine = slice(3 * channel, 3 * channel + 3)
    torch.testing.assert_close(per_map[mine], torch.tensor(gains, dtype=torch.float32))
    assert per_map.sum() == per_map[mine].sum()


def test_the_third_image_filter_is_the_horizontal_second_difference_of_the_sum_of_colours():
    image = torch.zeros(1, 3, 5, 5)
    image[0, :, 2, 2] = torch.tensor([0.1, 0.2, 0.4])
    response = _ImageHighPass()(image)
    expected = torch.zeros(5, 5)
    expected[2] = torch.tensor([0, 0.35, -0.7, 0.35, 0])
    torch.testing.assert_close(response[0, 2], expected)


def test_responses_are_clamped_to_three():
    image = torch.zeros(1, 3, 5, 5)
    image[0, :, 2, 2] = 10.0
    response = _ImageHighPass()(image)
    assert response.min() == -3
    assert response.max() == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_flat_patch_leaves_no_residual_in_any_precision(dtype):
    filters = to_half(_ImageHighPass())
    residual = filters(torch.full((1, 3, 12, 12), 0.3, dtype=dtype))
    assert residual.dtype == torch.float32
    assert residual[..., 2:-2, 2:-2].abs().max() < 1e-6


def test_each_stream_reads_from_the_other_as_it_came_in():
    torch.manual_seed(0)
    attention = _DualAttention(places=4)
    attention.gamma1.data.fill_(0.3)
    attention.gamma2.data.fill_(0.7)
    x, y = torch.randn(2, 2, 728, 2, 2)
    keys_x = attention.key_conv_share(attention.key_conv1(x)).flatten(2)
    keys_y = attention.key_conv_share(attention.key_conv2(y)).flatten(2)
    scores = torch.einsum("nci,ncj->nij", keys_x, keys_y)
    to_x = attention.linear1(scores).softmax(2)
    to_y = attention.linear2(scores.transpose(1, 2)).softmax(2)
    read_x = torch.einsum("nij,ncj->nci", to_x, attention.value_conv2(y).flatten(2))
    read_y = torch.einsum("nji,nci->ncj", to_y, attention.value_conv1(x).flatten(2))
    found_x, found_y = attention(x, y)
    torch.testing.assert_close(found_x, x + 0.3 * read_x.view_as(x), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found_y, y + 0.7 * read_y.view_as(y), atol=1e-5, rtol=1e-4)


def test_a_new_networks_attention_changes_nothing():
    x, y = torch.randn(2, 1, 728, 2, 2)
    found_x, found_y = _DualAttention(places=4)(x, y)
    assert torch.equal(found_x, x)
    assert torch.equal(found_y, y)


def test_the_official_fusion_adds_the_fused_map_that_deepfakebench_leaves_out():
    fusion = _Fusion(residual=True).eval()
    x, y = torch.randn(2, 1, 2048, 2, 2)
    with torch.inference_mode():
        official = fusion(x, y)
        fused = fusion.convblk(torch.cat([x, y], dim=1))
        fusion.residual = False
        torch.testing.assert_close(official - fusion(x, y), fused)


def test_am_softmax_equals_the_hand_worked_value():
    logits = torch.tensor([[0.5, 0.1], [0.2, 0.3]])
    loss = am_softmax(logits, torch.tensor([0, 1]), margin=0.3, scale=10)
    # True minus other logit, less the margin: .4 - .3 = .1 and .1 - .3 = -.2; times 10.
    expected = (math.log1p(math.exp(-1)) + math.log1p(math.exp(2))) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_the_focal_factor_weighs_a_sample_by_what_is_left_of_its_certainty():
    logits = torch.tensor([[math.log(4), 0.0]])
    loss = am_softmax(logits, torch.tensor([0]), margin=0, scale=1, focal_gamma=2)
    assert loss.item() == pytest.approx(0.2**2 * -math.log(0.8), rel=1e-5)


def test_the_arc_margin_turns_the_true_classs_angle():
    cosines = torch.tensor([[math.cos(1.0), 0.3]])
    loss = am_softmax(cosines, torch.tensor([0]), margin=0.5, scale=2, form="arc")
    assert loss.item() == pytest.approx(math.log1p(math.exp(2 * (0.3 - math.cos(1.5)))), rel=1e-5)


def test_the_arc_margin_never_rewards_an_angle_near_the_opposite_direction():
    cosines = torch.tensor([[-0.999, 0.3], [-0.95, 0.3]])
    far, near = (
        am_softmax(row[None], torch.tensor([0]), margin=0.5, scale=30, form="arc")
        for row in cosines
    )
    assert far > near


@pytest.mark.parametrize("form", ["cosine", "arc"])
def test_the_loss_of_perfect_cosines_has_a_finite_gradient(form):
    logits = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], requires_grad=True)
    am_softmax(
        logits, torch.tensor([0, 0]), margin=0.5, scale=30, form=form, focal_gamma=0.5
    ).backward()
    assert torch.isfinite(logits.grad).all()


def test_the_loss_uses_the_configured_margin_and_scale(model):
    logits = torch.tensor([[0.5, 0.1], [0.2, 0.3]])
    labels = torch.tensor([0, 1])
    terms = model.loss_terms(_outputs(logits), FaceBatch(torch.empty(0), labels))
    assert terms["am_softmax"].item() == pytest.approx(
        am_softmax(logits, labels, margin=0.45, scale=30).item()
    )


def test_the_score_is_the_softmax_of_the_logits_without_the_losss_scale(model):
    logits = torch.tensor([[0.5, 0.1], [-3.0, 2.0]])
    found = torch.sigmoid(model.attack_logit(_outputs(logits)))
    torch.testing.assert_close(found, logits.softmax(1)[:, 1])


def test_the_cosine_head_is_blind_to_the_features_length():
    head = CosineHead(5)
    features = torch.randn(3, 5)
    found = head(features)
    torch.testing.assert_close(head(features * 7), found)
    expected = torch.cosine_similarity(features[:, None], head.weight[None], dim=2)
    torch.testing.assert_close(found, expected)


def test_pixels_become_minus_one_to_one(model):
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)
    torch.testing.assert_close(model.normalise(images), torch.tensor([-1.0, -0.6, 1.0]))


def test_dropout_acts_before_the_head_in_training_only(model):
    network = copy.deepcopy(model)
    images = _faces(2)
    with torch.inference_mode():
        calm, shaken = network(images), network.train()(images)
        assert torch.equal(network.head(calm.pooled), calm.logits)
        assert not torch.allclose(network.head(shaken.pooled), shaken.logits)


def test_the_attention_starts_with_small_weights(model):
    keys = model.dual_cma0.key_conv1.weight
    assert keys.std().item() == pytest.approx(0.02 * math.sqrt(2 / (728 + 91)), rel=0.05)
    assert model.dual_cma1.linear2.weight.std().item() == pytest.approx(0.02 / 4, rel=0.2)


def test_an_arc_margin_without_cosines_is_refused():
    with pytest.raises(ValidationError, match="needs head 'cosine'"):
        HighFreqConfig(am_form="arc")
    assert HighFreqConfig(am_form="arc", head="cosine").am_form == "arc"


@pytest.mark.parametrize("size", [299, 0, -32])
def test_a_size_that_does_not_fit_the_attention_is_refused(size):
    with pytest.raises(ValidationError, match=r"size_px\n.*(multiple of 32|greater than 0)"):
        HighFreqConfig(size_px=size)


def test_crops_of_another_size_are_refused_with_both_sizes(model):
    with pytest.raises(ValueError, match="64 x 64 px, found 96 x 96"):
        model(torch.zeros(1, 3, 96, 96))


def test_the_default_network_has_the_official_number_of_parameters():
    network = HighFreq(HighFreqConfig())
    # Official: 53,250,128, of which 7,650 are filter kernels and 4,098 a classifier never used.
    assert sum(p.numel() for p in network.parameters()) == 53_250_128 - 7_650 - 4_098


def test_a_seeded_network_gives_the_stored_values(model):
    with torch.inference_mode():
        found = model(_faces(1, seed=1))
    assert found.logits[0].tolist() == pytest.approx(SEEDED_LOGITS, abs=1e-4)
    assert found.pooled[0, :3].tolist() == pytest.approx(SEEDED_POOLED, abs=1e-4)
    assert found.attention.shape == (1, 1, 29, 29)
    assert found.attention[0, 0, 10, 20:23].tolist() == pytest.approx(SEEDED_ATTENTION, abs=1e-4)


def test_half_precision_stays_close_and_keeps_its_float32_islands(model):
    half = to_half(copy.deepcopy(model))
    images = _faces(2, seed=2)
    with torch.inference_mode():
        expected, found = model(images), half(images.half())
    assert found.logits.dtype == torch.float16
    assert half.srm_conv1.filters.kernel.dtype == torch.float32
    assert half.dual_cma0.linear1.weight.dtype == torch.float32
    torch.testing.assert_close(found.logits.float(), expected.logits, atol=2e-2, rtol=0)
    torch.testing.assert_close(found.attention.float(), expected.attention, atol=2e-2, rtol=0)


def test_it_trains_under_autocast(model):
    network = copy.deepcopy(model).train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(_faces(2))
        terms = network.loss_terms(outputs, FaceBatch(torch.empty(0), torch.tensor([0, 1])))
    terms["am_softmax"].backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def _published(model, streams, head):
    """The network's tensors under the names of a published checkpoint, and filter kernels."""
    state = {}
    for name, value in model.state_dict().items():
        new = name
        for ours, theirs in (
            ("xception_rgb.", streams[0]),
            ("xception_srm.", streams[1]),
            ("head.", streams[0] + head),
            ("srm_sa.pa.", "srm_sa.pa.conv."),
            ("fusion.shared_mlp.", "fusion.ca.sharedMLP."),
        ):
            if name.startswith(ours):
                new = theirs + name.removeprefix(ours)
        if not name.startswith("calibration."):
            state[new] = value
    kernels = ("srm_conv0", "srm_conv1", "srm_conv2", "srm_sa.srm")
    return state | {f"{name}.kernel": torch.randn(5, 5) for name in kernels}


@pytest.mark.parametrize(
    ("prefix", "streams", "head", "unused", "residual"),
    [
        (
            "",
            ("xception_rgb.model.", "xception_srm.model."),
            "last_linear.1.",
            ("xception_srm.model.last_linear.1.weight",),
            True,
        ),
        (
            "module.",
            ("backbone_rgb.", "backbone_srm."),
            "last_linear.",
            ("backbone_srm.last_linear.weight", "backbone_rgb.adjust_channel.0.weight"),
            False,
        ),
    ],
    ids=["official", "DeepfakeBench"],
)
def test_a_published_checkpoint_fills_the_network(model, prefix, streams, head, unused, residual):
    state = _published(model, streams, head) | {name: torch.zeros(2) for name in unused}
    state = {prefix + name: value for name, value in state.items()}
    found = import_state_dict("highfreq", state, size_px=SIZE)
    assert found.config.fusion_residual is residual
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())


def test_an_imagenet_xception_fills_both_streams():
    torch.manual_seed(3)
    trunk = Xception().state_dict()
    # Published files hold pointwise kernels without their spatial axes, and a classifier.
    file = {k: v.flatten(1) if ".pointwise." in k else v for k, v in trunk.items()}
    file |= {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    found = import_state_dict("highfreq", file, size_px=SIZE)
    for stream in (found.xception_rgb, found.xception_srm):
        assert all(torch.equal(stream.state_dict()[k], v) for k, v in trunk.items())


SEEDED_LOGITS = [-0.02767, -0.52579]
SEEDED_POOLED = [0.57149, 0.75296, 0.61387]
SEEDED_ATTENTION = [0.80091, 0.81223, 0.77146]


# ---- the small network, ours


def _small(**options):
    torch.manual_seed(7)
    return build(HighFreqConfig(encoder="efficientnet_lite0", size_px=SIZE, **options))


def test_the_small_network_learns_from_each_of_its_parts():
    network = _small().train()
    assert isinstance(network, SmallHighFreq)
    network.dual_cma.gamma1.data.fill_(0.5)
    network.dual_cma.gamma2.data.fill_(0.5)
    network(_faces(4)).logits[:, 1].sum().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_frozen_blocks_keep_weights_and_statistics_and_the_others_learn():
    network = _small(frozen_blocks=3).train()
    before = copy.deepcopy(network.state_dict())
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    network(_faces(4)).logits.square().sum().backward()
    optimiser.step()
    frozen = ("rgb._conv_stem.", "rgb._bn0.", *(f"rgb._blocks.{block}." for block in range(3)))
    for name, value in network.state_dict().items():
        if name.startswith(frozen):
            torch.testing.assert_close(value, before[name], atol=0, rtol=0, msg=name)
    learned = network.state_dict()["rgb._blocks.3._expand_conv.weight"]
    assert not torch.equal(learned, before["rgb._blocks.3._expand_conv.weight"])


def test_frozen_blocks_stay_frozen_after_a_validation():
    network = _small(frozen_blocks=3).eval().train()
    assert network.training
    assert not network.rgb._blocks[2].training
    assert network.rgb._blocks[3].training


def test_the_small_network_starts_with_imagenets_top():
    network = _small()
    top = network.rgb_top._conv_head.weight.clone()
    assert load_imagenet_encoders(network) == 1
    assert not torch.equal(network.rgb_top._conv_head.weight, top)


def test_no_pixel_is_lost_to_the_small_networks_high_frequencies():
    """Four by four pixels go into channels; a stride would drop three of four."""
    network = _small().eval()
    calm = torch.zeros(1, 3, SIZE, SIZE)  # filtered pixels, as the stream takes them
    for place in range(16):
        dotted = calm.clone()
        dotted[0, :, 32 + place // 4, 32 + place % 4] = 1.0
        assert not torch.equal(network.srm1(dotted), network.srm1(calm))


def test_the_small_network_refuses_crops_of_another_size():
    with pytest.raises(ValueError, match=f"expected crops of {SIZE} x {SIZE} px"):
        _small()(torch.zeros(1, 3, 96, 96))


def test_xception_has_no_blocks_to_freeze():
    with pytest.raises(ValidationError, match="frozen_blocks"):
        HighFreqConfig(frozen_blocks=1)
