import pytest
import torch

from tests.trt_engines.backends.places import Gpu, StandIns


@pytest.fixture(params=["stand-ins", pytest.param("gpu", marks=pytest.mark.gpu)])
def place(request, monkeypatch):
    """A TensorRT and a GPU to run plans on: the real ones, or what stands for them."""
    if request.param == "stand-ins":
        return StandIns(monkeypatch)
    pytest.importorskip("tensorrt", reason="needs TensorRT")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return Gpu()


@pytest.fixture
def stand_ins(monkeypatch):
    """For what shows on the stand-ins alone."""
    return StandIns(monkeypatch)
