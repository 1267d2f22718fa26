"""`python -m train`: prepare faces, fit, export with calibration and thresholds, evaluate."""

from __future__ import annotations

import functools
import logging
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from pydantic import ValidationError

from models import Setting, file_sha256, lay_over, load_method, method_names, one_line, whole_file
from stream.errors import StreamError
from train.errors import TrainError
from train.evaluation.options import AggregateName, NamedFile, ThresholdRule
from trt_engines.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stream.config import StreamConfig
    from train.config import Recipe
    from train.data.protocols import Threshold
    from train.data.selection import Data
    from train.evaluation.recorded_looks import RecordedPart
    from train.evaluation.report import Report
    from train.evaluation.shipped_measures import Part
    from train.fit.ranks import Ranks
    from trt_engines.manifest import Family, Manifest, Precision

log = logging.getLogger("train")

_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)
_sets_option = click.option(
    "--sets",
    "listed",
    type=_FILE,
    default=Path("configs/train/shipped_sets.yaml"),
    show_default=True,
    help="What the test data are, and how footage is degraded.",
)
_note_option = click.option(
    "--look", "note", help="Note this look at test data in the log: who, and why."
)
_looks_option = click.option(
    "--looks",
    type=_FILE,
    default=Path("docs/detection-looks.jsonl"),
    show_default=True,
    help="The log of looks.",
)
_RULES = "dev_eer, dev_bpcer=0.01 (at most that share of bona fide alarms) or fixed=0.5"
_HOW = "Frames to video's score: logit_mean, mean, median, max, top<k> or confident."


_PRECISION = click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="Of the graph; fp16 keeps float32 where the method needs it.",
)


