"""Weights from elsewhere: published checkpoints and our own, read without running pickled code."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct, scalar
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models._registry import load_method

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from models._contract import Layout, Method

log = logging.getLogger(__name__)

# Training scripts put the weights under one of these, beside optimiser and counters.
_WRAPPERS: Final = ("model", "state_dict", "net", "model_state_dict")
# Absent from most published files; a new network's values are right.
_OPTIONAL: Final = re.compile(r"(.*\.)?num_batches_tracked$|calibration\.")
_NAMED: Final = 8  # names that an error lists before it counts the rest


class CheckpointError(ValueError):
    """A checkpoint can't be read, or is not one of this method."""


@dataclass(frozen=True, slots=True)
class Imported:
    """A network with a checkpoint's weights, and what became of the checkpoint's tensors."""

    model: nn.Module  # in eval mode
    method: str
    options: dict[str, object]
    layout: str  # "our own", or the name of a published layout
    loaded: int  # tensors of the network that were filled
    kept: tuple[str, ...]  # names of ours that such a file does not hold: still initial values
    ignored: dict[str, str]  # name in the file -> why nothing uses it

    def report(self) -> str:
        """Return some lines for people."""
        lines = [f"{self.method}: {self.loaded} tensors from a checkpoint of layout: {self.layout}"]
        if self.kept:
            lines.append(f"not in such a file, initial values kept: {_listed(self.kept)}")
        for reason in dict.fromkeys(self.ignored.values()):
            names = [name for name, why in self.ignored.items() if why == reason]
            lines.append(f"ignored, {reason}: {_listed(names)}")
        return "\n".join(lines)


def load_checkpoint(method: str, path: Path, **options: object) -> nn.Module:
    """Build a method's network with the weights of a file, in eval mode; logs what was used.

    Args:
        method: name of a module of `models`.
        path: our safetensors; or a torch or Paddle file of one of the method's layouts.
        options: of the method; they take precedence over what the file suggests.

    Raises:
        CheckpointError: unreadable, holds code, of an unknown layout, or a tensor is missing or
            misshapen.
    """
    imported = import_checkpoint(method, path, **options)
    log.info("%s: %s", path, imported.report())
    return imported.model


def import_state_dict(method: str, state: Mapping[str, Tensor], **options: object) -> nn.Module:
    """Build a method's network with published or our own weights, in eval mode.

    Its `forward(normalised images)` returns the method's outputs, a `NamedTuple` whose fields
    docs/methods.md lists.

    Args:
        method: name of a module of `models`.
        state: tensors by the names of our own state dict or of one of the method's layouts;
            a `module.` that data-parallel training left in front is taken off.
        options: of the method; they take precedence over what the layout suggests.

    Raises:
        CheckpointError: of an unknown layout, or a tensor is missing or misshapen.
    """
    return _import(method, state, options).model


def import_checkpoint(method: str, path: Path, **options: object) -> Imported:
    """Read a file as `load_checkpoint` does; return the network and the report."""
    if path.suffix == ".safetensors":
        state, saved = _read_safetensors(path)
        if saved.get("method", method) != method:
            raise CheckpointError(
                f"{path}: holds weights of {saved['method']!r}, and {method!r} was asked for"
            )
        options = {**json.loads(saved.get("options", "{}")), **options}
    else:
        state = _read_pickle(path)
    try:
        return _import(method, state, options)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def save_weights(path: Path, imported: Imported) -> None:
    """Write a network as safetensors with its method and options, replacing a file in one step."""
    temporary = path.with_suffix(".tmp")
    state = {k: v.cpu().contiguous() for k, v in imported.model.state_dict().items()}
    metadata = {"method": imported.method, "options": json.dumps(imported.options)}
    save_file(state, temporary, metadata)
    temporary.replace(path)


def _import(method: str, state: Mapping[str, Tensor], options: Mapping[str, object]) -> Imported:
    known = load_method(method)
    named = _without_prefix("module.", dict(state))
    own = _build(known, options)
    # Our own names may be a published file's too: ours is the one that fills the whole network.
    if not _required(own.state_dict()) <= named.keys():
        for candidate in (named, _without_prefix("model.", named)):
            for layout in known.layouts:
                if layout.marks <= candidate.keys():
                    return _import_published(method, known, layout, candidate, options)
        if not named.keys() & own.state_dict().keys():
            layouts = ", ".join(["our own", *(layout.name for layout in known.layouts)])
            raise CheckpointError(
                f"not a checkpoint of {method}: {len(named)} tensors, {_listed(named)}; "
                f"known layouts: {layouts}"
            )
    kept, ignored = _fill(own, named, ())
    return Imported(own, method, dict(options), "our own", len(named), kept, ignored)


