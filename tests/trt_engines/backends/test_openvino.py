"""OpenVINO runs the engines that ONNX Runtime runs, with the same results."""

import hashlib
import sys

import pytest
import torch

from trt_engines.backends import OnnxRuntimeConfig, OpenVinoConfig, open_backend
from trt_engines.errors import EngineError, EngineMismatchError
from trt_engines.manifest import load_manifest, save_manifest

pytest.importorskip("openvino", reason="needs the extra openvino")


def test_every_output_is_onnxruntimes(engine, crops):
    found = open_backend(engine, OpenVinoConfig()).infer(crops)
    expected = open_backend(engine, OnnxRuntimeConfig()).infer(crops)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=0, atol=1e-5)


def test_results_of_one_run_stay_when_another_follows(engine, crops):
    backend = open_backend(engine, OpenVinoConfig())
    first = backend.infer(crops)["probability"]
    before = first.clone()
    backend.infer(255 - crops)
    assert torch.equal(first, before)


@pytest.mark.parametrize("count", [0, 9])
def test_a_batch_that_does_not_fit_is_refused(engine, crops, count):
    backend = open_backend(engine, OpenVinoConfig())
    with pytest.raises(ValueError, match=f"1 to 8 images fit one run, got {count}"):
        backend.infer(crops[:1].repeat(count, 1, 1, 1))


def test_a_graph_that_openvino_refuses_is_an_error_that_names_another_back_end(engine):
    manifest = load_manifest(engine)
    graph = engine.parent / manifest.onnx
    graph.write_bytes(b"no graph")
    digest = hashlib.sha256(b"no graph").hexdigest()
    save_manifest(engine, manifest.model_copy(update={"onnx_sha256": digest}))
    with pytest.raises(
        EngineError, match=r"(?s)OpenVINO can't load it.*take `backend: onnxruntime`"
    ):
        open_backend(engine, OpenVinoConfig())


def test_other_outputs_than_promised_are_a_mismatch(engine):
    manifest = load_manifest(engine)
    outputs = {**manifest.outputs, "more": next(iter(manifest.outputs.values()))}
    save_manifest(engine, manifest.model_copy(update={"outputs": outputs}))
    with pytest.raises(EngineMismatchError, match="expected outputs"):
        open_backend(engine, OpenVinoConfig())


def test_without_openvino_the_error_says_what_to_install(engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineError, match="install the extra `openvino`"):
        open_backend(engine, OpenVinoConfig())
