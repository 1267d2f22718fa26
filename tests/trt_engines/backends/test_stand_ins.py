"""What stands for TensorRT and torch.cuda has the real ones' names and arguments.

`tensorrt_signatures.json` was read from the docstrings of the bindings' wheels with
`signatures_of`: tensorrt_cu12_bindings 10.16.1.11 and tensorrt_cu13_bindings 11.4.0.106.
"""

import inspect
import json
import re
from pathlib import Path

import pytest
import torch

from tests.trt_engines.backends import stand_in_tensorrt
from tests.trt_engines.backends.stand_in_cuda import StandInCuda
from trt_engines.backends.tensorrt_plan import DTYPES

CLASSES = ("ILogger", "Runtime", "ICudaEngine", "IExecutionContext")
ENUMS = ("DataType", "TensorIOMode", "TensorLocation", "ExecutionContextAllocationStrategy")
SIGNATURES = json.loads(Path(__file__).with_name("tensorrt_signatures.json").read_text())


def signatures_of(trt):
    """Return each class's methods with the arguments of each overload (a property has none)."""
    found = {name: sorted(getattr(trt, name).__members__) for name in ENUMS}
    for name in CLASSES:
        cls = getattr(trt, name)
        found[name] = {
            method: _overloads(method, inspect.getattr_static(cls, method))
            for method in sorted(dir(cls))
            if method == "__init__" or not method.startswith("_")
        }
    return found


def _overloads(name, member):
    if isinstance(member, property):
        return None
    calls = re.findall(rf"^(?:\d+\. )?{name}\(self: [\w.]+(.*)\) -> ", member.__doc__ or "", re.M)
    return [re.findall(r", (\w+): ", call) for call in calls]


@pytest.fixture(params=[*SIGNATURES, "tensorrt_rtx", pytest.param("gpu", marks=pytest.mark.gpu)])
def signatures(request):
    if request.param in SIGNATURES:
        return SIGNATURES[request.param]
    if request.param == "gpu":
        return signatures_of(pytest.importorskip("tensorrt", reason="needs TensorRT"))
    return signatures_of(pytest.importorskip("tensorrt_rtx", reason="needs the extra aot"))


@pytest.mark.parametrize("name", CLASSES)
def test_methods_and_arguments_are_tensorrts(signatures, name):
    compared = 0
    for method, member in vars(getattr(stand_in_tensorrt, name)).items():
        if isinstance(member, property):
            assert signatures[name][method] is None
        elif inspect.isfunction(member) and (method == "__init__" or method[0] != "_"):
            if method == "__init__" and not signatures[name][method]:
                continue  # it is made by another object
            given = list(inspect.signature(member).parameters.values())[1:]
            arguments = [p.name for p in given if p.kind is not p.KEYWORD_ONLY]
            assert arguments in signatures[name][method], method
            compared += 1
    assert compared


@pytest.mark.parametrize("name", ENUMS)
def test_values_are_tensorrts(signatures, name):
    assert sorted(getattr(stand_in_tensorrt, name).__members__) == signatures[name]


def test_every_type_of_tensorrt_is_mapped_but_those_of_half_a_byte(signatures):
    assert set(signatures["DataType"]) - DTYPES.keys() == {"INT4", "FP4"}
    assert DTYPES.keys() <= set(signatures["DataType"])


def _arguments(function):
    return [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]


def test_functions_and_arguments_are_torchs():
    real = torch.cuda
    stream, graph = StandInCuda().Stream(), StandInCuda().CUDAGraph()
    pairs = {
        StandInCuda.Stream: real.Stream.__new__,
        StandInCuda.current_stream: real.current_stream,
        StandInCuda.stream: real.stream,
        StandInCuda.device: real.device.__init__,
        StandInCuda.empty_cache: real.empty_cache,
        StandInCuda.get_device_capability: real.get_device_capability,
        StandInCuda.get_device_name: real.get_device_name,
        StandInCuda.graph: real.graph.__init__,
        type(stream).wait_stream: real.Stream.wait_stream,
        type(stream).synchronize: real.Stream.synchronize,
        type(graph).replay: real.CUDAGraph.replay,
    }
    for ours, theirs in pairs.items():
        arguments = _arguments(ours)
        assert arguments == _arguments(theirs)[: len(arguments)], ours
