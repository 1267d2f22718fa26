"""Weights from elsewhere: published checkpoints and our own, read without running pickled code."""

from __future__ import annotations

import argparse
import json
import logging
import pathlib
import re
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct, scalar
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from models._files import whole_file
from models._registry import build_model, load_method

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from models._contract import Layout

log = logging.getLogger(__name__)

# Training scripts put the weights under one of these, beside optimiser and counters. Ours keep the
# averaged ones, if there are any.
_WRAPPERS: Final = ("averaged", "model", "state_dict", "net", "model_state_dict", "network")
# What data-parallel training, averaging and torch.compile put before the names, and beside them.
_PARALLEL: Final = "module."
_COMPILED: Final = re.compile(r"(^|\.)_orig_mod\.")
_COUNTER: Final = "n_averaged"
_METADATA: Final = "facewarden"  # of our safetensors files: method and options as JSON
# Absent from most published files; a new network's values are right.
_OPTIONAL: Final = re.compile(r"(.*\.)?num_batches_tracked$|calibration\.")
_NAMED: Final = 8  # names that an error lists before it counts the rest


class CheckpointError(ValueError):
    """A checkpoint can't be read, or is not one of this method."""


class OptionsError(CheckpointError):
    """The method has no such options: what was set is wrong, not the file."""


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
        path: our safetensors, a training run's `best.pt` or `checkpoint.pt`; or a torch or Paddle
            file of one of the method's layouts.
        options: of the method; they take precedence over what the file says or suggests.

    Raises:
        CheckpointError: unreadable, holds code, of another method or an unknown layout, or a tensor
            is missing, misshapen or not finite.
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
            what data-parallel training, averaging and torch.compile add to them is taken off.
        options: of the method; they take precedence over what the layout suggests.

    Raises:
        CheckpointError: of an unknown layout, or a tensor is missing, misshapen or not finite.
    """
    return _import(method, state, options).model


def import_checkpoint(method: str, path: Path, /, **options: object) -> Imported:
    """Read a file as `load_checkpoint` does; return the network and the report."""
    read = _read_safetensors if path.suffix == ".safetensors" else _read_pickle
    state, saved_method, saved_options = read(path)
    if saved_method not in (None, method):
        raise CheckpointError(
            f"{path}: holds weights of {saved_method!r}, and {method!r} was asked for"
        )
    try:
        return _import(method, state, {**saved_options, **options})
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from error


def save_weights(path: Path, imported: Imported) -> None:
    """Write a network as safetensors with its method and options, replacing a file in one step."""
    packed = packed_weights(imported.model.state_dict(), imported.method, imported.options)
    with whole_file(path) as partial:
        partial.write_bytes(packed)


def packed_weights(
    state: Mapping[str, Tensor], method: str, options: Mapping[str, object]
) -> bytes:
    """Return a safetensors file that `import_checkpoint` reads back; the same for the same weights.

    Args:
        state: of one of our networks.
        method: its name.
        options: of the method, as JSON holds them.
    """
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    # One entry: safetensors writes several in an order of its own, which differs between runs.
    about = json.dumps({"method": method, "options": dict(options)}, sort_keys=True)
    return save(tensors, {_METADATA: about})


def _import(method: str, state: Mapping[str, Tensor], options: Mapping[str, object]) -> Imported:
    known = load_method(method)
    named = _named(state)
    own = _build(method, options)
    # Some trainers hold the network as a part called `model`.
    candidates = (named, _without_prefix("model.", named))
    for candidate in candidates:
        # Our own names may be a published file's too: ours is the one that fills the whole network.
        if _required(own.state_dict()) <= candidate.keys():
            return _import_own(method, own, candidate, options)
    for candidate in candidates:
        for layout in known.layouts:
            if layout.marks <= candidate.keys():
                return _import_published(method, layout, candidate, options)
    if not named.keys() & own.state_dict().keys():
        layouts = ", ".join(["our own", *(layout.name for layout in known.layouts)])
        raise CheckpointError(
            f"not a checkpoint of {method}: {len(named)} tensors, {_listed(named)}; "
            f"known layouts: {layouts}"
        )
    return _import_own(method, own, named, options)


def _import_own(
    method: str, own: nn.Module, state: Mapping[str, Tensor], options: Mapping[str, object]
) -> Imported:
    kept, ignored = _fill(own, state, ())
    return Imported(own, method, dict(options), "our own", len(state) - len(ignored), kept, ignored)


def _import_published(
    method: str,
    layout: Layout,
    state: Mapping[str, Tensor],
    options: Mapping[str, object],
) -> Imported:
    resolved = {**layout.options, **options}
    model = _build(method, resolved)
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


def _build(method: str, options: Mapping[str, object]) -> nn.Module:
    try:
        return cast("nn.Module", build_model(method, options)).eval()
    except ValueError as error:
        raise OptionsError(str(error)) from error


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
    known = {name: _usable(name, state[name], own[name]) for name in state.keys() & own.keys()}
    model.load_state_dict(known, strict=False)
    kept = tuple(name for name in _required(own) if name not in known)
    return kept, dict.fromkeys(state.keys() - known.keys(), "no such tensor in this network")


def _usable(name: str, found: Tensor, own: Tensor) -> Tensor:
    """Return a tensor that can take the place of one of ours.

    Raises:
        CheckpointError: another shape, no real numbers, or not all of them finite.
    """
    if found.is_nested or found.is_meta or found.is_quantized:
        raise CheckpointError(f"{name}: expected plain numbers, found a {_kind(found)} tensor")
    if found.shape != own.shape:
        raise CheckpointError(
            f"{name}: expected shape {tuple(own.shape)}, found {tuple(found.shape)}; "
            "the checkpoint belongs to another variant of the method: set its options"
        )
    if own.is_floating_point():
        if not found.is_floating_point():
            raise CheckpointError(f"{name}: expected floating-point numbers, found {found.dtype}")
        found = found.detach().to_dense().to(torch.float32)
        bad = int((~found.isfinite()).sum())
        if bad:
            raise CheckpointError(
                f"{name}: {bad} of {found.numel()} numbers are NaN or infinite: did the training "
                "diverge? Take an earlier checkpoint"
            )
    return found


def _kind(tensor: Tensor) -> str:
    if tensor.is_nested:
        return "nested"
    return "meta" if tensor.is_meta else "quantised"


def _named(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off what wrappers of a network add to its names, in whatever order."""
    named = {_COMPILED.sub(r"\1", name): tensor for name, tensor in state.items()}
    if any(name.startswith(_PARALLEL) for name in named):
        named.pop(_COUNTER, None)
    while (shorter := _without_prefix(_PARALLEL, named)) is not named:
        named = shorter
    return named


