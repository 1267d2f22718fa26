"""UDR against numbers from running the official code (tests/golden/udr_*)."""

import numpy as np
import pytest
import torch

from models import FaceBatch, import_state_dict
from models import _perturb as perturbations
from models.udr import mask_divergence, orthogonality, weighted_triplet

pytestmark = [pytest.mark.golden, pytest.mark.timeout(600)]

# Golden tap -> our module; its output, the first one of several.
SHARED_TAPS = {
    "freq_filtered": "attention.freq_filter",
    "spat_filtered": "attention.spat_filter",
    "att_out": "attention",
    "bottleneck": "bottleneck",
    "dec1": "decoder.0",
    "dec2": "decoder.1",
}
TAPS = {
    "udr_effb4": SHARED_TAPS
    | {
        "stem_bn": "trunk._bn0",
        "sfconv_block6": "trunk._blocks.6._depthwise_conv",
        "sfconv_block7": "trunk._blocks.7._depthwise_conv",
        "head_bn": "trunk._bn1",
        "dec3": "decoder.2",
        "att_in": "trunk._blocks.29",
    }
    | {f"stage{i}": f"trunk._blocks.{last}" for i, last in enumerate((1, 5, 9, 15, 21, 29, 31))},
    "udr_r18": SHARED_TAPS
    | {f"layer{i}": f"trunk.layer{i}" for i in (1, 2, 3)}
    | {
        "sfconv_layer2_0_conv2": "trunk.layer2.0.conv2",
        "sfconv_emb1_conv2": "trunk.emb_block1.conv2",
        "emb1": "trunk.emb_block1",
        "att_in": "trunk.emb_block1",
        "emb2": "trunk.emb_block2",
    },
}


@pytest.fixture(scope="module", params=list(TAPS))
def case(request, golden):
    numbers = golden(request.param)
    return request.param, numbers, import_state_dict("udr", numbers.state())


def _run(model, images, taps, clean=None):
    found = {}
    hooks = [
        model.get_submodule(module).register_forward_hook(
            lambda _, __, output, tap=tap: found.__setitem__(
                tap, output[0] if isinstance(output, tuple) else output
            )
        )
        for tap, module in taps.items()
    ]
    with torch.inference_mode():
        outputs = model(images, clean)
    for hook in hooks:
        hook.remove()
    return outputs, found


def test_every_tap_and_output_equals_the_official_one(case):
    name, numbers, model = case
    images = numbers.images(tuple(numbers.io["input_shape"]))
    outputs, found = _run(model, images, TAPS[name])
    for tap, value in found.items():
        numbers.check(f"tap.{tap}", value)
    if name == "udr_r18":
        with torch.inference_mode():
            numbers.check("tap.ext_feat", model.trunk.features(images))
    numbers.check("logits", outputs.logits)
    numbers.check("score", model.attack_logit(outputs).sigmoid())
    numbers.check("recon", outputs.reconstruction)
    numbers.check("freq_mask", outputs.frequency_mask)
    numbers.check("spat_mask", outputs.spatial_mask)
    numbers.check("embedding", outputs.embedding)
    for i, feature in enumerate(outputs.features):
        numbers.check(f"triplet{i}", feature)
    numbers.check("rec_spatial", outputs.error.mean(dim=(1, 2, 3)))
    numbers.check("rec_freq", model.frequency_error(outputs.reconstruction, images))
    assert numbers.worst.keys() == set(numbers.io["tol_names"].tolist())


def test_every_loss_term_of_both_passes_equals_the_official_one(case):
    _, numbers, model = case
    golden = numbers.losses
    images = numbers.images(tuple(golden["net.input_shape"]), int(golden["net.input_seed"]))
    batch = FaceBatch((images + 1) * 127.5, torch.from_numpy(golden["net.labels"]))
    # Official order: bona fide first. Ours is free, so the losses run on another one.
    order = torch.tensor([2, 0, 3, 1])
    mixed = FaceBatch(batch.images[order], batch.labels[order])
    with torch.inference_mode():
        clean = model(images[order])
        second = model(perturbations.coarse(images[order]), images[order])
        terms = model.loss_terms(clean, mixed)
        early = model.second_loss_terms(second, mixed, first=clean, progress=0.1)
        late = model.second_loss_terms(second, mixed, first=clean, progress=0.11)
    for stage, outputs in (("clean", clean), ("perturbed", second)):
        for field, stored in (
            (outputs.logits, "logits"),
            (outputs.frequency_mask, "freq_mask"),
            (outputs.spatial_mask, "spat_mask"),
            (outputs.embedding, "embedding"),
        ):
            want = golden[f"net.{stored}_{stage}"][order]
            limit = 1e-5 * np.abs(want).max()
            np.testing.assert_allclose(field, want, atol=limit, rtol=0, err_msg=stored)
    expected = {
        "classification": golden["net.early.cls_loss"],
        "triplet": 0.1 * golden["net.early.triplet_loss"],
        "reconstruction": 0.1 * golden["net.early.real_rec_loss"],
        "frequency": golden["net.early.real_freq_loss"],
    }
    for term, want in expected.items():
        np.testing.assert_allclose(terms[term], want, rtol=1e-5, err_msg=term)
    masks = golden["net.early.freq_mask_loss"] + golden["net.early.spat_mask_loss"]
    np.testing.assert_allclose(early["mask"], 0.1 * masks, rtol=1e-5)
    np.testing.assert_allclose(
        late["mask"],
        0.1 * (golden["net.late.freq_mask_loss"] + golden["net.late.spat_mask_loss"]),
        rtol=1e-3,
        atol=2e-8,  # with effb4 the two passes' masks differ by less than float32 resolves
    )
    np.testing.assert_allclose(
        early["orthogonality"], 0.1 * golden["net.early.fac_loss"], rtol=1e-4
    )
    for found, total in (
        (terms, "early.total_clean"),
        (early, "early.total_perturbed"),
        (late, "late.total_perturbed"),
    ):
        np.testing.assert_allclose(
            sum(found.values()), golden[f"net.{total}"], rtol=1e-5, err_msg=total
        )


def test_each_loss_on_small_tensors_equals_the_official_one(golden):
    numbers = golden("udr_r18").losses
    tensors = {name: torch.from_numpy(numbers[name]).float() for name in numbers if "syn." in name}
    bona_fide = torch.tensor([True] * 3 + [False] * 3)
    found = weighted_triplet(tensors["syn.triplet_feat"], bona_fide)
    np.testing.assert_allclose(found, numbers["syn.triplet"], rtol=1e-5)
    found = orthogonality(tensors["syn.fac_a"], tensors["syn.fac_b"])
    np.testing.assert_allclose(found, numbers["syn.fac"], rtol=1e-5)
    found = mask_divergence(tensors["syn.mask_pert"], tensors["syn.mask_clean"])
    np.testing.assert_allclose(found, numbers["syn.mask_kl"], rtol=1e-5)


def test_each_perturbation_equals_the_official_one(golden):
    numbers = golden("udr_r18").losses
    content, style = (torch.from_numpy(numbers[f"pert.{name}"]) for name in ("content", "style"))
    kept = torch.full((2, 1, 1, 1), 0.75, dtype=torch.float64)
    for name, found in (
        ("blur5", perturbations.blurred(content)),
        ("downscale075", perturbations.coarse(content)),
        ("freq_transfer", perturbations.amplitude_mixed(content, style, kept)),
        ("spat_transfer", perturbations.rank_mixed(content, style, kept)),
    ):
        np.testing.assert_allclose(found, numbers[f"pert.{name}"], atol=1e-12, err_msg=name)
