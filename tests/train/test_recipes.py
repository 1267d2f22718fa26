"""Every recipe of the repository loads, and means something: method, protocol, figures, size."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
import yaml

from models import InputSpec, build_model, load_method, method_names
from train.config import Recipe, load_recipe
from train.data.datasets._registry import load_dataset
from train.data.loaders import Group, TorchLoaderConfig, open_loader
from train.data.prepare import PrepareConfig
from train.data.protocols import load_protocol
from train.data.shards import open_shards
from train.errors import TrainError
from train.evaluation.clips import load_labelled
from train.evaluation.measures import VARIANTS
from train.evaluation.published import PublishedMeasure, published_for
from train.fit.state import new_model

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "train"
OTHERS = ("faces.yaml", "real_clips.yaml", "shipped_sets.yaml")  # faces; what is judged on
RECIPES = sorted(path for path in FOLDER.rglob("*.yaml") if path.name not in OTHERS)
IMPORTED = {"minifasnet"}  # nobody else has what it was trained on: no recipe of ours repeats that
SHIPPED = {"lgsc_lite0", "lgsc_presentation", "lgsc_presentation_2", "highfreq_digital"}
NAMES = [str(path.relative_to(FOLDER)) for path in RECIPES]


@pytest.fixture(params=RECIPES, ids=NAMES)
def path(request):
    return request.param


def prepared_for(path):
    """How the comments of a recipe say that its faces are prepared."""
    comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#"]
    settings = re.findall(r"--(?:set )?(\w+)[= ]([\w.]+)", " ".join(comments))
    fields = {name: value for name, value in settings if name in PrepareConfig.model_fields}
    return PrepareConfig.model_validate(fields)


def test_a_recipe_builds_its_methods_options_and_names_a_known_protocol(path):
    recipe = load_recipe(path)
    config = load_method(recipe.method).config.model_validate(recipe.options)
    # The stored crop shows more than the network's; and the network's size is one that it has.
    prepared = prepared_for(path)
    assert config.margin <= prepared.margin
    assert getattr(config, "window", prepared.window) == prepared.window
    assert config.size_px > 0
    if recipe.data.protocol is not None:
        load_protocol(recipe.data.protocol)


def test_every_expected_figure_names_a_figure_of_ours_and_its_source(path):
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.parent == FOLDER:
        assert "expected" in raw  # null where none was found
    for figure in load_recipe(path).expected or ():
        assert figure.metric.partition(":")[0] in VARIANTS
        assert figure.source
        assert figure.evidence is not None
        if figure.protocol is not None:
            assert figure.test in load_protocol(figure.protocol).test


def test_a_training_of_attacks_made_from_faces_names_no_protocol_with_real_ones(path):
    recipe = load_recipe(path)
    realonly = path.stem.endswith("_realonly") or path.stem in SHIPPED
    assert bool(recipe.data.synthetic) == realonly
    if realonly:
        assert recipe.data.protocol is None


def test_every_method_has_recipes_of_all_three_kinds():
    # Tests make networks of their own known; those have no recipe.
    methods = {m for m in method_names() if (FOLDER.parents[1] / "models" / f"{m}.py").exists()}
    assert len(methods) >= 6
    for method in methods:
        assert f"smoke/{method}.yaml" in NAMES
    for method in methods - IMPORTED:
        assert f"{method}_realonly.yaml" in NAMES
        published = [name for name in NAMES if name.startswith(f"{method}_")]
        assert len(published) > 1


def test_the_augmentation_of_a_recipe_can_be_drawn(path, faces):
    recipe, told = load_recipe(path), prepared_for(path)
    shards = open_shards(faces)
    claimed = shards.prepared.model_copy(update={"window": told.window, "margin": told.margin})
    shards = dataclasses.replace(shards, prepared=claimed)
    loaded = open_loader(
        shards,
        [Group("all", range(len(shards.records)), 4)],
        InputSpec(size_px=64, margin=1.3, window=told.window),
        TorchLoaderConfig(workers=0),
        seed=0,
        augment=recipe.augment,
    )
    assert next(loaded).batch.images.shape == (4, 3, 64, 64)


def test_the_collection_and_the_labelled_clips_load(tmp_path):
    load_labelled(FOLDER / "real_clips.yaml")
    options = {"collection": FOLDER / "faces.yaml", "max_missing": 1}
    with pytest.raises(TrainError, match=r"faces_bonafide\.zip: can't read the archive"):
        load_dataset("real_faces").read(tmp_path, options)  # past the YAML, to its files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rat": 1}, "learning_rat: unknown key; known keys: "),
        ({"method": "no_such"}, "unknown method 'no_such'; known methods: "),
        (
            {"options": {"sizepx": 64}},
            "options of lgsc: sizepx: unknown key; did you mean .size_px",
        ),
        ({"options": {"size_px": 65}}, "options of lgsc: size_px: .*multiple of 16"),
        ({"data": {"prepared": ["x"], "synthetic": {"sbl": 1}}}, "no family sbl; known: "),
        ({"data": {"prepared": ["x"], "quotas": {"a": 1}}}, "set it"),
        ({"data": {"prepared": ["x"], "synthetic": {"swap": 1}}}, "need autoencoders"),
        (
            {"data": {"prepared": ["x"], "synthetic": {"sbi": 1}, "synthetic_dev": {"swap": 1}}},
            "need autoencoders",
        ),
        (
            {"data": {"prepared": ["x"], "synthetic": {"swap": 1, "phone": 1}}},
            "are scenes and need other faces than",
        ),
    ],
)
def test_a_wrong_key_or_value_is_an_error_that_names_file_and_key(change, message, tmp_path):
    recipe = yaml.safe_load((FOLDER / "smoke" / "lgsc.yaml").read_text(encoding="utf-8"))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | change), encoding="utf-8")
    with pytest.raises(TrainError, match=rf"recipe\.yaml: .*{message}"):
        load_recipe(path)


def test_a_figure_stands_beside_results_of_its_own_protocol_only():
    found = {"test": "ffpp", "metric": "auc", "source": "a table"}
    c23, c40 = (
        PublishedMeasure(protocol=f"ffpp_intra_{c}", value=0.9, **found) for c in ("c23", "c40")
    )
    every = PublishedMeasure(value=0.8, **found)
    assert published_for("ffpp_intra_c23", [c23, c40, every]) == (c23, every)
    assert published_for(None, [c23, c40, every]) == (every,)


@pytest.fixture
def imagenet(tmp_path):
    """A file in the layout of torchvision's ResNet-18, with random weights."""
    lgsc = build_model("lgsc", {})
    path = tmp_path / "resnet18.pth"
    torch.save(lgsc.encoder.state_dict(), path)
    return path


def _starting_from(path, method, **options):
    smoke = yaml.safe_load((FOLDER / "smoke" / f"{method}.yaml").read_text(encoding="utf-8"))
    return Recipe.model_validate(smoke | {"options": options, "start_from": path})


def test_training_starts_from_the_weights_of_a_published_file(imagenet):
    model = new_model(_starting_from(imagenet, "lgsc", size_px=32))
    weights = torch.load(imagenet, weights_only=True)
    for encoder in (model.encoder, model.classifier.encoder):
        assert torch.equal(
            encoder.state_dict()["layer4.0.conv1.weight"], weights["layer4.0.conv1.weight"]
        )


def test_a_file_of_a_network_with_other_options_than_the_recipes_is_refused(imagenet):
    with pytest.raises(TrainError, match=r"put them into the recipe's `options`"):
        new_model(_starting_from(imagenet, "fghv", size_px=32))  # whose default is a DepthNet


def test_a_file_that_is_not_there_is_an_error_that_names_it():
    with pytest.raises(TrainError, match=r"start_from: missing\.pth: can't read it: No such file"):
        new_model(_starting_from("missing.pth", "lgsc"))
