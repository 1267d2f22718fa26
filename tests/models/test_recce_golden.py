"""RECCE against numbers from running the official code and DeepfakeBench's (tests/golden)."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models import FaceBatch, import_state_dict
from models.recce import Recce, RecceConfig, RecceOutputs, metric_loss

pytestmark = pytest.mark.golden

# module of ours -> tap of the READMEs: the module's output
TAPS = {
    "encoder.block1": "tap.enc_block1",
    "encoder.block3": "tap.enc_block3",
    "encoder.block4": "tap.enc_block4",
    "encoder.block7": "tap.enc_block7",
    "encoder.block8": "tap.enc_block8",
    "encoder.block12": "tap.enc_block12",
    "decoder1": "tap.dec1",
    "decoder2": "tap.dec2",
    "decoder4": "tap.dec4",
    "decoder5": "tap.dec5",
    "decoder6": "tap.dec6_tanh",
    "reasoning": "tap.graph_out",
}


class _Case:
    """A network with a golden folder's weights, and what it makes of the folder's images."""

    def __init__(self, golden):
        self.golden = golden
        # Both layouts set the options: 1 logit at 299 px, 2 at 256.
        self.model = import_state_dict("recce", golden.state())
        seen = {}  # module -> inputs and output
        for name in (*TAPS, "encoder.bn4", "attention", "fc"):
            self.model.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, name=name: seen.update({name: (inputs, output)})
            )
        with torch.inference_mode():
            self.outputs = self.model(golden.images(golden.io["input_shape"]))
        score = torch.sigmoid(self.model.attack_logit(self.outputs))
        self.found = {tap: seen[module][1] for module, tap in TAPS.items()} | {
            "tap.enc_act4": F.relu(seen["encoder.bn4"][1]),
            "tap.guided": seen["attention"][1][0],
            "tap.res_map": self.outputs.attention,
            "feat": seen["fc"][0][0],
            "logits": self.outputs.logits,
            "score": score.reshape(golden.io["score.shape"].tolist()),
            "recon": self.outputs.reconstruction,
            **{f"corr{i}": s for i, s in enumerate(self.outputs.similarities)},
        }


@pytest.fixture(scope="module", params=["recce", "recce_dfb"])
def case(golden, request):
    return _Case(golden(request.param))


def test_every_tap_and_output_equals_the_original_one(case):
    stored = [name.removesuffix(".shape") for name in case.golden.io if name.endswith(".shape")]
    for name in stored:
        case.golden.check(name, case.found[name])


def test_every_loss_term_of_the_whole_network_equals_the_original_one(case):
    stored = case.golden.losses
    images = case.golden.images(stored["net.input_shape"], seed=int(stored["net.input_seed"]))
    labels = torch.from_numpy(stored["net.labels"])
    with torch.inference_mode():
        outputs = case.model(images)
        terms = case.model.loss_terms(outputs, FaceBatch(torch.empty(0), labels))
    np.testing.assert_allclose(outputs.logits, stored["net.logits"], rtol=1e-5)
    for i, found in enumerate(outputs.similarities):
        np.testing.assert_allclose(found, stored[f"net.corr{i}"], atol=1e-6)
        np.testing.assert_allclose(
            metric_loss(found, labels == 0), stored[f"net.metric_tap{i}"], rtol=2e-6
        )
    np.testing.assert_allclose(terms["classification"], stored["net.cls_flooded"], rtol=1e-5)
    np.testing.assert_allclose(terms["metric"], 0.1 * stored["net.metric"], rtol=2e-6)
    np.testing.assert_allclose(terms["reconstruction"], 0.1 * stored["net.recons"], rtol=1e-5)
    np.testing.assert_allclose(sum(terms.values()), stored["net.total"], rtol=1e-5)


@pytest.mark.parametrize(
    ("pattern", "labels"),
    [
        ("alt", [0, 1, 0, 1, 0, 1]),
        ("allreal", [0, 0, 0, 0, 0, 0]),
        ("allfake", [1, 1, 1, 1, 1, 1]),
        ("onereal", [0, 1, 1, 1, 1, 1]),
    ],
)
def test_the_loss_of_stored_tensors_equals_the_original_one(golden, pattern, labels):
    stored = golden("recce").losses
    labels = torch.tensor(labels)
    correlations = torch.from_numpy(stored["syn.corr"])
    found = sum(metric_loss(s, labels == 0) for s in correlations)
    np.testing.assert_allclose(found, stored[f"syn.metric.{pattern}"], rtol=2e-6)
    x, drawn, small = (torch.from_numpy(stored[f"syn.{n}"]) for n in ("x", "recon", "recon_small"))
    enlarged = F.interpolate(small, x.shape[-2:], mode="bilinear", align_corners=True)
    model = Recce(RecceConfig(size_px=64, weight_reconstruction=1))
    for reconstruction, name in ((drawn, "recons"), (enlarged, "recons_small")):
        outputs = RecceOutputs(
            logits=torch.zeros(6, 1),
            reconstruction=reconstruction,
            error=(x - reconstruction).abs(),
            attention=torch.empty(0),
            features=(torch.ones(6, 2, 1, 1),) * 3,
        )
        terms = model.loss_terms(outputs, FaceBatch(torch.empty(0), labels))
        np.testing.assert_allclose(
            terms["reconstruction"], stored[f"syn.{name}.{pattern}"], rtol=2e-6
        )
