"""The folder is the registry: a module of `models` without a leading underscore is a method."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError

import models
from models._settings import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from models._contract import AttackModel, Method


def method_names() -> tuple[str, ...]:
    """Return every method's name, sorted, without importing any of them."""
    return tuple(
        sorted(m.name for m in iter_modules(models.__path__) if not m.name.startswith("_"))
    )


def load_method(name: str) -> Method:
    """Return the method of this name.

    Raises:
        ValueError: no such method; the message lists the known ones.
    """
    if name not in method_names():
        raise ValueError(f"unknown method {name!r}; known methods: {', '.join(method_names())}")
    return cast("Method", import_module(f"models.{name}").METHOD)


def build_model(name: str, options: Mapping[str, Any]) -> AttackModel:
    """Return the untrained network of a method.

    Raises:
        ValueError: no such method, or options that its `Config` refuses.
    """
    method = load_method(name)
    try:
        config = method.config.model_validate(dict(options))
    except ValidationError as error:
        raise ValueError(f"options of {name}: {one_line(error, method.config)}") from error
    return method.build(config)
