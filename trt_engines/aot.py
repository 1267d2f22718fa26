"""Engines built ahead of time, without a GPU: does TensorRT take this graph?

TensorRT itself needs an NVIDIA driver. Its sibling TensorRT-RTX parses and builds on any machine:
strong evidence that TensorRT takes a graph, not proof, for it is another parser, and the plan is of
use to TensorRT-RTX only. Nothing is run.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from trt_engines.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

log = logging.getLogger(__name__)

# Ampere, Ada and Blackwell; TensorRT-RTX 1.7 knows no Hopper (SM90).
TARGETS: Final = ("SM86", "SM89", "SM120")
Range: TypeAlias = tuple[int, int, int]  # least, usual, most


def tensorrt_rtx() -> Any:
    """Return the module of TensorRT-RTX.

    Raises:
        EngineError: it is not installed.
    """
    try:
        import tensorrt_rtx
    except ModuleNotFoundError as error:
        raise EngineError(
            f"TensorRT-RTX can't be imported ({error}); install the extra `aot` of pyproject.toml"
        ) from error
    return tensorrt_rtx


def build_plan(
    trt: Any,
    onnx_bytes: bytes,
    *,
    name: str,
    axes: Mapping[str, Range],
    targets: Sequence[str] = (),
) -> bytes:
    """Parse an ONNX graph and build it; return the serialised plan.

    Args:
        trt: the module of TensorRT-RTX, or of TensorRT, which has the same interface.
        onnx_bytes: a self-contained graph.
        name: of the graph, for error messages.
        axes: name of each of the graph's dynamic axes -> the sizes to build for.
        targets: names in `ComputeCapability`, of TensorRT-RTX only; empty: this machine's GPU.

    Raises:
        EngineError: a node is not supported, or the graph can't be built.
    """
    messages = _messages(trt)
    messages.errors.clear()
    builder = trt.Builder(messages)
    _check_support(trt, builder, onnx_bytes, name)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, messages)  # owns the weights until the plan is built
    if not parser.parse(onnx_bytes):
        raise EngineError(f"{name}: TensorRT can't parse the graph: {_parser_errors(parser)}")
    config = builder.create_builder_config()
    if targets:
        config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        capability = trt.ComputeCapability.__members__.get(target)
        if capability is None or not config.set_compute_capability(capability, index):
            raise EngineError(f"{name}: this TensorRT does not build for {target}")
    if config.add_optimization_profile(_profile(builder, network, axes, name)) < 0:
        raise EngineError(f"{name}: sizes {dict(axes)} are refused: {'; '.join(messages.errors)}")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{name}: TensorRT can't build it: {'; '.join(messages.errors)}")
    return bytes(plan)


def _check_support(trt: Any, builder: Any, onnx_bytes: bytes, name: str) -> None:
    """Name every node that TensorRT has no counterpart for; `parse` stops at the first."""
    scratch = builder.create_network(0)  # a parser crashes if its network is not kept
    parser = trt.OnnxParser(scratch, _messages(trt))
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
def _messages(trt: Any) -> Any:
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
