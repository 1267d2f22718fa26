"""Checkpoints are recognised by their names, read without running code, and accounted for."""

import logging
import math
import pickle

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import models
from models import build_model, import_checkpoint, save_weights
from models.__main__ import main

SMALL = {"size_px": 64, "encoder": "resnet18", "decoder_widths": [8, 8, 8, 8, 8]}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(3)
    return build_model("lgsc", SMALL).eval()


@pytest.fixture
def image():
    return torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)


def _resnet18():
    from torchvision.models import resnet18

    torch.manual_seed(1)
    return resnet18(weights=None).state_dict()


def _same(a, b, image):
    with torch.inference_mode():
        assert torch.equal(a(image).raw_score, b(image).raw_score)


def test_our_own_safetensors_bring_their_options_back(network, image, tmp_path):
    path = tmp_path / "lgsc.safetensors"
    imported = import_checkpoint("lgsc", _saved(network, tmp_path / "raw.pth"), **SMALL)
    save_weights(path, imported)
    found = models.load_checkpoint("lgsc", path)
    assert found.config.decoder_widths == (8, 8, 8, 8, 8)
    assert not found.training
    _same(found, network, image)


def test_safetensors_of_another_method_are_refused(network, tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors", {"method": "recce"})
    with pytest.raises(models.CheckpointError, match=r"holds weights of 'recce'.*'lgsc'"):
        models.load_checkpoint("lgsc", tmp_path / "x.safetensors")


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "net"])
def test_weights_under_a_wrapper_with_a_module_prefix_are_found(network, image, wrapper, tmp_path):
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    path = tmp_path / "best.pth"
    torch.save({wrapper: state, "step": 7, "best_metric": np.float64(0.9)}, path)
    _same(models.load_checkpoint("lgsc", path, **SMALL), network, image)


def test_published_names_after_compiling_are_read(network, image):
    state = {f"module._orig_mod.{k}": v for k, v in _paddle_names(network.state_dict()).items()}
    _same(models.import_state_dict("lgsc", state, **SMALL), network, image)


def test_published_weights_that_are_not_finite_are_refused(network):
    official = _paddle_names(network.state_dict())
    official["backbone.conv1.weight"] = torch.full_like(official["backbone.conv1.weight"], math.nan)
    with pytest.raises(models.CheckpointError, match=r"conv1\.weight: (\d+) of \1 numbers are NaN"):
        models.import_state_dict("lgsc", official, **SMALL)


def test_a_state_dict_without_calibration_or_batch_counters_loads(network, image):
    state = {
        name: value
        for name, value in network.state_dict().items()
        if not name.startswith("calibration.") and not name.endswith("num_batches_tracked")
    }
    _same(models.import_state_dict("lgsc", state, **SMALL), network, image)


def test_the_official_paddle_names_load_with_the_classifier_turned(network, tmp_path):
    official = _paddle_names(network.state_dict())
    path = tmp_path / "epoch_12.pdparams"
    path.write_bytes(
        pickle.dumps({k: v.numpy() for k, v in official.items()} | {"Name@@": {}}, protocol=2)
    )
    found = models.load_checkpoint("lgsc", path, **SMALL).state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(found[name], value), name


