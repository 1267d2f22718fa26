"""Engines judged before they ship: on clips, pictures and degraded footage, with our own media."""

import csv
import io
import itertools
import json
import zipfile
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
import skimage.data
import torch
from click.testing import CliRunner
from PIL import Image

from stream.analyse import open_analyser
from stream.config import DecodeConfig
from stream.records import Verdict
from stream.stages.detect import FaceDetector
from train.__main__ import _stream_config, main
from train.errors import TrainError
from train.evaluation.clip_tracks import frames_of, tracks_of_clip
from train.evaluation.clips import LabelledClip, LabelledClips
from train.evaluation.ladder import degraded, first_seconds
from train.evaluation.onlookers import look_at, opened_onlookers, watch
from train.evaluation.recorded_looks import read_looks
from train.evaluation.shipped import (
    LookedAt,
    ShippedReport,
    column_names,
    judge_parts,
    looks_so_far,
)
from train.evaluation.shipped_measures import Judged, rows_of
from train.evaluation.shipped_sets import (
    load_shipped_sets,
    measured_pictures,
    opened_portraits,
)

SETS = Path(__file__).parents[3] / "configs" / "train" / "shipped_sets.yaml"
FPS = 10
HEAD_PX = 130
BACKGROUND = 90
NAMES = itertools.count()


def _head(light):
    portrait = Image.fromarray(skimage.data.astronaut()[:230, 115:335])
    return np.asarray(portrait.resize((HEAD_PX, HEAD_PX)), float) * light


def _scene(*heads, width=400, height=224):
    """Draw heads: light and place (x, y). `tiny_engine` takes dark ones for attacks."""
    picture = np.random.default_rng(0).normal(BACKGROUND, 6, (height, width, 3))
    for light, x, y in heads:
        picture[y : y + HEAD_PX, x : x + HEAD_PX] = _head(light)
    return picture.clip(0, 255).astype(np.uint8)


def _write_clip(path, pictures):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "18"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def _bytes(picture):
    stored = io.BytesIO()
    Image.fromarray(picture).save(stored, "PNG")
    return stored.getvalue()


