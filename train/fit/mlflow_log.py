"""A run's numbers in MLflow, for those who compare runs there."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from train.config import Recipe

log = logging.getLogger(__name__)

_KNOWN_AS: Final = "mlflow_run.json"  # in the run's folder
_LONGEST: Final = 500  # characters of a parameter that every version of MLflow takes
_AT_ONCE: Final = 100  # parameters of one request


class MlflowLog:
    """One run in MLflow; where MLflow keeps it is for its own environment variables to say.

    A training run outlives the log: once MLflow fails, a warning says so and the log ends.
    """

    def __init__(self, run: Path, recipe: Recipe) -> None:
        """Open a new run in MLflow, or the one that a run's folder names.

        Raises:
            TrainError: MLflow is not installed, or does not answer.
        """
        path = run / _KNOWN_AS
        try:
            import mlflow
            from mlflow.tracking import MlflowClient

            self._metric = mlflow.entities.Metric
            self._client: Any = MlflowClient()
            if path.exists():
                self._id = json.loads(path.read_text(encoding="utf-8"))["run_id"]
                self._client.update_run(self._id, status="RUNNING")
            else:
                self._id = self._new(mlflow, run, recipe)
                path.write_text(json.dumps({"run_id": self._id}) + "\n", encoding="utf-8")
        except ImportError as error:
            raise TrainError(
                f"the recipe wants mlflow, but it can't be imported ({error}): pip install "
                "mlflow-skinny sqlalchemy alembic, or set mlflow to false"
            ) from error
        except Exception as error:  # it has its own, its store's and those of the network
            raise TrainError(
                f"{run}: MLflow does not take the run: {error}; look at MLFLOW_TRACKING_URI, or "
                f"set mlflow to false (or remove {path} for a new run there)"
            ) from error
        self._live = True

    def _new(self, mlflow: Any, run: Path, recipe: Recipe) -> str:
        name = mlflow.environment_variables.MLFLOW_EXPERIMENT_NAME.get() or "facewarden"
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        run_id = str(self._client.create_run(experiment, run_name=run.name).info.run_id)
        options = [
            mlflow.entities.Param(key, str(value)[:_LONGEST])
            for key, value in recipe.settings().items()
        ]
        for start in range(0, len(options), _AT_ONCE):
            self._client.log_batch(run_id, params=options[start : start + _AT_ONCE])
        return run_id

    def add(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Add the numbers of a step."""
        at_ms = int(time.time() * 1000)
        metrics = [
            self._metric(f"{kind}/{name}", value, at_ms, step) for name, value in values.items()
        ]
        self._tried(lambda: self._client.log_batch(self._id, metrics=metrics))

    def close(self, *, finished: bool) -> None:
        """Say that the run is done, or was stopped."""
        status = "FINISHED" if finished else "KILLED"
        self._tried(lambda: self._client.set_terminated(self._id, status=status))

    def _tried(self, request: Any) -> None:
        if not self._live:
            return
        try:
            request()
        except Exception as error:  # whatever it is, the training goes on
            self._live = False
            log.warning("MLflow failed, this run is no longer logged there: %s", error)
