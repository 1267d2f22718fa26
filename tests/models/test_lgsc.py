"""LGSC's loss worked by hand, and seeded values that hold without the golden folder."""

import copy
import math

import pytest
import torch

from models import FaceBatch, build_model
from models._losses import asymmetric_triplet
from models.lgsc import Lgsc, LgscConfig, LgscOutputs, bona_fide_cue


def test_triplets_of_two_bona_fide_and_one_attack_equal_the_hand_worked_value():
    # Unit vectors at 0, 90 and 180 degrees: d(a, p) = sqrt 2; d(a1, n) = 2, d(a2, n) = sqrt 2.
    features = torch.tensor([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    loss = asymmetric_triplet(features, torch.tensor([True, True, False]), margin=0.5)
    # a1: sqrt 2 - 2 + .5 < 0 is no violation; a2: sqrt 2 - sqrt 2 + .5 = .5. One violation.
    assert loss.item() == pytest.approx(0.5, abs=1e-5)


def test_attacks_are_never_pulled_together():
    features = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    loss = asymmetric_triplet(features, torch.tensor([True, False, False]), margin=0.5)
    assert loss.item() == 0


def test_triplets_of_equal_features_have_a_finite_gradient():
    features = torch.ones(4, 3, requires_grad=True)
    asymmetric_triplet(features, torch.tensor([True, True, False, False]), 0.5).backward()
    assert torch.isfinite(features.grad).all()


def test_the_cue_of_attacks_is_left_free():
    cue = torch.tensor([0.2, 0.9])[:, None, None, None].expand(2, 3, 4, 4)
    assert bona_fide_cue(cue, torch.tensor([True, False])).item() == pytest.approx(0.2)
    assert bona_fide_cue(cue, torch.tensor([False, False])).item() == 0


def test_terms_equal_the_hand_worked_values():
    model = Lgsc(LgscConfig(weight_score=3.0))
    outputs = LgscOutputs(
        cue=torch.tensor([0.1, 0.5])[:, None, None, None].expand(2, 3, 4, 4),
        features=tuple(torch.ones(2, 2, 1, 1) for _ in range(5)),
        raw_score=torch.tensor([0.05, 0.09]),
        class_logits=torch.tensor([[0.0, 0.0], [0.0, math.log(3)]]),
    )
    terms = model.loss_terms(outputs, FaceBatch(torch.empty(0), torch.tensor([0, 1])))
    assert terms["regression"].item() == pytest.approx(5 * 0.1, rel=1e-5)
    assert terms["classification"].item() == pytest.approx(
        5 * (math.log(2) - math.log(0.75)) / 2, rel=1e-5
    )
    assert terms["triplet"].item() == 0  # one bona fide face makes no triplet
    # Mean |cue| .1 and .5 with offset .05 and scale .02: logits 2.5 and 22.5.
    assert terms["score"].item() == pytest.approx(3 * math.log1p(math.exp(2.5)) / 2, rel=1e-5)


def test_the_log_odds_are_zero_at_a_mean_cue_of_one_twentieth():
    model = Lgsc(LgscConfig())
    outputs = LgscOutputs(torch.empty(0), (), torch.tensor([0.05, 0.09]), None)
    torch.testing.assert_close(model.attack_logit(outputs), torch.tensor([0.0, 2.0]))


def test_the_score_may_be_the_log_odds_of_the_classifier():
    torch.manual_seed(0)
    model = Lgsc(LgscConfig(size_px=64, score="classifier")).eval()
    outputs = model(torch.randn(2, 3, 64, 64))
    log_odds = outputs.class_logits.log_softmax(1).diff(dim=1)[:, 0]
    torch.testing.assert_close(model.attack_logit(outputs), log_odds)


def test_the_loss_refuses_outputs_of_eval_mode():
    model = Lgsc(LgscConfig(size_px=64)).eval()
    outputs = model(torch.zeros(2, 3, 64, 64))
    with pytest.raises(ValueError, match="training mode"):
        model.loss_terms(outputs, FaceBatch(torch.empty(0), torch.tensor([0, 1])))


def test_the_default_network_has_the_published_number_of_parameters():
    model = Lgsc(LgscConfig())
    assert sum(p.numel() for p in model.parameters()) == 27_500_121
    generator = sum(
        p.numel() for n, p in model.named_parameters() if not n.startswith("classifier.")
    )
    assert round(generator / 1e6, 2) == 16.32


def test_a_seeded_network_gives_the_stored_score():
    torch.manual_seed(7)
    model = Lgsc(LgscConfig(size_px=64)).eval()
    rows = torch.linspace(-1, 1, 64)
    image = torch.stack([rows[:, None].expand(64, 64), rows.expand(64, 64), rows.outer(rows)])
    with torch.inference_mode():
        found = model(image[None])
    assert found.raw_score.item() == pytest.approx(SEEDED_SCORE, abs=1e-5)
    assert found.cue[0, :, 10, 20].tolist() == pytest.approx(SEEDED_CUE, abs=1e-4)


SEEDED_SCORE = 0.628747
SEEDED_CUE = [-0.31412, 0.19859, -0.44827]


@pytest.fixture(scope="module")
def bottleneck():
    torch.manual_seed(0)
    options = {"encoder": "efficientnet_lite0", "decoder_widths": (8, 8, 8, 8, 8), "size_px": 32}
    return Lgsc(LgscConfig(score="bottleneck", decoder_norm="batch", weight_score=3.0, **options))


def test_the_bottlenecks_log_odds_need_neither_decoder_nor_classifier(bottleneck, monkeypatch):
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        outputs = bottleneck.eval()(images)
        assert outputs.class_logits is None
        for part in (*bottleneck.decoder, bottleneck.classifier):
            monkeypatch.setattr(part, "forward", None)
        direct, _ = bottleneck.partly(images, 0)
    torch.testing.assert_close(direct, bottleneck.attack_logit(outputs))
    assert direct.std() > 0


def test_the_score_term_of_the_bottleneck_is_of_its_own_log_odds(bottleneck):
    outputs = LgscOutputs(
        cue=torch.zeros(2, 3, 4, 4),
        features=tuple(torch.ones(2, 2, 1, 1) for _ in range(5)),
        raw_score=torch.tensor([2.5, 22.5]),
        class_logits=torch.zeros(2, 2),
    )
    terms = bottleneck.loss_terms(outputs, FaceBatch(torch.empty(0), torch.tensor([0, 1])))
    assert terms["score"].item() == pytest.approx(3 * math.log1p(math.exp(2.5)) / 2, rel=1e-5)


def test_pictures_that_are_only_scored_share_the_statistics_of_those_that_are_drawn(bottleneck):
    dark, bright = torch.randn(2, 3, 32, 32) - 3, torch.randn(2, 3, 32, 32) + 3
    network = copy.deepcopy(bottleneck).train()
    with torch.no_grad():
        together, outputs = network.partly(torch.cat([dark, bright]), 2)
        alone, _ = network.partly(dark, 2)
    torch.testing.assert_close(outputs.raw_score, together[:2])
    assert outputs.cue.shape == (2, 3, 32, 32)
    assert outputs.class_logits.shape == (2, 2)
    assert not torch.allclose(alone, together[:2], atol=0.01)


@pytest.mark.parametrize("score", ["cue", "classifier"])
def test_without_a_bottleneck_the_log_odds_are_those_of_the_whole_network(score):
    torch.manual_seed(0)
    model = Lgsc(LgscConfig(score=score, size_px=32)).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        whole = model(images)
        log_odds, first = model.partly(images, 2)
    torch.testing.assert_close(log_odds, model.attack_logit(whole))
    torch.testing.assert_close(first.cue, whole.cue[:2])


def test_pixels_may_have_the_scale_that_the_encoder_was_trained_with():
    images = torch.tensor([0.0, 100.0, 255.0]).expand(1, 3, 3)[..., None]
    official, imagenet = (
        Lgsc(LgscConfig(pixels=pixels, size_px=32)).normalise(images).flatten()[:3].tolist()
        for pixels in ("official", "imagenet")
    )
    assert official == pytest.approx([-1.25, 0.0, 1.9375])
    assert imagenet == pytest.approx([-127 / 128, -27 / 128, 1.0])


@pytest.fixture(scope="module")
def staged():
    torch.manual_seed(0)
    options = {"encoder": "mobilefacenet", "decoder_widths": (8, 8, 8, 8, 8), "size_px": 80}
    return Lgsc(LgscConfig(score="bottleneck", decoder_norm="batch", **options)).eval()


def test_the_places_of_mobilefacenet_add_up_to_the_log_odds(staged):
    with torch.no_grad():
        staged.decision.weight[1] *= -3  # kinds of attack that disagree
        outputs = staged(3 * torch.randn(4, 3, 80, 80))
        by_kind = staged.decision(staged.head(outputs.features[0]))
    assert outputs.local_evidence.shape == (4, 1, 5, 5)
    torch.testing.assert_close(outputs.local_evidence.sum((1, 2, 3)), outputs.raw_score)
    torch.testing.assert_close(outputs.raw_score.exp(), by_kind.exp().sum(1))
    assert outputs.local_evidence.std() > 0


def test_its_stages_have_the_shapes_of_minifasnets(staged):
    teacher = build_model("minifasnet", {}).eval()
    shapes = []
    for model in (staged, teacher):
        x = torch.zeros(1, 3, 80, 80)
        made = [x := stage(x) for stage in model.stages()]
        shapes.append([tuple(m.shape) for m in made])
    assert shapes[0] == shapes[1]


def test_an_encoder_that_halves_five_times_needs_a_multiple_of_32_and_has_no_stages():
    with pytest.raises(ValueError, match=r"size_px is 80; .*efficientnet_lite0 needs a multiple"):
        LgscConfig(encoder="efficientnet_lite0", size_px=80)
    with pytest.raises(ValueError, match="is a chain of stages; found resnet18, cue"):
        Lgsc(LgscConfig(size_px=32)).stages()
