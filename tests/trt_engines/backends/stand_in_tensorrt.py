"""Stands for `tensorrt` where there is none: computes at addresses, and refuses what it refuses.

Classes, methods and arguments are those of its bindings; test_stand_ins.py compares them. A plan is
here an ONNX graph with a profile, and ONNX Runtime computes it.
"""

import ctypes
import json
import weakref
from dataclasses import dataclass
from enum import Enum, IntEnum
from functools import partial
from typing import Any, ClassVar

import numpy as np
import onnx
from onnx import TensorProto

from trt_engines.backends.onnx_session import open_session

_KINDS = {
    TensorProto.FLOAT: ("FLOAT", np.float32),
    TensorProto.FLOAT16: ("HALF", np.float16),
    TensorProto.INT8: ("INT8", np.int8),
    TensorProto.UINT8: ("UINT8", np.uint8),
    TensorProto.INT32: ("INT32", np.int32),
    TensorProto.INT64: ("INT64", np.int64),
    TensorProto.BOOL: ("BOOL", np.bool_),
}
_MARK = b"stand-in plan\n"
_SCRATCH = 4096  # bytes that a context asks for


def stand_in_plan(onnx_bytes, axes, version="11.4.0.106"):
    """Return what `deserialize_cuda_engine` takes."""
    head = json.dumps({"version": version, "axes": axes}).encode()
    return _MARK + head + b"\n" + onnx_bytes


