"""FGHV's equations against autograd, textbook formulas and values worked by hand."""

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from models import FaceBatch, RefinedModel, fghv, import_checkpoint, import_state_dict, to_half
from models.fghv import Fghv, FghvConfig, FghvOutputs, latent_divergence, rgb_to_hsv, unit


def _small(**options):
    torch.manual_seed(3)
    options = {"backbone": "resnet18", "size_px": 32, "hypotheses": 8, **options}
    return Fghv(FghvConfig(**options)).eval().requires_grad_(False)


def _outputs(cg, ch, g=None, h=None):
    """Outputs with given cosines, as if of a feature map of one position."""
    cg, ch = torch.tensor(cg), torch.tensor(ch)
    return FghvOutputs(
        feature_map=torch.empty(0),
        feature=torch.empty(0),
        real_hypotheses=torch.eye(2) if g is None else torch.tensor(g),
        attack_hypotheses=torch.eye(2) if h is None else torch.tensor(h),
        real_cosines=cg,
        attack_cosines=ch,
        margin=cg.mean(dim=1) - ch.mean(dim=1),
        variance=fghv.population_variance(cg, 1),
    )


# HSV


def _colours():
    """Every 5th level of each channel, greys, and all pairs of neighbours: 140,608 colours."""
    levels = torch.arange(0, 256, 5)
    grid = torch.cartesian_prod(levels, levels, levels)
    shades = torch.arange(256)
    edges = [
        torch.stack(c, 1) for c in ((shades, shades, shades), (shades, shades.flip(0), shades))
    ]
    return torch.cat([grid, *edges, 255 - grid]).T[None, :, None].to(torch.uint8)


def test_hsv_is_opencvs_documented_formula_rounded_to_bytes():
    colours = _colours()
    r, g, b = colours[0, :, 0].double().numpy()
    value, lowest = np.maximum(np.maximum(r, g), b), np.minimum(np.minimum(r, g), b)
    spread = value - lowest
    with np.errstate(divide="ignore", invalid="ignore"):  # black and grey; replaced below
        saturation = np.where(value > 0, 255 * spread / value, 0)
        degrees = np.select(
            [spread == 0, value == r, value == g],
            [0, 60 * (g - b) / spread, 120 + 60 * (b - r) / spread],
            240 + 60 * (r - g) / spread,
        )
    hue, s, v = rgb_to_hsv(colours)[0, :, 0].double().numpy()
    assert (v == value).all()
    # OpenCV's reciprocals are rounded to 12 bits: over all colours of OpenCV 5.0 itself, the bytes
    # lie up to 0.522 and 0.64 from the formula.
    assert np.abs(s - saturation).max() < 0.53
    assert np.abs((hue - degrees / 2 + 90) % 180 - 90).max() < 0.65
    assert hue.min() == 0
    assert hue.max() == 179


@pytest.mark.parametrize(
    ("rgb", "hsv"),
    [
        ((0, 0, 0), (0, 0, 0)),
        ((17, 17, 17), (0, 0, 17)),
        ((255, 0, 0), (0, 255, 255)),
        ((0, 255, 0), (60, 255, 255)),
        ((0, 0, 255), (120, 255, 255)),
        ((255, 255, 0), (30, 255, 255)),
        ((255, 0, 1), (0, 255, 255)),  # 179.9 is 180, which is 0
        ((200, 120, 90), (8, 140, 200)),
        ((254, 1, 128), (165, 254, 254)),
        ((32, 0, 129), (128, 255, 129)),  # the formula says 127.44
        ((128, 0, 157), (145, 255, 157)),  # 144.46
    ],
)
def test_hsv_repeats_opencvs_own_bytes(rgb, hsv):
    found = rgb_to_hsv(torch.tensor(rgb, dtype=torch.uint8)[None, :, None, None])
    assert found.flatten().tolist() == list(hsv)


def test_the_six_channels_are_rgb_and_hsv_between_minus_one_and_one():
    image = torch.tensor([0, 0, 255], dtype=torch.uint8)[None, :, None, None]
    found = Fghv(FghvConfig(size_px=32)).normalise(image).flatten()
    assert found.tolist() == pytest.approx([-1, -1, 1, 120 / 127.5 - 1, 1, 1])


# Hypotheses and losses


def test_terms_equal_the_hand_worked_values():
    outputs = _outputs(
        cg=[[0.6, 0.2], [0.5, 0.1]],  # variance 0.04 of the bona fide face; means 0.4 and 0.3
        ch=[[0.1, 0.1], [0.4, 0.0]],  # means 0.1 and 0.2
        g=[[2.0, 0.0], [0.0, 3.0]],
        h=[[-1.0, 0.0], [0.0, 5.0]],
    )
    labels = FaceBatch(torch.empty(0), torch.tensor([0, 1]))
    model = Fghv(FghvConfig(weight_variance=10, weight_correlation=2, weight_discrimination=4))
    terms = model.loss_terms(outputs, labels)
    assert terms["variance"].item() == pytest.approx(10 * 0.04)
    assert terms["correlation"].item() == pytest.approx(2 * (-0.3 + 0.1) / 2)
    # Cosines of g with h: -1, 0, 0, 1; of g with g: 1, 0, 0, 1.
    assert terms["discrimination"].item() == pytest.approx(4 * (0 - 0.5))
    logistic = Fghv(FghvConfig(rcc="logistic", temperature=0.1)).loss_terms(outputs, labels)
    expected = (np.log1p(np.exp(-3)) + np.log1p(np.exp(1))) / 2
    assert logistic["correlation"].item() == pytest.approx(expected, rel=1e-5)