def _false_alarms(
    share: float, tracks: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the option by which thresholds are chosen."""
    return click.option(
        "--false-alarms",
        type=click.FloatRange(0, 1),
        default=share,
        show_default=True,
        help=f"Share of {tracks} that may alarm.",
    )


def _given(settings: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """Return the settings of a command line as nested data."""
    data: dict[str, Any] = {}
    lay_over(data, settings)
    return data


def _takes_run(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the argument RUN; `--run RUN` is taken, too.

    `torchrun -m train ... --run RUN` is not: torchrun takes it for its own --run-path.
    """

    @click.argument("run", type=_FOLDER, required=False)
    @click.option("--run", "named", type=_FOLDER, hidden=True)
    @functools.wraps(command)
    def with_run(run: Path | None, named: Path | None, **others: Any) -> None:
        if (run is None) == (named is None):
            raise click.UsageError("name one folder of a finished run: RUN")
        command(run=run or named, **others)

    return with_run


class _RecipeOrCommand(click.Group):
    """`python -m train recipe.yaml` is short for `python -m train fit recipe.yaml`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and args[0].endswith((".yaml", ".yml")):
            args = ["fit", *args]
        return super().resolve_command(ctx, args)


@click.group(cls=_RecipeOrCommand, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Prepare faces, train detectors, judge and export them.

    `python -m train RECIPE.yaml` trains; `torchrun --nproc-per-node N -m train RECIPE.yaml` trains
    on N GPUs, or N processes.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s")


@main.command("prepare")
@click.option("--dataset", "name", required=True, help="See `python -m train list --help`.")
@click.option("--root", type=_FOLDER, required=True, help="Folder of the data set.")
@click.option("--out", type=_FOLDER, required=True, help="Folder for the shards.")
@click.option("--option", "options", type=Setting(), multiple=True, help="Of the data set.")
@click.option("--set", "settings", type=Setting(), multiple=True, help="See PrepareConfig.")
@click.option(
    "--workers", type=click.IntRange(min=0), default=1, show_default=True, help="Processes."
)
@click.option("--allow-overlap", is_flag=True, help="Log what two sides share, and go on.")
def prepare_command(
    name: str,
    root: Path,
    out: Path,
    options: tuple[tuple[str, Any], ...],
    settings: tuple[tuple[str, Any], ...],
    workers: int,
    allow_overlap: bool,
) -> None:
    """Cut the faces of a data set once, as the streaming path sees them.

    A run that was stopped goes on; prepared again, a folder is brought up to date with the data.
    Videos without a face are listed in OUT/problems.jsonl; OUT/contact-sheet.png shows what was
    cut.
    """
    from train.data.contact_sheet import CONTACT_SHEET
    from train.data.datasets._registry import load_dataset
    from train.data.prepare import PrepareConfig, prepare

    try:
        config = PrepareConfig.model_validate(_given(settings))
    except ValidationError as error:
        raise TrainError(f"--set: {one_line(error, PrepareConfig)}") from error
    videos = load_dataset(name).read(root, _given(options))
    done = prepare(videos, root, out, config, workers=workers, allow_overlap=allow_overlap)
    if done is None:
        click.echo(f"{out}: complete already, nothing to do")
        return
    without = sum(not problem.faces for problem in done.problems)
    click.echo(
        f"{out}: {done.faces} faces of {done.videos} videos, {without} without one "
        f"({done.cut} cut now, {done.relabelled} relabelled, {done.dropped} dropped)"
    )
    click.echo(f"look at {out / CONTACT_SHEET}")


@main.command("smoke-faces")
@click.option("--out", type=_FOLDER, required=True, help="Folder for the shards.")
@click.option(
    "--window",
    type=click.Choice(["pad", "inside"]),
    default="pad",
    show_default=True,
    help="Rule of the network's windows: inside for minifasnet.",
)
def smoke_faces_command(out: Path, window: Literal["pad", "inside"]) -> None:
    """Write faces for the recipes in configs/train/smoke; they look like nobody."""
    from train.data.smoke_faces import write_smoke_faces

    write_smoke_faces(out, window=window)


@main.command("autoencoder")
@click.argument("prepared", type=_FOLDER)
@click.option("--out", type=_FOLDER, required=True, help="Folder for the weights.")
@click.option("--steps", type=click.IntRange(min=1), default=3000, show_default=True)
@click.option(
    "--ages",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="How many are kept: after all steps, half of them, a quarter, ...",
)
@click.option(
    "--width", type=click.IntRange(min=1), default=28, show_default=True, help="Of its layers."
)
@click.option(
    "--code", type=click.IntRange(min=1), default=12, show_default=True, help="Channels between."
)
@click.option(
    "--split",
    type=click.Choice(["train", "dev"]),
    default="train",
    show_default=True,
    help="Whose faces; dev's for attacks that training must not know.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def autoencoder_command(
    prepared: Path, out: Path, steps: int, ages: int, width: int, code: int, split: str, seed: int
) -> None:
    """Train an autoencoder on the bona fide faces in PREPARED, for synthetic face swaps.

    The files go into a recipe's `data.autoencoders`, or `data.autoencoders_dev`.
    """
    from train.fit.autoencoder import train_autoencoder

    kept = train_autoencoder(
        prepared, out, steps=steps, ages=ages, width=width, code=code, split=split, seed=seed
    )
    for path in kept:
        click.echo(path)


@main.command("attack-sheet")
@click.option("--picture", type=_FILE, help="Any picture with a face.")
@click.option("--prepared", type=_FOLDER, help="Faces that a run will learn from.")
@click.option(
    "--autoencoder",
    "autoencoders",
    type=_FILE,
    multiple=True,
    help="Draw what needs one, too; may be repeated.",
)
@click.option("--out", type=_FILE, required=True, help="PNG to write; beside it a .jsonl.")
@click.option(
    "--rows", type=click.IntRange(min=1), default=4, show_default=True, help="Draws of each."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def attack_sheet_command(
    picture: Path | None,
    prepared: Path | None,
    autoencoders: tuple[Path, ...],
    out: Path,
    rows: int,
    seed: int,
) -> None:
    """Draw every synthetic attack of a few faces: look at it before a run.

    Without a picture and without prepared faces, of the astronaut of scikit-image.
    """
    from train.data.attack_sheet import write_attack_sheet

    if picture is not None and prepared is not None:
        raise click.UsageError("give --picture or --prepared, not both")
    write_attack_sheet(
        out, picture=picture, prepared=prepared, autoencoders=autoencoders, rows=rows, seed=seed
    )
    click.echo(f"look at {out}")


@main.command("store-attacks")
@click.argument("prepared", type=_FOLDER)
@click.option("--out", type=_FOLDER, required=True, help="Folder for the attacks.")
@click.option("--family", "families", multiple=True, help="Equally likely; default: all.")
@click.option(
    "--split",
    type=click.Choice(["train", "dev", "test"]),
    default="train",
    show_default=True,
    help="Whose bona fide faces.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def store_attacks_command(
    prepared: Path, out: Path, families: tuple[str, ...], split: str, seed: int
) -> None:
    """Store synthetic attacks of the bona fide faces in PREPARED, as a prepared folder."""
    from train.attacks import FAMILIES
    from train.data.stored_attacks import write_synthetic_attacks

    if unknown := sorted(set(families) - FAMILIES.keys()):
        raise TrainError(f"--family: no {', '.join(unknown)}; known: {', '.join(FAMILIES)}")
    weights = dict.fromkeys(families or FAMILIES, 1.0)
    n = write_synthetic_attacks(prepared, out, weights, split=split, seed=seed)
    click.echo(f"{out}: {n} synthetic attacks")


@main.command("list")
@click.option("--dataset", "name", required=True, help="Module of train/data/datasets, e.g. ffpp.")
@click.option("--root", type=_FOLDER, required=True, help="Folder of the data set.")
@click.option("--option", "options", type=Setting(), multiple=True, help="Of the data set.")
def list_command(name: str, root: Path, options: tuple[tuple[str, Any], ...]) -> None:
    """Count what a data set's folder holds, by split and attack type, and say what is wrong."""
    from train.data.datasets._registry import load_dataset
    from train.data.datasets._sample import count_by

    dataset = load_dataset(name)
    videos = dataset.read(root, _given(options))
    click.echo(f"{dataset.description}; bona fide: {dataset.source_label_of_bona_fide}")
    for (split, attack_type), count in sorted(count_by(videos).items()):
        click.echo(f"{split:6}{attack_type:24}{count:8}")
    attacks = sum(video.attack_type is not None for video in videos)
    groups = len({video.group for video in videos})
    click.echo(
        f"{len(videos)} listed: {len(videos) - attacks} bona fide, {attacks} attacks, of {groups}"
        " subjects or sources"
    )


@main.command("fit")
@click.argument("recipe", type=_FILE)
@click.option(
    "--set",
    "settings",
    multiple=True,
    type=Setting(),
    help="Of the recipe, e.g. optimiser.kind=sgd.",
)
@click.option("--protocol", help="Name in configs/protocols, instead of the recipe's.")
@click.option("--prepared", type=_FOLDER, multiple=True, help="Faces, instead of the recipe's.")
@click.option("--out", type=_FOLDER, help="Folder of the run; default: runs/<recipe's name>.")
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    help="Train so many times, from the recipe's seed on, into OUT/seed-0, ...; tell the mean.",
)
@click.option("--allow-overlap", is_flag=True, help="Of people in train, dev and test.")
def fit_command(
    recipe: Path,
    settings: tuple[tuple[str, Any], ...],
    protocol: str | None,
    prepared: tuple[Path, ...],
    out: Path | None,
    seeds: int | None,
    allow_overlap: bool,
) -> None:
    """Train by a RECIPE (YAML), or go on where the run stopped."""
    from train.config import load_recipe
    from train.data.selection import open_data
    from train.evaluation.compare import as_rows, as_text, summarise_seeds
    from train.fit.loop import Stopped
    from train.fit.ranks import joined

    chosen: list[tuple[str, Any]] = [("data.protocol", protocol)] if protocol else []
    chosen += [("data.prepared", list(map(str, prepared)))] if prepared else []
    wanted = load_recipe(recipe, [*settings, *chosen])
    data = open_data(
        wanted.data.prepared,
        wanted.data.protocol,
        synthetic=bool(wanted.data.synthetic),
        allow_overlap=allow_overlap,
    )
    run = out or Path("runs") / recipe.stem
    with joined() as ranks:
        try:
            if seeds is None:
                _train(wanted, run, data, ranks)
                return
            for seed in range(wanted.seed, wanted.seed + seeds):
                own = wanted.model_copy(update={"seed": seed})
                _train(own, run / f"seed-{seed}", data, ranks)
            if ranks.writes:
                click.echo(as_text(as_rows(summarise_seeds(run))))
        except Stopped as stopped:
            log.warning("%s", stopped)
            sys.exit(128 + signal.SIGTERM)


