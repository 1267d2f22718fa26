"""UDR's losses and perturbations worked by hand, its two passes, pruning, layouts, own values."""

import math
from functools import cache

import pytest
import torch
from torch import nn

from models import (
    ATTACK,
    BONA_FIDE,
    FaceBatch,
    TwoPassModel,
    build_model,
    import_state_dict,
    to_half,
)
from models import _perturb as perturbations
from models.udr import (
    Udr,
    UdrConfig,
    mask_divergence,
    orthogonality,
    prune_closed_gates,
    weighted_triplet,
)

# Four frequency branches of 24 are left, so that a test need not fill 128 M weights.
FEW_BRANCHES = tuple(f"trunk._blocks.{block}._depthwise_conv" for block in range(10, 30))
SMALL = {
    "effb4": {"size_px": 64, "pruned": FEW_BRANCHES},
    "resnet18": {"trunk": "resnet18", "size_px": 64},
    "resnet50": {"trunk": "resnet50", "size_px": 64},
}
LABELS = torch.tensor([0, 1, 0, 1])


def _small(trunk, **options):
    """A network whose gates are half open and whose maps keep their scale from layer to layer."""
    torch.manual_seed(0)
    model = Udr(UdrConfig(**SMALL[trunk], **options)).eval()
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


@cache
def _resnet18():
    """For tests that leave the network as it is."""
    return _small("resnet18")


def _batch(labels=LABELS, seed=3):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(labels), 3, 64, 64)
    return FaceBatch(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator), labels)


def _colours(n, seed):
    """Images whose channels depend on each other."""
    images = torch.randn(n, 3, 20, 24, generator=torch.Generator().manual_seed(seed)) * 0.2
    images[:, 1] += 0.8 * images[:, 0] + 0.1 * seed
    return images


# Losses


def test_the_weighted_triplet_of_three_faces_on_a_line_equals_the_hand_worked_value():
    features = torch.tensor([[0.0], [3.0], [1.0]])  # bona fide, attack, bona fide
    found = weighted_triplet(features, torch.tensor([True, False, True]))
    expected = (math.log(1 + math.exp(1 - 3)) + math.log(1 + math.exp(1 - 2))) / 2
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_the_weighted_triplet_weighs_the_far_bona_fide_and_the_near_attack_most():
    features = torch.tensor([[0.0], [1.0], [3.0], [2.0], [5.0]])
    found = weighted_triplet(features, torch.tensor([True, True, True, False, False]))
    anchors = [((1, 3), (2, 5)), ((1, 2), (1, 4)), ((3, 2), (1, 2))]  # distances p, distances n
    expected = 0.0
    for (p1, p2), (n1, n2) in anchors:
        p = (p1 * math.exp(p1) + p2 * math.exp(p2)) / (math.exp(p1) + math.exp(p2))
        n = (n1 * math.exp(-n1) + n2 * math.exp(-n2)) / (math.exp(-n1) + math.exp(-n2))
        expected += math.log(1 + math.exp(p - n)) / 3
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_the_weighted_triplets_gradient_is_finite_where_two_faces_coincide():
    features = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 1.0]], requires_grad=True)
    weighted_triplet(features, torch.tensor([True, True, False])).backward()
    assert torch.isfinite(features.grad).all()


def test_orthogonality_compares_correlations_with_the_identity():
    a = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    # Unbiased deviation, but divided by 4: a column's correlation with itself is 3 / 4.
    assert orthogonality(a, a).item() == pytest.approx((1 - 0.75) ** 2, abs=1e-5)
    swapped = orthogonality(a, a.flip(1)).item()
    assert swapped == pytest.approx(1 + 0.005 * 0.75**2, abs=1e-5)


def test_the_masks_divergence_is_that_of_the_target_from_the_mask():
    mask, target = torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[[[0.0, 0.0]]]])
    q = [1 / (1 + math.e), math.e / (1 + math.e)]
    expected = sum(0.5 * math.log(0.5 / share) for share in q)
    assert mask_divergence(mask, target).item() == pytest.approx(expected, abs=1e-6)
    assert mask_divergence(target, target).item() == 0


