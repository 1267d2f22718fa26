"""Published figures that a recipe's results are set beside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from train.errors import TrainError
from train.evaluation.scores import Level

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class ExpectedFigure(BaseModel, frozen=True, extra="forbid"):
    """What a method's authors, or others, report for a protocol."""

    protocol: str | None = Field(
        None, description="Name in configs/protocols, without which it means nothing; None: any."
    )
    train: str | None = Field(None, description="What it was trained on, for people.")
    test: str = Field(description="Name of the protocol's test set.")
    level: Level = "frame"
    metric: str = Field(description="Name of the figure in our reports, such as auc.")
    value: float | None = Field(description="null: looked for, and none was found.")
    unit: Literal["share", "percent"] = "share"
    tolerance: float | None = Field(None, ge=0, description="In the same unit.")
    threshold_rule: str | None = Field(None, description="As the source tells it.")
    source: str = Field(description="Paper and table, or repository and commit.")
    evidence: Literal["paper", "repository", "secondary"] | None = Field(
        None, description="Where it was read; `secondary`: in somebody else's comparison."
    )


def load_expected(path: Path) -> list[ExpectedFigure]:
    """Read the list under `expected:` of a YAML file, a recipe for instance; none if it has none.

    Raises:
        TrainError: unreadable, or an entry is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        found = content.get("expected") if isinstance(content, dict) else None
        return _LIST.validate_python(found or [])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        raise TrainError(f"{path}: can't read the expected figures: {error}") from error


def figures_of(
    protocol: str | None, figures: Iterable[ExpectedFigure]
) -> tuple[ExpectedFigure, ...]:
    """Return the figures that may stand beside results of a protocol (None: of no protocol)."""
    return tuple(figure for figure in figures if figure.protocol in (None, protocol))


_LIST: Final = TypeAdapter(list[ExpectedFigure])
