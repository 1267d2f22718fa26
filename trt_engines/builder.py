"""From a graph to a TensorRT plan: one builder, for TensorRT and for TensorRT-RTX.

TensorRT needs an NVIDIA driver and builds for the GPU that is there. Its sibling TensorRT-RTX
parses and builds on any machine, ahead of time: strong evidence that TensorRT takes a graph, not
proof, for it is another parser, and its plans are of use to TensorRT-RTX only. Both have the same
interface, and so have TensorRT 10 and 11 in what is called here (decision 43).
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from trt_engines.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trt_engines.manifest import Precision

log = logging.getLogger(__name__)

FlavourName: TypeAlias = Literal["tensorrt", "tensorrt_rtx"]
Range: TypeAlias = tuple[int, int, int]  # least, usual, most

# Ampere, Ada and Blackwell; TensorRT-RTX 1.7 knows no Hopper (SM90).
TARGETS: Final = ("SM86", "SM89", "SM120")
NO_FLOAT8: Final = frozenset({"SM75", "SM80", "SM86"})  # GPUs without such arithmetic
# The P-Net sees a pyramid of pictures up to 640 px wide; the usual one is 640 x 360, reduced until
# a face of 40 px fills its 12 px cell.
_PICTURE: Final[Mapping[str, Range]] = {"H": (12, 108, 640), "W": (12, 192, 640)}
# float32 means float32: TensorFloat-32, which keeps 10 of its 23 bits, is on unless told otherwise.
_FLAGS_OFF: Final = ("TF32",)
_WORKSPACE: Final = 1 << 31  # bytes, at most; P-Net in fp8 asks TensorRT-RTX for just over 1 GiB
_INSTALL: Final[Mapping[FlavourName, str]] = {
    "tensorrt": "the extra `gpu` of pyproject.toml, with the libraries from NVIDIA's own index",
    "tensorrt_rtx": "the extra `aot` of pyproject.toml",
}


@dataclass(frozen=True, slots=True)
class Flavour:
    """Which TensorRT builds, and for which GPUs.

    Attributes:
        name: of the module.
        module: imported.
        targets: compute capabilities, as "SM89".
        gpu: name of the one GPU that plans are for; None: any of the targets'.
    """

    name: FlavourName
    module: Any
    targets: tuple[str, ...]
    gpu: str | None = None

    @property
    def version(self) -> str:
        """Of the library; its plans are for this version alone."""
        return str(self.module.__version__)

    def for_precision(self, precision: Precision) -> Flavour:
        """Return it for the targets that can compute so.

        Raises:
            EngineError: none can.
        """
        able = tuple(t for t in self.targets if precision != "fp8" or t not in NO_FLOAT8)
        if not able:
            raise EngineError(
                f"{', '.join(self.targets)} can't compute in {precision}: fp8 needs SM89 or later; "
                "build int8 or fp16"
            )
        return Flavour(self.name, self.module, able, self.gpu)


@dataclass(frozen=True, slots=True)
class Built:
    """What a builder made: the plan and, by TensorRT, what it learned of the GPU for the next."""

    plan: bytes
    timing_cache: bytes


def open_flavour(name: FlavourName | Literal["auto"], targets: Sequence[str] = TARGETS) -> Flavour:
    """Import a TensorRT.

    Args:
        name: "auto": TensorRT where there is a GPU for it, else TensorRT-RTX.
        targets: of TensorRT-RTX; TensorRT builds for the first GPU of this machine.

    Raises:
        EngineError: it is not installed, or TensorRT finds no GPU.
    """
    import torch

    has_gpu = torch.cuda.is_available()
    if name == "auto":
        name = "tensorrt" if has_gpu and _is_there("tensorrt") else "tensorrt_rtx"
    module = load_tensorrt(name)
    if name == "tensorrt_rtx":
        return Flavour(name, module, tuple(targets))
    if not has_gpu:
        raise EngineError(
            "TensorRT builds for the GPU that is there, and torch sees none; see "
            "`python -m trt_engines doctor`, or build with --flavour tensorrt_rtx"
        )
    major, minor = torch.cuda.get_device_capability()
    return Flavour(name, module, (f"SM{major}{minor}",), torch.cuda.get_device_name())


def load_tensorrt(name: FlavourName) -> Any:
    """Return the module of TensorRT or of TensorRT-RTX.

    Raises:
        EngineError: it can't be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:  # also where a library of it is missing
        raise EngineError(
            f"{name} can't be imported ({error}); install {_INSTALL[name]}"
        ) from error


def _is_there(name: FlavourName) -> bool:
    try:
        load_tensorrt(name)
    except EngineError as error:
        log.info("%s", error)
        return False
    return True