def _import_published(
    method: str,
    known: Method,
    layout: Layout,
    state: Mapping[str, Tensor],
    options: Mapping[str, object],
) -> Imported:
    resolved = {**layout.options, **options}
    model = _build(known, resolved)
    ignored = {
        name: reason
        for name in state
        for pattern, reason in layout.ignored.items()
        if re.match(pattern, name)
    }
    used = {name: tensor for name, tensor in state.items() if name not in ignored}
    translated = layout.translate(used)
    kept, unknown = _fill(model, translated, layout.fills)
    loaded = len(translated) - len(unknown)
    return Imported(model, method, resolved, layout.name, loaded, kept, {**ignored, **unknown})


def _build(method: Method, options: Mapping[str, object]) -> nn.Module:
    model = method.build(method.config.model_validate(dict(options)))
    return cast("nn.Module", model).eval()


def _fill(
    model: nn.Module, state: Mapping[str, Tensor], fills: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Copy tensors into a network; return the names kept as they were, and those not its own."""
    own = model.state_dict()
    missing = [
        name for name in _required(own) if name not in state and name.startswith(fills or "")
    ]
    if missing:
        raise CheckpointError(f"tensors are missing: {_listed(missing)}")
    for name, tensor in own.items():
        if name in state and tensor.shape != state[name].shape:
            raise CheckpointError(
                f"{name}: expected shape {tuple(tensor.shape)}, found {tuple(state[name].shape)}; "
                "the checkpoint belongs to another variant of the method: set its options"
            )
    known = {name: tensor for name, tensor in state.items() if name in own}
    model.load_state_dict(known, strict=False)
    kept = tuple(name for name in _required(own) if name not in known)
    return kept, dict.fromkeys(state.keys() - known.keys(), "no such tensor in this network")


def _required(names: Iterable[str]) -> set[str]:
    return {name for name in names if not _OPTIONAL.match(name)}


def _without_prefix(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take a prefix off, if every name has it."""
    if not state or not all(name.startswith(prefix) for name in state):
        return state
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: can't read it as safetensors: {error}") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """Read a torch or Paddle file; the unpickler makes only tensors, arrays, plain containers."""
    with torch.serialization.safe_globals(_numpy_globals()):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except OSError as error:
            raise CheckpointError(f"{path}: can't read it: {error.strerror}") from error
        except Exception as error:  # torch raises a different class for each kind of file
            content = _read_paddle(path, error)
    return _tensors(path, content)


def _read_paddle(path: Path, first: Exception) -> Any:
    """Read a bare pickled dict of NumPy arrays, as `paddle.save` writes it."""
    try:
        with path.open("rb") as file:
            return torch._weights_only_unpickler.load(file)
    except Exception as error:  # garbage makes the unpickler raise anything
        # torch's own messages advise loading with code; only the name of what it met is passed on.
        met = re.search(r"Unsupported (?:global|class)[^.]*?(?:GLOBAL )?([\w.]+) was", str(first))
        with path.open("rb") as file:
            is_pickle = file.read(1) == b"\x80"
        if met is None and not is_pickle:
            raise CheckpointError(
                f"{path}: neither a torch file, nor safetensors, nor a Paddle file; or damaged"
            ) from error
        raise CheckpointError(
            f"{path}: refused, because it holds a pickled {met[1] if met else 'object'}, and "
            "pickled objects other than tensors can run code on loading; ask its author for a "
            "state dict alone, saved with torch.save(model.state_dict(), path) or as safetensors"
        ) from error


def _numpy_globals() -> list[Any]:
    """Return what NumPy arrays and numbers are pickled as; they are data, not code."""
    allowed: list[Any] = [np.ndarray, np.dtype, *{type(np.dtype(kind)) for kind in "fdlib?"}]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # NumPy 1, NumPy 2
        allowed += [(_reconstruct, f"{module}._reconstruct"), (scalar, f"{module}.scalar")]
    return allowed


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    """Return the state dict within what a file holds."""
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dict of tensors, found {type(content).__name__}")
    return {
        name: torch.as_tensor(value)
        for name, value in content.items()
        if isinstance(value, Tensor | np.ndarray)
    }


def _listed(names: Iterable[str]) -> str:
    found = sorted(names)
    rest = len(found) - _NAMED
    return ", ".join(found[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
