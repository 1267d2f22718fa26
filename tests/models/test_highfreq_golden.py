"""HighFreq against numbers from running both original codes (tests/golden/highfreq*)."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models import import_state_dict
from models.highfreq import CosineHead, am_softmax

pytestmark = pytest.mark.golden

# Folder -> what upstream calls block 8 to 12 (or 8 to 11) and the tail.
LAST_PARTS = {"highfreq": ("block11", "bn4"), "highfreq_dfb": ("block12", "bn4")}


@pytest.fixture(scope="module", params=LAST_PARTS)
def run(request, golden):
    """The folder, the network's outputs and its inner maps by the names of the folder's README."""
    folder = golden(request.param)
    model = import_state_dict("highfreq", folder.state())
    taps = {}

    def tap(name, module, transform=lambda output: output):
        def keep(_module, _inputs, output):
            # The image filter runs twice; the first result is the residual.
            taps.setdefault(name, transform(output))

        module.register_forward_hook(keep)

    tap("srm0", model.srm_conv0)
    tap("srm1", model.srm_conv1)
    tap("srm2", model.srm_conv2)
    tap("att_map", model.srm_sa)
    tap("rgb_part1", model.srm_sa_post)
    tap("rgb_fea_part1_0", model.xception_rgb.bn1, F.relu)
    tap("hf_fea_part1_0", model.xception_srm.bn1, F.relu)
    for stream, xception in (("rgb", model.xception_rgb), ("hf", model.xception_srm)):
        parts = ("block3", "block7", *LAST_PARTS[request.param])
        for number, block in enumerate(parts, start=2):
            tap(f"{stream}_fea_part{number}", xception.get_submodule(block))
    for i, attention in enumerate((model.dual_cma0, model.dual_cma1)):
        tap(f"cma{i}_rgb", attention, lambda output: output[0])
        tap(f"cma{i}_hf", attention, lambda output: output[1])
    tap("fusion", model.fusion)
    with torch.inference_mode():
        outputs = model(folder.images((2, 3, 256, 256)))
        score = torch.sigmoid(model.attack_logit(outputs))
    return folder, outputs, score, taps


def test_every_inner_map_equals_the_original_one(run):
    folder, _, _, taps = run
    stored = {n.split(".")[1] for n in folder.io.files if n.startswith("tap.")}
    assert stored == taps.keys()
    for name, found in taps.items():
        folder.check(f"tap.{name}", found)


def test_every_output_equals_the_original_one(run):
    folder, outputs, score, _ = run
    folder.check("logits", outputs.logits)
    folder.check("pooled", outputs.pooled)
    folder.check("att_map", outputs.attention)
    if "feat.shape" in folder.io:
        folder.check("feat", outputs.fused)
    np.testing.assert_allclose(score, folder.io["score"], rtol=1e-5)


@pytest.mark.parametrize("name", LAST_PARTS)
def test_every_loss_equals_the_original_one(golden, name):
    folder = golden(name)
    stored = folder.losses
    cosines, labels = torch.from_numpy(stored["cos"]), torch.from_numpy(stored["labels"])
    settings = {
        "am_cos_m0.45_s30": {"margin": 0.45},
        "am_cos_m0.5_s30": {"margin": 0.5},
        "am_cos_m0.35_s30": {"margin": 0.35},
        "am_arc_m0.5_s30": {"margin": 0.5, "form": "arc"},
        "am_cos_m0.5_s30_gamma2": {"margin": 0.5, "focal_gamma": 2},
    }
    for key, options in settings.items():
        found = am_softmax(cosines, labels, scale=30, **options)
        np.testing.assert_allclose(found, stored[key], rtol=1e-6, err_msg=key)
    logits = torch.from_numpy(folder.io["logits"])
    found = am_softmax(logits, torch.tensor([0, 1]), margin=0.45, scale=30)
    np.testing.assert_allclose(found, stored["am_cos_m0.45_s30_on_logits"], rtol=1e-6)
    found = am_softmax(logits, torch.tensor([0, 1]), margin=0, scale=1)
    np.testing.assert_allclose(found, stored["ce_on_logits"], rtol=1e-6)


def test_the_cosine_head_equals_the_official_one(golden):
    stored = golden("highfreq").losses
    head = CosineHead(16)
    head.weight.data = torch.from_numpy(stored["angle_weight"].T.astype(np.float32))
    found = head(torch.from_numpy(stored["angle_feat"].astype(np.float32)))
    np.testing.assert_allclose(found.detach(), stored["angle_cos"], atol=1e-6)
    loss = am_softmax(found, torch.from_numpy(stored["labels"]), margin=0.5, scale=30)
    np.testing.assert_allclose(loss.item(), stored["am_cos_m0.5_s30_on_angle"], rtol=1e-6)
