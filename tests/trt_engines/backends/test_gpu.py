"""Which GPU a back end runs on, and torch's back end there."""

import logging

import pytest
import torch
from torch import nn

from trt_engines.backends import OnnxRuntimeConfig, TensorRTConfig, TorchConfig, open_backend
from trt_engines.backends.gpu import gpu
from trt_engines.backends.torch_module import TorchBackend
from trt_engines.errors import EngineError

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_without_a_number_is_the_first():
    assert gpu("cuda") == torch.device("cuda", 0)
    assert gpu("cuda:1") == torch.device("cuda", 1)


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(EngineError, match="cuda:2: torch sees 2 GPUs, cuda:0 to cuda:1"):
        gpu("cuda:2")


@pytest.mark.usefixtures("no_gpu")
def test_no_gpu_is_an_error_that_says_where_to_look():
    with pytest.raises(EngineError, match="sees no NVIDIA GPU; `nvidia-smi`"):
        gpu("cuda")


def test_a_torch_without_cuda_is_an_error_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(EngineError, match="built without CUDA"):
        gpu("cuda")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("config", [TorchConfig(device="cuda"), TensorRTConfig()])
def test_an_engine_is_not_opened_on_a_gpu_that_is_not_there(engine, config):
    with pytest.raises(EngineError, match=r"no NVIDIA GPU|(?i:tensorrt) can't be imported"):
        open_backend(engine, config)


class Greedy(nn.Module):
    """Has memory for two images."""

    def forward(self, images):
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        return (images.float().mean(dim=(1, 2, 3)),)


def test_out_of_memory_halves_torchs_batch_for_good_and_says_so(caplog):
    elsewhere = torch.device("meta")  # no CPU and no GPU: shapes without numbers
    backend = TorchBackend(Greedy(), "tiny", ["probability"], 8, elsewhere)
    images = torch.zeros((7, 3, 4, 4), device=elsewhere)
    for _ in range(2):
        assert backend.infer(images)["probability"].shape == (7,)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "tiny: 7 images don't fit the GPU's memory; from now on at most 4" in caplog.text
    assert "at most 2 at a time: CUDA out of memory. Tried to allocate 9 GiB." in caplog.text


def test_an_error_of_cudas_is_an_engines():
    class Broken(nn.Module):
        def forward(self, images):
            raise RuntimeError("CUDA error: no kernel image is available for execution")

    elsewhere = torch.device("meta")
    backend = TorchBackend(Broken(), "tiny", ["probability"], 8, elsewhere)
    with pytest.raises(EngineError, match="tiny: the GPU fails: CUDA error: no kernel image"):
        backend.infer(torch.zeros((1, 3, 4, 4), device=elsewhere))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("config", [TorchConfig(device="cuda"), OnnxRuntimeConfig()])
def test_outputs_lie_where_the_images_lay(engine, crops, config, device):
    images = crops.to(device)
    found = open_backend(engine, config).infer(images)
    expected = open_backend(engine, OnnxRuntimeConfig()).infer(crops)
    for name, values in found.items():
        assert values.device == images.device
        torch.testing.assert_close(values.cpu(), expected[name], rtol=0, atol=2e-3)  # TF32
