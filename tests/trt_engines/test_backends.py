import hashlib
import json

import pytest
import torch

from trt_engines.backends import OnnxRuntimeConfig, TorchConfig, open_backend
from trt_engines.errors import EngineError, EngineMismatchError
from trt_engines.manifest import SHIPPED

CONFIGS = [OnnxRuntimeConfig(), TorchConfig()]


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _change(engine, **fields):
    data = json.loads(engine.read_text())
    engine.write_text(json.dumps({**data, **fields}))


def _replace(engine, field, content):
    """Put another content into a file, with the manifest's blessing."""
    data = json.loads(engine.read_text())
    (engine.parent / data[field]).write_bytes(content)
    _change(engine, **{f"{field}_sha256": hashlib.sha256(content).hexdigest()})


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.kind)
def test_outputs_are_what_the_manifest_says(engine, crops, config):
    outputs = open_backend(engine, config).infer(crops)
    assert outputs["probability"].shape == (5,)
    assert outputs["explanation"].shape == (5, 1, 16, 16)
    for values in outputs.values():
        assert values.dtype == torch.float32
        assert values.min() >= 0
        assert values.max() <= 1


def test_torch_and_onnxruntime_agree(engine, crops):
    found = open_backend(engine, TorchConfig()).infer(crops)
    expected = open_backend(engine, OnnxRuntimeConfig()).infer(crops)
    torch.testing.assert_close(dict(found), dict(expected), rtol=0, atol=1e-5)
    assert found["probability"].std() > 0


@pytest.mark.parametrize("name", ["pnet", "rnet", "onet"])
def test_torch_and_onnxruntime_agree_on_the_detectors_networks(name):
    path = SHIPPED / "mtcnn" / f"{name}.manifest.json"
    size = {"pnet": 40, "rnet": 24, "onet": 48}[name]
    images = torch.rand((3, 3, size, size), generator=torch.Generator().manual_seed(2)) * 255
    found = open_backend(path, TorchConfig()).infer(images)
    expected = open_backend(path, OnnxRuntimeConfig()).infer(images)
    torch.testing.assert_close(dict(found), dict(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.kind)
def test_results_belong_to_the_caller(engine, crops, config):
    backend = open_backend(engine, config)
    first = backend.infer(crops[:2])["probability"]
    before = first.clone()
    backend.infer(crops[2:4])
    torch.testing.assert_close(first, before, rtol=0, atol=0)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.kind)
def test_crops_need_not_be_contiguous(engine, crops, config):
    backend = open_backend(engine, config)
    turned = crops.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    found, expected = backend.infer(turned), backend.infer(crops)
    torch.testing.assert_close(dict(found), dict(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.kind)
def test_more_crops_than_the_engine_takes_are_refused(engine, config):
    backend = open_backend(engine, config)
    assert backend.max_batch == 8
    with pytest.raises(ValueError, match="at most 8 images"):
        backend.infer(torch.zeros((9, 3, 16, 16), dtype=torch.uint8))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.kind)
def test_closing_twice_is_harmless(engine, config):
    backend = open_backend(engine, config)
    backend.close()
    backend.close()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.kind)
def test_damaged_file_is_a_mismatch(engine, config):
    for name in ("tiny.onnx", "tiny.safetensors"):
        content = (engine.parent / name).read_bytes()
        (engine.parent / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(EngineMismatchError, match="expected sha256"):
        open_backend(engine, config)


def test_file_that_is_no_onnx_is_an_engine_error(engine):
    _replace(engine, "onnx", b"not a graph")
    with pytest.raises(EngineError, match=r"tiny\.onnx: ONNX Runtime can't load it"):
        open_backend(engine, OnnxRuntimeConfig())


def test_graph_with_other_outputs_than_promised_is_a_mismatch(engine):
    _change(engine, outputs={"probability": "", "mood": ""})
    with pytest.raises(EngineMismatchError, match="mood"):
        open_backend(engine, OnnxRuntimeConfig())


@pytest.mark.parametrize("content", [b"not weights", b""])
def test_file_that_holds_no_weights_is_a_mismatch(engine, content):
    _replace(engine, "weights", content)
    with pytest.raises(EngineMismatchError, match=r"tiny\.safetensors: not the weights"):
        open_backend(engine, TorchConfig())


def test_weights_of_another_width_are_a_mismatch(engine):
    _change(engine, options={"width": 7})
    with pytest.raises(EngineMismatchError, match="not the weights"):
        open_backend(engine, TorchConfig())


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"method": "nosuch"}, "unknown method 'nosuch'"),
        ({"options": {"depth": 3}}, "depth"),
        ({"weights": None}, "names no weights"),
        ({"method": None, "name": "qnet"}, "none of MTCNN's networks"),
    ],
)
def test_network_that_torch_can_not_build_is_an_engine_error(engine, fields, complaint):
    _change(engine, **fields)
    with pytest.raises(EngineError, match=complaint):
        open_backend(engine, TorchConfig())