def _required(names: Iterable[str]) -> set[str]:
    return {name for name in names if not _OPTIONAL.match(name)}


def _without_prefix(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take a prefix off, if every name has it."""
    if not state or not all(name.startswith(prefix) for name in state):
        return state
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None, dict[str, Any]]:
    """Return the tensors, and method and options if the file says them."""
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: can't read it as safetensors: {error}") from error
    if _METADATA in metadata:
        about = json.loads(metadata[_METADATA])
        return state, about["method"], about["options"]
    # Before: two entries.
    return state, metadata.get("method"), json.loads(metadata.get("options", "{}"))


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], str | None, dict[str, Any]]:
    """Read a torch or Paddle file; the unpickler makes only tensors, arrays, plain containers."""
    with torch.serialization.safe_globals(_plain_globals()):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except OSError as error:
            raise CheckpointError(f"{path}: can't read it: {error.strerror}") from error
        except Exception as error:  # torch raises a different class for each kind of file
            content = _read_paddle(path, error)
    return _tensors(path, content), *_said_by_recipe(content)


def _said_by_recipe(content: Any) -> tuple[str | None, dict[str, Any]]:
    """Return method and options by the recipe, JSON, that our training writes into its files."""
    recipe = content.get("recipe") if isinstance(content, dict) else None
    try:
        about = json.loads(recipe) if isinstance(recipe, str) else None
    except ValueError:
        about = None
    if not isinstance(about, dict) or not isinstance(about.get("options"), dict):
        return None, {}  # none, or somebody else's
    return about.get("method"), about["options"]


def _read_paddle(path: Path, first: Exception) -> Any:
    """Read a bare pickled dict of NumPy arrays, as `paddle.save` writes it."""
    try:
        with path.open("rb") as file:
            content = torch._weights_only_unpickler.load(file)
    except Exception as error:  # garbage makes the unpickler raise anything
        if _is_pickle(path) or zipfile.is_zipfile(path):
            raise _refused(path, first) from error
        raise CheckpointError(
            f"{path}: neither a torch file, nor safetensors, nor a Paddle file; or damaged"
        ) from error
    if (
        content == torch.serialization.MAGIC_NUMBER
    ):  # torch's old format, which torch itself refused
        raise _refused(path, first)
    return content


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == b"\x80"


def _refused(path: Path, first: Exception) -> CheckpointError:
    """Say what torch met; its own messages advise loading with code."""
    met = re.search(r"Unsupported (?:global|class)[^.]*?(?:GLOBAL )?([\w.]+) was", str(first))
    return CheckpointError(
        f"{path}: refused, because it holds a pickled {met[1] if met else 'object'}, and "
        "pickled objects other than tensors can run code on loading; ask its author for a "
        "state dict alone, saved with torch.save(model.state_dict(), path) or as safetensors"
    )


def _plain_globals() -> list[Any]:
    """Return what data that training scripts keep is pickled as, beyond torch's own; no code."""
    kinds = set(np.typecodes["All"]) - {"O"}
    allowed: list[Any] = [np.ndarray, np.dtype, *{type(np.dtype(kind)) for kind in kinds}]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # NumPy 1, NumPy 2
        allowed += [(_reconstruct, f"{module}._reconstruct"), (scalar, f"{module}.scalar")]
    return [*allowed, argparse.Namespace, pathlib.PosixPath]


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    """Return the state dict within what a file holds."""
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dict of tensors, found {type(content).__name__}")
    return {
        str(name): value if isinstance(value, Tensor) else _from_numpy(value)
        for name, value in content.items()
        if isinstance(value, Tensor) or (isinstance(value, np.ndarray) and _is_numeric(value))
    }


def _is_numeric(array: NDArray[Any]) -> bool:
    """Return whether torch has numbers like these; text, dates and longer ones are no weights."""
    return array.dtype.kind in "fiub" and array.dtype.itemsize <= 8


def _from_numpy(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


def _listed(names: Iterable[str]) -> str:
    found = sorted(names)
    rest = len(found) - _NAMED
    return ", ".join(found[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
