"""What torch exported once in these tests is not exported again.

Tracing takes seconds for the smallest network, and many tests export the same one. Graphs lie in a
folder that all workers share, under a digest of what they are made of: a network with the same
code, options and weights gives the same bytes (test_export.py proves it, without this).
"""

from __future__ import annotations

import hashlib
import io
import pickle
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn


class KeptExports:
    """Stands before `to_onnx`; give it a folder.

    Attributes:
        real: the `to_onnx` that traces each time.
    """

    def __init__(self, real: Callable[..., bytes], folder: Path) -> None:
        self.real = real
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def __call__(self, module: nn.Module, example: Tensor, **how: Any) -> bytes:
        path = self._folder / digest(module, example, how)
        if path.exists():
            return path.read_bytes()
        graph = self.real(module, example, **how)
        with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as partial:
            partial.write(graph)
        Path(partial.name).rename(path)
        return graph


def digest(module: nn.Module, example: Tensor, how: dict[str, Any]) -> str:
    """Return a digest of all that a graph depends on; in doubt it is one of its own."""
    found = hashlib.sha256()
    for part in (tuple(example.shape), example.dtype, sorted(how.items())):
        found.update(repr(part).encode())
    for name, layer in module.named_modules():
        cls = type(layer)
        found.update(f"{name} {cls.__module__}.{cls.__qualname__}\n".encode())
        for key, value in sorted(vars(layer).items()):
            if key != "_modules":
                found.update(f"{key} ".encode() + _content(value))
    return found.hexdigest()


def _content(value: object) -> bytes:
    written = io.BytesIO()
    try:
        _TensorsByContent(written).dump(value)
    except Exception:  # what can't be pickled has an address, which nothing else has
        return f"{value!r} {id(value)}".encode()
    return written.getvalue()


class _TensorsByContent(pickle.Pickler):
    """Torch's own pickles hold addresses."""

    def persistent_id(self, thing: object) -> object:
        if not isinstance(thing, torch.Tensor):
            return None
        flat = thing.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        return str(thing.dtype), tuple(thing.shape), hashlib.sha256(flat.data).hexdigest()