def _train(recipe: Recipe, run: Path, data: Data, ranks: Ranks) -> None:
    """Train one run, and calibrate what it kept."""
    from train.fit.loop import fit
    from train.fit.run_lock import locked
    from train.release.calibrate import calibrate_run

    try:
        with locked(run, ranks):
            fit(recipe, run, data, ranks)
            if data.dev.rows:
                calibrate_run(run, data, ranks)
    except OSError as error:
        raise TrainError(f"{run}: can't write the run there: {error}") from error


@main.command("adapt")
@click.option("--engine", type=_FILE, required=True, help="Manifest of the engine.")
@click.option(
    "--data",
    type=_FOLDER,
    required=True,
    help="The site's recordings: bona_fide/ and, if there are any, attack/<type>/.",
)
@click.option("--out", type=_FOLDER, required=True, help="Folder of the new engine.")
@_false_alarms(0.0, "the site's bona fide tracks")
def adapt_command(engine: Path, data: Path, out: Path, false_alarms: float) -> None:
    """Adapt an ENGINE to a site's cameras by ten minutes of its own bona fide footage.

    With a few of its own attacks the last layer is fitted, too. A part of the footage is kept back,
    and the table says what the engine did to it before and after.
    """
    from train.release.adapt import adapt_engine

    click.echo(adapt_engine(engine, data, out, false_alarms=false_alarms).report())
    click.echo(f"{out}: for run_stream.py --model")


