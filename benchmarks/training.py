"""`make bench-training`: the loop beside a bare one, two ranks beside one, memory, `prepare`.

- The loop (loading, logging, schedule) beside a bare PyTorch loop on the same network, fed with
  batches made beforehand.
- One process against two ranks over gloo, one core each, the same number of samples a step.
- The loop's memory over many steps.
- `prepare` on one video, per minute of media.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import click
import psutil
import torch

from benchmarks.clips import write_clip
from benchmarks.record import ROOT, circumstances, command_line, kept, save
from train.config import Recipe
from train.data.datasets._sample import ListedVideo
from train.data.prepare import PrepareConfig, prepare
from train.data.selection import open_data
from train.data.smoke_faces import write_smoke_faces
from train.fit.loop import fit
from train.fit.ranks import Ranks
from train.fit.state import new_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from models import FaceBatch
    from train.data.selection import Data

_ALONE: Final = Ranks(0, 1, torch.device("cpu"))
_CLIP_S: Final = 20


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--steps", default=60, show_default=True, help="Of each timed run.")
@click.option("--memory-steps", default=2000, show_default=True, help="Of the memory run.")
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(["loop", "ranks", "memory", "prepare"]),
    help="Only these; the day's other results are kept. Repeat.",
)
def main(steps: int, memory_steps: int, parts: tuple[str, ...]) -> None:
    """Measure, print and keep the result."""
    about = circumstances(packages=("torch", "numpy", "pillow", "av", "onnxruntime"))
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_smoke_faces(folder / "faces")
        measures: dict[str, Callable[[], dict[str, Any]]] = {
            "loop": partial(_loop_and_bare, folder, steps),
            "ranks": partial(_scaling, folder, steps),
            "memory": partial(_memory, folder, memory_steps),
            "prepare": partial(_prepare, folder),
        }
        for part, measure in measures.items():
            if not parts or part in parts:
                measured[part] = {
                    "command": command_line("benchmarks.training"),
                    **measure(),
                    **about,
                }
    result = {
        "network": "LGSC, EfficientNet-Lite0 encoder, 128 px, 8 + 8 faces a step, float32",
        **kept("training"),
        **measured,
    }
    click.echo(json.dumps(result, indent=2))
    click.echo(save("training", result))


def _recipe(folder: Path, steps: int, **changes: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "method": "lgsc",
            "options": {
                "encoder": "efficientnet_lite0",
                "decoder_widths": [128, 64, 40, 24, 16],
                "decoder_norm": "batch",
                "score": "classifier",
                "size_px": 128,
            },
            "data": {
                "prepared": [folder / "faces"],
                "bona_fide_per_step": 8,
                "attacks_per_step": 8,
            },
            "augment": {"hflip": 0.5},
            "loader": {"kind": "torch", "workers": 1},
            "optimiser": {"kind": "adamw", "learning_rate": 0.0005},
            "steps": steps,
            "validate_every": 10**9,
            "checkpoint_every": 10**9,
            **changes,
        }
    )


def _loop_and_bare(folder: Path, steps: int) -> dict[str, Any]:
    """Return samples a second of the loop's steps, and of a bare loop; interleaved, best of two."""
    rates: dict[str, list[float]] = {"loop": [], "bare": []}
    for attempt in range(2):
        rates["bare"].append(_bare(folder, steps))
        rates["loop"].append(_loop(folder / f"run{attempt}", folder, steps))
    loop, bare = max(rates["loop"]), max(rates["bare"])
    return {
        "samples_per_s": {"loop": loop, "bare": bare, "ratio": round(loop / bare, 3)},
        "runs": rates,
    }


class _Timed:
    """A run's data; notes when each batch is asked for."""

    def __init__(self, data: Data) -> None:
        self.dev = replace(data.dev, rows=[])
        self.asked: list[float] = []
        self._data = data

    def training_batches(self, *about: Any, **how: Any) -> Iterator[FaceBatch]:
        for batch in self._data.training_batches(*about, **how):
            self.asked.append(time.perf_counter())
            yield batch


