"""A network learns what another says of the faces, and of what is made of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models import FaceBatch, build_model, packed_weights
from train.config import DistilConfig
from train.data.selection import open_data
from train.errors import TrainError
from train.fit.distil import Distillation, apart, blended
from train.fit.objective import Objective
from train.fit.ranks import Ranks
from train.fit.state import TrainingState, frozen_norms
from trt_engines.variants import seeded_model

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture
def teacher(tmp_path):
    """Weights of a tiny network that calls green an attack, on a scale of its own."""
    model = build_model("tiny", {"width": 3})
    with torch.no_grad():
        model.first.weight.zero_()
        model.first.weight[:, 1, 1, 1] = 1
        model.first.bias.zero_()
        model.last.weight.fill_(3)
        model.last.bias.fill_(-3)
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(packed_weights(model.state_dict(), "tiny", {"width": 3}))
    return path


@pytest.fixture
def distillation(teacher):
    def make(**options):
        config = DistilConfig(method="tiny", teacher=teacher, **options)
        return Distillation(config, build_model("tiny", {}))

    return make


def batch_of(n=6):
    torch.manual_seed(1)
    images = torch.randint(0, 256, (2 * n, 3, 16, 16), dtype=torch.uint8)
    return FaceBatch(images, torch.tensor([0] * n + [1] * n))


def test_a_lesson_keeps_some_pairs_as_they_are_and_makes_pictures_of_the_others(distillation):
    batch = batch_of()
    torch.manual_seed(0)
    lesson = distillation(own_pairs=2, repeats=3).lesson(batch)
    assert lesson.own.labels.tolist() == [0, 0, 1, 1]
    rows = [
        next(i for i, image in enumerate(batch.images) if torch.equal(image, own))
        for own in lesson.own.images
    ]
    assert rows[2:] == [row + 6 for row in rows[:2]]  # attacks of the same faces
    assert lesson.images.shape == (3 * 8, 3, 16, 16)
    assert lesson.targets.shape == (4 + 3 * 8,)


def test_which_pairs_are_kept_is_drawn_anew(distillation):
    batch, taught = batch_of(), distillation(own_pairs=1)
    kept = set()
    for seed in range(12):
        torch.manual_seed(seed)
        own = taught.lesson(batch).own.images[0]
        kept.add(next(i for i, image in enumerate(batch.images) if torch.equal(image, own)))
    assert len(kept) >= 3


def test_the_targets_are_the_teachers_log_odds_cut_at_the_limit(distillation):
    batch = batch_of()
    batch.images[0], batch.images[6] = 255, 0
    lesson = distillation(own_pairs=6, limit=2.5).lesson(batch)
    row = next(i for i, image in enumerate(lesson.own.images) if bool((image == 255).all()))
    dark = next(i for i, image in enumerate(lesson.own.images) if bool((image == 0).all()))
    assert lesson.targets[row] == 2.5  # three channels of 1 / sqrt(1 + eps), times 3, less 3: 6
    assert lesson.targets[dark] == -2.5
    assert len(lesson.images) == 0


def test_the_loss_is_none_where_the_student_says_the_same(distillation):
    taught = distillation(weight=4.0)
    same = torch.tensor([-1.0, 2.0])
    assert taught.term(same, same) == 0
    assert taught.term(same + 2, same) == pytest.approx(4 * 1.5)  # smooth L1: 2 - 1/2


def test_what_is_made_of_pictures_differs_from_them_and_stays_in_range():
    torch.manual_seed(0)
    images = batch_of(64).images.float()
    made = blended(images)
    assert made.shape == images.shape
    assert made.min() >= 0 and made.max() <= 255
    differ = (made - images).abs().mean((1, 2, 3)) > 1
    assert 0.6 < differ.float().mean() < 1  # some stay as they were
    assert blended(images[:0]).shape == (0, 3, 16, 16)


def test_a_run_comes_to_say_what_its_teacher_says(tmp_path, recipe_of, teacher, train):
    recipe = recipe_of(
        distil={"method": "tiny", "teacher": teacher, "own_pairs": 1, "weight": 3.0},
        optimiser={"kind": "adamw", "learning_rate": 0.03},
        steps=60,
        validate_every=60,
        checkpoint_every=60,
    )
    train(recipe, tmp_path / "run")
    lines = (tmp_path / "run" / "losses.csv").read_text().splitlines()
    assert {"bce", "distillation"} <= set(lines[0].split(","))
    column = lines[0].split(",").index("distillation")
    losses = [float(line.split(",")[column]) for line in lines[1:]]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_the_teacher_does_not_learn(tmp_path, recipe_of, teacher):
    recipe = recipe_of(distil={"method": "tiny", "teacher": teacher})
    data = open_data(recipe.data.prepared, None)
    state = TrainingState(recipe, tmp_path, data, ALONE)
    taught = state._objective._distillation
    before = [p.clone() for p in taught._teacher.parameters()]
    batches = data.training_batches(recipe, ALONE, state.model.input_spec, first_step=0)
    state.learn(1, [next(batches)])
    assert all(torch.equal(a, b) for a, b in zip(before, taught._teacher.parameters(), strict=True))
    assert not any("teacher" in name for name in state._objective.state_dict())


def test_a_teacher_that_sees_other_windows_is_refused(distillation, teacher, monkeypatch):
    wide = build_model("tiny", {})
    wide.input_spec = wide.input_spec.model_copy(update={"margin": 2.7})
    config = DistilConfig(method="tiny", teacher=teacher)
    with pytest.raises(TrainError, match=r"teacher sees windows of the rule 'pad' and margin 1\.2"):
        Distillation(config, wide)


def test_a_student_that_can_not_be_taught_and_a_teacher_that_is_none_are_refused(teacher, tmp_path):
    config = DistilConfig(method="tiny", teacher=teacher)
    with pytest.raises(TrainError, match="no method that can be taught"):
        Distillation(config, nn.Linear(1, 1))
    missing = DistilConfig(method="tiny", teacher=tmp_path / "none.pth")
    with pytest.raises(TrainError, match=r"distil\.teacher: .*none\.pth"):
        Distillation(missing, build_model("tiny", {}))


IN_STAGES = {
    "encoder": "mobilefacenet",
    "decoder_widths": [8, 8, 8, 8, 8],
    "decoder_norm": "batch",
    "score": "bottleneck",
    "size_px": 80,
    "margin": 2.7,
    "window": "inside",
}


@pytest.fixture(scope="module")
def minifasnet(tmp_path_factory):
    model = seeded_model("minifasnet", {}, lambda spec: faces_of_80_px().images)
    path = tmp_path_factory.mktemp("teacher") / "minifasnet.safetensors"
    path.write_bytes(packed_weights(model.state_dict(), "minifasnet", {"variant": "v2"}))
    return path


def faces_of_80_px(n=4):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2 * n, 3, 80, 80), dtype=torch.uint8, generator=generator)
    return FaceBatch(images, torch.tensor([0] * n + [1] * n))


def taught_in_stages(minifasnet, **options):
    torch.manual_seed(0)
    student = build_model("lgsc", IN_STAGES).train()
    config = DistilConfig(method="minifasnet", teacher=minifasnet, **options)
    return student, Objective(student, distillation=Distillation(config, student))


def test_a_stage_apart_learns_of_the_teachers_map_before_it_alone(minifasnet):
    student, objective = taught_in_stages(minifasnet, stages="apart", own_pairs=0)
    terms, outputs = objective(faces_of_80_px())
    assert outputs is None and set(terms) == {"stages", "distillation"}
    lesson = objective._distillation.lesson(faces_of_80_px())
    given = student.normalise(lesson.images)
    last = apart(student, given, lesson.maps)[-1]
    last.sum().backward()
    learning = {name.split(".")[1] for name, p in student.named_parameters() if p.grad is not None}
    assert learning == {"widened", "gather", "embedding"}


def test_stages_apart_come_nearer_to_the_teachers(minifasnet):
    student, objective = taught_in_stages(minifasnet, stages="apart", own_pairs=0)
    optimiser = torch.optim.Adam(student.parameters(), 0.01)
    unexplained = []
    for _ in range(12):
        terms, _ = objective(faces_of_80_px())
        optimiser.zero_grad()
        terms["stages"].backward()
        optimiser.step()
        unexplained.append(terms["stages"].item())
    assert unexplained[-1] < 0.75 * unexplained[0]


def test_stages_together_are_one_pass_with_the_methods_own_terms(minifasnet):
    student, objective = taught_in_stages(minifasnet, stages="together", own_pairs=1)
    terms, outputs = objective(faces_of_80_px())
    assert {"stages", "distillation", "classification"} <= set(terms)
    assert outputs.cue.shape == (2, 3, 80, 80)
    terms["stages"].backward()
    reached = [name for name, p in student.named_parameters() if p.grad is not None]
    assert any(name.startswith("encoder.stem") for name in reached)
    assert not any(name.startswith("decoder") for name in reached)


def test_the_loss_of_maps_is_the_share_of_their_variance_that_is_not_explained(minifasnet):
    _, objective = taught_in_stages(minifasnet, stages="together", weight_stages=2.0)
    distillation = objective._distillation
    lesson = distillation.lesson(faces_of_80_px(32))
    assert distillation.stages_term(lesson.maps, lesson) == 0
    means = [m.mean((0, *range(2, m.ndim)), keepdim=True).expand_as(m) for m in lesson.maps]
    assert distillation.stages_term(means, lesson) == pytest.approx(2 * 7, rel=0.02)


def test_networks_that_are_no_chains_of_the_same_stages_are_refused(minifasnet, distillation):
    with pytest.raises(TrainError, match=r"distil\.stages: Tiny is no chain of stages"):
        distillation(stages="together")
    config = DistilConfig(method="minifasnet", teacher=minifasnet, stages="together")
    with pytest.raises(TrainError, match=r"distil\.stages: only encoder: mobilefacenet"):
        Distillation(config, build_model("lgsc", {**IN_STAGES, "score": "cue"}))
    with pytest.raises(
        TrainError, match=r"distil\.stages: the student's maps are .*, the teacher's"
    ):
        Distillation(config, build_model("lgsc", {**IN_STAGES, "size_px": 96}))
    with pytest.raises(ValueError, match="own_pairs is 1, set it to 0"):
        DistilConfig(method="minifasnet", teacher=minifasnet, stages="apart")


def test_frozen_norms_keep_their_statistics_while_the_others_learn(tmp_path, recipe_of, teacher):
    recipe = recipe_of(distil={"method": "tiny", "teacher": teacher}, frozen_norms=["norm"])
    data = open_data(recipe.data.prepared, None)
    state = TrainingState(recipe, tmp_path, data, ALONE)
    before = {name: t.clone() for name, t in state._network.state_dict().items()}
    batches = data.training_batches(recipe, ALONE, state.model.input_spec, first_step=0)
    state.learn(1, [next(batches)])
    after = state._network.state_dict()
    assert torch.equal(after["norm.running_mean"], before["norm.running_mean"])
    assert not torch.equal(after["norm.weight"], before["norm.weight"])
    with pytest.raises(TrainError, match=r"frozen_norms: no batch norm's name begins with 'first'"):
        frozen_norms(state._network, ["first"])