def axes_for(max_batch: int) -> dict[str, Range]:
    """Return the sizes that a plan is built for: name of a graph's dynamic axis -> range."""
    return {"N": (1, max(1, max_batch // 2), max_batch), **_PICTURE}


def plan_key(flavour: Flavour, onnx_sha256: str, axes: Mapping[str, Range]) -> str:
    """Return a digest of all that decides what a plan is; the same key: nothing to build."""
    facts = {
        "onnx": onnx_sha256,
        "tensorrt": [flavour.name, flavour.version],
        "targets": [*flavour.targets, flavour.gpu],
        "profile": {name: list(sizes) for name, sizes in sorted(axes.items())},
        "flags": {"off": _FLAGS_OFF, "workspace": _WORKSPACE},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def build_plan(
    flavour: Flavour,
    onnx_bytes: bytes,
    *,
    name: str,
    axes: Mapping[str, Range],
    timing_cache: bytes = b"",
) -> Built:
    """Parse an ONNX graph and build it.

    Args:
        flavour: which TensorRT, and what for.
        onnx_bytes: a self-contained graph, whose types and Q/DQ pairs say how it computes.
        name: of the graph, for error messages.
        axes: name of each of the graph's dynamic axes -> the sizes to build for.
        timing_cache: of an earlier build; one of another GPU or version is not used.

    Raises:
        EngineError: a node is not supported, or the graph can't be built.
    """
    trt = flavour.module
    messages = messages_of(trt)
    messages.errors.clear()
    builder = trt.Builder(messages)
    _check_support(trt, builder, onnx_bytes, name)
    network = _network(trt, builder)
    parser = trt.OnnxParser(network, messages)  # owns the weights until the plan is built
    if not parser.parse(onnx_bytes):
        raise EngineError(f"{name}: TensorRT can't parse the graph: {_parser_errors(parser)}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE)
    for flag in _FLAGS_OFF:
        config.clear_flag(getattr(trt.BuilderFlag, flag))
    if flavour.name == "tensorrt_rtx":
        _set_targets(flavour, config, name)
    if config.add_optimization_profile(_profile(builder, network, axes, name)) < 0:
        raise EngineError(f"{name}: sizes {dict(axes)} are refused: {'; '.join(messages.errors)}")
    # TensorRT-RTX times nothing. The cache must outlive the build.
    learned = _timing_cache(config, timing_cache) if flavour.name == "tensorrt" else None
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{name}: TensorRT can't build it: {'; '.join(messages.errors)}")
    return Built(bytes(plan), bytes(learned.serialize()) if learned is not None else b"")


def _network(trt: Any, builder: Any) -> Any:
    """Return an empty network in which types are what the graph says.

    TensorRT 10 must be told; 11 knows no other networks, and takes the flag all the same.
    """
    strongly_typed = int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return builder.create_network(1 << strongly_typed)


def _set_targets(flavour: Flavour, config: Any, name: str) -> None:
    config.num_compute_capabilities = len(flavour.targets)
    for index, target in enumerate(flavour.targets):
        capability = flavour.module.ComputeCapability.__members__.get(target)
        if capability is None or not config.set_compute_capability(capability, index):
            raise EngineError(f"{name}: this TensorRT does not build for {target}")


def _timing_cache(config: Any, content: bytes) -> Any:
    """Begin with what an earlier build learned or, if that is of another GPU, with nothing."""
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        log.info("the timing cache is of another TensorRT or GPU, and is begun anew")
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _check_support(trt: Any, builder: Any, onnx_bytes: bytes, name: str) -> None:
    """Name every node that TensorRT has no counterpart for; `parse` stops at the first."""
    scratch = _network(trt, builder)  # a parser crashes if its network is not kept
    parser = trt.OnnxParser(scratch, messages_of(trt))
    if not parser.supports_model_v2(onnx_bytes):
        raise EngineError(
            f"{name}: TensorRT does not support the graph: {_parser_errors(parser)}; write this "
            "part of the network with other operations"
        )


def _parser_errors(parser: Any) -> str:
    found = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node = f"{error.node_operator()} ({error.node_name()}): " if error.node() >= 0 else ""
        found.append(f"{node}{error.desc()}")
    return "; ".join(found)


def _profile(builder: Any, network: Any, axes: Mapping[str, Range], name: str) -> Any:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        ranges = []
        for axis, size in enumerate(tensor.shape):
            label = tensor.get_dimension_name(axis)
            if size >= 0:
                ranges.append((size, size, size))
            elif label in axes:
                ranges.append(axes[label])
            else:
                raise EngineError(
                    f"{name}: axis {axis} of input {tensor.name!r}, named {label!r}, is dynamic; "
                    f"expected one of {', '.join(axes)}"
                )
        profile.set_shape(tensor.name, *zip(*ranges, strict=True))
    return profile


@cache  # TensorRT takes the first logger of a process for all that follows
def messages_of(trt: Any) -> Any:
    """Return the logger of a TensorRT; `errors` holds what went wrong since it was cleared."""

    class Messages(trt.ILogger):  # type: ignore[misc]  # the module has no types
        """Keeps errors for the exception, and logs everything for debugging."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message.strip())
            log.debug("%s: %s", severity.name, message)

    return Messages()
