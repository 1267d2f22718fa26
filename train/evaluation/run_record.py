"""What a run's folder says of the run itself: `run.json`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, Field, ValidationError

from models import one_line, whole_file
from train.errors import TrainError

if TYPE_CHECKING:
    from pathlib import Path

RUN_RECORD: Final = "run.json"


class RunRecord(BaseModel, frozen=True, extra="forbid"):
    """Where a run comes from. The recipe itself stands in `recipe.yaml` beside it."""

    format: Literal["facewarden/run/v1"] = "facewarden/run/v1"
    method: str
    recipe_digest: str = Field(description="Shared by runs that differ in nothing but the seed.")
    seed: int
    steps: int = Field(description="That the recipe asks for.")
    protocol: str | None
    faces_digest: str = Field(description="Of the faces that train and dev hold, in their order.")
    n_train: int = Field(description="Faces that train.")
    n_dev: int = Field(description="Faces that choose.")
    processes: int
    device: str = Field(description="Of rank 0.")
    facewarden: str = Field(description="Version.")
    torch: str = Field(description="Version.")
    python: str = Field(description="Version.")


def write_record(run: Path, record: RunRecord) -> None:
    """Write a run's record.

    Raises:
        OSError: the folder can't be written.
    """
    with whole_file(run / RUN_RECORD) as part:
        part.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_record(run: Path) -> RunRecord:
    """Read a run's record.

    Raises:
        TrainError: there is none, or it is damaged.
    """
    path = run / RUN_RECORD
    try:
        return RunRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise TrainError(f"{path}: {one_line(error, RunRecord)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise TrainError(f"{run}: no folder of a training run: {error}") from error
