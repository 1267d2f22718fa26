from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest
import redis
from click.testing import CliRunner
from matplotlib import colormaps
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from rich.console import Console

from demo.__main__ import main
from demo.report import (
    CUE_POWER,
    annotate,
    clip_title,
    contact_sheet,
    read_tracks,
    redis_table,
    track_table,
)
from models import InputSpec, file_sha256
from stream.errors import ConfigError
from stream.messages import MessageWriter, ModelId
from stream.publish.embedded import EmbeddedServer
from stream.records import AttackFamily, DetectorScore, QualityProblem, Verdict
from trt_engines.export import ATTACK_OUTPUTS, write_engine
from trt_engines.manifest import DecisionThresholds, Manifest

if TYPE_CHECKING:
    from collections.abc import Callable

    from stream.records import Message

CUES = (0.2, 0.5)  # what the fixture's detector draws on the left and on the right, always


def writer_of(run: str) -> MessageWriter:
    model = ModelId(name="lgsc", onnx_sha256="ab" * 32)
    return MessageWriter(run=run, version="0.1.0", models=[model])


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Append records, as messages of one run, to a file."""

    def write(*records: Message, run: str = "0a1b2c3d") -> Path:
        path = tmp_path / "messages.jsonl"
        writer = writer_of(run)
        with path.open("a", encoding="utf-8") as file:
            for record in records:
                file.write(writer.write(record).to_json() + "\n")
        return path

    return write


@pytest.fixture
def tracks(written, records):
    """A bona fide face that moves to the right, and one that was too small to be scored."""
    said = {"track": 1, "p": 0.1, "verdict": Verdict.BONA_FIDE}
    small = {"track": 2, "p": None, "verdict": Verdict.ABSTAIN, "box": (900, 600, 930, 640)}
    path = written(
        records.status(),
        records.score(frame=5, box=(320, 180, 480, 360), **said),
        records.score(frame=10, problem=QualityProblem.TOO_SMALL, **small),
        records.score(frame=15, box=(420, 180, 580, 360), **said),
        records.score(frame=15, box=(420, 180, 580, 360), ended=True, **said),
    )
    return read_tracks(path)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector whose evidence map is `CUES`, whatever it looks at."""
    folder = tmp_path_factory.mktemp("engine")
    spec = InputSpec(size_px=32)
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 3, 32, 32])
    outputs = [
        helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["N"]),
        helper.make_tensor_value_info("explanation", TensorProto.FLOAT, ["N", 1, 32, 32]),
    ]
    constants = {
        "nothing": np.float32(0),
        "cue": np.repeat(np.array(CUES, np.float32), 16) * np.ones((1, 3, 32, 1), np.float32),
        "channel": np.array([1]),
        "all": np.array([1, 2, 3]),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "nothing"], ["zero"]),
        helper.make_node("Add", ["zero", "cue"], ["map"]),
        helper.make_node("ReduceMean", ["map", "channel"], ["explanation"], keepdims=1),
        helper.make_node("ReduceMean", ["map", "all"], ["probability"], keepdims=0),
    ]
    initial = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    graph = helper.make_graph(nodes, "constant", [images], outputs, initial)
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
    (folder / "toy.onnx").write_bytes(model)
    write_engine(
        folder,
        Manifest(
            name="toy",
            method="lgsc",
            input=spec,
            outputs=ATTACK_OUTPUTS,
            onnx="toy.onnx",
            onnx_sha256=file_sha256(folder / "toy.onnx"),
            opset=18,
            max_batch=4,
            onnx_torch_max_abs=0,
            thresholds=DecisionThresholds(enter=0.7, leave=0.5, source="none"),
            licence="Apache-2.0",
        ),
        model,
        None,
    )
    return folder / "toy.manifest.json"


def pictures_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def text_of(table) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def row_with(text: str, part: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if part in line)
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_table_shows_the_last_word_on_each_track_beside_the_truth(tracks):
    truth = {tracks[0].id: "simulated replay"}
    text = text_of(track_table(tracks, title="SIMULATION: a test", truth=truth))
    assert "SIMULATION: a test" in text
    replay = ["1", "0.2", "4", "0.100", "bona_fide", "simulated replay", tracks[0].id]
    assert row_with(text, tracks[0].id) == replay
    assert row_with(text, tracks[1].id)[3:6] == ["-", "abstain (too_small)", "unknown"]


def test_table_has_no_column_for_a_truth_nobody_knows(tracks):
    assert "in truth" not in text_of(track_table(tracks, title=None))


