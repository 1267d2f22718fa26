"""What every method promises, checked for each variant of each."""

import copy

import pytest
import torch

from models import (
    AdaptableModel,
    DistilledModel,
    FaceBatch,
    StagedModel,
    StagedStudent,
    build_model,
    method_names,
)
from trt_engines.export import export_engine

# Small sizes: the contract does not depend on them.
VARIANTS: dict[str, list[dict[str, object]]] = {
    "fghv": [
        {"size_px": 64, "backbone": "depthnet3", "hypotheses": 8, "refinement_steps": 2},
        {"size_px": 64, "hypotheses": 8, "refinement_steps": 2, "rcc": "logistic"},
        {"size_px": 64, "backbone": "resnet18", "hypotheses": 8, "refinement_steps": 2},
    ],
    "lgsc": [
        {"size_px": 64},
        {
            "size_px": 64,
            "encoder": "efficientnet_lite0",
            "decoder_widths": [16, 16, 8, 8, 8],
            "decoder_norm": "batch",
            "score": "classifier",
            "weight_score": 1.0,
        },
        {
            "size_px": 64,
            "encoder": "efficientnet_lite0",
            "decoder_widths": [8, 8, 8, 8, 8],
            "decoder_norm": "batch",
            "score": "bottleneck",
            "weight_score": 1.0,
            "margin": 2.7,
            "window": "inside",
        },
        {
            "size_px": 80,
            "encoder": "mobilefacenet",
            "decoder_widths": [8, 8, 8, 8, 8],
            "decoder_norm": "batch",
            "score": "bottleneck",
            "weight_score": 1.0,
        },
    ],
    "highfreq": [
        {"size_px": 64},
        {
            "size_px": 96,
            "encoder": "efficientnet_lite0",
            "fusion_residual": False,
            "head": "cosine",
            "am_form": "arc",
            "focal_gamma": 2.0,
        },
        {"size_px": 64, "encoder": "efficientnet_lite0"},
    ],
    "minifasnet": [{}, {"variant": "v1se"}],
    "recce": [{"size_px": 64}, {"size_px": 64, "num_classes": 2}],
    "udr": [
        # Two frequency branches of 24, one of them strided: the others hold 108 M weights.
        {
            "size_px": 64,
            "pruned": [f"trunk._blocks.{block}._depthwise_conv" for block in range(8, 30)],
        },
        {"trunk": "resnet18", "size_px": 64},
        {
            "trunk": "resnet50",
            "size_px": 64,
            "pruned": [
                *(f"trunk.layer2.{block}.conv2" for block in (1, 2, 3)),
                *(f"trunk.layer3.{block}.conv2" for block in range(6)),
            ],
        },
    ],
}
SMALL: dict[str, dict[str, object]] = {
    "highfreq": {"size_px": 64, "encoder": "efficientnet_lite0"},
    "udr": {"trunk": "resnet18", "size_px": 64},
}
# By the commands that train and import them, which refuse a graph that differs from torch.
EXPORTED_ELSEWHERE = {"lgsc", "minifasnet"}
CASES = [(name, options) for name in method_names() for options in VARIANTS[name]]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case[0])
def variant(request):
    """Name, options and network; not to be changed: drawing the weights is most of the work."""
    name, options = request.param
    return name, options, _build(name, options).eval()


@pytest.fixture
def trained(variant):
    """A copy of the network to be trained."""
    return copy.deepcopy(variant[-1]).train()


@pytest.fixture
def model(variant):
    """The network in eval mode; not to be changed."""
    return variant[-1]


def _faces(model, n, seed=0):
    size = model.input_spec.size_px
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)


def _build(name, options):
    torch.manual_seed(0)
    return build_model(name, options)


def _terms(model, images, labels):
    return model.loss_terms(model(model.normalise(images)), FaceBatch(images, labels))


