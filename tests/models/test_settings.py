"""What people set on command lines and in YAML files."""

from typing import Annotated, Literal

import click
import pytest
from click.testing import CliRunner
from pydantic import BaseModel, Field, ValidationError

from models import Setting, lay_over, one_line


def converted(text):
    return Setting().convert(text, None, None)


@pytest.mark.parametrize(
    "text",
    [
        "exp #2",
        "a: b",
        "@home",
        "%x",
        "*x",
        "&y",
        "!z",
        "a % b",
        "'quoted'",
        "x]",
        "on",
        "12:30",
        "",
    ],
)
def test_text_is_taken_to_the_letter(text):
    assert converted(f"name={text}") == ("name", text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 0.001),
        ("true", True),
        ("null", None),
        ('"3"', "3"),
        ("[a, b]", ["a", "b"]),
        ('["#1", 2]', ["#1", 2]),
        ("{fast: 1}", {"fast": 1}),
    ],
)
def test_values_have_types(text, value):
    assert converted(f"name={text}") == ("name", value)


def test_a_value_may_hold_an_equals_sign():
    assert converted("name=a=b") == ("name", "a=b")


@pytest.mark.parametrize("text", ["", "name", "=3", " =3", "name=[x", "name={a"])
def test_what_can_not_be_read_ends_the_command_with_code_2(text):
    @click.command()
    @click.option("--set", "settings", multiple=True, type=Setting())
    def command(settings):
        raise AssertionError(settings)

    result = CliRunner().invoke(command, ["--set", text])
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_a_later_setting_wins_and_others_stay():
    data = {"a": {"b": 1, "c": 2}}
    lay_over(data, [("a.b", 3), ("d.e", 4), ("a.b", 5)])
    assert data == {"a": {"b": 5, "c": 2}, "d": {"e": 4}}


def test_a_key_through_a_value_is_refused():
    with pytest.raises(ValueError, match=r"a\.b\.c: b is a value and has no keys"):
        lay_over({"a": {"b": 1}}, [("a.b.c", 2)])


class Cat(BaseModel, extra="forbid"):
    kind: Literal["cat"] = "cat"
    whiskers: int = 6


class Dog(BaseModel, extra="forbid"):
    kind: Literal["dog"] = "dog"
    bark_db: float = 60


class House(BaseModel, extra="forbid"):
    pets: tuple[Annotated[Cat | Dog, Field(discriminator="kind")], ...] = ()
    doors: int = Field(1, ge=1)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"door": 1}, "door: unknown key; did you mean 'doors'?"),
        ({"doors": 0}, "doors: Input should be greater than or equal to 1, found 0"),
        (
            {"pets": [{"kind": "dog", "wiskers": 1}]},
            "pets.0.dog.wiskers: unknown key; known keys: bark_db, kind",
        ),
        (
            {"pets": [{"kind": "cat", "wiskers": 1}]},
            "pets.0.cat.wiskers: unknown key; did you mean 'whiskers'?",
        ),
    ],
)
def test_an_error_of_the_schema_is_one_line_with_the_nearest_key(data, says):
    with pytest.raises(ValidationError) as caught:
        House.model_validate(data)
    assert one_line(caught.value, House) == says
