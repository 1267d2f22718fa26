"""The first back end that runs an engine, and what is said of the others."""

import logging

import pytest
import torch

from trt_engines.backends import (
    AutoConfig,
    OnnxRuntimeConfig,
    TensorRTConfig,
    TorchConfig,
    open_backend,
)
from trt_engines.backends.auto import open_first
from trt_engines.backends.onnx_session import OnnxRuntimeBackend
from trt_engines.backends.torch_module import TorchBackend
from trt_engines.errors import EngineError, EngineMismatchError

ON_GPU = (TensorRTConfig(), TorchConfig(device="cuda"))


@pytest.fixture(autouse=True)
def note_all(caplog):
    caplog.set_level(logging.INFO, "trt_engines")


def _open_torch_on_the_cpu_instead(path, config):
    if config.kind == "tensorrt":
        raise EngineError("no plan of it")
    return open_backend(path, config.model_copy(update={"device": "cpu"}))


def _messages(caplog):
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_without_a_gpu_onnxruntime_runs_it_and_the_log_says_why(engine, caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert isinstance(open_backend(engine, AutoConfig()), OnnxRuntimeBackend)
    ((level, says),) = _messages(caplog)
    assert level == "INFO"
    assert says.startswith("tiny runs on onnxruntime; not on tensorrt: ")
    assert "; not on torch: cuda: " in says


def test_a_gpu_without_tensorrt_runs_torch(engine, crops, caplog):
    backend = open_first(engine, ON_GPU, OnnxRuntimeConfig(), _open_torch_on_the_cpu_instead)
    assert isinstance(backend, TorchBackend)
    assert _messages(caplog) == [("INFO", "tiny runs on torch; not on tensorrt: no plan of it")]
    assert len(backend.infer(crops)["probability"]) == 5


class Failing:
    """Opens, and then can't run: what an old driver does."""

    max_batch = 8
    closed = False

    def infer(self, images):
        assert images.shape == (1, 3, 16, 16)
        assert images.dtype == torch.uint8
        raise EngineError("no kernel image for this GPU")

    def close(self):
        self.closed = True


def test_a_back_end_that_opens_and_can_not_run_is_closed_and_passed_over(
    engine, caplog, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    opened = []

    def open_one(path, config):
        opened.append(Failing() if config in ON_GPU else open_backend(path, config))
        return opened[-1]

    found = open_first(engine, ON_GPU, OnnxRuntimeConfig(), open_one)
    assert [backend.closed for backend in opened[:2]] == [True, True]
    assert found is opened[2]
    ((level, says),) = _messages(caplog)
    assert level == "WARNING"  # a GPU is there, and not used
    assert says.count("no kernel image for this GPU") == 2


def test_the_first_that_runs_is_taken(engine, caplog):
    found = open_first(
        engine, ON_GPU, OnnxRuntimeConfig(), lambda path, _: open_backend(path, TorchConfig())
    )
    assert isinstance(found, TorchBackend)
    assert _messages(caplog) == [("INFO", "tiny runs on tensorrt")]


def test_an_engine_that_nothing_can_run_is_an_error(engine):
    (engine.parent / "tiny.onnx").write_bytes(b"changed")
    with pytest.raises(EngineMismatchError, match=r"tiny\.onnx: expected sha256"):
        open_backend(engine, AutoConfig())


def test_a_missing_manifest_is_an_error(tmp_path):
    with pytest.raises(EngineError, match="can't read the engine's manifest"):
        open_backend(tmp_path / "none.manifest.json", AutoConfig())
