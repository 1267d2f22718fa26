"""What float16 does to a network's results, found out on a CPU at a bearable speed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_aten = torch.ops.aten
_PRODUCTS: Final = frozenset(
    {
        _aten.convolution.default,
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten.baddbmm.default,
    }
)


class TensorCores(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type it
    """Within this context, convolutions and matrix products of float16 tensors sum up in float32.

    The result is rounded to float16, as on a GPU's tensor cores; so overflow and rounding show.
    Torch's own float16 kernels on the CPU do the same thirty times slower, and ONNX Runtime on the
    CPU computes float16 graphs in float32, without rounding. Use it under `torch.no_grad`.
    """

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation."""
        if func not in _PRODUCTS or not any(_is_half(argument) for argument in args):
            return func(*args, **(kwargs or {}))
        wide = tree_map_only(torch.Tensor, lambda tensor: tensor.float(), tuple(args))
        return func(*wide, **(kwargs or {})).half()


def _is_half(argument: object) -> bool:
    return isinstance(argument, torch.Tensor) and argument.dtype == torch.float16
