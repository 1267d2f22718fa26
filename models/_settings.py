"""What people set: NAME=VALUE on command lines, keys of YAML files, and what they got wrong.

YAML and pydantic are imported when first needed: a command line with `--help` needs neither.
"""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING, Any, Final, get_args

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pydantic import BaseModel, ValidationError

# Errors of values that can't be a password.
_MAY_BE_REPEATED: Final = {
    "greater_than",
    "greater_than_equal",
    "less_than",
    "less_than_equal",
    "literal_error",
    "multiple_of",
    "string_pattern_mismatch",
}


class Setting(click.ParamType[tuple[str, Any]]):
    """NAME=VALUE of a command line, as a name and a typed value.

    JSON's literals, numbers, lists and objects are taken as such, also YAML's short form of the
    last two (`[a, b]`, `{fast: 1}`). Everything else is text, to the letter: nothing in it is a
    comment, a tag or an anchor. Quote text that looks like a number: NAME='"1"'.
    """

    name = "NAME=VALUE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        """Return the name and the value; anything else ends the command with exit code 2."""
        if isinstance(value, tuple):  # click converts defaults again
            return value
        name, equals, text = value.partition("=")
        if not (name.strip() and equals):
            self.fail(f"expected NAME=VALUE, found {value!r}", param, ctx)
        try:
            return name.strip(), _typed(text)
        except ValueError as error:
            self.fail(f"{name}: {error}", param, ctx)


def _typed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        if not text.lstrip().startswith(("[", "{")):
            return text
    except RecursionError:
        raise ValueError("nested too deeply") from None
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # a date such as 2024-13-45 is a ValueError
        raise ValueError(
            f"{text!r} begins like a list or an object, and is none ({_problem(error)}); for text "
            f"put it in double quotes: {json.dumps(text)}"
        ) from error
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _problem(error: Exception) -> str:
    return str(getattr(error, "problem", None) or error).replace("\n", " ")


def lay_over(data: dict[str, Any], settings: Iterable[tuple[str, Any]]) -> None:
    """Write dotted keys with their values into nested data, in place; a later one wins.

    Raises:
        ValueError: a key leads through a value that has no keys.
    """
    for key, value in settings:
        *parents, leaf = key.split(".")
        node = data
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"{key}: {parent} is a value and has no keys")  # noqa: TRY004
        node[leaf] = value


def one_line(error: ValidationError, schema: type[BaseModel]) -> str:
    """Say on one line what is wrong, key by key; for an unknown key, name the nearest known one.

    Args:
        error: of validating data by `schema`.
        schema: the outermost class.
    """
    # A default that follows from a wrong key is not wrong itself.
    own = [e for e in error.errors() if e["type"] != "default_factory_not_called"]
    return "; ".join(_explained(e, schema) for e in own)


def _explained(error: Mapping[str, Any], schema: type[BaseModel]) -> str:
    loc, kind = error["loc"], error["type"]
    where = ".".join(map(str, loc))
    if kind != "extra_forbidden":
        says = error["msg"].removeprefix("Value error, ")
        found = f", found {error['input']!r}" if kind in _MAY_BE_REPEATED else ""
        return f"{where}: {says}{found}" if where else says
    known = sorted({key for cls in _classes_at(schema, loc[:-1]) for key in cls.model_fields})
    near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"{where}: unknown key; {hint}"


def _classes_at(schema: type[BaseModel], loc: tuple[int | str, ...]) -> list[type[BaseModel]]:
    """Return the classes that a path of keys, indices and union tags can lead to."""
    classes = [schema]
    for part in map(str, loc):
        fields = [c.model_fields[part].annotation for c in classes if part in c.model_fields]
        tagged = [c for c in classes if _tag(c) == part]
        if fields:
            classes = [c for annotation in fields for c in _classes_in(annotation)]
        elif tagged:
            classes = tagged
    return classes


def _classes_in(annotation: Any) -> Iterator[type[BaseModel]]:
    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _classes_in(part)


def _tag(cls: type[BaseModel]) -> str | None:
    """Return the value of `kind` that chooses a class of a union."""
    kind = cls.model_fields.get("kind")
    values = () if kind is None else get_args(kind.annotation)
    return str(values[0]) if values else None
