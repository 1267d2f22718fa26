"""Numbers in MLflow. A fake stands for MLflow, which is no requirement of this project.

It was tried with the real one, too: mlflow-skinny 3.17.2 on SQLite (docs/training.md).
"""

import sys
from types import SimpleNamespace

import pytest

from train.errors import TrainError


class FakeError(Exception):
    pass


class FakeClient:
    """Keeps what it is told, in lists of the class, for all clients share a server."""

    def __init__(self):
        self.fails = False

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        return f"id of {name}"

    def create_run(self, experiment, run_name):
        self.runs.append((experiment, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=f"run {len(self.runs)}"))

    def update_run(self, run_id, status):
        if self.down:
            raise FakeError("no answer")
        self.told.append((run_id, status))

    def log_batch(self, run_id, metrics=(), params=()):
        if self.down and metrics:
            raise FakeError("no answer")
        self.metrics += [(run_id, m.key, m.value, m.step) for m in metrics]
        self.params.update({p.key: p.value for p in params})

    def set_terminated(self, run_id, status):
        self.told.append((run_id, status))


@pytest.fixture
def server(monkeypatch):
    """Install the fake, and give what it was told."""

    class Client(FakeClient):
        runs, told, metrics, params, down = [], [], [], {}, False

    def entity(*names):
        return lambda *values: SimpleNamespace(**dict(zip(names, values, strict=True)))

    experiment = SimpleNamespace(get=lambda: None)
    fake = SimpleNamespace(
        entities=SimpleNamespace(
            Metric=entity("key", "value", "timestamp", "step"), Param=entity("key", "value")
        ),
        environment_variables=SimpleNamespace(MLFLOW_EXPERIMENT_NAME=experiment),
    )
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.tracking", SimpleNamespace(MlflowClient=Client))
    return Client


def test_losses_validations_and_options_stand_in_mlflow(tmp_path, recipe_of, train, server):
    train(recipe_of(steps=2, mlflow=True), tmp_path / "mine")
    assert server.runs == [("id of facewarden", "mine")]
    assert server.params["optimiser.learning_rate"] == "0.001"
    assert {(key, step) for _, key, _, step in server.metrics} >= {
        ("losses/bce", 1),
        ("losses/learning_rate", 2),
        ("validation/dev_auc", 2),
    }
    assert server.told == [("run 1", "FINISHED")]


def test_a_run_that_goes_on_is_the_same_run_in_mlflow(tmp_path, recipe_of, train, server):
    train(recipe_of(steps=1, mlflow=True), tmp_path)
    train(recipe_of(steps=2, mlflow=True), tmp_path)
    assert len(server.runs) == 1
    assert {run for run, *_ in server.metrics} == {"run 1"}
    assert server.told == [("run 1", "FINISHED"), ("run 1", "RUNNING"), ("run 1", "FINISHED")]


def test_a_training_run_outlives_mlflow(tmp_path, recipe_of, train, server, caplog):
    server.down = True
    train(recipe_of(steps=2, mlflow=True), tmp_path)
    (told,) = [m for m in caplog.messages if "MLflow" in m]
    assert told == "MLflow failed, this run is no longer logged there: no answer"
    assert (tmp_path / "best.pt").exists()


def test_mlflow_that_does_not_answer_at_the_start_is_an_error(tmp_path, recipe_of, train, server):
    train(recipe_of(steps=1, mlflow=True), tmp_path)
    server.down = True
    with pytest.raises(TrainError, match="MLflow does not take the run: no answer"):
        train(recipe_of(steps=2, mlflow=True), tmp_path)


def test_without_mlflow_the_error_says_what_to_install(tmp_path, recipe_of, train, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(TrainError, match="pip install mlflow-skinny sqlalchemy alembic"):
        train(recipe_of(mlflow=True), tmp_path)
