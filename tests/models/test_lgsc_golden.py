"""LGSC against numbers from running the official code (tests/golden/lgsc)."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from models import FaceBatch
from models._losses import asymmetric_triplet
from models.lgsc import Lgsc, LgscConfig, LgscOutputs, bona_fide_cue, from_official

GOLDEN = Path(__file__).parents[1] / "golden" / "lgsc"
pytestmark = pytest.mark.golden


def _filled(key, shape):
    """The fill rule of the golden folder's README."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    if key.endswith("_variance"):
        return rng.uniform(0.5, 1.5, shape)
    if key.endswith("_mean"):
        return 0.1 * rng.standard_normal(shape)
    if len(shape) >= 2:
        return rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    if key.endswith("weight"):
        return rng.uniform(0.5, 1.5, shape)
    return 0.1 * rng.standard_normal(shape)


def _input(seed, shape):
    rng = np.random.Generator(np.random.PCG64(int(seed)))
    return torch.from_numpy(rng.standard_normal(tuple(shape)).astype(np.float32))


@pytest.fixture(scope="module")
def model():
    keys = json.loads((GOLDEN / "keys.json").read_text())
    state = {k: torch.from_numpy(_filled(k, s).astype(np.float32)) for k, s, *_ in keys}
    lgsc = Lgsc(LgscConfig())
    missing, unexpected = lgsc.load_state_dict(from_official(state), strict=False)
    assert not unexpected
    assert all(k.startswith("calibration.") or k.endswith("num_batches_tracked") for k in missing)
    return lgsc.eval()


@pytest.fixture(scope="module")
def io():
    return np.load(GOLDEN / "io.npz")


@pytest.fixture(scope="module")
def outputs(model, io):
    with torch.inference_mode():
        return model(_input(io["input_seed"], io["input_shape"]))


def test_every_encoder_and_decoder_map_equals_the_official_one(model, io, outputs):
    with torch.inference_mode():
        taps = model.encoder(_input(io["input_seed"], io["input_shape"]))
    maps = {f"enc{i}": t for i, t in enumerate(taps)}
    maps |= {f"dec{i}": t for i, t in enumerate(outputs.features)}
    for name, found in maps.items():
        assert tuple(found.shape) == tuple(io[f"{name}_shape"])
        pooled = found.double().mean(dim=(2, 3)).numpy()
        scale = np.abs(io[f"{name}_gap64"]).max()
        np.testing.assert_allclose(
            pooled, io[f"{name}_gap64"], rtol=1e-4, atol=1e-4 * scale, err_msg=name
        )
        steps = tuple(slice(None, None, int(s)) for s in io[f"{name}_sample_strides"])
        limit = 3e-4 * max(1.0, float(np.abs(io[f"{name}_sample"]).max()) / 10)
        np.testing.assert_allclose(found[steps].numpy(), io[f"{name}_sample"], atol=limit, rtol=0)


def test_cue_and_score_equal_the_official_ones(io, outputs):
    steps = tuple(slice(None, None, int(s)) for s in io["dec5_sample_strides"])
    np.testing.assert_allclose(outputs.cue[steps].numpy(), io["dec5_sample"], atol=3e-4, rtol=0)
    np.testing.assert_allclose(outputs.raw_score.numpy(), io["attack_score_f64"], atol=1e-5, rtol=0)


def test_a_crop_that_is_not_square_scores_as_in_the_official_code(model, io):
    with torch.inference_mode():
        found = model(_input(io["alt_seed"], io["alt_shape"]))
    np.testing.assert_allclose(found.raw_score.item(), io["alt_attack_score_f64"], atol=1e-5)


def test_auxiliary_logits_equal_the_official_ones_with_the_classes_swapped(model, io, outputs):
    images = _input(io["input_seed"], io["input_shape"])
    with torch.inference_mode():
        logits = model.classifier(images + outputs.cue)
    expected = io["aux_logits_f64"][:, ::-1]  # official column 1 = live, ours = attack
    np.testing.assert_allclose(logits.numpy(), expected, atol=1e-5 * np.abs(expected).max())


def test_regression_and_triplet_terms_of_the_whole_graph_equal_the_official_ones(model):
    golden = np.load(GOLDEN / "losses.npz")
    labels = torch.from_numpy(1 - golden["labels"])  # official 1 = live
    with torch.inference_mode():
        found = model(_input(golden["input_seed"], golden["input_shape"]))
    terms = model.loss_terms(
        found._replace(class_logits=torch.zeros(len(labels), 2)),
        FaceBatch(torch.empty(0), labels),
    )
    np.testing.assert_allclose(terms["regression"], golden["e2e_loss_reg_f64"], rtol=1e-4)
    np.testing.assert_allclose(terms["triplet"], golden["e2e_loss_tir_f64"], rtol=1e-4)


def test_each_loss_term_on_synthetic_tensors_equals_the_official_one(model):
    golden = np.load(GOLDEN / "losses.npz")
    rng = np.random.Generator(np.random.PCG64(int(golden["unit_seed"])))
    maps = [rng.standard_normal((6, c, 2, 2)) + 0.5 for c in (512, 256, 128, 64, 64)]
    cue = np.tanh(rng.standard_normal((6, 3, 16, 16)))
    labels = torch.from_numpy(1 - golden["labels"])
    outputs = LgscOutputs(
        cue=torch.from_numpy(cue.astype(np.float32)),
        features=tuple(torch.from_numpy(m.astype(np.float32)) for m in maps),
        raw_score=torch.empty(6),
        class_logits=torch.from_numpy(golden["unit_logits"][:, ::-1].copy()),
    )
    terms = model.loss_terms(outputs, FaceBatch(torch.empty(0), labels))
    np.testing.assert_allclose(terms["classification"], golden["unit_loss_cls_f64"], rtol=1e-4)
    np.testing.assert_allclose(terms["regression"], golden["unit_loss_reg_f64"], rtol=1e-4)
    np.testing.assert_allclose(terms["triplet"], golden["unit_loss_tir_f64"], rtol=1e-4)
    levels = [asymmetric_triplet(f.mean(dim=(2, 3)), labels == 0, 0.5) for f in outputs.features]
    np.testing.assert_allclose(levels, golden["unit_triplet_per_level_f64"], rtol=1e-4)
    assert bona_fide_cue(outputs.cue, labels == 0) * 5 == pytest.approx(terms["regression"])


def test_normalisation_equals_the_official_one(model):
    golden = np.load(GOLDEN / "preprocess.npz")
    rng = np.random.Generator(np.random.PCG64(int(golden["img_seed"])))
    bgr = rng.integers(0, 256, tuple(golden["img_shape"]), dtype=np.uint8)
    rgb = torch.from_numpy(bgr[..., ::-1].copy()).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(
        rgb.float(), (224, 224), mode="bilinear", align_corners=False
    )
    found = model.normalise(resized.round())[0, :, ::4, ::4].numpy()
    # Half a grey level: the official resize rounds in fixed point.
    np.testing.assert_allclose(found, golden["out_sample"], atol=1 / 80 + 1e-6, rtol=0)
