"""Published figures that a recipe's results are set beside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError

from models import one_line
from train.errors import TrainError
from train.evaluation.scores import Level

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class PublishedMeasure(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """What a method's authors, or others, report for a protocol."""

    protocol: str | None = Field(
        None, description="Name in configs/protocols, without which it means nothing; null: any."
    )
    train: str | None = Field(None, description="What it was trained on, for people.")
    test: str = Field(description="Name of the protocol's test set.")
    level: Level = Field("frame", description="What is counted: videos or frames.")
    metric: str = Field(description="Name of the measure in our reports, such as auc.")
    value: float | None = Field(description="null: looked for, and none was found.")
    unit: Literal["share", "percent"] = Field("share", description="Unit of the published value.")
    tolerance: float | None = Field(None, ge=0, description="In the same unit.")
    threshold_rule: str | None = Field(None, description="As the source tells it.")
    source: str = Field(description="Paper and table, or repository and commit.")
    evidence: Literal["paper", "repository", "secondary"] | None = Field(
        None, description="Where it was read; `secondary`: in somebody else's comparison."
    )


class _Listed(BaseModel):
    """A YAML file, of which no other key matters here."""

    expected: tuple[PublishedMeasure, ...] | None = None


def load_published(path: Path) -> tuple[PublishedMeasure, ...]:
    """Read the list under `expected:` of a YAML file, a recipe for instance; none if it has none.

    Raises:
        TrainError: unreadable, or an entry is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return _Listed.model_validate(content or {}).expected or ()
    except ValidationError as error:
        raise TrainError(f"{path}: the published figures: {one_line(error, _Listed)}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainError(f"{path}: can't read the published figures: {error}") from error


def published_for(
    protocol: str | None, measures: Iterable[PublishedMeasure]
) -> tuple[PublishedMeasure, ...]:
    """Return the figures that may stand beside results of a protocol (None: of no protocol)."""
    return tuple(measure for measure in measures if measure.protocol in (None, protocol))