def test_the_variance_of_attacks_is_left_free():
    outputs = _outputs(cg=[[0.9, -0.9]], ch=[[0.0, 0.0]])
    terms = Fghv(FghvConfig()).loss_terms(outputs, FaceBatch(torch.empty(0), torch.tensor([1])))
    assert terms["variance"].item() == 0


def test_training_draws_latents_anew_for_all_faces_and_eval_keeps_the_stored_ones():
    model = _small()
    images = torch.randn(2, 3, 32, 32)
    first, second = model(images), model(images)
    assert torch.equal(first.real_hypotheses, second.real_hypotheses)
    model.latents.train()
    torch.manual_seed(0)
    drawn, again = model(images), model(images)
    assert not torch.equal(drawn.real_hypotheses, again.real_hypotheses)
    assert torch.equal(model.state_dict()["latents.z"], _small().latents.z)


def test_the_variance_of_cosines_near_one_survives_float16_inputs():
    cosines = (1 - torch.arange(64) * 2**-11).half()[None]
    expected = cosines.double().var(correction=0).item()
    assert fghv.population_variance(cosines, 1).item() == pytest.approx(expected, rel=1e-5)


def test_the_log_odds_are_those_of_the_fast_score_and_stay_finite():
    model = Fghv(FghvConfig())
    outputs = _outputs(cg=[[0.4], [1.0], [-1.0]], ch=[[-0.4], [-1.0], [1.0]])
    found = torch.sigmoid(model.attack_logit(outputs))
    assert found.tolist() == pytest.approx([(1 - 0.8 / 2) / 2, 0, 1], abs=1e-3)
    assert torch.isfinite(model.attack_logit(outputs)).all()


def test_the_explanation_is_bright_where_the_map_agrees_with_attacks():
    real, attack = torch.eye(4)[:1], torch.eye(4)[1:2]
    maps = torch.stack([real[0], attack[0], -attack[0], torch.eye(4)[2]]).T.reshape(1, 4, 2, 2)
    outputs = _outputs([[0.0]], [[0.0]])._replace(
        feature_map=3 * maps, real_hypotheses=5 * real, attack_hypotheses=2 * attack
    )
    found = Fghv(FghvConfig()).explanation(outputs)
    assert found.flatten().tolist() == pytest.approx([0.25, 0.75, 0.25, 0.5])


def test_the_explanation_of_a_map_of_one_position_is_the_fast_score():
    model = _small()
    outputs = model(torch.randn(3, 3, 32, 32))  # the feature map has one position
    found = model.explanation(outputs).flatten()
    torch.testing.assert_close(found, torch.sigmoid(model.attack_logit(outputs)))


# Refinement


def test_the_written_out_gradient_is_autograds():
    generator = _small().rf_fgn
    latents = torch.randn(3, 5, 128, requires_grad=True)
    directions = unit(torch.randn(3, 1, 512))
    cosine = torch.nn.functional.cosine_similarity(generator(latents), directions, dim=-1)
    (expected,) = torch.autograd.grad(cosine.sum(), latents)
    found = generator.cosine_gradient(latents.detach(), directions)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_the_refined_latents_explain_the_feature_better_at_every_step():
    directions = unit(torch.randn(2, 512, generator=torch.Generator().manual_seed(1)))
    found = []
    for steps in (1, 5, 20):
        model = _small(refinement_steps=steps)
        hypotheses = unit(model.rf_fgn(model.refined_latents(model.rf_fgn, directions)))
        found.append((hypotheses @ directions[..., None]).mean().item())
    start = fghv.cosines(directions, model.rf_fgn(model.latents.z)).mean().item()
    assert start < found[0] < found[1] < found[2]


def test_latents_have_no_divergence_where_they_are_standard_normal_and_a_known_one_elsewhere():
    one_apart = torch.tensor([[1.0], [-1.0]]).expand(2, 128)  # mean 0, variance 1
    shifted = one_apart + 2  # mean 2: KL = 2^2 / 2
    wide = 3 * one_apart  # variance 9: KL = (9 - 1 - ln 9) / 2
    found = latent_divergence(torch.stack([one_apart, shifted, wide]))
    assert found.tolist() == pytest.approx([0, 2, (8 - np.log(9)) / 2], abs=1e-4)


def test_the_model_asks_for_refinement_and_each_face_is_refined_alone():
    model = _small(refinement_steps=3)
    assert isinstance(model, RefinedModel)
    features = model.refinement_features(model(torch.randn(3, 3, 32, 32)))
    alone = torch.cat([model.refine(feature[None]) for feature in features])
    torch.testing.assert_close(alone, model.refine(features), rtol=1e-4, atol=1e-5)
    assert alone.unique().numel() == 3


