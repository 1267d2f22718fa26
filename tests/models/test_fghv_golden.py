"""FGHV's backbone against the laboratory's code, and its equations against our specification.

Both lie in tests/golden/fghv. No official FGHV code exists: `spec_oracle.npz` is a second
evaluation of ../shared/methods/fghv.md, and proves nothing about the paper.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models import FaceBatch, import_state_dict
from models.fghv import (
    Fghv,
    FghvConfig,
    FghvOutputs,
    cosines,
    latent_divergence,
    population_variance,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "fghv"
pytestmark = pytest.mark.golden


@pytest.mark.parametrize("channels", [3, 6])
def test_the_backbone_imported_from_anrl_gives_the_official_maps_and_feature(channels, fill):
    folder = GOLDEN / f"backbone_in{channels}"
    keys = json.loads((folder / "keys.json").read_text())
    state = {key: fill(key, shape, 2) for key, shape, *_ in keys}
    io = np.load(folder / "io.npz")
    for (key, *_), total in zip(keys, io["fill_abssum"], strict=True):
        assert state[key].double().abs().sum().item() == pytest.approx(total, rel=1e-6), key
    model = import_state_dict("fghv", state, backbone=f"depthnet{channels}")
    rng = np.random.Generator(np.random.PCG64(int(io["input_seed"])))
    images = rng.standard_normal(tuple(io["input_shape"])).astype(np.float32)
    taps = {}
    model.backbone.embedder.register_forward_pre_hook(lambda _, inputs: taps.update(cat=inputs[0]))
    with torch.inference_mode():
        down1, down2, down3, top = model.backbone(torch.from_numpy(images))
    for name, found in {**taps, "down1": down1, "down2": down2, "down3": down3}.items():
        assert tuple(found.shape) == tuple(io[f"{name}_shape"])
        steps = tuple(slice(None, None, int(s)) for s in io[f"{name}_sample_strides"])
        np.testing.assert_allclose(
            found[steps].numpy(), io[f"{name}_sample"], rtol=0, atol=2e-4, err_msg=name
        )
        pooled = found.double().mean(dim=(2, 3)).numpy()
        np.testing.assert_allclose(pooled, io[f"{name}_gap64"], rtol=0, atol=1e-5, err_msg=name)
    feature = top.mean(dim=(2, 3)).numpy()
    np.testing.assert_allclose(feature, io["f_f64"], rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def oracle():
    return np.load(GOLDEN / "spec_oracle.npz")


@pytest.fixture(scope="module")
def model(oracle, fill):
    """FGHV with the generators of the oracle; the backbone takes no part."""
    config = FghvConfig(
        backbone="resnet18",
        hypotheses=int(oracle["K"]),
        refinement_steps=int(oracle["T"]),
        refinement_rate=float(oracle["ETA"]),
        temperature=float(oracle["TAU"]),
    )
    model = Fghv(config).eval()
    keys = json.loads((GOLDEN / "spec_keys.json").read_text())
    state = {key: fill(key, shape, 2) for key, shape, *_ in keys}
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    model.latents.z.copy_(torch.from_numpy(oracle["z"]))
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def outputs(model, oracle):
    real, attack = model.rf_fgn(model.latents()), model.ka_fgn(model.latents())
    feature = torch.from_numpy(oracle["f"])
    cg, ch = cosines(feature, real), cosines(feature, attack)
    return FghvOutputs(
        feature_map=feature[..., None, None],
        feature=feature,
        real_hypotheses=real,
        attack_hypotheses=attack,
        real_cosines=cg,
        attack_cosines=ch,
        margin=cg.mean(dim=1) - ch.mean(dim=1),
        variance=population_variance(cg, 1),
    )


def test_hypotheses_cosines_and_fast_score_equal_the_oracle(model, outputs, oracle):
    found = {
        "g": outputs.real_hypotheses,
        "h": outputs.attack_hypotheses,
        "cg": outputs.real_cosines,
        "ch": outputs.attack_cosines,
        "margin": outputs.margin,
        "var": outputs.variance,
        "score_fast": torch.sigmoid(model.attack_logit(outputs)),
    }
    for name, value in found.items():
        np.testing.assert_allclose(value, oracle[name], rtol=1e-6, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(outputs.variance, oracle["var"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("form", ["linear", "logistic"])
def test_every_loss_term_equals_the_oracle(model, outputs, oracle, form):
    judged = Fghv(model.config.model_copy(update={"rcc": form}))
    batch = FaceBatch(torch.empty(0), torch.from_numpy(oracle["labels"]))
    terms = judged.loss_terms(outputs, batch)
    assert terms["variance"].item() == pytest.approx(float(oracle["loss_var"]), rel=1e-5)
    assert terms["correlation"].item() == pytest.approx(float(oracle[f"loss_rcc_{form}"]), abs=1e-6)
    assert terms["discrimination"].item() == pytest.approx(float(oracle["loss_ddc"]), abs=1e-6)


def test_the_refined_latents_and_their_divergences_equal_the_oracle(model, outputs, oracle):
    features = model.refinement_features(outputs)
    real = model.refined_latents(model.rf_fgn, features)
    attack = model.refined_latents(model.ka_fgn, features)
    np.testing.assert_allclose(real[..., :16], oracle["z_real_refined"], rtol=0, atol=1e-4)
    for name, latents in {"kl_real": real, "kl_attack": attack}.items():
        np.testing.assert_allclose(latent_divergence(latents), oracle[name], atol=1e-6)
    evidence = model.evidence(features).T
    for name, found in zip(("margin", "delta_kl"), (evidence[0], evidence[2]), strict=True):
        np.testing.assert_allclose(found, oracle[name], rtol=0, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(evidence[1], np.log(oracle["var"] + 1e-6), rtol=0, atol=1e-5)