def test_imagenet_weights_fill_both_encoders_and_the_rest_is_reported(tmp_path, caplog):
    path = tmp_path / "resnet18-5c106cde.pth"
    state = _resnet18()
    torch.save(state, path)
    with caplog.at_level(logging.INFO, "models._checkpoints"):
        found = models.load_checkpoint("lgsc", path, **SMALL)
    assert torch.equal(found.encoder.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
    assert torch.equal(found.classifier.encoder.conv1.weight, state["conv1.weight"])
    assert "torchvision ResNet-18" in caplog.text
    assert "ignored, classifies ImageNet: fc.bias, fc.weight" in caplog.text
    assert "initial values kept: classifier.fc.bias" in caplog.text


def test_a_file_of_another_network_is_refused_with_the_known_layouts():
    with pytest.raises(
        models.CheckpointError, match=r"not a checkpoint of lgsc.*our own, official"
    ):
        models.import_state_dict("lgsc", {"stem.weight": torch.ones(1)})


def test_a_missing_tensor_is_named(network):
    state = dict(network.state_dict())
    del state["encoder.layer1.0.conv1.weight"]
    with pytest.raises(
        models.CheckpointError, match=r"missing: encoder\.layer1\.0\.conv1\.weight$"
    ):
        models.import_state_dict("lgsc", state, **SMALL)


def test_a_misshapen_tensor_is_named_with_both_shapes(network):
    state = dict(network.state_dict())
    state["encoder.bn1.bias"] = torch.zeros(3)
    with pytest.raises(
        models.CheckpointError, match=r"encoder\.bn1\.bias: expected shape \(64,\), found \(3,\)"
    ):
        models.import_state_dict("lgsc", state, **SMALL)


def test_a_tensor_that_the_network_has_no_place_for_is_reported(network, tmp_path):
    state = {**network.state_dict(), "extra.weight": torch.ones(1)}
    path = tmp_path / "x.pth"
    torch.save(state, path)
    imported = import_checkpoint("lgsc", path, **SMALL)
    assert imported.ignored == {"extra.weight": "no such tensor in this network"}


class _Code:
    def __reduce__(self):
        return print, ("this must not run",)


def _save_in_the_old_format(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    "save",
    [
        torch.save,
        _save_in_the_old_format,
        lambda content, path: path.write_bytes(pickle.dumps(content)),
    ],
    ids=["zip", "old format", "bare pickle"],
)
def test_a_file_with_pickled_code_is_refused_and_the_code_not_run(save, tmp_path, capsys):
    path = tmp_path / "evil.pth"
    save({"model": _Code()}, path)
    with pytest.raises(
        models.CheckpointError, match=r"pickled (print|object).*can run code"
    ) as caught:
        models.load_checkpoint("lgsc", path)
    assert "weights_only" not in str(caught.value)  # torch's own text advises switching it off
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04broken"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_file_is_an_error_that_names_it(content, suffix, tmp_path):
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    with pytest.raises(models.CheckpointError, match=f"damaged{suffix}: "):
        models.load_checkpoint("lgsc", path)


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(models.CheckpointError, match=r"none\.pth: can't read it: No such file"):
        models.load_checkpoint("lgsc", tmp_path / "none.pth")


def test_the_command_writes_safetensors_and_says_what_it_used(tmp_path):
    source, out = tmp_path / "resnet18.pth", tmp_path / "lgsc.safetensors"
    torch.save(_resnet18(), source)
    arguments = ["import", "--method", "lgsc", "--in", str(source), "--out", str(out)]
    result = CliRunner().invoke(main, [*arguments, "--set", "size_px=64"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "torchvision ResNet-18" in result.output
    assert models.load_checkpoint("lgsc", out).config.size_px == 64


def test_the_command_says_what_is_wrong_and_fails(tmp_path):
    arguments = ["import", "--method", "lgsc", "--in", str(tmp_path / "no"), "--out", "x"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("size_px", "expected NAME=VALUE, found 'size_px'"),
        ("size_px=[64", "begins like a list"),
        ("sizepx=64", "options of lgsc: sizepx: unknown key; did you mean 'size_px'?"),
        ("size_px=large #1", "options of lgsc: size_px: Input should be a valid integer"),
        ("path=x", "options of lgsc: path: unknown key"),
        ("method=x", "options of lgsc: method: unknown key"),
    ],
)
def test_a_wrong_option_of_the_command_is_named_and_ends_it_with_code_2(setting, says, tmp_path):
    source = tmp_path / "resnet18.pth"
    torch.save(_resnet18(), source)
    arguments = ["import", "--method", "lgsc", "--in", str(source), "--out", "x", "--set", setting]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 2
    assert says in result.output


def test_the_command_prunes_closed_frequency_branches(tmp_path):
    torch.manual_seed(0)
    small = {"trunk": "resnet18", "size_px": 64}
    source, out = tmp_path / "udr.pth", tmp_path / "udr.safetensors"
    torch.save(build_model("udr", small).state_dict(), source)  # gates start closed
    settings = ["--set", "trunk=resnet18", "--set", "size_px=64", "--prune", "0.001"]
    arguments = ["import", "--method", "udr", "--in", str(source), "--out", str(out), *settings]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert "frequency branches gated below 0.001 left out" in result.output
    assert models.load_checkpoint("udr", out).config.pruned
    assert out.stat().st_size < source.stat().st_size


def test_the_command_refuses_to_prune_what_has_no_gates(tmp_path):
    arguments = ["import", "--method", "lgsc", "--in", "x", "--out", "y", "--prune", "0.1"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "lgsc has no frequency branches" in result.output


def _saved(network, path):
    torch.save(network.state_dict(), path)
    return path


def _paddle_names(state):
    """The official code's names for our state dict; the inverse of `from_official`."""
    changes = [
        ("classifier.encoder.", "head."),
        ("classifier.fc.", "fc."),
        ("encoder.", "backbone."),
        ("running_mean", "_mean"),
        ("running_var", "_variance"),
    ]
    found = {}
    for name, value in state.items():
        if name.startswith("calibration.") or name.endswith("num_batches_tracked"):
            continue
        new = name
        if new.startswith("decoder."):
            _, stage, part, *rest = new.split(".")
            number = str(int(stage) + 1)
            new = {
                "body": f"neck.deres{number}." + ".".join(rest),
                "upsample": f"neck.conv_module2x2.{number}."
                + ("_conv." if rest[0] == "2" else "in.")
                + rest[-1],
                "shortcut": f"neck.conv_module1x1.{number}."
                + ("_conv." if rest[0] == "0" else "in.")
                + rest[-1],
            }[part]
        for ours, theirs in changes:
            if new.startswith(ours) or ours.startswith("running"):
                new = new.replace(ours, theirs, 1)
        found[new] = value
    found["fc.weight"] = state["classifier.fc.weight"].flip(0).T
    found["fc.bias"] = state["classifier.fc.bias"].flip(0)
    return found