@main.command("compare")
@click.argument("runs", nargs=-1, required=True, type=_FOLDER)
@click.option("--out", type=_FILE, help="Write the table as CSV, too.")
def compare_command(runs: tuple[Path, ...], out: Path | None) -> None:
    """Set RUNS beside each other: recipe, seed, dev AUC, and test measures of their reports.

    A folder of several seeds stands for its seeds. Of runs that differ in the seed only, mean and
    standard deviation are given.
    """
    from train.evaluation.compare import as_csv, as_rows, as_text, compare_runs

    rows = as_rows(compare_runs(runs))
    click.echo(as_text(rows))
    if out is not None:
        with whole_file(out) as part:
            part.write_text(as_csv(rows), encoding="utf-8")


@main.command("evaluate")
@_takes_run
@click.option(
    "--protocol",
    help="Name in configs/protocols; default: the recipe's own, or the splits of --prepared.",
)
@click.option("--prepared", type=_FOLDER, multiple=True, help="Faces; default: the recipe's.")
@click.option("--out", type=_FOLDER, help="Folder of the report; default: RUN/report.")
@click.option(
    "--every-split",
    is_flag=True,
    help="Without a protocol: test on every face of --prepared, not on split test alone.",
)
@click.option(
    "--allow-overlap",
    is_flag=True,
    help="Report, instead of refusing, faces or people that the run learned from.",
)
@click.option("--threshold", type=ThresholdRule(), help=f"{_RULES}; default: the protocol's.")
@click.option(
    "--aggregate", type=AggregateName(), default="logit_mean", show_default=True, help=_HOW
)
@click.option(
    "--worst",
    type=click.IntRange(min=0),
    default=6,
    show_default=True,
    help="Worst cases of each class in the report, with their faces; 0: none.",
)
def evaluate_command(
    run: Path,
    protocol: str | None,
    prepared: tuple[Path, ...],
    out: Path | None,
    every_split: bool,
    allow_overlap: bool,
    threshold: Threshold | None,
    aggregate: str,
    worst: int,
) -> None:
    """Score the best weights of RUN on dev and test faces: report.html, report.json.

    With --prepared alone, any faces will do: the threshold comes from dev faces beside them, if
    there are any of both classes, or else from the run's own.
    """
    from train.evaluation.provenance import origin
    from train.evaluation.run_report import Evaluation, report_on_run
    from train.fit.checkpoint import trained_model
    from train.fit.ranks import joined

    if every_split and (protocol or not prepared):
        raise click.UsageError("--every-split goes with --prepared, and without --protocol")
    folder = out or run / "report"
    wanted = Evaluation(
        protocol=protocol,
        prepared=prepared,
        every_split=every_split,
        allow_overlap=allow_overlap,
        threshold=threshold,
        aggregate=aggregate,
        worst=worst,
    )
    with joined() as ranks:
        made = origin(datetime.now(UTC), sys.argv[1:], ranks.device)
        of_run = report_on_run(run, trained_model(run), ranks, wanted, made)
        if ranks.writes:
            _tell(of_run.report, of_run.write(folder))


