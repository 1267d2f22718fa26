"""What may change when a run goes on, and what is refused by its name."""

import csv
from pathlib import Path

import pytest
import torch
import yaml

from train.config import FREE, Recipe, load_recipe
from train.errors import TrainError
from train.fit.checkpoint import load_checkpoint, save_checkpoint, save_weights

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def saved(tmp_path, recipe_of):
    """Save a checkpoint of three steps; give how to load it by a changed recipe."""
    path = tmp_path / "checkpoint.pt"
    parts = {"network": torch.nn.Linear(2, 2)}
    save_checkpoint(path, recipe_of(), 1, "faces", 3, parts)

    def load(*, faces="faces", world=1, **changes):
        recipe = recipe_of(**changes)
        return load_checkpoint(path, recipe, world, faces, parts)

    load.path = path
    return load


def test_the_same_recipe_goes_on_after_its_last_step(saved):
    assert saved() == (3, [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"seed was 0, is now 1"),
        (
            {"optimiser": {"kind": "adamw", "learning_rate": 0.01}},
            r"optimiser\.learning_rate was 0\.001, is now 0\.01",
        ),
        (
            {"optimiser": {"kind": "sgd", "learning_rate": 0.001}},
            r"optimiser\.kind was adamw, is now sgd; optimiser\.momentum was None, is now 0\.9",
        ),
        ({"augment": {}}, r"augment\.hflip was 0\.5, is now 0\.0"),
        ({"loader": {"kind": "dali"}}, r"loader\.kind was torch, is now dali"),
        ({"schedule": {"kind": "cosine"}}, r"schedule\.kind was constant, is now cosine"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_a_changed_option_is_refused_with_its_key_and_both_values(saved, changes, message):
    with pytest.raises(TrainError, match=rf"checkpoint\.pt: made by another recipe: .*{message}"):
        saved(**changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"steps": 60}, ["steps was 6, is now 60"]),
        ({"threads": 2}, ["threads was 1, is now 2"]),
        (
            {"loader": {"kind": "torch", "workers": 4, "prefetch": 8}},
            ["loader.prefetch was 2, is now 8", "loader.workers was 0, is now 4"],
        ),
        (
            {"log_every": 7, "checkpoint_every": 8, "validate_every": 9},
            [
                "checkpoint_every was 3, is now 8",
                "log_every was 1, is now 7",
                "validate_every was 3, is now 9",
            ],
        ),
        ({"keep": 3, "patience": 2}, ["keep was 1, is now 3", "patience was None, is now 2"]),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_what_does_not_change_the_steps_may_change_and_is_told(saved, changes, told):
    step, changed = saved(**changes)
    assert step == 3
    assert [str(change) for change in changed] == told


def test_every_option_that_may_change_is_one(recipe_of):
    dali = recipe_of(loader={"kind": "dali"})
    assert recipe_of().settings().keys() | dali.settings().keys() >= FREE


def test_fewer_steps_than_are_done_are_refused(saved):
    with pytest.raises(TrainError, match="3 steps are done, and steps is now 2"):
        saved(steps=2)


def test_other_faces_are_refused(saved):
    with pytest.raises(TrainError, match=r"made from other faces: those of .* have changed"):
        saved(faces="others")


def test_another_number_of_processes_is_refused(saved):
    with pytest.raises(TrainError, match="made by 1 processes, this run has 2"):
        saved(world=2)


def test_faces_that_moved_are_the_same_faces(saved, tmp_path):
    step, (change,) = saved(data={"prepared": [tmp_path], **_per_step()})
    assert (step, change.key) == (3, "data.prepared")


def _per_step():
    return {"bona_fide_per_step": 3, "attacks_per_step": 3}


def test_a_checkpoint_of_another_version_is_refused(saved):
    content = torch.load(saved.path, weights_only=True)
    del content["faces"]
    torch.save(content, saved.path)
    with pytest.raises(TrainError, match=r"another version of this program \('faces'\)"):
        saved()


def test_a_longer_run_goes_on_and_says_what_changed(tmp_path, recipe_of, train, caplog):
    cosine = {"schedule": {"kind": "cosine"}}
    train(recipe_of(steps=2, **cosine), tmp_path)
    train(recipe_of(steps=4, **cosine), tmp_path)
    with (tmp_path / "losses.csv").open() as file:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(file)]
    assert rates == pytest.approx([0.001, 0.0005, 0.0005, 0.000146], rel=0.01)
    with (tmp_path / "changes.csv").open() as file:
        assert list(csv.DictReader(file)) == [
            {"after_step": "2", "key": "steps", "before": "2", "now": "4"}
        ]
    (told,) = [m for m in caplog.messages if "cosine" in m]
    assert "after step 2 the learning rate is 0.0005, and would have been 0" in told


def test_a_longer_run_without_a_schedule_is_the_run_that_was_longer_from_the_start(
    tmp_path, recipe_of, train
):
    train(recipe_of(steps=3), tmp_path / "lengthened")
    train(recipe_of(steps=6), tmp_path / "lengthened")
    train(recipe_of(steps=6), tmp_path / "whole")
    lengthened, whole = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["network"]
        for name in ("lengthened", "whole")
    )
    assert all(torch.equal(lengthened[name], whole[name]) for name in whole)


FULL = """
import resource, sys
from pathlib import Path
import torch
from train.config import load_recipe
from train.errors import TrainError
from train.fit.checkpoint import save_weights

resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    save_weights(Path(sys.argv[2]), load_recipe(Path(sys.argv[1])), 1, torch.nn.Linear(1000, 100))
except TrainError as error:
    print(error)
"""


def test_a_full_disk_is_an_error_that_says_how_much_is_needed_and_keeps_the_old_file(
    tmp_path, recipe_of, recipe_file, warm
):
    path = tmp_path / "best.pt"
    save_weights(path, recipe_of(), 1, torch.nn.Linear(2, 2))
    before = path.read_bytes()
    recipe = recipe_file(recipe_of(method="lgsc"))
    with warm.start("-c", FULL, recipe, path) as process:
        told, err = process.communicate()
    assert process.returncode == 0, err
    assert "best.pt: can't be written: " in told
    assert "It takes 0.4 MB, and " in told
    assert "MB are free there; an older file is kept: make room" in told
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"best.pt", "recipe.yaml"}


def test_a_recipe_of_an_older_version_has_todays_defaults(recipe_of, tmp_path):
    old = recipe_of().model_dump(mode="json")
    for key in ("keep", "patience", "mlflow"):
        del old[key]
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(old))
    assert load_recipe(tmp_path / "old.yaml") == Recipe.model_validate(recipe_of().model_dump())
