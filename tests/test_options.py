"""Every option of every config class says what it is, and in which unit."""

import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any, get_args

import pytest
from pydantic import BaseModel

PACKAGES = ("stream", "models", "trt_engines", "train")
# Classes that people write in YAML or on a command line, beside all that they are made of.
ROOTS = re.compile(r".*(Config|Options)|Recipe|Protocol|LabelledClips|InputSpec")


def all_classes() -> Iterator[type[BaseModel]]:
    for package in map(import_module, PACKAGES):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                import_module(module.name)
    waiting = [BaseModel]
    while waiting:
        for cls in waiting.pop().__subclasses__():
            waiting.append(cls)
            if cls.__module__.startswith(PACKAGES):
                yield cls


def classes_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from classes_in(part)


def config_classes() -> list[type[BaseModel]]:
    """Return the roots and, without end, the classes of their fields."""
    found = {cls for cls in all_classes() if ROOTS.fullmatch(cls.__name__)}
    waiting = list(found)
    while waiting:
        for field in waiting.pop().model_fields.values():
            for cls in set(classes_in(field.annotation)) - found:
                found.add(cls)
                waiting.append(cls)
    return sorted(found, key=lambda cls: (cls.__module__, cls.__qualname__))


def is_described(cls: type[BaseModel], name: str) -> bool:
    """Say whether an option is; a tag and a group of options are by the docstring of a class."""
    field = cls.model_fields[name]
    group = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    return name == "kind" or bool(field.annotation.__doc__ if group else field.description)


CLASSES = config_classes()


def test_the_classes_are_found():
    names = {cls.__name__ for cls in CLASSES}
    assert {"StreamConfig", "SourceConfig", "RedisSinkConfig", "TorchConfig"} <= names
    assert {"LgscConfig", "UdrConfig", "Recipe", "AdamWConfig", "Query", "Erase"} <= names


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_every_option_is_described(cls):
    missing = [name for name in cls.model_fields if not is_described(cls, name)]
    assert missing == []


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_a_description_is_a_sentence_for_people(cls):
    for name, field in cls.model_fields.items():
        if field.description:
            assert field.description.endswith((".", "...")), name
