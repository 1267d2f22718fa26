"""Types of the command lines' options: what is wrong with one ends the command with exit code 2."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from train.errors import TrainError

if TYPE_CHECKING:
    from train.data.protocols import Threshold


class NamedFile(click.ParamType[tuple[str, Path]]):
    """NAME=FILE: a test set's name and its file of scores; all of FILE is taken to the letter."""

    name = "NAME=FILE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Path]:
        """Return the name and the path."""
        from train.evaluation.report import check_name

        name, _, path = str(value).partition("=")
        if not (name and path):
            self.fail(f"expected NAME=FILE, found {value!r}", param, ctx)
        try:
            check_name(name)
        except TrainError as error:
            self.fail(str(error), param, ctx)
        return name, Path(path)


class ThresholdRule(click.ParamType["Threshold"]):
    """The rule of an operating point, such as `dev_bpcer=0.01`."""

    name = "RULE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Threshold:
        """Return the rule."""
        from train.evaluation.report import parse_threshold

        try:
            return parse_threshold(str(value))
        except TrainError as error:
            self.fail(str(error), param, ctx)


class AggregateName(click.ParamType[str]):
    """How frames make a video's score."""

    name = "HOW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name."""
        from train.evaluation.scores import known_aggregate

        try:
            return known_aggregate(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