def test_only_the_last_run_in_a_file_is_read(written, records):
    written(records.score(track=1), records.score(track=2))
    (track,) = read_tracks(written(records.score(track=3), run="99999999"))
    assert track.id == "cam1-99999999-0-3"


def test_tracks_are_numbered_in_the_order_they_were_seen(written, records):
    late, early = records.score(track=1, frame=40), records.score(track=2, frame=5)
    tracks = read_tracks(written(late, early))
    assert [(track.number, track.id[-1]) for track in tracks] == [(1, "2"), (2, "1")]


def test_a_clip_played_again_counts_once(written, records):
    (track,) = read_tracks(written(records.score(), records.score(session=1)))
    assert track.latest.source.session == 0


def test_source_must_be_chosen_where_messages_are_of_several(written, records):
    path = written(records.score(source="cam1"), records.score(source="cam2"))
    with pytest.raises(ConfigError, match="several sources; choose one: cam1, cam2"):
        read_tracks(path)
    (track,) = read_tracks(path, "cam2")
    assert track.latest.source.id == "cam2"


def test_a_file_that_holds_no_messages_is_refused_by_name(tmp_path):
    path = tmp_path / "notes.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(ConfigError, match=r"notes\.jsonl: not messages of facewarden/v1"):
        read_tracks(path)
    with pytest.raises(ConfigError, match=r"absent\.jsonl: can't read the messages"):
        read_tracks(tmp_path / "absent.jsonl")


def test_box_moves_evenly_between_messages_and_is_shown_while_the_track_lives(tracks):
    moving = tracks[0]
    seen = moving.at(0.4)
    assert seen is not None
    box, verdict = seen
    np.testing.assert_allclose(box * (1280, 720, 1280, 720), (370, 180, 530, 360), atol=0.1)
    assert verdict.state is Verdict.BONA_FIDE
    assert moving.at(0.19) is None
    assert moving.at(0.6004) is not None  # messages round to milliseconds
    assert moving.at(0.61) is None


def test_verdict_shown_is_the_last_one_given_by_then(written, records):
    undecided = records.score(frame=10, p=0.5, verdict=Verdict.UNDECIDED)
    attack = records.score(frame=20, p=0.9, verdict=Verdict.ATTACK)
    (track,) = read_tracks(written(undecided, attack))
    states = [seen[1].state for frame in (10, 19, 20) if (seen := track.at(frame / 25))]
    assert states == [Verdict.UNDECIDED, Verdict.UNDECIDED, Verdict.ATTACK]


def greenness(picture: np.ndarray, x: int) -> float:
    """How much greener than red and blue a bit of a column is, where a box may have its side."""
    red, green, blue = picture[200:340, x].astype(float).mean(axis=0)
    return float(green - max(red, blue))


def test_annotated_video_has_every_frame_at_its_time_and_the_clips_title(
    demo_clip, tracks, tmp_path
):
    path = tmp_path / "annotated.mp4"
    annotate(demo_clip, tracks, path)
    with av.open(str(path)) as container:
        times_s = [frame.time for frame in container.decode(video=0)]
    np.testing.assert_allclose(times_s, np.arange(25) / 25, atol=1e-4)
    pictures = pictures_of(path)
    assert {picture.shape for picture in pictures} == {(720, 1280, 3)}
    assert clip_title(path) == clip_title(demo_clip) != ""
    for picture in pictures:
        label = picture[686:708, 14:400].mean(axis=2)
        assert np.median(label) < 60  # a dark plate...
        assert 0.05 < (label > 200).mean() < 0.3  # ...with light letters


def test_annotated_video_shows_a_box_in_the_verdicts_colour_while_the_track_lives(
    demo_clip, tracks, tmp_path
):
    path = tmp_path / "annotated.mp4"
    annotate(demo_clip, tracks, path)
    pictures = pictures_of(path)
    assert greenness(pictures[10], 371) > 60  # halfway from 320 to 420
    for before_and_after in (4, 16):
        assert greenness(pictures[before_and_after], 371) < 30
    red, green, blue = pictures[10][610:635, 901].astype(float).mean(axis=0)  # abstained: amber
    assert min(red, green) > blue + 60