@main.command("export")
@_takes_run
@click.option("--out", type=_FOLDER, help="Folder of the engine; default: RUN/engine.")
@click.option("--licence", default="not stated", show_default=True, help="Of the weights.")
@click.option("--with-weights/--onnx-only", default=True, help="Write a safetensors file too.")
@_false_alarms(0.05, "dev's bona fide tracks")
@_PRECISION
def export_command(
    run: Path,
    out: Path | None,
    licence: str,
    with_weights: bool,
    false_alarms: float,
    precision: Precision,
) -> None:
    """Write the engine of RUN for `run_stream.py --model`: ONNX, weights, manifest, thresholds."""
    from train.data.selection import open_data
    from train.fit.checkpoint import load_weights
    from train.fit.ranks import joined
    from train.release.export import export_run

    recipe, *_ = load_weights(run / "best.pt")
    data = open_data(
        recipe.data.prepared,
        recipe.data.protocol,
        synthetic=bool(recipe.data.synthetic),
        allow_overlap=True,  # refused, or allowed, when it was trained
    )
    folder = out or run / "engine"
    with joined() as ranks:
        manifest = export_run(
            run,
            folder,
            data,
            ranks,
            licence=licence,
            false_alarms=false_alarms,
            with_weights=with_weights,
            precision=precision,
        )
    _tell_engine(folder, manifest)


def _tell_engine(folder: Path, manifest: Manifest) -> None:
    thresholds = manifest.thresholds
    assert thresholds is not None  # `export_run` and `import_network` choose them
    click.echo(f"{folder / manifest.name}.manifest.json: written")
    click.echo(
        f"attack at or above {thresholds.enter:g}, bona fide below {thresholds.leave:g}, by "
        f"{thresholds.source}"
    )


@main.command("import")
@click.argument("method", type=click.Choice(method_names()))
@click.option(
    "--weights",
    type=_FILE,
    required=True,
    help="A published file, or what `python -m models get` wrote.",
)
@click.option(
    "--faces",
    type=_FOLDER,
    multiple=True,
    required=True,
    help="Prepared bona fide faces, of split dev or of no split; may be repeated.",
)
@click.option("--out", type=_FOLDER, required=True, help="Folder of the engine.")
@click.option(
    "--set", "settings", type=Setting(), multiple=True, help="Option of the method; repeatable."
)
@click.option(
    "--licence",
    help="Of the weights; default: the one that all published weights of the method have, if any.",
)
@click.option(
    "--family",
    type=click.Choice(["presentation", "digital"]),
    help="Of the attacks it was trained to see; default: that of the published weights, if known.",
)
@_false_alarms(0.05, "the bona fide tracks")
@_PRECISION
def import_command(
    method: str,
    weights: Path,
    faces: tuple[Path, ...],
    out: Path,
    settings: tuple[tuple[str, Any], ...],
    licence: str | None,
    family: Family | None,
    false_alarms: float,
    precision: Precision,
) -> None:
    """Write an engine of a network that was trained elsewhere, for `run_stream.py --model`.

    Calibration and thresholds are chosen on bona fide faces alone: use some that look like your
    cameras' footage. The faces are prepared with the window of the network, such as
    `--set window=inside --set margin=4.2` for minifasnet.
    """
    from train.release.imported import import_network

    published = load_method(method).publications
    licences, families = ({getattr(p, name) for p in published} for name in ("licence", "family"))
    manifest = import_network(
        method,
        weights,
        faces,
        out,
        options=_given(settings),
        licence=licence or (licences.pop() if len(licences) == 1 else "not stated"),
        false_alarms=false_alarms,
        family=family or (families.pop() if len(families) == 1 else None),
        precision=precision,
    )
    _tell_engine(out, manifest)


