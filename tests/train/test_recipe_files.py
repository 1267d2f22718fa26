"""What people write in a recipe, and on the command line in its place."""

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from train.config import Recipe, load_recipe
from train.errors import TrainError

TEXT = """\
method: lgsc
data: {prepared: [runs/faces]}
optimiser: {kind: adamw, learning_rate: 1e-3}
steps: 10
"""


@pytest.fixture
def load(tmp_path):
    def read(text=TEXT, *settings):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_recipe(path, settings)

    return read


def _classes(annotation: Any):
    """Yield every config class below an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from _classes(field.annotation)
    for part in get_args(annotation):
        yield from _classes(part)


def _literals(annotation: Any):
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    for part in get_args(annotation):
        yield from _literals(part)


CLASSES = sorted(set(_classes(Recipe)), key=lambda cls: cls.__name__)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_option_is_described(cls):
    undescribed = [name for name, field in cls.model_fields.items() if not field.description]
    assert not undescribed


WORDS = sorted(
    {
        word
        for cls in CLASSES
        for field in cls.model_fields.values()
        for word in _literals(field.annotation)
        if isinstance(word, str)
    }
)


@pytest.mark.parametrize("word", WORDS)
def test_a_word_that_an_option_takes_is_a_word_in_yaml(load, word):
    assert load(f"{TEXT}start_from: {word}\n").start_from in (word, Path(word))


def test_autocast_off_needs_no_quotes(load):
    assert load(f"{TEXT}autocast: off\n").autocast == "off"


@pytest.mark.parametrize("value", ["on", "yes", "true", "fp32"])
def test_a_value_that_autocast_does_not_have_is_refused_with_those_that_it_has(load, value):
    with pytest.raises(TrainError, match=r"autocast: Input should be 'off', 'bf16' or 'fp16'"):
        load(f"{TEXT}autocast: {value}\n")


@pytest.mark.parametrize(("value", "meant"), [("yes", True), ("on", True), ("off", False)])
def test_yamls_old_booleans_still_switch_options(load, value, meant):
    assert load(f"{TEXT}decay_biases: {value}\n").decay_biases is meant


def test_a_number_with_an_exponent_needs_no_dot(load):
    assert load().optimiser.learning_rate == 0.001


def test_a_key_that_is_there_twice_is_refused_with_its_line(load):
    with pytest.raises(TrainError, match=r"(?s)the key 'steps' is there twice.*line 1"):
        load(f"{TEXT}steps: 20\n")


def test_merged_keys_may_be_overridden(load):
    text = "augment: {gain: &g {low: 0.5, high: 2}, contrast: {<<: *g, low: 0.8}}\n"
    contrast = load(TEXT + text).augment.contrast
    assert (contrast.low, contrast.high) == (0.8, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"method: lgsc # \xe9\n", r"recipe\.yaml: byte 15 is no UTF-8: .*save it as UTF-8"),
        ("\ufeff" + TEXT.replace("steps", "stepz"), "stepz: unknown key; did you mean 'steps'"),
        (TEXT.encode("utf-16"), "is no UTF-8"),
        ("", "expected a recipe, with keys such as .*; found nothing"),
        ("- method\n", "found list"),
        ("method: [\n", "can't read the recipe"),
        ("method: !!python/name:os.system x\n", "can't read the recipe"),
        (TEXT + "lerning_rate: 1\n", "lerning_rate: unknown key"),
        (TEXT + "augment: {hflp: 0.5}\n", r"augment\.hflp: unknown key; did you mean 'hflip'"),
        (TEXT + "options: {sise_px: 32}\n", r"options of lgsc: sise_px: .*did you mean 'size_px'"),
        (TEXT.replace("lgsc", "lgsk"), "lgsk"),
        (TEXT + "seed: -1\n", "seed: Input should be greater than or equal to 0"),
        (
            TEXT.replace("adamw", "sgd").replace("1e-3", "1, momentum: 0, nesterov: true"),
            r"optimiser\.sgd: nesterov needs a momentum above 0",
        ),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said_on_one_line(load, text, message):
    with pytest.raises(TrainError, match=message):
        load(text)


def test_settings_stand_in_for_what_the_file_says(load):
    recipe = load(
        TEXT, ("optimiser.kind", "sgd"), ("optimiser.momentum", 0.5), ("autocast", "off"),
        ("data.prepared", ["a", "b"]), ("augment.hflip", 0.5),
    )  # fmt: skip
    assert (recipe.optimiser.kind, recipe.optimiser.momentum) == ("sgd", 0.5)
    assert [str(path) for path in recipe.data.prepared] == ["a", "b"]
    assert recipe.augment.hflip == 0.5


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (("steps.x", 1), "with --set: steps.x: steps is a value and has no keys"),
        (("stepz", 1), "with --set: stepz: unknown key; did you mean 'steps'"),
        (("steps", "many"), "with --set: steps: Input should be a valid integer"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(load, setting, message):
    with pytest.raises(TrainError, match=message):
        load(TEXT, setting)


def test_the_digest_is_of_what_a_run_learns_and_not_of_seed_and_speed(load):
    first = load().digest()
    assert (
        load(TEXT, ("seed", 3), ("loader.workers", 7), ("data.prepared", ["z"])).digest() == first
    )
    assert load(TEXT, ("steps", 11)).digest() != first
    assert load(TEXT, ("augment.hflip", 0.5)).digest() != first