def test_only_bona_fide_faces_are_to_be_rebuilt():
    model, batch = _resnet18(), _batch()
    outputs = model(model.normalise(batch.images))
    terms = model.loss_terms(outputs, batch)
    error = outputs.error.mean(dim=(1, 2, 3))
    assert terms["reconstruction"].item() == pytest.approx(
        0.1 * (error[0] + error[2]).item() / 2, rel=1e-5
    )
    spectrum = torch.fft.rfft2(
        outputs.reconstruction - model.normalise(batch.images), norm="ortho"
    )[batch.labels == BONA_FIDE]
    frequency = (spectrum.real.abs() + spectrum.imag.abs()).mean()
    assert terms["frequency"].item() == pytest.approx(frequency.item(), rel=1e-4)


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1], [0, 1], [1, 0, 0], [0], [1]])
def test_both_passes_losses_are_finite_for_one_sided_and_one_face_batches(labels):
    model = _small("resnet18").train()
    batch = _batch(torch.tensor(labels))
    clean = model.normalise(batch.images)
    first = model(clean)
    second = model(model.perturb(clean, batch.labels), clean)
    terms = [
        *model.loss_terms(first, batch).values(),
        *model.second_loss_terms(second, batch, first=first, progress=0).values(),
        *model.second_loss_terms(second, batch, first=first, progress=1).values(),
    ]
    assert all(torch.isfinite(term) for term in terms)
    torch.stack(terms).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


# Two passes


def test_udr_asks_for_two_passes_and_a_method_of_one_pass_does_not():
    assert isinstance(_resnet18(), TwoPassModel)
    assert not isinstance(build_model("lgsc", {"size_px": 64}), TwoPassModel)


def test_the_second_pass_is_compared_with_the_clean_faces():
    model, batch = _resnet18(), _batch()
    clean = model.normalise(batch.images)
    blurred = perturbations.blurred(clean)
    with torch.inference_mode():
        alone, compared = model(blurred), model(blurred, clean)
    torch.testing.assert_close(compared.reconstruction, alone.reconstruction)
    torch.testing.assert_close(compared.error, (clean - compared.reconstruction).abs())
    assert not torch.equal(compared.spatial_mask, alone.spatial_mask)
    assert not torch.equal(compared.frequency_mask, alone.frequency_mask)


def test_the_second_pass_weighs_its_terms_and_keeps_the_masks_in_place_after_a_tenth():
    model, batch = _resnet18(), _batch()
    clean = model.normalise(batch.images)
    with torch.inference_mode():
        first, second = model(clean), model(perturbations.coarse(clean), clean)
    alike = model.loss_terms(second, batch)
    early = model.second_loss_terms(second, batch, first=first, progress=0.1)
    late = model.second_loss_terms(second, batch, first=first, progress=0.1001)
    for term, share in {
        "classification": 0.1,
        "triplet": 1,
        "reconstruction": 0.1,
        "frequency": 0.1,
        "mask": 1,
    }.items():
        torch.testing.assert_close(early[term], share * alike[term])
    expected = mask_divergence(second.frequency_mask, first.frequency_mask)
    expected = expected + mask_divergence(second.spatial_mask, first.spatial_mask)
    torch.testing.assert_close(late["mask"], 0.1 * expected)
    torch.testing.assert_close(
        late["orthogonality"], 0.1 * orthogonality(second.embedding, first.embedding)
    )


def test_the_first_passs_outputs_are_targets_and_get_no_gradient_from_the_second():
    model, batch = _small("resnet18").train(), _batch()
    clean = model.normalise(batch.images)
    first, second = model(clean), model(model.perturb(clean, batch.labels), clean)
    first.embedding.retain_grad()
    first.spatial_mask.retain_grad()
    terms = model.second_loss_terms(second, batch, first=first, progress=1)
    torch.stack(list(terms.values())).sum().backward()
    assert first.embedding.grad is None
    assert first.spatial_mask.grad is None