def _loop(run: Path, folder: Path, steps: int) -> float:
    recipe = _recipe(folder, steps)
    data = _Timed(open_data(recipe.data.prepared, None))
    fit(recipe, run, cast("Data", data), _ALONE)
    first = steps // 4
    return round(16 * (steps - 1 - first) / (data.asked[-1] - data.asked[first]), 1)


def _bare(folder: Path, steps: int) -> float:
    """Time forward, loss, backward and step on batches that lie ready."""
    recipe = _recipe(folder, steps)
    torch.set_num_threads(recipe.threads)
    model = new_model(recipe)
    network = cast("nn.Module", model).train()
    network.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.0005)
    data = open_data(recipe.data.prepared, None)
    loaded = data.training_batches(recipe, _ALONE, model.input_spec, first_step=0)
    ready: list[FaceBatch] = list(itertools.islice(loaded, 8))
    del loaded
    timed = 0.0
    for i in range(steps):
        if i == steps // 4:
            timed = time.perf_counter()
        batch = ready[i % len(ready)]
        images = model.normalise(batch.images).contiguous(memory_format=torch.channels_last)
        terms = model.loss_terms(model(images), batch)
        torch.autograd.backward(torch.stack(list(terms.values())).sum())
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return round(16 * (steps - steps // 4) / (time.perf_counter() - timed), 1)


def _scaling(folder: Path, steps: int) -> dict[str, Any]:
    one, two = (_ranks(folder, processes, steps) for processes in (1, 2))
    return {"samples_per_s": {"1": one, "2": two, "scaling": round(two / one, 2)}}


def _ranks(folder: Path, processes: int, steps: int) -> float:
    """Return samples a second of all ranks together, start-up taken off by two lengths."""
    times = []
    for length in (steps // 4, steps):
        recipe = _recipe(folder, length, loader={"kind": "torch", "workers": 0})
        path = folder / f"ranks{processes}_{length}.yaml"
        path.write_text(recipe.model_dump_json(exclude_unset=True), encoding="utf-8")
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(processes), "-m", "train", str(path)),
            *("--out", str(folder / f"ranks{processes}_{length}")),
        ]
        started = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return round(16 * processes * (steps - steps // 4) / (times[1] - times[0]), 1)


def _memory(folder: Path, steps: int) -> dict[str, Any]:
    """Return the resident memory of a small network's run after a quarter of it, and at its end."""
    recipe = _recipe(
        folder,
        steps,
        options={"size_px": 32, "decoder_widths": [4, 4, 4, 4, 4], "score": "classifier"},
        data={
            "prepared": [str(folder / "faces")],
            "bona_fide_per_step": 2,
            "attacks_per_step": 2,
        },
        loader={"kind": "torch", "workers": 0},
        checkpoint_every=steps // 4,
    )
    path = folder / "memory.yaml"
    path.write_text(recipe.model_dump_json(exclude_unset=True), encoding="utf-8")
    run = folder / "memory"
    command = [sys.executable, "-m", "train", str(path), "--out", str(run)]
    seen: list[float] = []
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            if (run / "checkpoint.pt").exists():
                seen.append(watched.memory_info().rss / 2**20)
            time.sleep(0.2)
    if process.returncode or len(seen) < 2:
        raise RuntimeError(f"the memory run failed: {path}")
    tenth = max(1, len(seen) // 10)
    return {
        "steps": steps,
        "unit": "MiB resident",
        "after_a_quarter": round(max(seen[:tenth])),
        "before_the_end": round(max(seen[-2 * tenth : -tenth])),
    }


def _prepare(folder: Path) -> dict[str, Any]:
    write_clip(folder / "clip.mp4", _CLIP_S)
    video = ListedVideo(
        dataset="bench",
        path="clip.mp4",
        kind="video",
        attack_type=None,
        split="train",
        source_id="bench:clip.mp4",
    )
    started = time.perf_counter()
    prepare([video], folder, folder / "prepared", PrepareConfig(), workers=0)
    seconds = time.perf_counter() - started
    return {
        "seconds_per_minute_of_video": round(seconds * 60 / _CLIP_S, 1),
        "video": "1280x720, 25 fps, one face, analysed at 5 fps, one process",
    }


if __name__ == "__main__":
    main()