def test_every_parameter_gets_a_gradient(trained):
    for p in trained.parameters():
        if p.numel() == 1 and p.item() == 0:
            torch.nn.init.constant_(p, 0.1)  # a gate that starts closed hides what lies behind it
    terms = _terms(trained, _faces(trained, 6), torch.tensor([0, 1, 0, 1, 0, 1]))
    torch.stack(list(terms.values())).sum().backward()
    without = [
        key
        for key, p in trained.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    assert without == []


def test_every_loss_term_reacts_to_the_images(trained):
    labels = torch.tensor([0, 1, 0, 1])
    first = _terms(trained, _faces(trained, 4, seed=1), labels)
    second = _terms(trained, _faces(trained, 4, seed=2), labels)
    assert all(not torch.equal(first[key], second[key]) for key in first)


def test_every_loss_term_is_finite_for_one_sided_and_small_batches(trained):
    for labels in ([0], [1], [0, 0, 0], [1, 1, 1], [1, 0, 0]):
        trained.zero_grad()
        terms = _terms(trained, _faces(trained, len(labels)), torch.tensor(labels))
        assert all(torch.isfinite(term) for term in terms.values()), labels
        torch.stack(list(terms.values())).sum().backward()
        gradients = [p.grad for p in trained.parameters() if p.grad is not None]
        assert all(torch.isfinite(gradient).all() for gradient in gradients), labels


def test_a_face_alone_scores_as_in_a_batch(model):
    images = model.normalise(_faces(model, 3))
    with torch.inference_mode():
        together = model.attack_logit(model(images))
        alone = torch.cat([model.attack_logit(model(image[None])) for image in images])
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-4)


def test_eval_mode_is_deterministic(model):
    images = model.normalise(_faces(model, 2))
    with torch.inference_mode():
        assert torch.equal(model.attack_logit(model(images)), model.attack_logit(model(images)))


def test_the_explanation_lies_in_0_to_1_and_has_one_channel(model):
    with torch.inference_mode():
        found = model.explanation(model(model.normalise(_faces(model, 2))))
    assert found.shape[:2] == (2, 1)
    assert 0 <= found.min() <= found.max() <= 1


def test_a_state_dict_survives_a_round_trip(variant):
    name, options, model = variant
    torch.manual_seed(1)
    other = build_model(name, options).eval()
    images = model.normalise(_faces(model, 2))
    with torch.inference_mode():
        expected = model.attack_logit(model(images))
        assert not torch.equal(other.attack_logit(other(images)), expected)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other.attack_logit(other(images)), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside torch's exporter
@pytest.mark.parametrize("name", sorted({*method_names()} - EXPORTED_ELSEWHERE))
def test_the_exported_graph_equals_torch(name, tmp_path):
    options = SMALL.get(name, VARIANTS[name][0])  # `make check-engines` exports them all
    model = _build(name, options).eval()
    manifest = export_engine(
        model,
        method=name,
        options=options,
        examples=_faces(model, 3),
        folder=tmp_path,
        licence="test",
        thresholds=None,
        with_weights=False,
    )
    assert manifest.onnx_torch_max_abs <= 1e-4


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown method 'lgcs'.*lgsc"):
        build_model("lgcs", {})


def test_an_unknown_option_is_refused():
    with pytest.raises(ValueError, match="sise_px"):
        build_model("lgsc", {"sise_px": 64})


def test_what_serves_teaching_and_adapting_gives_the_log_odds_of_the_whole(trained):
    network = trained.eval()
    images = network.normalise(_faces(network, 2))
    with torch.no_grad():
        whole = network.attack_logit(network(images))
        if isinstance(network, DistilledModel):
            log_odds, first = network.partly(images, 1)
            torch.testing.assert_close(log_odds, whole)
            torch.testing.assert_close(network.attack_logit(first), whole[:1])
            assert network.partly(images, 0)[1] is None
        if isinstance(network, AdaptableModel) and network.last_layer() is not None:
            features = network.last_features(images)
            assert features.ndim == 2
            torch.testing.assert_close(network.logit_of_features(features), whole)
            next(network.last_layer().parameters()).zero_()
            assert not torch.allclose(network.attack_logit(network(images)), whole)


def test_a_chain_of_stages_gives_the_log_odds_of_the_whole(model):
    images = model.normalise(_faces(model, 2))
    with torch.no_grad():
        whole = model.attack_logit(model(images))
        maps = [images]
        for stage in _stages(model):
            maps.append(stage(maps[-1]))
        if len(maps) > 1:
            torch.testing.assert_close(model.logit_of_features(maps[-1]), whole)
        if len(maps) > 1 and isinstance(model, StagedStudent):
            together, log_odds, first = model.partly_in_stages(images, 1)
            torch.testing.assert_close(list(together), maps[1:])
            torch.testing.assert_close(log_odds, whole)
            torch.testing.assert_close(model.attack_logit(first), whole[:1])


def _stages(model):
    """Return the stages, none where the network, or with these options, is no chain of them."""
    try:
        return model.stages() if isinstance(model, StagedModel) else ()
    except ValueError:
        return ()