def test_the_attention_does_not_train_the_decoder():
    model = _small("resnet18").train()
    outputs = model(model.normalise(_batch().images))
    (outputs.logits.sum() + outputs.spatial_mask.sum()).backward()
    assert all(p.grad is None for p in model.decoder.parameters())
    assert model.trunk.conv1.weight.grad is not None


# Perturbations


def test_matched_colours_have_the_targets_means_and_covariances():
    source, target = _colours(2, 1), _colours(2, 5)
    found = perturbations.colour_matched(source, target)
    for image, like in zip(found.flatten(2), target.flatten(2), strict=True):
        torch.testing.assert_close(image.mean(1), like.mean(1), atol=1e-5, rtol=0)
        torch.testing.assert_close(image.cov(), like.cov(), atol=1e-3, rtol=0)


def test_matching_colours_survives_images_of_one_colour():
    flat = torch.full((1, 3, 8, 8), 0.25)
    found = perturbations.colour_matched(flat, flat + 0.5)
    torch.testing.assert_close(found, flat + 0.5)


def test_a_full_rank_mix_has_the_styles_histogram_in_the_contents_order():
    content, style = _colours(2, 1), _colours(2, 5)
    found = perturbations.rank_mixed(content, style, torch.zeros(2, 1, 1, 1)).flatten(2)
    torch.testing.assert_close(found.sort(2).values, style.flatten(2).sort(2).values)
    assert torch.equal(found.argsort(2), content.flatten(2).argsort(2))


def test_an_amplitude_mix_lies_between_the_amplitudes_and_keeps_the_phase():
    content, style = _colours(2, 1).double(), _colours(2, 5).double()
    kept = torch.full((2, 1, 1, 1), 0.6, dtype=torch.float64)
    found = torch.fft.rfft2(perturbations.amplitude_mixed(content, style, kept))
    of_content, of_style = torch.fft.rfft2(content), torch.fft.rfft2(style)
    torch.testing.assert_close(found.abs(), 0.6 * of_content.abs() + 0.4 * of_style.abs())
    torch.testing.assert_close(found / found.abs(), of_content / of_content.abs())


def test_faces_take_their_style_from_their_own_class():
    labels = torch.tensor([0, 1, 0, 0, 1, 1, 0])
    torch.manual_seed(0)
    drawn = torch.stack([perturbations._partners(labels) for _ in range(20)])
    assert torch.equal(labels[drawn], labels.expand(20, -1))
    assert torch.equal(drawn.sort(dim=1).values, torch.arange(7).expand(20, -1))
    assert not torch.equal(drawn[0], drawn[1])


def test_a_batchs_perturbation_repeats_with_the_seed_and_stays_close_to_the_faces():
    images = _colours(4, 2).clamp(-1, 1)
    kinds = set()
    for seed in range(20):
        torch.manual_seed(seed)
        found = perturbations.perturbed(images, LABELS)
        torch.manual_seed(seed)
        assert torch.equal(perturbations.perturbed(images, LABELS), found)
        assert found.shape == images.shape
        assert torch.isfinite(found).all()
        difference = (found - images).abs().mean().item()
        assert 0 < difference < 1
        kinds.add(round(difference, 2))
    assert len(kinds) > 3


# Pruning


def test_pruning_closed_gates_hardly_moves_the_score_and_leaves_open_ones():
    model = _small("resnet18")
    closed = ["trunk.layer2.1.conv1", "trunk.layer3.1.conv2", "trunk.emb_block1.conv2"]
    for name in closed:
        model.get_submodule(name).sf_coef.data.fill_(-10)
    images = model.normalise(_batch().images)
    with torch.inference_mode():
        before = model.attack_logit(model(images)).sigmoid()
        assert prune_closed_gates(model, 1e-3) == closed
        after = model.attack_logit(model(images)).sigmoid()
    assert model.config.pruned == tuple(closed)
    assert not torch.equal(after, before)
    assert (after - before).abs().max() < 1e-3