def test_the_fitted_regression_equals_that_of_scikit_learn():
    model = _small(refinement_steps=2)
    generator = torch.Generator().manual_seed(5)
    features = unit(torch.randn(60, 512, generator=generator))
    labels = torch.arange(60) % 2
    features[labels == 1] = unit(
        features[labels == 1] + 0.3 * unit(model.ka_fgn(model.latents.z[:1]))
    )
    model.fit_refinement(features, labels)
    evidence = model.evidence(features).double().numpy()
    standard = (evidence - evidence.mean(axis=0)) / evidence.std(axis=0, ddof=1)
    expected = LogisticRegression(tol=1e-10).fit(standard, labels.numpy())
    np.testing.assert_allclose(
        model.refine(features), expected.decision_function(standard), rtol=1e-3, atol=1e-3
    )


def test_the_regression_needs_both_classes():
    model = _small(refinement_steps=1)
    features = unit(torch.randn(4, 512))
    with pytest.raises(ValueError, match="one class"):
        model.fit_refinement(features, torch.ones(4, dtype=torch.int64))


# Precision and weights


@pytest.mark.parametrize("backbone", ["depthnet6", "resnet18"])
def test_half_precision_stays_close_and_keeps_the_hypotheses_exact(backbone):
    model = _small(backbone=backbone)
    images = torch.randint(0, 256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    normalised = model.normalise(images)
    half = to_half(copy.deepcopy(model))
    expected, found = model(normalised), half(normalised.half())
    assert found.feature_map.dtype == torch.float16
    assert torch.equal(found.real_hypotheses, expected.real_hypotheses)
    torch.testing.assert_close(found.margin, expected.margin, rtol=0, atol=5e-4)
    torch.testing.assert_close(
        half.explanation(found), model.explanation(expected), rtol=0, atol=5e-4
    )
    features = half.refinement_features(found)
    assert features.dtype == torch.float32
    torch.testing.assert_close(half.refine(features), model.refine(features), rtol=0, atol=0)


def test_the_fixed_pools_are_the_adaptive_ones_of_the_official_code():
    model = _small(backbone="depthnet3")
    seen = {}
    model.backbone.embedder.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    down1, down2, down3, top = model.backbone(torch.randn(1, 3, 96, 96))
    adaptive = torch.nn.functional.adaptive_avg_pool2d
    expected = torch.cat([adaptive(down1, 12), adaptive(down2, 12), down3], dim=1)
    torch.testing.assert_close(seen["x"], expected)
    assert top.shape == (1, 512, 3, 3)


def test_weights_of_anrl_fill_the_backbone_and_its_heads_are_reported_as_unused(tmp_path):
    model = _small(backbone="depthnet3")
    state = {"Classifier.fc.weight": torch.zeros(2, 512)}
    for name, value in model.backbone.state_dict().items():
        official = f"FeatExtractor.{name}".replace("FeatExtractor.embedder.", "Classifier.")
        state[official.replace(".bn.", ".BN.")] = value
    torch.save({"state_dict": state}, tmp_path / "anrl.pth")
    found = import_checkpoint("fghv", tmp_path / "anrl.pth", backbone="depthnet3")
    assert list(found.ignored) == ["Classifier.fc.weight"]
    assert "rf_fgn.fc1.weight" in found.kept
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(found.model(images).feature, model(images).feature)


def test_weights_of_torchvisions_resnet_give_its_feature():
    torchvision = pytest.importorskip("torchvision")
    network = torchvision.models.resnet18(weights=None).eval()
    model = import_state_dict("fghv", network.state_dict())
    images = torch.randn(2, 3, 64, 64)
    network.fc = torch.nn.Identity()
    with torch.inference_mode():
        torch.testing.assert_close(model(images).feature, network(images))


def test_a_seeded_network_gives_the_stored_values():
    torch.manual_seed(7)
    model = Fghv(FghvConfig(size_px=64, refinement_steps=3)).eval()
    steps = torch.linspace(0, 255, 64)
    image = torch.stack(
        [steps[:, None].expand(64, 64), steps.expand(64, 64), 255 - steps.expand(64, 64)]
    )
    with torch.inference_mode():
        outputs = model(model.normalise(image.round()[None]))
        evidence = model.evidence(model.refinement_features(outputs))
    assert model.attack_logit(outputs).item() == pytest.approx(SEEDED_LOGIT, abs=1e-5)
    assert model.explanation(outputs).flatten().tolist() == pytest.approx(SEEDED_MAP, abs=1e-5)
    assert evidence[0].tolist() == pytest.approx(SEEDED_EVIDENCE, abs=2e-5)


SEEDED_LOGIT = 0.0115567
SEEDED_MAP = [0.5091538, 0.4951747, 0.5043356, 0.5010977]
SEEDED_EVIDENCE = [-0.0115566, -6.844158, 0.0019515]
