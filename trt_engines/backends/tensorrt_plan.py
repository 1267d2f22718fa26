"""TensorRT: runs a plan on an NVIDIA GPU.

torch owns all memory that changes hands: images, outputs and TensorRT's scratch space, so that one
allocator serves all and says when there is no more. Work goes to a stream of its own. Nothing waits
for it but the caller's stream: on a GPU the outputs may not be there yet when `infer` returns, and
any later work of the caller's stream finds them.

TensorRT's rules that the code can't show:

- What it calls an error is a return value, `False` or `None`, and the outputs are then old or zero.
- A captured graph holds addresses. Of its context, of its scratch space and of what it reads and
  writes; so each has its own, and other work touches none of them.
- The first run of a context with a new shape may allocate, which a capture can't hold.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch

from trt_engines.backends.gpu import Portions, gpu
from trt_engines.backends.refined import RefinedBackend
from trt_engines.builder import Flavour, load_tensorrt, messages_of
from trt_engines.errors import EngineError, EngineMismatchError
from trt_engines.manifest import load_manifest
from trt_engines.plans import SUFFIX, read_key, read_plans

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from trt_engines.backends import Backend, TensorRTConfig
    from trt_engines.manifest import Manifest

# By the names of TensorRT's `DataType`. Its INT4 and FP4 put two numbers into a byte; no tensor of
# torch that we could hand on is like that.
DTYPES: Final = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "FP8": torch.float8_e4m3fn,
    "E8M0": torch.float8_e8m0fnu,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
}
_BUILD_AGAIN: Final = "build it again on this machine: `python -m trt_engines build`"
_OUT_OF_MEMORY: Final = re.compile("out ?of ?memory", re.IGNORECASE)
_capturing: Final = threading.Lock()  # torch captures one graph of a process at a time


class PlanLoader(Protocol):
    """Finds plans, and checks them: they are executable, and TensorRT takes them as they are."""

    def __call__(self, manifest_path: Path, manifest: Manifest) -> Sequence[bytes]:
        """Return the plan of an engine for this machine and, if it has one, of its refinement.

        Args:
            manifest_path: of the engine; its plans lie beside it.
            manifest: what stands there.

        Raises:
            EngineError: there is none, or its signature can't be checked.
            EngineMismatchError: it is changed, or of another engine, TensorRT or GPU.
        """
        ...


@dataclass(frozen=True, slots=True)
class Machine:
    """What plans run on.

    Attributes:
        trt: the module of TensorRT.
        cuda: `torch.cuda`.
        device: of the GPU, with its number.
    """

    trt: Any
    cuda: Any
    device: torch.device


def this_machine(device: str) -> Machine:
    """Return this machine's TensorRT and its GPU "cuda", the first one, or "cuda:1" and so on.

    Raises:
        EngineError: either is missing.
    """
    return Machine(load_tensorrt("tensorrt"), torch.cuda, gpu(device))


def signed_plans(key_file: Path | None, machine: Machine) -> PlanLoader:
    """Return what reads the plans that `python -m trt_engines build` laid beside a manifest.

    Args:
        key_file: see `read_key`.
        machine: that the plans must be for.
    """

    def load(manifest_path: Path, manifest: Manifest) -> Sequence[bytes]:
        major, minor = machine.cuda.get_device_capability(machine.device)
        name = machine.cuda.get_device_name(machine.device)
        flavour = Flavour("tensorrt", machine.trt, (f"SM{major}{minor}",), name)
        path = manifest_path.parent / f"{manifest.name}{SUFFIX}"
        page, plans = read_plans(path, read_key(key_file), flavour)
        if page.engine.model_copy(update={"max_batch": manifest.max_batch}) != manifest:
            raise EngineMismatchError(
                f"{path}: of another engine than {manifest_path.name}; {_BUILD_AGAIN}"
            )
        return plans

    return load


def open_tensorrt(
    manifest_path: Path, config: TensorRTConfig, load_plans: PlanLoader, machine: Machine
) -> Backend:
    """Load an engine's plan, and that of its refinement if it has one.

    Raises:
        EngineError: manifest or plan missing or unusable.
        EngineMismatchError: a plan is not this engine's or not for this machine.
    """
    manifest = load_manifest(manifest_path)
    first, *others = load_plans(manifest_path, manifest)
    whole = TensorRTBackend(first, manifest.name, manifest.outputs, config, machine)
    if manifest.refinement is None:
        return whole
    (second,) = others
    name = f"{manifest.name}'s refinement"
    refinement = TensorRTBackend(second, name, ["probability"], config, machine)
    return RefinedBackend(whole, refinement, manifest.refinement)


@dataclass(frozen=True, slots=True, eq=False)
class _Captured:
    """The work of one shape as a CUDA graph, and all that lies at the addresses in it."""

    context: Any
    graph: Any
    images: Tensor
    outputs: Mapping[str, Tensor]
    scratch: Tensor


class TensorRTBackend:
    """Runs one plan. Batches below the profile's least are filled up, above its most split."""

    def __init__(
        self,
        plan: bytes,
        name: str,
        outputs: Collection[str],
        config: TensorRTConfig,
        machine: Machine,
    ) -> None:
        """Load a checked plan onto the GPU.

        Raises:
            EngineError: the GPU can't hold it, or its network is not of a kind that is run here.
            EngineMismatchError: TensorRT can't load it, or it has other outputs than named.
        """
        self._name = name
        self._trt, self._cuda, self._device = machine.trt, machine.cuda, machine.device
        self._messages = messages_of(machine.trt)
        self._graphs = config.cuda_graphs
        self._captured: dict[tuple[int, ...], _Captured] = {}  # the one used last is the last
        self._engine: Any = None
        self._context: Any = None
        try:
            with self._cuda.device(self._device):
                self._messages.errors.clear()
                runtime = self._trt.Runtime(self._messages)
                runtime.engine_host_code_allowed = False
                self._engine = runtime.deserialize_cuda_engine(plan)
                if self._engine is None:
                    raise EngineMismatchError(
                        f"{self._name}: TensorRT {self._trt.__version__} can't load the plan: "
                        f"{'; '.join(self._messages.errors)}; {_BUILD_AGAIN}"
                    )
                self._input, self._dtype, self._outputs = self._tensors(outputs)
                least, _, most = self._engine.get_tensor_profile_shape(self._input, 0)
                self._profile = f"{tuple(least)} to {tuple(most)}"
                self._least, self.max_batch = least[0], most[0]
                self._portions = Portions(self._name, self.max_batch, self._least)
                self._stream = self._cuda.Stream(self._device)
                self._context = self._new_context()
        except RuntimeError as error:  # of CUDA, or out of memory
            raise EngineError(
                f"{name}: can't be loaded onto {self._device}: {error}; look at `nvidia-smi`"
            ) from error

    def infer(self, images: Tensor) -> Mapping[str, Tensor]:
        """See `Backend.infer`; more images than `max_batch` are run one batch after the other."""
        if images.dtype != self._dtype or not len(images):
            raise ValueError(
                f"{self._name} takes one or more images, {self._dtype}, got {len(images)}, "
                f"{images.dtype}"
            )
        return self._portions.run(images, self._infer, self._free)

    def close(self) -> None:
        """See `Backend.close`."""
        if self._engine is not None:
            self._free()
            self._context = self._engine = None

    def _tensors(
        self, outputs: Collection[str]
    ) -> tuple[str, torch.dtype, Mapping[str, torch.dtype]]:
        """Return name and type of the one input, and of the outputs."""
        trt, engine = self._trt, self._engine
        inputs: dict[str, torch.dtype] = {}
        found: dict[str, torch.dtype] = {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            kind = engine.get_tensor_dtype(name).name
            on_host = engine.get_tensor_location(name) == trt.TensorLocation.HOST
            if kind not in DTYPES or on_host or engine.is_shape_inference_io(name):
                raise EngineError(
                    f"{self._name}: tensor {name!r} is {kind}{' on the host' if on_host else ''}; "
                    f"expected pixels or numbers on the GPU: {', '.join(DTYPES)}"
                )
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (inputs if is_input else found)[name] = DTYPES[kind]
        if set(found) != set(outputs) or len(inputs) != 1:
            raise EngineMismatchError(
                f"{self._name}: expected one input and outputs {sorted(outputs)}, as the manifest "
                f"says, found {sorted(inputs)} and {sorted(found)}; {_BUILD_AGAIN}"
            )
        ((name, dtype),) = inputs.items()
        return name, dtype, found

    def _new_context(self) -> Any:
        user_managed = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(user_managed)
        if context is None:
            raise self._failure("can't make an execution context")
        return context

    def _infer(self, images: Tensor) -> Mapping[str, Tensor]:
        """Run at most `max_batch` images."""
        with self._cuda.device(self._device):
            caller = self._cuda.current_stream(self._device)
            self._stream.wait_stream(caller)
            # The allocator must not give away memory that the other stream still works on.
            if images.device == self._device:
                images.record_stream(self._stream)
            with self._cuda.stream(self._stream):
                here = images.to(self._device).contiguous()
                missing = max(self._least - len(here), 0)
                if missing:
                    here = torch.cat([here, here[-1:].expand(missing, *here.shape[1:])])
                run = self._replayed if self._graphs else self._computed
                outputs = {
                    name: values[: len(images)].to(images.device)
                    for name, values in run(here).items()
                }
            caller.wait_stream(self._stream)
            if images.device == self._device:
                for values in outputs.values():
                    values.record_stream(caller)
        return outputs

    def _computed(self, images: Tensor) -> Mapping[str, Tensor]:
        outputs, _ = self._bound(self._context, images)
        self._enqueue(self._context)
        return outputs

    def _replayed(self, images: Tensor) -> Mapping[str, Tensor]:
        shape = tuple(images.shape)
        captured = self._captured.pop(shape, None) or self._capture(images)
        self._captured[shape] = captured
        captured.images.copy_(images)
        captured.graph.replay()
        return {name: values.clone() for name, values in captured.outputs.items()}

    def _capture(self, images: Tensor) -> _Captured:
        while len(self._captured) >= self._graphs:
            self._stream.synchronize()
            del self._captured[next(iter(self._captured))]
        context, images = self._new_context(), images.clone()
        outputs, scratch = self._bound(context, images)
        self._enqueue(context)
        self._stream.synchronize()
        graph = self._cuda.CUDAGraph()
        mode = "thread_local"  # or whatever another thread allocates meanwhile is an error there
        try:
            with (
                _capturing,
                self._cuda.graph(graph, stream=self._stream, capture_error_mode=mode),
            ):
                done = context.execute_async_v3(self._stream.cuda_stream)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise EngineError(
                f"{self._name}: can't be captured as a CUDA graph: {error}; set `cuda_graphs` to 0"
            ) from error
        if not done:
            raise self._failure("fails in a CUDA graph (without: `cuda_graphs` 0)")
        return _Captured(context, graph, images, outputs, scratch)

    def _bound(self, context: Any, images: Tensor) -> tuple[Mapping[str, Tensor], Tensor]:
        """Give a context its memory; return the outputs to come, and its scratch space."""
        shape = tuple(images.shape)
        self._messages.errors.clear()
        if not context.set_input_shape(self._input, shape):
            raise self._failure(
                f"is built for {self._profile} and refuses {shape}; build it for such shapes"
            )
        unknown = context.infer_shapes()
        sizes = {name: tuple(context.get_tensor_shape(name)) for name in self._outputs}
        if unknown or any(-1 in size for size in sizes.values()):
            raise self._failure(f"has outputs whose size depends on the pixels: {sizes}")
        outputs = {
            name: torch.empty(size, dtype=self._outputs[name], device=self._device)
            for name, size in sizes.items()
        }
        # One byte at least, for a tensor of nothing needs an address too.
        n_bytes = max(1, context.update_device_memory_size_for_shapes())
        scratch = torch.empty(n_bytes, dtype=torch.uint8, device=self._device)
        context.set_device_memory(scratch.data_ptr(), n_bytes)
        for name, tensor in {self._input: images, **outputs}.items():
            if not context.set_tensor_address(name, tensor.data_ptr() or scratch.data_ptr()):
                raise self._failure(f"refuses the memory for {name!r}")
        return outputs, scratch

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self._stream.cuda_stream):
            raise self._failure("fails")

    def _failure(self, what: str) -> Exception:
        """Return the error to raise, with what TensorRT said."""
        says = "; ".join(self._messages.errors)
        self._messages.errors.clear()
        if _OUT_OF_MEMORY.search(says):
            return torch.OutOfMemoryError(says)
        return EngineError(f"{self._name}: the plan {what}: {says or 'TensorRT says no more'}")

    def _free(self) -> None:
        """Let go of all captured graphs, once the GPU has."""
        with self._cuda.device(self._device):
            self._stream.synchronize()
            self._captured.clear()
            self._cuda.empty_cache()
