"""Where a report comes from: weights, recipe, data, code, machine, command."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from pydantic import Field

import stream
from models import file_sha256
from train.evaluation.measures import ReportPart
from train.evaluation.run_record import RUN_RECORD, RunRecord, read_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn

    from train.data.selection import Part
    from train.data.shards import Shards
    from train.evaluation.scores import FrameScore
    from train.fit.checkpoint import Trained


class Origin(ReportPart):
    """When, where and by what a report was made."""

    date: datetime
    command: str
    code: str = Field(description="Version; with the commit where it runs from a checkout.")
    machine: str


class TrainedRun(ReportPart):
    """The weights that were scored."""

    name: str = Field(description="Of the run's folder.")
    method: str
    step: int = Field(description="After which the weights were kept.")
    steps: int = Field(description="Of the recipe.")
    seed: int
    calibration: str
    parameters: int = Field(description="Of the network.")
    size_px: int = Field(description="Side of the network's input.")
    margin: float = Field(description="Side of the input over the longer side of the face box.")
    weights_sha256: str = Field(description="Of best.pt.")
    recipe_sha256: str = Field(description="Of `recipe`, as JSON with sorted keys.")
    recipe: dict[str, Any]
    trained: RunRecord | None = Field(
        description="What the run wrote down when it began: faces, processes, device, versions; "
        "null: an older version made it."
    )


class ScoredData(ReportPart):
    """What a set's scores were computed from."""

    source: str = Field(description="Prepared folders, or the file of scores.")
    videos: int
    frames: int = Field(description="With a face.")
    crop: str | None = Field(None, description="How prepared faces are stored.")
    sha256: str = Field(
        description="Of a file of scores: the file's. Of prepared faces: of the lines `sample id, "
        "label, digest of the source file`, sorted."
    )


class Provenance(ReportPart):
    """Where a report comes from."""

    made: Origin
    run: TrainedRun | None = Field(None, description="null: made of tables of scores.")
    data: dict[str, ScoredData] = Field(description="By set.")


def origin(now: datetime, arguments: Sequence[str], device: torch.device) -> Origin:
    """Say when, where and how the report is made.

    Args:
        now: with a time zone.
        arguments: of the command line, without the program.
        device: that the network ran on.
    """
    return Origin(
        date=now,
        command=shlex.join(["python", "-m", "train", *arguments]),
        code=_code(),
        machine=_machine(device),
    )


def trained_run(run: Path, trained: Trained) -> TrainedRun:
    """Describe a run's best weights.

    Raises:
        TrainError: the run's record is damaged.
    """
    recipe = trained.recipe
    written = recipe.model_dump(mode="json")
    spec = trained.model.input_spec
    return TrainedRun(
        name=run.resolve().name,
        method=recipe.method,
        step=trained.step,
        steps=recipe.steps,
        seed=recipe.seed,
        calibration=recipe.calibration if trained.calibrated else "none",
        parameters=sum(p.numel() for p in cast("nn.Module", trained.model).parameters()),
        size_px=spec.size_px,
        margin=spec.margin,
        weights_sha256=file_sha256(run / "best.pt"),
        recipe_sha256=_sha256([json.dumps(written, sort_keys=True)]),
        recipe=written,
        trained=read_record(run) if (run / RUN_RECORD).exists() else None,
    )


def scored_table(path: Path, rows: Sequence[FrameScore]) -> ScoredData:
    """Describe a file of scores.

    Raises:
        OSError: it can't be read.
    """
    return ScoredData(source=str(path), sha256=file_sha256(path), **_counts(rows))


def scored_faces(
    prepared: Sequence[Path], shards: Shards, part: Part, rows: Sequence[FrameScore]
) -> ScoredData:
    """Describe the prepared faces of a part that were scored."""
    rows_of_part = np.asarray(part.rows, np.int64)
    digests = shards.videos["source_sha256"].to_pylist()
    faces = zip(
        shards.records.sample_ids(part.rows),
        shards.label[rows_of_part].tolist(),
        (digests[video] for video in shards.video[rows_of_part].tolist()),
        strict=True,
    )
    about = shards.prepared
    return ScoredData(
        source=", ".join(map(str, prepared)),
        crop=f"{about.size_px} px, margin {about.margin:g}, cut by version {about.code_version}",
        sha256=_sha256(
            sorted(f"{sample_id} {label} {digest}" for sample_id, label, digest in faces)
        ),
        **_counts(rows),
    )


def _counts(rows: Sequence[FrameScore]) -> dict[str, int]:
    return {
        "videos": len({(row.dataset, row.video_id) for row in rows}),
        "frames": sum(row.score is not None for row in rows),
    }


def _sha256(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def _code() -> str:
    """Return the version, with the commit and whether files differ from it, if git tells."""
    version = f"facewarden {stream.__version__}"
    root = Path(stream.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return version
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    changed = ", with changes" if _git(root, "status", "--porcelain", "-uno") else ""
    return f"{version}, commit {commit}{changed}" if commit else version


def _git(root: Path, *arguments: str) -> str:
    """Return what git says; nothing where it isn't installed or refuses."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        device_name = torch.cuda.get_device_name(device)
    else:
        device_name = f"{platform.machine()}, {os.cpu_count()} cores"
    return f"{platform.system()} {platform.release()}; {device_name}; torch {torch.__version__}"
