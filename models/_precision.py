"""Parts of a network that must compute in float32, whatever the rest uses.

Two things lower the precision: autocast in training, and `to_half` before an export to fp16. A
forward pass marked `@float32` withstands both; a module whose own weights must stay exact (filter
kernels, transform matrices) derives from `Float32Module` as well.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R", Tensor, tuple[Tensor, ...])


class Float32Module(nn.Module):
    """A module whose parameters and buffers `to_half` leaves alone."""


def float32(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function in float32: floating-point tensors go in as float32, results come out so.

    Whoever uses the results casts them back, with `.to(x.dtype)`.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        wide: Any = [
            a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args
        ]
        device = next(a.device.type for a in args if isinstance(a, Tensor))
        if not torch.is_autocast_enabled(device):  # tracing for export takes this way
            return function(*wide, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*wide, **kwargs)

    return run


class InstanceNorm(nn.InstanceNorm2d, Float32Module):
    """Affine instance norm in float32: its sums of squares over a map leave float16's range."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, H, W) in the type of `x`."""
        return self._exact(x).to(x.dtype)

    @float32
    def _exact(self, x: Tensor) -> Tensor:
        return super().forward(x)


def to_half(network: nn.Module) -> nn.Module:
    """Turn weights and buffers to float16 in place, but for those of `Float32Module`s.

    Args:
        network: in eval mode; returned for convenience.
    """
    if isinstance(network, Float32Module):
        return network
    for child in network.children():
        to_half(child)
    for tensor in (*network.parameters(recurse=False), *network.buffers(recurse=False)):
        if tensor.is_floating_point():
            tensor.data = tensor.data.half()
    return network


def in_float32(outputs: Any) -> Any:
    """Return a method's outputs with every floating-point tensor in float32."""
    return mapped_tensors(outputs, lambda t: t.float() if t.is_floating_point() else t)


def mapped_tensors(outputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a method's outputs, nested tuples of tensors, with every tensor changed."""
    if isinstance(outputs, Tensor):
        return change(outputs)
    if isinstance(outputs, tuple):
        parts = [mapped_tensors(part, change) for part in outputs]
        return type(outputs)(*parts) if hasattr(outputs, "_fields") else tuple(parts)
    return outputs