def test_a_clip_of_odd_size_and_without_title_is_annotated_too(tmp_path, written, records):
    clip, path = tmp_path / "odd.mp4", tmp_path / "annotated.mp4"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 321, 241, "yuv444p"
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((241, 321, 3), 120, np.uint8))
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    score = records.score(frame=3, size=(321, 241), box=(50, 50, 150, 150))
    annotate(clip, read_tracks(written(score)), path)
    pictures = pictures_of(path)
    assert [picture.shape for picture in pictures] == [(240, 320, 3)] * 10
    assert clip_title(path) is None
    assert np.ptp(pictures[0]) < 20  # nothing was drawn


def test_contact_sheet_has_a_row_per_track_and_cue_maps_on_the_fixed_scale(
    demo_clip, tracks, manifest, tmp_path
):
    path = tmp_path / "sheet.png"
    contact_sheet(demo_clip, tracks, [manifest], path)
    with Image.open(path) as image:
        sheet = np.asarray(image.convert("RGB"))
    assert sheet.shape == (100 + 2 * 260, 1200, 3)
    for cue in CUES:
        expected = np.array(colormaps["inferno"](cue**CUE_POWER)[:3]) * 255
        of_the_cue = (np.abs(sheet - expected) < 2).all(axis=2)
        for row in np.split(of_the_cue, 2):
            assert row.sum() > 80 * 150


def test_two_detectors_stand_beside_each_other_in_the_table_and_on_the_sheet(
    demo_clip, written, records, manifest, tmp_path
):
    said = {"name": "toy", "method": "recce", "n_scores": 4}
    digital = DetectorScore(**said, family=AttackFamily.DIGITAL, probability=0.8, problem=None)
    blind = replace(digital, n_scores=0, probability=None, problem=QualityProblem.CUT_OFF)
    path = written(
        records.score(frame=5, p=0.7, family=AttackFamily.DIGITAL, others=(digital,)),
        records.score(frame=10, track=2, p=0.2, verdict=Verdict.BONA_FIDE, others=(blind,)),
    )
    tracks = read_tracks(path)
    text = text_of(track_table(tracks, title=None))
    assert "attack (digital)" in text
    for line in ("lgsc_lite0 0.700", "toy 0.800", "toy abstains (cut_off)"):
        assert line in text
    contact_sheet(demo_clip, tracks, [manifest, manifest], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (1700, 100 + 2 * 260)


def test_contact_sheet_has_one_empty_row_where_no_face_was_tracked(demo_clip, manifest, tmp_path):
    path = tmp_path / "sheet.png"
    contact_sheet(demo_clip, [], [manifest], path)
    with Image.open(path) as sheet:
        assert sheet.size == (1200, 360)


def test_contact_sheet_of_another_clip_than_the_messages_is_refused(
    demo_clip, written, records, manifest, tmp_path
):
    tracks = read_tracks(written(records.score(frame=300)))
    with pytest.raises(ConfigError, match="has no frame 300, of which the messages speak"):
        contact_sheet(demo_clip, tracks, [manifest], tmp_path / "sheet.png")


@pytest.mark.redis
def test_redis_table_counts_what_each_key_holds():
    with closing(EmbeddedServer()) as server, redis.Redis.from_url(server.url) as client:
        for _ in range(3):
            client.xadd("facewarden:alerts", {"metadata": "{}"})
        client.hset("facewarden:status:clip", mapping={"state": "open", "code": "ok"})
        client.expire("facewarden:status:clip", 1000)
        client.set("another:key", "")
        text = text_of(redis_table(server.url, "facewarden"))
    assert row_with(text, "facewarden:alerts ") == ["facewarden:alerts", "stream", "3 entries"]
    key, kind, holds = row_with(text, "facewarden:status:clip")
    assert (key, kind) == ("facewarden:status:clip", "hash")
    assert holds.startswith("2 fields (state open, code ok), expires in ")
    assert "another" not in text


def test_report_command_shows_the_table_and_says_where_the_files_are(
    demo_clip, written, records, manifest, tmp_path
):
    messages = written(records.score(frame=10))
    command = ["--manifest", manifest, "report", demo_clip, messages, "--out", tmp_path / "out"]
    result = CliRunner().invoke(main, [str(word) for word in command])
    assert result.exit_code == 0, result.output
    assert "SIMULATION" in result.output
    assert "attack" in result.output
    for name in ("annotated.mp4", "contact_sheet.png"):
        assert name in result.output
        assert (tmp_path / "out" / name).stat().st_size > 0


def test_report_command_on_a_missing_clip_says_so_on_one_line(written, records, tmp_path):
    messages = written(records.score())
    result = CliRunner().invoke(main, ["report", str(tmp_path / "absent.mp4"), str(messages)])
    assert result.exit_code == 1
    assert "absent.mp4" in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1