def test_a_pruned_network_can_be_built_again_and_takes_its_own_and_unpruned_weights():
    model = _small("resnet18")
    unpruned = model.state_dict()
    prune_closed_gates(model, 1)
    options = model.config.model_dump(mode="json")
    images = model.normalise(_batch().images)
    with torch.inference_mode():
        expected = model(images).logits
        for state in (model.state_dict(), unpruned):
            found = import_state_dict("udr", state, **options)
            assert not any("freq_conv" in name for name in found.state_dict())
            assert torch.equal(found(images).logits, expected)


def test_pruning_twice_finds_nothing_new():
    model = _small("resnet18")
    assert len(prune_closed_gates(model, 1)) == 8
    assert prune_closed_gates(model, 1) == []
    assert len(model.config.pruned) == 8


def test_a_name_without_frequency_branch_can_not_be_pruned():
    with pytest.raises(ValueError, match=r"trunk\.conv1.*trunk\.layer2\.0\.conv2"):
        Udr(UdrConfig(trunk="resnet18", size_px=64, pruned=("trunk.conv1",)))


# Layouts


def _torchvision(name):
    return pytest.importorskip("torchvision").models.get_model(name, weights=None).eval()


@pytest.mark.parametrize("trunk", ["resnet18", "resnet50"])
def test_an_imagenet_resnet_fills_the_trunk_which_then_computes_as_torchvisions(trunk):
    torch.manual_seed(0)
    theirs = _torchvision(trunk)
    model = import_state_dict("udr", theirs.state_dict(), size_px=64)
    assert model.config.trunk == trunk
    for module in model.modules():
        if hasattr(module, "sf_coef"):
            module.sf_coef.data.fill_(-50)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        found = model.trunk.features(x)
        y = theirs.relu(theirs.bn1(theirs.conv1(x)))
        one = theirs.layer1(theirs.maxpool(y) if trunk == "resnet50" else y)
        two = theirs.layer2(one)
        expected = three = theirs.layer3(two)
        if trunk == "resnet18":
            pooled = [nn.functional.adaptive_avg_pool2d(m, 8) for m in (one, two)]
            expected = torch.cat([*pooled, three], dim=1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_an_imagenet_efficientnet_fills_the_trunk_but_for_its_frequency_branches():
    options = SMALL["effb4"]
    source = _small("effb4")
    state = {
        name.removeprefix("trunk."): tensor
        for name, tensor in source.state_dict().items()
        if name.startswith("trunk.") and "freq_conv" not in name and "sf_coef" not in name
    }
    state |= {"_fc.weight": torch.zeros(1000, 1792), "_fc.bias": torch.zeros(1000)}
    model = import_state_dict("udr", state, **options)
    for name, tensor in model.trunk.state_dict().items():
        assert (name in state) == ("freq_conv" not in name and "sf_coef" not in name)
        if name in state:
            assert torch.equal(tensor, state[name])
    assert model.trunk._blocks[6]._depthwise_conv.sf_coef.item() == -10
    del state["_blocks.7._se_reduce.bias"]
    with pytest.raises(ValueError, match=r"trunk\._blocks\.7\._se_reduce\.bias"):
        import_state_dict("udr", state, **options)


# Numbers


# Made by this code on 2026-11-22, when it equalled the official numbers (test_udr_golden.py) for
# effb4 and resnet18.
@pytest.mark.parametrize(
    ("trunk", "logits", "masks", "explanation"),
    [
        ("effb4", [[0.179149, -0.283845], [0.179977, -0.282978]], [0.555479, 0.843181], 0.2337898),
        (
            "resnet18",
            [[-0.981604, -1.025233], [-0.961216, -0.900894]],
            [0.600041, 0.779837],
            0.2628120,
        ),
        (
            "resnet50",
            [[-3.091735, 0.690810], [-2.744626, 0.441748]],
            [0.167746, 0.255028],
            0.0712772,
        ),
    ],
)
def test_seeded_networks_give_their_stored_values(trunk, logits, masks, explanation):
    model = _small(trunk)
    images = model.normalise(_batch(torch.tensor([0, 1])).images)
    with torch.inference_mode():
        outputs = model(images)
        found = model.explanation(outputs)
    torch.testing.assert_close(outputs.logits, torch.tensor(logits), atol=2e-5, rtol=1e-4)
    means = torch.stack([outputs.frequency_mask.mean(), outputs.spatial_mask.mean()])
    torch.testing.assert_close(means, torch.tensor(masks), atol=1e-5, rtol=1e-4)
    assert found.mean().item() == pytest.approx(explanation, rel=1e-4)
    assert outputs.frequency_mask.shape[2:] == (
        outputs.spatial_mask.shape[2],
        outputs.spatial_mask.shape[3] // 2 + 1,
    )


def test_the_explanation_is_the_error_seen_through_the_spatial_mask():
    model = _resnet18()
    with torch.inference_mode():
        outputs = model(model.normalise(_batch().images))
        found = model.explanation(outputs)
    mask = nn.functional.interpolate(
        outputs.spatial_mask, (64, 64), mode="bilinear", align_corners=True
    )
    error = outputs.error.mean(dim=1, keepdim=True) / 2
    torch.testing.assert_close(found, error * mask, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("trunk", "size"), [("effb4", 380), ("resnet18", 256), ("resnet50", 256)])
def test_the_default_size_is_the_published_one(trunk, size):
    assert UdrConfig(trunk=trunk).size_px == size


def test_the_size_need_not_be_a_multiple_of_the_strides():
    model = Udr(UdrConfig(trunk="resnet18", size_px=75)).eval()
    with torch.inference_mode():
        outputs = model(torch.zeros(1, 3, 75, 75))
    assert outputs.reconstruction.shape == (1, 3, 75, 75)
    assert model.explanation(outputs).shape == (1, 1, 75, 75)


def test_the_bottlenecks_bias_stays_zero_in_training():
    model = _small("resnet18").train()
    batch = _batch()
    terms = model.loss_terms(model(model.normalise(batch.images)), batch)
    torch.stack(list(terms.values())).sum().backward()
    assert model.bottleneck.bias.grad is None


@pytest.mark.parametrize("trunk", ["effb4", "resnet18"])
def test_a_half_precision_network_stays_close(trunk):
    model = _small(trunk)
    images = model.normalise(_batch().images)
    with torch.inference_mode():
        exact = model(images)
        half = to_half(model)(images.half())
        explained = model.explanation(half)
    assert half.logits.dtype == torch.float16
    assert {half.spatial_mask.dtype, half.frequency_mask.dtype, half.error.dtype} == {torch.float32}
    scores = [o.logits.float().softmax(1)[:, ATTACK] for o in (half, exact)]
    torch.testing.assert_close(*scores, atol=0.01, rtol=0)
    torch.testing.assert_close(explained, model.explanation(exact), atol=0.01, rtol=0)


def test_training_under_autocast_keeps_masks_and_errors_in_float32():
    model, batch = _small("resnet18").train(), _batch()
    clean = model.normalise(batch.images)
    with torch.autocast("cpu", torch.bfloat16):
        first = model(clean)
        second = model(model.perturb(clean, batch.labels), clean)
        terms = model.loss_terms(first, batch)
        terms |= model.second_loss_terms(second, batch, first=first, progress=1)
    assert first.logits.dtype == torch.bfloat16
    assert {first.spatial_mask.dtype, first.frequency_mask.dtype} == {torch.float32}
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert all(torch.isfinite(term) for term in terms.values())