def _csv(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


YAML = """\
clips: clips.yaml
measure: {manifest: measure/manifest.csv, sets: {theirs: ours}}
portraits: {archive: portraits.zip, split: val}
ladder: {seconds: 2, rungs: {gamma: [1.0, 3.0], bit_rate: [0.1]}}
"""
CLIPS = """\
clips:
  - {path: pair.mp4, group: pairs, label: bona_fide, right: replay}
  - {path: alone.mp4, group: alone, label: bona_fide}
stills:
  - {path: measure/bright.png, group: stills, label: bona_fide}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    steps = range(3 * FPS)
    pair = [_scene((1, 10 + i, 20 + i // 2), (0.3, 260 - i, 70 - i // 2)) for i in steps]
    _write_clip(folder / "pair.mp4", pair)
    _write_clip(folder / "alone.mp4", [_scene((1, 100 + i, 40)) for i in steps])
    (folder / "measure").mkdir()
    pictures = {
        "bright": (_scene((1, 10, 20)), "bona_fide", "", "anna"),
        "dark": (_scene((0.3, 10, 20)), "print", "held_print", "ben"),
        "empty": (_scene(), "print", "held_print", "ben"),
        "small": (_scene((1, 10, 20))[::2, ::2], "bona_fide", "", "cora"),
    }
    rows = []
    for name, (picture, label, kind, person) in pictures.items():
        (folder / "measure" / f"{name}.png").write_bytes(_bytes(picture))
        rows.append(
            {
                "file": f"{name}.png",
                "label": label,
                "attack_kind": kind,
                "dataset": "theirs",
                "person": person,
            }
        )
    (folder / "measure" / "manifest.csv").write_text(_csv(rows))
    with zipfile.ZipFile(folder / "portraits.zip", "w") as archive:
        portraits = [
            {"file": "a.png", "source": "house_one", "split": "val"},
            {"file": "b.png", "source": "house_one", "split": "train"},
        ]
        archive.writestr("manifest.csv", _csv(portraits))
        archive.writestr("a.png", _bytes(_scene((1, 10, 20))))
    (folder / "sets.yaml").write_text(YAML)
    (folder / "clips.yaml").write_text(CLIPS)
    return folder


@pytest.fixture(scope="module")
def wide_engine(tiny_engine, tmp_path_factory):
    """The same detector with a wider window, that therefore sees another mean."""
    folder = tmp_path_factory.mktemp("wide")
    (folder / "tiny.onnx").write_bytes((tiny_engine.parent / "tiny.onnx").read_bytes())
    manifest = json.loads(tiny_engine.read_text())
    manifest["input"]["margin"] = 2.0
    manifest["weights"] = manifest["weights_sha256"] = None
    (folder / "tiny.manifest.json").write_text(json.dumps(manifest))
    return folder / "tiny.manifest.json"


@pytest.fixture(scope="module")
def onlookers(tiny_engine, wide_engine):
    manifests = {"tiny": tiny_engine, "wide": wide_engine}
    configs = {name: _stream_config(path) for name, path in manifests.items()}
    with opened_onlookers(configs) as opened:
        yield opened


def _told(tracks):
    return [
        (t.track_id, t.n_scores, t.verdict, t.alarmed, t.last)
        for t in sorted(tracks, key=lambda t: t.track_id)
    ]


@pytest.mark.parametrize("name", ["tiny", "wide"])
def test_every_engine_gives_the_tracks_that_it_gives_in_a_stream_of_its_own(name, root, onlookers):
    config = onlookers.of[name].config
    seen = watch(frames_of(root / "pair.mp4", config.decode), onlookers)
    with open_analyser(config) as analyser:
        alone = tracks_of_clip(root / "pair.mp4", analyser, config.decode)
    expected = [(t.track_id, t.n_scores, t.verdict, t.alarmed, t.last) for t in alone]
    assert _told(seen[name]) == sorted(expected)
    assert len(expected) == 2


def test_faces_are_searched_once_for_all_engines(root, onlookers, monkeypatch):
    calls = []
    plain = FaceDetector.detect

    def counted(self, images, expected):
        calls.append(len(images))
        return plain(self, images, expected)

    monkeypatch.setattr(FaceDetector, "detect", counted)
    frames = list(frames_of(root / "pair.mp4", DecodeConfig()))
    watch(frames, onlookers)
    assert sum(calls) == len(frames)


def test_verdicts_come_with_their_time_since_the_face_was_first_seen(root, onlookers):
    tracks = watch(frames_of(root / "pair.mp4", DecodeConfig()), onlookers)["tiny"]
    right, left = sorted(tracks, key=lambda t: -t.centre_x)
    assert left.seconds_to(Verdict.ATTACK) is None
    assert right.seconds_to(Verdict.BONA_FIDE) is None
    assert right.alarms == 1
    # Three looks, 0.4 s apart, from the confirmation after 0.3 s or later.
    assert 1.1 <= right.seconds_to(Verdict.ATTACK) <= right.seen_s


def test_a_picture_is_one_look_and_says_why_there_is_none(root, onlookers):
    sets, _ = load_shipped_sets(root / "sets.yaml")
    pictures = measured_pictures(sets.measure, root)
    bright, dark, empty, small = look_at(pictures, onlookers)["tiny"]
    assert bright.probability < 0.4 < 0.6 < dark.probability
    assert (empty.probability, empty.problem) == (None, "no face")
    assert (small.probability, small.problem) == (None, "too small")


def test_every_engine_cuts_its_own_window(root, onlookers):
    sets, _ = load_shipped_sets(root / "sets.yaml")
    looks = look_at(measured_pictures(sets.measure, root)[:1], onlookers)
    wide, tiny = (looks[name][0].probability for name in ("wide", "tiny"))
    assert abs(wide - tiny) > 0.005


def test_pictures_carry_our_names_for_sets_and_the_people_of_the_manifest(root):
    sets, _ = load_shipped_sets(root / "sets.yaml")
    told = [(p.set, p.label, p.kind, p.person) for p in measured_pictures(sets.measure, root)]
    assert told[:2] == [
        ("ours", "bona_fide", "bona_fide", "anna"),
        ("ours", "print", "held_print", "ben"),
    ]
    with opened_portraits(sets.portraits, root) as portraits:
        assert [(p.set, p.person) for p in portraits] == [("house one", "a.png")]


def test_a_set_without_a_name_of_ours_is_refused(root):
    sets, _ = load_shipped_sets(root / "sets.yaml")
    nameless = sets.measure.model_copy(update={"sets": {}})
    with pytest.raises(TrainError, match=r"manifest\.csv: no 'theirs'"):
        measured_pictures(nameless, root)


def test_the_committed_list_joins_clips_that_it_judges():
    sets, labelled = load_shipped_sets(SETS)
    paths = {clip.path for clip in labelled.clips}
    assert {path for group in sets.same_people for path in group} <= paths
    first, *others = sets.same_people[0]
    assert {sets.person(path) for path in others} == {sets.person(first)}
    assert sets.person(Path("videos/carphone_qcif.mp4")) == "videos/carphone_qcif.mp4"


def sample(label, score, *, of_set="a", person=None, alarm=None, **more):
    name = str(next(NAMES))
    return Judged(
        sample=name,
        set=of_set,
        label=label,
        kind=more.pop("kind", label),
        person=person or name,
        score=score,
        alarm=score is not None and score >= 0.5 if alarm is None else alarm,
        **more,
    )


def _figures(samples, of_set, kind):
    rows = rows_of("measure", {"ours": samples})
    (row,) = [row for row in rows if (row.set, row.kind) == (of_set, kind)]
    return row, row.engines["ours"]


def test_attacks_without_an_alarm_are_missed_and_what_has_no_score_is_counted_apart():
    samples = [
        sample("bona_fide", 0.1),
        sample("bona_fide", 0.7),
        sample("bona_fide", None, problem="too small"),
        sample("replay", 0.9),
        sample("replay", 0.3),
        sample("replay", 0.4),
        sample("replay", None, problem="no face"),
    ]
    _, bona_fide = _figures(samples, "a", "bona_fide")
    assert (bona_fide.samples, bona_fide.judged, bona_fide.errors) == (3, 2, 1)
    assert bona_fide.not_judged == {"too small": 1}
    row, replay = _figures(samples, "a", "replay")
    assert (replay.judged, replay.errors, replay.rate) == (3, 2, pytest.approx(2 / 3))
    assert (row.against, replay.auc, replay.n_bona_fide) == ("own", pytest.approx(4 / 6), 2)


def test_attacks_stand_against_the_bona_fide_of_their_set_or_else_of_sets_of_their_family():
    samples = [
        *(sample("bona_fide", 0.1) for _ in range(2)),
        sample("print", 0.2),
        *(sample("replay", 0.3, of_set="attacks only") for _ in range(2)),
        *(sample("bona_fide", 0.6, of_set="swaps") for _ in range(2)),
        *(sample("deepfake", 0.5, of_set="swaps") for _ in range(2)),
    ]
    row, figures = _figures(samples, "attacks only", "replay")
    assert (row.against, figures.n_bona_fide, figures.auc) == ("all", 2, 1.0)
    row, figures = _figures(samples, "swaps", "deepfake")
    assert (row.against, figures.n_bona_fide, figures.auc) == ("own", 2, 0.0)
    _, figures = _figures(samples, "all", "presentation attacks")
    assert (figures.samples, figures.n_bona_fide, figures.auc) == (3, 2, 1.0)
    _, figures = _figures(samples, "all", "bona_fide")
    assert (figures.samples, figures.errors) == (4, 2)


def test_bona_fide_sets_without_attacks_stand_against_every_family():
    samples = [
        sample("bona_fide", 0.1, of_set="office"),
        sample("print", 0.2, of_set="prints"),
        sample("deepfake", 0.2, of_set="swaps"),
    ]
    assert _figures(samples, "prints", "print")[1].n_bona_fide == 1
    assert _figures(samples, "swaps", "deepfake")[1].n_bona_fide == 1


def test_pictures_of_one_person_make_an_interval_of_one_sample():
    several = [sample("bona_fide", 0.1 * i) for i in range(8)]
    of_one = [sample("print", 0.1 * i + 0.05, person="ben") for i in range(8)]
    of_many = [sample("print", 0.1 * i + 0.05) for i in range(8)]
    one = _figures([*several, *of_one], "a", "print")[1]
    many = _figures([*several, *of_many], "a", "print")[1]
    assert one.auc == many.auc
    assert one.auc95[0] < many.auc95[0] < many.auc < many.auc95[1] < one.auc95[1]


def test_a_difference_to_the_teacher_is_one_on_the_samples_that_both_judged():
    ours = [sample("bona_fide", 0.3), sample("bona_fide", 0.5)]
    ours += [sample("print", 0.4), sample("print", 0.6), sample("print", None, problem="no face")]
    other = dict(zip((s.sample for s in ours), (0.1, 0.2, None, 0.9, 0.8), strict=True))
    theirs = [
        Judged(
            **{f: getattr(s, f) for f in ("sample", "set", "label", "kind", "person", "alarm")},
            score=other[s.sample],
        )
        for s in ours
    ]
    rows = rows_of("measure", {"ours": ours, "t": theirs}, ["t"])
    row = rows[-1]
    (less,) = row.engines["ours"].less_teacher
    assert (less.teacher, less.n_attack, less.n_bona_fide, less.value) == ("t", 1, 2, 0.0)
    assert row.engines["t"].less_teacher == ()


def test_alarms_are_those_of_bona_fide_faces_an_hour_in_view():
    samples = [
        sample("bona_fide", 0.6, alarms=2, hours=0.25),
        sample("bona_fide", 0.1, hours=0.75),
        sample("replay", 0.9, alarms=5),
    ]
    alarms = _figures(samples, "a", "bona_fide")[1].alarms
    assert (alarms.alarms, alarms.hours, alarms.per_hour) == (2, 1.0, 2.0)
    assert _figures(samples, "a", "replay")[1].alarms is None


def test_faces_in_view_together_are_one_time_of_video(root, onlookers):
    sets, _ = load_shipped_sets(root / "sets.yaml")
    both = LabelledClip(path=Path("pair.mp4"), group="both", label="bona_fide")
    (row,) = judge_parts(
        *(sets, LabelledClips(clips=(both,)), root, onlookers), parts=["clips"], teachers=[]
    )
    figures = row.engines["tiny"]
    assert (figures.samples, figures.people, figures.errors) == (2, 1, 1)
    assert figures.alarms.alarms == 1  # of the dark face
    assert 3600 * figures.alarms.hours == pytest.approx(2.8, abs=0.3)


def _pictures(root, how, rung, seconds=1.0):
    return [*degraded(root / "alone.mp4", DecodeConfig(), seconds, how, rung)]


def _detail(frame):
    grey = frame.image.float().mean(-1)
    return float(grey.diff(dim=0).abs().mean())


@pytest.mark.parametrize("how", ["bit_rate", "blur", "scale", "noise", "gamma"])
def test_degraded_frames_keep_their_time(how, root):
    clean = [*first_seconds(root / "alone.mp4", DecodeConfig(), 1.0)]
    frames = _pictures(root, how, 0.5)
    assert len(clean) == 5
    assert [f.stamp.pts_s for f in frames] == pytest.approx([f.stamp.pts_s for f in clean])


def test_each_degradation_does_what_it_says(root):
    clean = next(first_seconds(root / "alone.mp4", DecodeConfig(), 1.0))
    mean = float(clean.image.float().mean())
    assert _detail(_pictures(root, "blur", 3.0)[0]) < 0.6 * _detail(clean)
    assert _detail(_pictures(root, "noise", 20)[0]) > 1.5 * _detail(clean)
    assert _detail(_pictures(root, "bit_rate", 0.01)[-1]) < 0.9 * _detail(clean)
    assert _pictures(root, "scale", 0.5)[0].image.shape == (112, 200, 3)
    assert float(_pictures(root, "gamma", 2.0)[0].image.float().mean()) < mean - 20
    assert torch.equal(_pictures(root, "gamma", 1.0)[0].image, clean.image)


@pytest.mark.parametrize("height", [224, 640])
def test_a_low_bit_rate_keeps_the_colours(height, tmp_path):
    # Above 576 lines another matrix is taken for the colours of a clip that names none.
    _write_clip(tmp_path / "a.mp4", [np.full((height, 96, 3), (200, 60, 40), np.uint8)] * FPS)
    clean = next(first_seconds(tmp_path / "a.mp4", DecodeConfig(), 1.0))
    coded = next(degraded(tmp_path / "a.mp4", DecodeConfig(), 1.0, "bit_rate", 1.0))
    off = (coded.image.float() - clean.image.float()).mean((0, 1))
    assert off.abs().max() < 5


def test_engines_of_one_name_are_told_apart_by_their_digests(tmp_path):
    for folder in ("a/engine", "b/engine", "c/other"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.manifest.json").write_text(folder)
    a, b, c = column_names(sorted(tmp_path.glob("*/*/x.manifest.json")))
    assert a.startswith("engine/x@")
    assert b.startswith("engine/x@")
    assert a != b
    assert c == "other/x"


def _command(root, *words):
    named = ["--root", root, "--sets", root / "sets.yaml", *words]
    return CliRunner().invoke(main, ["evaluate-shipped", *map(str, named)])


def test_the_command_judges_engines_beside_a_teacher_and_writes_measures_alone(
    root, tiny_engine, wide_engine, tmp_path
):
    before = sorted(root.rglob("*"))
    out, looks = tmp_path / "out", tmp_path / "looks.jsonl"
    words = ["--model", tiny_engine, "--teacher", wide_engine, "--out", out, "--ladder"]
    result = _command(root, *words, "--look", "a test", "--looks", looks)
    assert result.exit_code == 0, result.output
    assert sorted(root.rglob("*")) == before
    assert sorted(path.name for path in out.iterdir()) == ["shipped.json", "shipped.txt"]
    report = ShippedReport.model_validate_json((out / "shipped.json").read_text())
    assert [engine.role for engine in report.engines] == ["judged", "teacher"]
    assert report.engines[0].onnx_sha256 == json.loads(tiny_engine.read_text())["onnx_sha256"]
    ours = report.engines[0].name
    cells = {(row.part, row.set, row.kind): row.engines[ours] for row in report.rows}
    assert cells["clips", "pairs", "replay"].errors == 0
    assert cells["clips", "pairs", "replay"].delays.n == 1
    assert cells["clips", "all", "bona_fide"].alarms.alarms == 0
    assert 3 < 3600 * cells["clips", "all", "bona_fide"].alarms.hours < 6
    assert cells["measure", "ours", "held_print"].not_judged == {"no face": 1}
    assert cells["portraits", "house one", "bona_fide"].judged == 1
    assert cells["clips", "pairs", "replay"].less_teacher
    flat = {(rung.how, rung.rung): rung.engines[ours].flat for rung in report.ladder}
    assert flat == {
        ("clean", None): True,
        ("gamma", 1.0): True,
        ("gamma", 3.0): False,  # so dark that `tiny_engine` alarms
        ("bit_rate", 0.1): True,
    }
    assert (out / "shipped.txt").read_text() in result.output
    assert "looks so far: clips 1, stills 1, measure 1, portraits 1, ladder 1" in result.output
    look = LookedAt.model_validate_json(looks.read_text())
    assert (look.note, set(look.engines)) == ("a test", {e.name for e in report.engines})


def test_a_second_look_is_counted_and_only_the_parts_that_were_computed(
    root, tiny_engine, tmp_path
):
    looks = tmp_path / "looks.jsonl"
    words = ["--model", tiny_engine, "--out", tmp_path / "out", "--part", "stills"]
    for _ in range(2):
        result = _command(root, *words, "--look", "again", "--looks", looks)
    assert result.output.endswith("looks so far: stills 2\n")
    assert "Labelled clips" not in result.output


COLLECTION = """\
clips:
  - {path: alone.mp4, people: [anna], split: dev, licence: none}
  - {path: pair.mp4, people: [ben], split: train, licence: none}
"""


def test_looks_are_recorded_as_streaming_takes_them_with_the_gate_open(root, tiny_engine, tmp_path):
    (tmp_path / "collection.yaml").write_text(COLLECTION)
    record, log = tmp_path / "looks.jsonl", tmp_path / "log.jsonl"
    words = ["--root", root, "--sets", root / "sets.yaml", "--model", tiny_engine]
    words += ["--collection", tmp_path / "collection.yaml", "--out", record]
    words += ["--part", "dev", "--part", "clips", "--part", "measure"]
    words += ["--look", "a test", "--looks", log]
    result = CliRunner().invoke(main, ["record-looks", *map(str, words)])
    assert result.exit_code == 0, result.output
    head, looks = read_looks(record)
    (name,) = head.engines
    config = _stream_config(tiny_engine)
    often = config.model_copy(
        update={"score": config.score.model_copy(update={"still_interval_s": 0.0})}
    )
    with opened_onlookers({"tiny": often}) as opened:
        seen = watch(frames_of(root / "pair.mp4", DecodeConfig()), opened)["tiny"]
    counted = Counter((look.sample, look.label) for look in looks if look.set == "pairs")
    assert counted == {
        (f"pair.mp4#{t.track_id}", "replay" if t.centre_x > 0.5 else "bona_fide"): t.n_scores
        for t in seen
    }
    assert {(look.label, look.person) for look in looks if look.part == "dev"} == {
        ("bona_fide", "real_faces:anna")
    }
    bright, dark, small = (look for look in looks if look.part == "measure")
    assert bright.probability[name] < 0.4 < 0.6 < dark.probability[name]
    assert small.face_px < 48 < bright.face_px  # streaming would not look
    assert LookedAt.model_validate_json(log.read_text()).parts == ("clips", "measure")
    assert result.output.endswith("looks so far: clips 1, measure 1\n")


def test_measures_are_not_written_beside_an_engine(root, tiny_engine):
    result = _command(root, "--out", tiny_engine.parent)
    assert isinstance(result.exception, TrainError)
    assert "holds an engine" in str(result.exception)


def test_missing_data_are_named_with_the_way_to_do_without(root, tiny_engine, tmp_path):
    (tmp_path / "clips.yaml").write_text(CLIPS)
    (tmp_path / "sets.yaml").write_text(YAML)
    words = ["--model", tiny_engine, "--out", tmp_path / "out"]
    for part in ("clips", "stills", "measure", "portraits"):
        result = _command(tmp_path, *words, "--part", part)
        assert isinstance(result.exception, TrainError), part
        assert "--root" in str(result.exception), part
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"clips: x.yaml\nmesure: 1", "unknown key; did you mean 'measure'"),
        (b"clips: [", "can't read what to judge on"),
        (b"\xff", "can't read what to judge on"),
    ],
)
def test_a_wrong_list_of_sets_is_refused_by_name(text, message, tmp_path):
    path = tmp_path / "sets.yaml"
    path.write_bytes(text)
    with pytest.raises(TrainError, match=message):
        load_shipped_sets(path)


def test_the_document_says_how_often_the_test_data_were_looked_at():
    docs = SETS.parents[2] / "docs"
    lines = (docs / "detection-looks.jsonl").read_text(encoding="utf-8").splitlines()
    counted = Counter(part for line in lines for part in LookedAt.model_validate_json(line).parts)
    text = (docs / "detection.md").read_text(encoding="utf-8")
    assert f"\n    {looks_so_far(counted)}\n" in text
