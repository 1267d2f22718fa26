"""`python -m train`: prepare faces, fit, export with calibration and thresholds, evaluate."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from train.errors import TrainError

if TYPE_CHECKING:
    from stream.config import StreamConfig

log = logging.getLogger("train")

_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Train, export and judge attack detectors."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s")


@main.command("prepare")
@click.argument("collection", type=_FILE)
@click.option("--root", type=_FOLDER, required=True, help="Folder of the collection's files.")
@click.option("--out", type=_FOLDER, required=True)
def prepare_command(collection: Path, root: Path, out: Path) -> None:
    """Cut the faces of a COLLECTION (YAML) as the streaming path sees them."""
    from stream.config import DetectConfig
    from stream.detect import open_detector
    from train.datasets.collection import load_collection
    from train.prepare import prepare
    from trt_engines.backends import OnnxRuntimeConfig

    wanted = load_collection(collection)
    config = DetectConfig(min_face_px=wanted.min_face_px, detect_width=1280)
    with open_detector(config, OnnxRuntimeConfig(threads=2)) as detector:
        prepare(wanted, root, out, detector)


@main.command("fit")
@click.argument("recipe", type=_FILE)
@click.option("--run", type=_FOLDER, required=True, help="Folder of checkpoints and losses.")
def fit_command(recipe: Path, run: Path) -> None:
    """Train by a RECIPE (YAML), or go on where RUN stopped."""
    from train.config import load_recipe
    from train.loop import fit

    fit(load_recipe(recipe), run)


@main.command("export")
@click.argument("recipe", type=_FILE)
@click.option("--run", type=_FOLDER, required=True, help="Folder of the finished run.")
@click.option("--collection", type=_FILE, required=True, help="For its calibration clips.")
@click.option("--root", type=_FOLDER, required=True, help="Folder of the collection's files.")
@click.option("--out", type=_FOLDER, required=True, help="Folder of the engine.")
@click.option("--licence", required=True, help="Of the weights, one line.")
@click.option("--with-weights/--onnx-only", default=True, help="Write a safetensors file too.")
@click.option("--false-alarms", default=0.05, show_default=True, help="Share of tracks that may.")
def export_command(
    recipe: Path,
    run: Path,
    collection: Path,
    root: Path,
    out: Path,
    licence: str,
    with_weights: bool,
    false_alarms: float,
) -> None:
    """Calibrate a trained network, export it, choose its thresholds."""
    from models._registry import build_model
    from train.calibrate import (
        attack_logits,
        calibration_crops,
        choose_thresholds,
        fit_calibration,
    )
    from train.checkpoint import load_checkpoint
    from train.config import load_recipe
    from train.datasets.collection import load_collection
    from train.datasets.prepared import open_prepared
    from train.loop import averaged_state
    from trt_engines.export import export_engine
    from trt_engines.manifest import DecisionThresholds, save_manifest

    wanted = load_recipe(recipe)
    model: Any = build_model(wanted.method, wanted.options)
    checkpoint = load_checkpoint(run / "checkpoint.pt", wanted)
    if checkpoint["step"] < wanted.steps:
        log.warning("%s: only %d of %d steps", run, checkpoint["step"], wanted.steps)
    model.load_state_dict(averaged_state(checkpoint))
    model.eval()
    bona_fide, attacks = calibration_crops(
        open_prepared(wanted.faces), model.input_spec, wanted.attack_weights, seed=wanted.seed
    )
    fit_calibration(
        model.calibration, attack_logits(model, bona_fide), attack_logits(model, attacks)
    )
    even = DecisionThresholds(enter=0.5, leave=0.5, source="none yet")
    manifest = export_engine(
        model,
        method=wanted.method,
        options=wanted.options,
        examples=bona_fide[:8],
        folder=out,
        licence=licence,
        thresholds=even,
        with_weights=with_weights,
    )
    path = out / f"{wanted.method}.manifest.json"
    thresholds = choose_thresholds(
        _calibration_peaks(path, load_collection(collection), root),
        false_alarms=false_alarms,
        hysteresis=1.0,
        source=f"streamed clips of split calibration in {collection.name}",
    )
    save_manifest(path, manifest.model_copy(update={"thresholds": thresholds}))
    log.info("%s: enter %.4f, leave %.4f", path, thresholds.enter, thresholds.leave)


def _calibration_peaks(manifest: Path, collection: Any, root: Path) -> list[float]:
    """Return the highest fused probability of every bona fide track kept back for thresholds."""
    from stream.analyse import open_analyser
    from train.streamed import stream_clip

    config = _stream_config(manifest)
    peaks = []
    with open_analyser(config) as analyser:
        for clip in collection.clips:
            if clip.split == "calibration":
                tracks = stream_clip(root / clip.path, analyser, config.decode)
                found = [track.peak for track in tracks if track.peak is not None]
                log.info("%s: peaks %s", clip.path, [round(p, 3) for p in found])
                peaks += found
    if not peaks:
        raise TrainError("no track of the calibration clips was scored; thresholds need some")
    return peaks


def _stream_config(manifest: Path) -> StreamConfig:
    from stream.config import load_config

    return load_config(
        None,
        [
            ("sources", [{"id": "clip", "uri": "unused"}]),
            ("score.manifest", manifest),
            ("backend", {"kind": "onnxruntime", "threads": 2}),
        ],
    )


@main.command("evaluate")
@click.argument("labelled", type=_FILE)
@click.option("--manifest", type=_FILE, required=True, help="The engine to judge.")
@click.option("--root", type=_FOLDER, required=True, help="Folder of the clips.")
@click.option("--out", type=_FILE, required=True, help="JSON report.")
def evaluate_command(labelled: Path, manifest: Path, root: Path, out: Path) -> None:
    """Judge an engine on LABELLED clips (YAML), per track, through the streaming path."""
    from stream.analyse import open_analyser
    from stream.detect import open_detector
    from train.evaluate import judge, judge_stills, load_labelled, save_report
    from trt_engines.backends import open_backend
    from trt_engines.manifest import load_manifest

    config = _stream_config(manifest)
    wanted = load_labelled(labelled)
    with open_analyser(config) as analyser:
        judged = judge(wanted, root, analyser, config.decode)
    engine = load_manifest(manifest)
    with open_detector(config.detect, config.backend) as detector:
        backend = open_backend(manifest, config.backend)
        stills = judge_stills(wanted, root, detector, backend, engine.input)
    summary = save_report(out, judged, stills, engine.onnx_sha256)
    for name, cell in summary["rates"].items():
        click.echo(
            f"{name:45} {cell['rate']} {cell['errors']}/{cell['decided']} decided"
            f" ({cell['tracks']} tracks, {cell['alarmed']} alarmed)"
        )
    for label, area in summary["auc_of_last_track_score"].items():
        click.echo(
            f"AUC {label:12} {area['auc']:.3f}"
            f" ({area['bona_fide']} bona fide, {area['attacks']} attack tracks)"
        )
    for still in stills:
        click.echo(f"still {still['path']:40} {still['label']:10} p = {still['probability']}")


if __name__ == "__main__":
    try:
        main()
    except TrainError as error:
        log.error("%s", error)  # noqa: TRY400 - the message is for people; it needs no stack
        sys.exit(1)
