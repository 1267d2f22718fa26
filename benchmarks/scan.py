"""How fast archives are scanned, with how much memory, and how far the sparse modes agree.

    python -m benchmarks.scan [--minutes 20] [--small 10000] [--data ../shared/data]

Speed: `run_stream.py scan` over copies of a clip (1280x720, 25 fps, H.264 with B-frames, key frames
2 s apart, one face that sits still or moves), beside decoding alone, in the same minutes. Memory:
over many files of ten small pictures. Agreement: verdicts of each mode on real clips.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import av
import click
import numpy as np
import psutil
import skimage.data
from pydantic import SecretStr

from benchmarks.record import ROOT, circumstances, command_line, kept, save
from stream.config import DecodeConfig, SourceConfig
from stream.decode import open_decoder, sampled

if TYPE_CHECKING:
    from collections.abc import Sequence

MODES: Final[dict[str, list[str]]] = {
    "sample": ["--mode", "sample"],
    "keyframes": ["--mode", "keyframes"],
    "keyframes, then sample": ["--mode", "keyframes", "--then", "sample"],
    "full": ["--mode", "full"],
}
FACES: Final = ("sitting", "moving")
FULL_SHARE: Final = 0.2  # of the media: that mode is slow
WIDTH, HEIGHT, FPS = 1280, 720, 25
PERIOD_S: Final = 20
_POLL_S: Final = 0.1


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", default=20, show_default=True, help="Of media, for each speed.")
@click.option(
    "--face", "faces", type=click.Choice(FACES), multiple=True, default=FACES, show_default=True
)
@click.option(
    "--mode", "modes", type=click.Choice(list(MODES)), multiple=True, default=list(MODES),
    help="Speeds to measure; those of others are kept from before.  [default: all]",
)  # fmt: skip
@click.option("--small", default=10_000, show_default=True, help="Small files; 0: leave this out.")
@click.option(
    "--data", type=click.Path(path_type=Path), help="Folder of real clips, for agreement."
)
@click.option("--manifest", type=click.Path(path_type=Path), help="Detector; default: the shipped.")
def main(
    minutes: int,
    faces: tuple[str, ...],
    modes: tuple[str, ...],
    small: int,
    data: Path | None,
    manifest: Path | None,
) -> None:
    """Measure, and write benchmarks/results/scan-DATE.json."""
    result = kept("scan") | {"command": command_line("benchmarks.scan")}
    result["circumstances"] = circumstances(manifest)
    engine = [] if manifest is None else ["--model", str(manifest)]
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        if minutes:
            rows = [
                row
                for motion in faces
                for row in _speeds(here, motion, minutes * 60, modes, engine)
            ]
            measured = {(row["face"], row["mode"]) for row in rows}
            before = result.get("speed", [])
            rows += [row for row in before if (row["face"], row["mode"]) not in measured]
            result["speed"] = rows
        if small:
            result["small_files"] = _small_files(here, small, engine)
        if data is not None:
            result["agreement"] = _agreement(here, data, engine)
    print(save("scan", result))


def _speeds(
    here: Path, motion: str, seconds: int, modes: Sequence[str], engine: list[str]
) -> list[dict[str, Any]]:
    clip = here / f"{motion}.mp4"
    _write_clip(clip, 120, still=motion == "sitting")
    archive = here / motion
    archive.mkdir()
    for number in range(math.ceil(seconds / 120)):
        (archive / f"{number}.mp4").hardlink_to(clip)
    some = here / f"{motion}-some"
    some.mkdir()
    for number in range(max(2, round(seconds / 120 * FULL_SHARE))):
        (some / f"{number}.mp4").hardlink_to(clip)
    tiny = here / f"{motion}-tiny.mp4"
    _encode(tiny, [_picture(i, still=True, size=(320, 180)) for i in range(10)], (320, 180))
    rows = []
    for mode in modes:
        options = MODES[mode]
        started = here / f"out-{motion}-{mode}-tiny"
        start_up = _scan([tiny, *options, "--no-crops", *engine], started)
        for readers in (1, 2):
            load = os.getloadavg()[0]
            what = some if mode == "full" else archive
            out = here / f"out-{motion}-{mode}-{readers}"
            told = [*options, "--readers", readers, "--no-crops", *engine]
            scanned = _without(_scan([what, *told], out), start_up)
            alone = _decoding_alone(clip, mode, readers)
            row = {"face": motion, "mode": mode, "readers": readers, "load_before": round(load, 1)}
            rows.append(row | scanned | alone)
            print(json.dumps(rows[-1]))
    return rows


def _scan(arguments: list[Any], out: Path) -> dict[str, Any]:
    """Scan, and return media time, wall time and processor time, imports left out."""
    command = [sys.executable, str(ROOT / "run_stream.py"), "scan", *map(str, arguments)]
    process = subprocess.Popen(
        [*command, "--out", str(out)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    watched = psutil.Process(process.pid)
    assert process.stderr is not None
    process.stderr.readline()  # "N files to scan": imports are done
    began, cpu_before = time.monotonic(), _cpu_s(watched)
    cpu_s, peak = cpu_before, 0
    while process.poll() is None:
        try:
            cpu_s = max(cpu_s, _cpu_s(watched))
            peak = max(peak, watched.memory_info().rss)
        except psutil.Error:
            break
        time.sleep(_POLL_S)
    process.communicate()
    wall_s = time.monotonic() - began
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text("utf-8").splitlines()]
    media_s = sum(row["seconds"] for row in rows)
    frames = sum(row["frames_analysed"] for row in rows)
    return {
        "files": len(rows),
        "media_s": round(media_s),
        "frames": frames,
        "wall_s": round(wall_s, 1),
        "cpu_s": round(cpu_s - cpu_before, 1),
        "peak_rss_mib": round(peak / 2**20),
    }


def _without(scanned: dict[str, Any], start_up: dict[str, Any]) -> dict[str, Any]:
    """Take off what a scan of next to nothing costs: engines are opened, tables are written."""
    wall_s = scanned["wall_s"] - start_up["wall_s"]
    cpu_s = scanned["cpu_s"] - start_up["cpu_s"]
    return {
        **{name: scanned[name] for name in ("files", "media_s", "frames", "peak_rss_mib")},
        "start_up_wall_s": start_up["wall_s"],
        "start_up_cpu_s": start_up["cpu_s"],
        "wall_s": round(wall_s, 1),
        "times_real_time": round(scanned["media_s"] / wall_s, 1),
        "cpu_s": round(cpu_s, 1),
        "cpu_ms_per_frame": round(1000 * cpu_s / scanned["frames"], 1),
        "times_real_time_of_one_cpu": round(scanned["media_s"] / cpu_s, 1),
    }


def _cpu_s(process: psutil.Process) -> float:
    """Return the processor time of a process and all it started, ended ones included."""
    total = 0.0
    for each in [process, *process.children(recursive=True)]:
        try:
            times = each.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
        if each != process:
            total += times.children_user + times.children_system
    return total


def _decoding_alone(clip: Path, mode: str, readers: int) -> dict[str, Any]:
    """Decode with as many processes, throw the frames away; return the same multiples."""
    began = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(readers) as pool:
        pool.map(_ready, range(readers))
        began = time.monotonic()
        found = pool.starmap(_decode, [(str(clip), mode)] * readers, chunksize=1)
        wall_s = time.monotonic() - began
    media_s, cpu_s = sum(f[0] for f in found), sum(f[1] for f in found)
    return {
        "decoding_alone_times_real_time": round(media_s / wall_s, 1),
        "decoding_alone_of_one_cpu": round(media_s / cpu_s, 1),
    }


def _ready(_: int) -> str:
    time.sleep(0.5)
    return sampled.__name__  # imported now, not while the clock runs


def _decode(path: str, mode: str) -> tuple[float, float]:
    config = {
        "sample": DecodeConfig(kind="sampled", pictures="reference", analyse_fps=1),
        "full": DecodeConfig(),
    }.get(mode, DecodeConfig(kind="sampled", pictures="keyframes", analyse_fps=1))
    source = SourceConfig(id="clip", uri=SecretStr(path))
    began, last_s = time.process_time(), 0.0
    with closing(open_decoder(source, config, session=0)) as decoder:
        for frame in decoder.frames():
            if frame is not None:
                last_s = frame.stamp.pts_s
    return last_s, time.process_time() - began


def _small_files(here: Path, n: int, engine: list[str]) -> dict[str, Any]:
    archive = here / "small"
    archive.mkdir()
    clip = here / "small.mp4"
    _encode(clip, [_picture(i, still=True, size=(320, 180)) for i in range(10)], (320, 180))
    for number in range(n):
        (archive / f"{number:05}.mp4").hardlink_to(clip)
    found = _scan([archive, "--no-crops", *engine], here / "out-small")
    some = here / "few"
    some.mkdir()
    for number in range(max(1, n // 20)):
        (some / f"{number:05}.mp4").hardlink_to(clip)
    few = _scan([some, "--no-crops", *engine], here / "out-few")
    names = ("files", "wall_s", "cpu_s", "peak_rss_mib")
    return {"many": {k: found[k] for k in names}, "few": {k: few[k] for k in names}}


def _agreement(here: Path, data: Path, engine: list[str]) -> list[dict[str, Any]]:
    """Return verdict and highest probability of each real clip, by mode."""
    found: dict[str, dict[str, Any]] = {}
    clips = [data / name for name in ("videos", "replay_pairs", "deepfake_pairs")]
    for mode, options in MODES.items():
        out = here / f"out-agreement-{mode}"
        _scan([*clips, "--include", "*.m*", "--no-crops", *options, *engine], out)
        for line in (out / "results.jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            name = str(Path(row["path"]).relative_to(data))
            said = {key: row[key] for key in ("verdict", "p_attack", "n_tracks", "frames_analysed")}
            found.setdefault(name, {})[mode] = said
    return [{"clip": name} | modes for name, modes in sorted(found.items())]


def _write_clip(path: Path, seconds: int, *, still: bool) -> None:
    """Encode a period of the motion, and repeat it."""
    period = path.with_suffix(".period.mp4")
    pictures = (_picture(i, still=still, size=(WIDTH, HEIGHT)) for i in range(PERIOD_S * FPS))
    _encode(period, pictures, (WIDTH, HEIGHT))
    with av.open(str(path), "w") as target:
        stream = None
        for repetition in range(math.ceil(seconds / PERIOD_S)):
            with av.open(str(period)) as source:
                (video,) = source.streams.video
                stream = stream or target.add_stream_from_template(video)
                assert video.time_base is not None
                shift = round(repetition * PERIOD_S / video.time_base)
                for packet in source.demux(video):
                    if packet.pts is not None and packet.dts is not None:
                        packet.pts += shift
                        packet.dts += shift
                        packet.stream = stream
                        target.mux(packet)
    period.unlink()


def _encode(path: Path, pictures: Any, size: tuple[int, int]) -> None:
    options = {"preset": "veryfast", "g": str(2 * FPS), "sc_threshold": "0", "threads": "1"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture).reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _picture(number: int, *, still: bool, size: tuple[int, int]) -> Any:
    """Draw a portrait before a noisy wall; sitting still it sways by a quarter of the face."""
    width, height = size
    portrait = skimage.data.astronaut()[: min(512, height), : min(512, width)]  # type: ignore[no-untyped-call]
    turn = 2 * math.pi * number / (PERIOD_S * FPS)
    reach = 25 if still else 250
    free_x, free_y = width - portrait.shape[1], height - portrait.shape[0]
    x = round(free_x / 2 + min(reach, free_x / 2) * math.sin(2 * turn))
    y = round(free_y / 2 + min(reach / 4, free_y / 2) * math.sin(4 * turn))
    random = np.random.default_rng(number % 50)
    picture = np.full((height, width, 3), 100, np.int16)
    picture += random.integers(-4, 5, (height, width, 1), np.int16)
    picture[y : y + portrait.shape[0], x : x + portrait.shape[1]] = portrait
    return picture.astype(np.uint8)


if __name__ == "__main__":
    main()