class ILogger:
    class Severity(IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    INTERNAL_ERROR, ERROR = Severity.INTERNAL_ERROR, Severity.ERROR
    WARNING, INFO, VERBOSE = Severity.WARNING, Severity.INFO, Severity.VERBOSE

    def __init__(self):
        self._made = True

    def log(self, severity, msg):
        raise NotImplementedError


DataType = Enum("DataType", "FLOAT HALF BF16 INT8 INT32 INT64 BOOL UINT8 FP8 INT4 FP4 E8M0")
TensorIOMode = Enum("TensorIOMode", "NONE INPUT OUTPUT")
TensorLocation = Enum("TensorLocation", "DEVICE HOST")
ExecutionContextAllocationStrategy = Enum(
    "ExecutionContextAllocationStrategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED"
)


def _refuse(kind, value):
    """As the bindings do, which convert nothing that is not of the kind."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"incompatible function arguments: {value!r}")


class StandInTensorRT:
    """The module, for one machine."""

    __version__ = "11.4.0.106"
    ILogger: ClassVar[Any] = ILogger
    DataType: ClassVar[Any] = DataType
    TensorIOMode: ClassVar[Any] = TensorIOMode
    TensorLocation: ClassVar[Any] = TensorLocation
    ExecutionContextAllocationStrategy: ClassVar[Any] = ExecutionContextAllocationStrategy

    def __init__(self, cuda):
        self.Runtime = partial(Runtime, _machine=(cuda, self.__version__))


class Runtime:
    def __init__(self, logger, *, _machine):
        if not getattr(logger, "_made", False):
            raise TypeError("ILogger.__init__() must be called when overriding __init__")
        self.engine_host_code_allowed = False
        self._logger = logger
        self._cuda, self._version = _machine

    def deserialize_cuda_engine(self, serialized_engine):
        _refuse(bytes, serialized_engine)
        if not serialized_engine.startswith(_MARK):
            self._logger.log(ILogger.ERROR, "IRuntime::deserializeCudaEngine: Error Code 1: magic")
            return None
        head, graph = serialized_engine.removeprefix(_MARK).split(b"\n", 1)
        plan = json.loads(head)
        if plan["version"] != self._version:
            self._logger.log(ILogger.ERROR, "Error Code 1: Serialization (Version tag mismatch)")
            return None
        return ICudaEngine(graph, plan["axes"], self._logger, self._cuda)


@dataclass
class _Tensor:
    mode: TensorIOMode
    kind: DataType
    dtype: Any
    shape: list[Any]  # numbers and names


class ICudaEngine:
    def __init__(self, graph, axes, logger, cuda):
        model = onnx.load_from_string(graph)
        self._axes, self._logger, self._cuda = axes, logger, cuda
        self._device = cuda.current_device()
        self._session = open_session(graph, threads=1)
        self._tensors = {}
        for mode, values in (("INPUT", model.graph.input), ("OUTPUT", model.graph.output)):
            for value in values:
                kind, dtype = _KINDS[value.type.tensor_type.elem_type]
                shape = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
                self._tensors[value.name] = _Tensor(
                    TensorIOMode[mode], DataType[kind], dtype, shape
                )

    @property
    def num_io_tensors(self):
        return len(self._tensors)

    def get_tensor_name(self, index):
        return list(self._tensors)[index]

    def get_tensor_mode(self, name):
        return self._tensors[name].mode

    def get_tensor_dtype(self, name):
        return self._tensors[name].kind

    def get_tensor_location(self, name):
        return TensorLocation.DEVICE if name in self._tensors else None

    def is_shape_inference_io(self, name):
        return name not in self._tensors

    def get_tensor_profile_shape(self, name, profile_index):
        assert profile_index == 0
        shape = self._tensors[name].shape
        return [tuple(self._axes.get(d, (d,) * 3)[i] for d in shape) for i in range(3)]

    def create_execution_context(self, strategy=ExecutionContextAllocationStrategy.STATIC):
        _refuse(ExecutionContextAllocationStrategy, strategy)
        return IExecutionContext(self, strategy)


class IExecutionContext:
    def __init__(self, engine, strategy):
        self._engine, self._log, self._cuda = engine, engine._logger.log, engine._cuda
        self._inputs = [n for n, t in engine._tensors.items() if t.mode is TensorIOMode.INPUT]
        self._shapes = {}
        self._addresses = {}
        self._scratch = None if strategy is ExecutionContextAllocationStrategy.USER_MANAGED else ()
        self._ran = None  # the shapes that its memory is laid out for
        self.layout = 0  # how often its memory changed

    def set_input_shape(self, name, shape):
        _refuse(str, name)
        _refuse((tuple, list), shape)
        if name not in self._inputs:
            return self._no(f"setInputShape: no input {name}")
        least, _, most = self._engine.get_tensor_profile_shape(name, 0)
        sound = len(shape) == len(least) and all(
            low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
        )
        if not sound:
            return self._no(f"Error Code 3: API Usage Error (Set dimension for {name}: {shape})")
        self._shapes[name] = tuple(shape)
        return True

    def infer_shapes(self):
        return [name for name in self._inputs if name not in self._shapes]

    def get_tensor_shape(self, name):
        tensor = self._engine._tensors[name]
        if self.infer_shapes():
            return tuple(-1 if isinstance(d, str) else d for d in tensor.shape)
        if name in self._shapes:
            return self._shapes[name]
        zeros = {n: np.zeros(self._shapes[n], self._engine._tensors[n].dtype) for n in self._inputs}
        return self._engine._session.run([name], zeros)[0].shape

    def update_device_memory_size_for_shapes(self):
        if self.infer_shapes():
            self._no("updateDeviceMemorySizeForShapes: set all shapes first")
            return 0
        return _SCRATCH

    def set_device_memory(self, memory, size):
        _refuse(int, memory)
        _refuse(int, size)
        self._scratch = (memory, size)
        self.layout += 1

    def set_tensor_address(self, name, memory):
        _refuse(str, name)
        _refuse(int, memory)
        if name not in self._engine._tensors:
            return self._no(f"setTensorAddress: no tensor {name}")
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        _refuse(int, stream_handle)
        stream = self._cuda.stream_of(stream_handle)
        if self._cuda.current_device() != self._engine._device:
            return self._no("Error Code 1: Cuda Runtime (invalid resource handle)")
        if self.infer_shapes():
            return self._no(f"API Usage Error (no shape for {self.infer_shapes()})")
        unset = [name for name in self._engine._tensors if not self._addresses.get(name)]
        if unset:
            return self._no(f"API Usage Error (Neither address or allocator is set for {unset})")
        if self._scratch is None or (self._scratch and self._scratch[1] < _SCRATCH):
            return self._no("API Usage Error (device memory is not set, or too small)")
        if stream_handle == 0:
            self._log(ILogger.WARNING, "Using default stream in enqueueV3() may lead to problems")
        work = _Work(self)
        if stream.capturing is None:
            self._ran = dict(self._shapes)
            work.launch(stream)
        elif self._ran == self._shapes:
            work.captured = True
            stream.capturing.work.append(work)
        else:
            stream.capturing.broken = True
            return self._no("Error Code 1: Cuda Runtime (stream is capturing: cudaMalloc)")
        return True

    def _no(self, message):
        self._log(ILogger.ERROR, message)
        return False


class _Work:
    """One run of a context, with the addresses and shapes of the moment."""

    def __init__(self, context):
        self._engine, self._cuda = context._engine, context._cuda
        self._context, self._layout = weakref.ref(context), context.layout
        self.captured = False
        self._scratch = context._scratch
        self._places = {
            name: (context._addresses[name], context.get_tensor_shape(name), tensor)
            for name, tensor in self._engine._tensors.items()
        }

    def launch(self, stream):
        """Outputs hold rubbish until the work is done."""
        for address, shape, tensor in self._places.values():
            if tensor.mode is TensorIOMode.OUTPUT:
                self._memory(address, shape, tensor.dtype).view(np.uint8)[...] = 0xAA
        stream.put(self._run)

    def _run(self):
        context = self._context()
        if context is None or (self.captured and context.layout != self._layout):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if self._scratch:
            self._cuda.check(*self._scratch)
        feeds, outputs = {}, {}
        for name, (address, shape, tensor) in self._places.items():
            into = feeds if tensor.mode is TensorIOMode.INPUT else outputs
            into[name] = self._memory(address, shape, tensor.dtype)
        computed = self._engine._session.run(list(outputs), feeds)
        for place, values in zip(outputs.values(), computed, strict=True):
            place[...] = values

    def _memory(self, address, shape, dtype):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._cuda.check(address, size)
        if size == 0:
            return np.empty(shape, dtype)
        raw = (ctypes.c_byte * size).from_address(address)
        return np.frombuffer(raw, dtype).reshape(shape)
