"""What stands for TensorRT and torch.cuda has the real ones' names and arguments.

They were read from the docstrings of the bindings' wheels (record_tensorrt_signatures.py).
"""

import inspect

import pytest
import torch

from tests.trt_engines.backends import stand_in_tensorrt
from tests.trt_engines.backends.stand_in_cuda import StandInCuda
from tests.trt_engines.record_tensorrt_signatures import WHOLE, signatures
from tests.trt_engines.tensorrt_calls import TABLES
from trt_engines.backends.tensorrt_plan import DTYPES

ENUMS = ("DataType", "TensorIOMode", "TensorLocation", "ExecutionContextAllocationStrategy")
RECORDED = {table["version"]: table for table in TABLES}


@pytest.fixture(params=[*RECORDED, "tensorrt_rtx", pytest.param("gpu", marks=pytest.mark.gpu)])
def recorded(request):
    if request.param in RECORDED:
        return RECORDED[request.param]
    if request.param == "gpu":
        return signatures(pytest.importorskip("tensorrt", reason="needs TensorRT"))
    return signatures(pytest.importorskip("tensorrt_rtx", reason="needs the extra aot"))


@pytest.mark.parametrize("name", WHOLE)
def test_methods_and_arguments_are_tensorrts(recorded, name):
    compared = 0
    for method, member in vars(getattr(stand_in_tensorrt, name)).items():
        real = recorded["classes"][name].get(method)
        if isinstance(member, property):
            assert real["property"]
        elif inspect.isfunction(member) and (method == "__init__" or method[0] != "_"):
            if method == "__init__" and not real["takes"]:
                continue  # it is made by another object
            given = list(inspect.signature(member).parameters.values())[1:]
            arguments = [p.name for p in given if p.kind is not p.KEYWORD_ONLY]
            overloads = [[argument for argument, *_ in takes] for takes in real["takes"]]
            assert arguments in overloads, method
            compared += 1
    assert compared


@pytest.mark.parametrize("name", ENUMS)
def test_values_are_tensorrts(recorded, name):
    assert sorted(getattr(stand_in_tensorrt, name).__members__) == recorded["enums"][name]


def test_every_type_of_tensorrt_is_mapped_but_those_of_half_a_byte(recorded):
    types = set(recorded["enums"]["DataType"])
    assert types - DTYPES.keys() == {"INT4", "FP4"}
    assert DTYPES.keys() <= types


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
