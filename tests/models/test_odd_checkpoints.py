"""What training scripts do to checkpoints: prefixes, things beside the weights, NaN."""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import models
from models import CheckpointError, build_model, import_checkpoint

METHODS = Path(__file__).parents[1] / "trt_engines" / "methods"
OPTIONS = {"width": 5}
pytestmark = pytest.mark.filterwarnings("ignore:Validating sparse")  # torch says it is slow


@pytest.fixture(autouse=True)
def tiny_method(monkeypatch):
    """Make `models.tiny` a method while a test runs: these checkpoints are written often."""
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(METHODS)])


@pytest.fixture
def network():
    torch.manual_seed(3)
    return build_model("tiny", OPTIONS).eval()


def assert_same(found, network):
    expected = network.state_dict()
    assert found.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.state_dict().items())


@pytest.mark.parametrize(
    "renamed",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: f"module.module.{name}",
        lambda name: f"model.{name}",
        lambda name: f"_orig_mod.model.{name}",
        lambda name: name.replace("first.", "first._orig_mod."),
    ],
    ids=lambda renamed: renamed("first.x"),
)
def test_names_that_compiling_and_parallel_training_left_are_read(network, renamed):
    state = {renamed(name): value for name, value in network.state_dict().items()}
    assert_same(models.import_state_dict("tiny", state, **OPTIONS), network)


def test_the_names_of_a_network_that_torch_compiled_are_read(network):
    compiled = torch.compile(network)
    assert any(name.startswith("_orig_mod.") for name in compiled.state_dict())
    assert_same(models.import_state_dict("tiny", compiled.state_dict(), **OPTIONS), network)


def test_an_averaged_networks_weights_are_read_without_its_counter(network):
    averaged = torch.optim.swa_utils.AveragedModel(network)
    assert_same(models.import_state_dict("tiny", averaged.state_dict(), **OPTIONS), network)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize(
    "beside",
    [
        np.random.RandomState(0).get_state(),
        np.arange(3, dtype=np.uint32),
        np.uint64(3),
        np.float16(0.5),
        np.array(["a", "b"]),
        np.array(["2020-01-01"], "M8[s]"),
        np.array([1j]),
        np.ones(2, np.longdouble),
        np.zeros(2, [("x", "f4"), ("n", "i4")]),
        np.ones(2, ">f4"),
        torch.eye(2).to_sparse(),
        torch.ones(2, dtype=torch.bfloat16),
        torch.get_rng_state(),
        argparse.Namespace(rate=1e-4, out=Path("runs")),
    ],
    ids=lambda value: str(getattr(value, "dtype", type(value).__name__)),
)
def test_what_training_scripts_keep_beside_the_weights_does_not_matter(
    network, beside, zipped, tmp_path
):
    path = tmp_path / "last.pth"
    content = {"model": {**network.state_dict(), "odd": beside}, "rng": beside, "step": 7}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert_same(models.load_checkpoint("tiny", path, **OPTIONS), network)


@pytest.mark.parametrize("order", ["<", ">"])
def test_arrays_of_either_byte_order_are_weights(network, order, tmp_path):
    path = tmp_path / "arrays.pth"
    arrays = {name: value.numpy() for name, value in network.state_dict().items()}
    torch.save({k: v.astype(v.dtype.newbyteorder(order)) for k, v in arrays.items()}, path)
    assert_same(models.load_checkpoint("tiny", path, **OPTIONS), network)


def test_sparse_and_half_weights_are_weights(network, tmp_path):
    state = {name: value.clone() for name, value in network.state_dict().items()}
    state["first.weight"] = state["first.weight"].to_sparse()
    state["first.bias"] = state["first.bias"].to(torch.bfloat16)
    path = tmp_path / "odd.pth"
    torch.save(state, path)
    found = models.load_checkpoint("tiny", path, **OPTIONS).state_dict()
    assert torch.equal(found["first.weight"], network.state_dict()["first.weight"])
    assert torch.equal(found["first.bias"], state["first.bias"].float())


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", ["first.weight", "norm.running_var", "calibration.slopes"])
def test_weights_that_are_not_finite_are_refused_by_name(network, number, suffix, name, tmp_path):
    state = {key: value.clone() for key, value in network.state_dict().items()}
    state[name].view(-1)[3] = number
    path = tmp_path / f"diverged{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        path.write_bytes(models.packed_weights(state, "tiny", OPTIONS))
    with pytest.raises(CheckpointError, match=rf"diverged.*{name}: 1 of \d+ numbers are NaN"):
        models.load_checkpoint("tiny", path, **OPTIONS)


def test_a_tensor_that_nothing_uses_may_hold_anything(network):
    state = {**network.state_dict(), "extra.weight": torch.full((1,), math.nan)}
    assert_same(models.import_state_dict("tiny", state, **OPTIONS), network)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        (lambda t: (100 * t).to(torch.int8), r"expected floating-point numbers, found torch\.int8"),
        (lambda t: t.to(torch.complex64), "expected floating-point numbers, found torch.complex64"),
        (lambda t: t.to("meta"), "expected plain numbers, found a meta tensor"),
    ],
    ids=["int8", "complex", "meta"],
)
def test_tensors_that_hold_no_weights_are_refused_by_name(network, changed, complaint):
    state = {**network.state_dict(), "first.bias": changed(network.state_dict()["first.bias"])}
    with pytest.raises(CheckpointError, match=rf"first.bias: {complaint}"):
        models.import_state_dict("tiny", state, **OPTIONS)


def test_an_option_that_the_method_does_not_have_is_named_on_one_line(network):
    with pytest.raises(CheckpointError) as caught:
        models.import_state_dict("tiny", network.state_dict(), widths=5)
    assert str(caught.value) == "options of tiny: widths: unknown key; did you mean 'width'?"


def test_the_same_weights_give_the_same_file_that_says_method_and_options(network, tmp_path):
    packed = models.packed_weights(network.state_dict(), "tiny", {"width": 5, "flaw": "none"})
    turned = dict(reversed(network.state_dict().items()))
    assert models.packed_weights(turned, "tiny", {"flaw": "none", "width": 5}) == packed
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(packed)
    imported = import_checkpoint("tiny", path)
    assert imported.options == {"width": 5, "flaw": "none"}
    assert_same(imported.model, network)


def test_files_of_before_with_method_and_options_apart_are_read(network, tmp_path):
    path = tmp_path / "tiny.safetensors"
    about = {"method": "tiny", "options": json.dumps(OPTIONS)}
    save_file(network.state_dict(), path, about)
    assert_same(models.load_checkpoint("tiny", path), network)