def _stream_config(*manifests: Path) -> StreamConfig:
    from stream.config import load_config

    return load_config(
        None,
        [
            ("sources", [{"id": "clip", "uri": "unused"}]),
            ("score.engines", [{"manifest": manifest} for manifest in manifests]),
            ("backend", {"kind": "onnxruntime", "threads": 2}),
        ],
    )


def _configs(manifests: Mapping[str, Path]) -> dict[str, StreamConfig]:
    """Return the configuration of a stream with each engine alone, on one thread."""
    from trt_engines.backends import OnnxRuntimeConfig

    one_thread = {"backend": OnnxRuntimeConfig(threads=1)}
    return {
        name: _stream_config(path).model_copy(update=one_thread) for name, path in manifests.items()
    }


@main.command("judge")
@click.argument("labelled", type=_FILE)
@click.option(
    "--manifest",
    "manifests",
    type=_FILE,
    multiple=True,
    required=True,
    help="The engine to judge; several judge together.",
)
@click.option("--root", type=_FOLDER, required=True, help="Folder of the clips.")
@click.option("--out", type=_FILE, required=True, help="JSON report.")
def judge_command(labelled: Path, manifests: tuple[Path, ...], root: Path, out: Path) -> None:
    """Judge engines on LABELLED clips (YAML), per track, through the streaming path."""
    from stream.analyse import open_analyser
    from stream.stages.detect import open_detector
    from train.evaluation.clips import judge_clips, judge_stills, load_labelled, write_judgement

    config = _stream_config(*manifests)
    wanted = load_labelled(labelled)
    with (
        open_detector(config.detect, config.backend) as face_detector,
        open_analyser(config, face_detector) as analyser,
    ):
        judged = judge_clips(wanted, root, analyser, config.decode)
        stills = judge_stills(wanted, root, face_detector, analyser.classifiers)
        engines = [classifier.manifest for classifier in analyser.classifiers]
    summary = write_judgement(
        out,
        judged,
        stills,
        engines=engines,
        min_scores=config.fuse.min_scores,
    )
    for name, cell in summary["rates"].items():
        click.echo(
            f"{name:45} {cell['rate']} {cell['errors']}/{cell['decided']} decided"
            f" ({cell['tracks']} tracks, {cell['alarmed']} alarmed)"
        )
    for label, families in summary["families_of_alarms"].items():
        told = ", ".join(f"{n} {family}" for family, n in families.items())
        click.echo(f"alarms of {label:12} {told}")
    _echo_areas("AUC", summary["auc_of_last_track_score"])
    if len(manifests) > 1:
        for detector in summary["detectors"]:
            _echo_areas(f"{detector['name']} alone: AUC", detector["auc_of_last_track_score"])
            for problem, n in detector["abstained"].items():
                click.echo(f"{detector['name']} abstained on {n} tracks: {problem}")
    for still in stills:
        p = still["probability"]
        said = "no face" if p is None else f"p = {p:.4f}"
        click.echo(f"still {still['path']:40} {still['label']:10} {said}")


def _echo_areas(of: str, areas: dict[str, dict[str, Any]]) -> None:
    for label, area in areas.items():
        click.echo(
            f"{of} {label:12} {'n/a' if area['auc'] is None else format(area['auc'], '.3f')}"
            f" ({area['bona_fide']} bona fide, {area['attacks']} attack tracks)"
        )


