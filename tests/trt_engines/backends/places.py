"""Where plans run in tests: on a GPU with TensorRT, or on what stands for them."""

from dataclasses import replace

import pytest
import torch

from tests.trt_engines.backends.stand_in_cuda import StandInCuda
from tests.trt_engines.backends.stand_in_tensorrt import StandInTensorRT, stand_in_plan
from trt_engines.backends.tensorrt_plan import Machine, this_machine
from trt_engines.builder import build_plan, open_flavour


class StandIns:
    """No GPU: proves our side of the bargain, not TensorRT's."""

    def __init__(self, patch):
        self.cuda = cuda = StandInCuda()
        self.machine = Machine(StandInTensorRT(cuda), cuda, torch.device("cpu"))
        patch.setattr(torch.Tensor, "record_stream", lambda t, stream: cuda.recorded(t, stream))

    def plan(self, graph, **axes):
        return stand_in_plan(graph, axes)

    def late(self, values):
        """Return a copy that the current stream has yet to make."""
        copy = torch.full_like(values, 7)
        self.cuda.current_stream().put(lambda: copy.copy_(values))
        return copy

    def another_device(self):
        return self.cuda.device("another")


class Gpu:
    """The real ones."""

    cuda = torch.cuda

    def __init__(self):
        self.machine = this_machine("cuda")

    def plan(self, graph, **axes):
        return build_plan(open_flavour("tensorrt"), graph, name="test", axes=axes).plan

    def late(self, values):
        copy = torch.full_like(values, 7)
        torch.cuda._sleep(100_000_000)  # cycles, a twentieth of a second
        return copy.copy_(values)

    def another_device(self):
        if torch.cuda.device_count() < 2:
            pytest.skip("needs a second GPU")
        return torch.cuda.device(1)


_MAKERS = ("Runtime", "deserialize_cuda_engine", "create_execution_context")


class Altered:
    """An object of TensorRT's whose methods, and those of what it makes, are partly replaced.

    A replacement takes the real method and the call's arguments.
    """

    def __init__(self, real, replacements):
        self.__dict__.update(_real=real, _replacements=replacements)

    def __getattr__(self, name):
        method = getattr(self._real, name)
        replacement = self._replacements.get(name)
        if replacement is None and name not in _MAKERS:
            return method

        def call(*args):
            result = replacement(method, *args) if replacement else method(*args)
            made = name in _MAKERS and result is not None
            return Altered(result, self._replacements) if made else result

        return call

    def __setattr__(self, name, value):
        setattr(self._real, name, value)

    def __eq__(self, other):  # the same module, so it has the same listener
        return self._real is other

    def __hash__(self):
        return hash(self._real)


def altered(machine, **replacements):
    """Return a machine whose TensorRT has some methods replaced."""
    return replace(machine, trt=Altered(machine.trt, replacements))