@main.command("evaluate-shipped")
@click.option("--root", type=_FOLDER, required=True, help="Folder of the clips and pictures.")
@click.option(
    "--model",
    "models",
    type=_FILE,
    multiple=True,
    help="Manifest of an engine to judge; several make columns. Default: those that are shipped.",
)
@click.option(
    "--teacher",
    "teachers",
    type=_FILE,
    multiple=True,
    help="Manifest of an engine that the others are compared with.",
)
@click.option(
    "--out", type=_FOLDER, default=Path("runs/shipped"), show_default=True, help="For the report."
)
@click.option(
    "--part",
    "parts",
    type=click.Choice(["clips", "stills", "measure", "portraits"]),
    multiple=True,
    help="What to judge on; default: all parts.",
)
@click.option("--ladder", is_flag=True, help="Degrade the bona fide clips, too: far longer.")
@_sets_option
@_note_option
@_looks_option
def evaluate_shipped_command(
    root: Path,
    models: tuple[Path, ...],
    teachers: tuple[Path, ...],
    out: Path,
    parts: tuple[Part, ...],
    ladder: bool,
    listed: Path,
    note: str | None,
    looks: Path,
) -> None:
    """Judge engines at their own thresholds on real attacks and bona fide faces; choose nothing."""
    import torch

    from train.evaluation.onlookers import opened_onlookers
    from train.evaluation.provenance import origin
    from train.evaluation.shipped import (
        PARTS,
        ShippedReport,
        column_names,
        describe_engines,
        judge_ladder,
        judge_parts,
        looked_at,
        looks_so_far,
        note_look,
        refuse_engine_folder,
        shipped_manifests,
        write_shipped,
    )
    from train.evaluation.shipped_sets import load_shipped_sets
    from train.evaluation.shipped_table import table_of

    refuse_engine_folder(out)
    sets, labelled = load_shipped_sets(listed)
    paths = [*(models or shipped_manifests()), *teachers]
    manifests = dict(zip(column_names(paths), paths, strict=True))
    compared = list(manifests)[len(paths) - len(teachers) :]
    made = origin(datetime.now(UTC), sys.argv[1:], torch.device("cpu"))
    with opened_onlookers(_configs(manifests)) as onlookers:
        rows = judge_parts(sets, labelled, root, onlookers, parts=parts or PARTS, teachers=compared)
        rungs = judge_ladder(sets, labelled, root, onlookers) if ladder else []
        report = ShippedReport(
            made=made,
            sets_sha256={
                path.name: file_sha256(path) for path in (listed, listed.parent / sets.clips)
            },
            engines=describe_engines(manifests, onlookers, compared),
            rows=tuple(rows),
            ladder=tuple(rungs),
        )
    table = table_of(report)
    write_shipped(report, table, out)
    click.echo(table)
    click.echo(f"\nwritten to {out}")
    if note is not None:
        click.echo(looks_so_far(note_look(looks, looked_at(report, note))))


@main.command("record-looks")
@click.option("--root", type=_FOLDER, required=True, help="Folder of the clips and pictures.")
@click.option(
    "--model",
    "models",
    type=_FILE,
    multiple=True,
    required=True,
    help="Manifest of an engine; all look at the same faces.",
)
@click.option("--out", type=_FILE, required=True, help="JSON Lines, one look each.")
@click.option(
    "--part",
    "parts",
    type=click.Choice(["dev", "degraded_dev", "clips", "stills", "measure"]),
    multiple=True,
    required=True,
    help="What to look at. The last three are test data: say so with --look.",
)
@click.option(
    "--collection",
    type=_FILE,
    default=Path("configs/train/faces.yaml"),
    show_default=True,
    help="Bona fide footage, of which split dev is looked at.",
)
@_sets_option
@_note_option
@_looks_option
def record_looks_command(
    root: Path,
    models: tuple[Path, ...],
    out: Path,
    parts: tuple[RecordedPart, ...],
    collection: Path,
    listed: Path,
    note: str | None,
    looks: Path,
) -> None:
    """Record what engines say of every look, with the quality gate open, for `gate-curves`."""
    import torch

    from train.evaluation.onlookers import opened_onlookers
    from train.evaluation.provenance import origin
    from train.evaluation.recorded_looks import describe, look_of, record_looks, write_looks
    from train.evaluation.shipped import column_names, looks_so_far, note_look
    from train.evaluation.shipped_sets import load_shipped_sets

    sets, labelled = load_shipped_sets(listed)
    manifests = dict(zip(column_names(models), models, strict=True))
    made = origin(datetime.now(UTC), sys.argv[1:], torch.device("cpu"))
    with opened_onlookers(_configs(manifests)) as onlookers:
        head = describe(onlookers, made, parts)
        n = write_looks(out, head, record_looks(sets, labelled, collection, root, onlookers, parts))
    click.echo(f"{out}: {n} looks")
    if note is not None:
        click.echo(looks_so_far(note_look(looks, look_of(head, note))))


@main.command("gate-curves")
@click.argument("record", type=_FILE)
@click.option(
    "--out", type=_FOLDER, default=Path("runs/gate"), show_default=True, help="For the report."
)
def gate_curves_command(record: Path, out: Path) -> None:
    """Set the error of what the quality gate lets pass against the share that it turns away.

    RECORD is of `record-looks`, with the part dev; each of its other parts is judged.
    """
    from train.evaluation.gate import curves_of
    from train.evaluation.gate_report import write_gate
    from train.evaluation.recorded_looks import read_looks

    click.echo(write_gate(curves_of(*read_looks(record)), out))
    click.echo(f"\nwritten to {out}")


@main.command("report")
@click.option("--dev", type=_FILE, help="Scores that the threshold is chosen on.")
@click.option(
    "--test", "tests", type=NamedFile(), multiple=True, required=True, help="Scores of a test set."
)
@click.option("--out", type=_FOLDER, required=True, help="Folder of the report.")
@click.option("--protocol", default="scores", help="Its name, for people.")
@click.option(
    "--threshold", type=ThresholdRule(), default="dev_eer", show_default=True, help=f"{_RULES}."
)
@click.option(
    "--aggregate", type=AggregateName(), default="logit_mean", show_default=True, help=_HOW
)
@click.option("--no-face", type=click.Choice(["half", "exclude", "error"]), default="half")
@click.option("--expected", type=_FILE, help="YAML with `expected:`, such as the recipe.")
def report_command(
    dev: Path | None,
    tests: tuple[tuple[str, Path], ...],
    out: Path,
    protocol: str,
    threshold: Threshold,
    aggregate: str,
    no_face: Literal["half", "exclude", "error"],
    expected: Path | None,
) -> None:
    """Make a report of tables of scores (JSON Lines): OUT/report.html and OUT/report.json."""
    import torch

    from train.evaluation.page import write_report
    from train.evaluation.provenance import Provenance, origin, scored_table
    from train.evaluation.published import load_published, published_for
    from train.evaluation.report import ReportConfig, build_report
    from train.evaluation.scores import read_scores

    named = dict(tests)
    if len(named) < len(tests):
        raise click.BadParameter("each name once", param_hint="--test")
    files = {**({"dev": dev} if dev else {}), **named}
    tables = {name: read_scores(path) for name, path in files.items()}
    report = build_report(
        tables.get("dev"),
        {name: tables[name] for name in named},
        ReportConfig(protocol=protocol, threshold=threshold, aggregate=aggregate, no_face=no_face),
        published=published_for(protocol, load_published(expected)) if expected else (),
        about={"scores": ", ".join(f"{name}={path}" for name, path in files.items())},
        provenance=Provenance(
            made=origin(datetime.now(UTC), sys.argv[1:], torch.device("cpu")),
            data={name: scored_table(path, tables[name]) for name, path in files.items()},
        ),
    )
    _tell(report, write_report(report, out))


def _tell(report: Report, page: Path) -> None:
    for caution in report.document.cautions:
        log.warning("%s", caution)
    click.echo(page)


if __name__ == "__main__":
    try:
        main()
    except (TrainError, StreamError, EngineError) as error:
        log.error("%s", error)  # noqa: TRY400 - the message is for people; it needs no stack
        sys.exit(1)
    except ModuleNotFoundError as error:
        log.error("%s is missing: `make setup` installs what training needs", error.name)  # noqa: TRY400
        sys.exit(1)
