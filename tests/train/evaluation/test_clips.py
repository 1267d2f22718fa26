"""Labelled clips judged by an engine: rates with counts, and JSON that any reader takes."""

import json

import av
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from skimage.data import astronaut

from stream.config import ScoreConfig
from stream.records import AttackFamily, DetectorScore, QualityProblem, Verdict
from train.__main__ import main
from train.errors import TrainError
from train.evaluation.clip_tracks import ClipTrack
from train.evaluation.clips import JudgedTrack, load_labelled, summarise, write_judgement
from trt_engines.manifest import load_manifest

MANIFEST = ScoreConfig().engines[0].manifest


def track(
    label,
    verdict,
    last=0.5,
    *,
    alarmed=None,
    n_scores=5,
    group="office",
    family=None,
    detectors=(),
):
    return JudgedTrack(
        group=group,
        label=label,
        track=ClipTrack(
            clip="a.mp4",
            track_id=1,
            centre_x=0.5,
            centre_y=0.5,
            first_s=0.0,
            seen_s=3.0,
            n_scores=n_scores,
            peak=last,
            last=last,
            alarmed=verdict is Verdict.ATTACK if alarmed is None else alarmed,
            family=family,
            verdict=verdict,
            changes=(),
            detectors=detectors,
        ),
    )


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def test_errors_are_counted_among_the_tracks_that_were_decided():
    judged = [
        track("bona_fide", Verdict.ATTACK),
        track("bona_fide", Verdict.BONA_FIDE),
        track("bona_fide", Verdict.BONA_FIDE, alarmed=True),  # and calmed down
        track("bona_fide", Verdict.UNDECIDED),
        track("replay", Verdict.ATTACK),
        track("replay", Verdict.BONA_FIDE),
        track("replay", Verdict.ABSTAIN, last=None),
    ]
    rates = summarise(judged, min_scores=3)["rates"]
    bona_fide, replay = rates["office / bona_fide"], rates["office / replay"]
    assert [bona_fide[key] for key in ("rate", "tracks", "decided", "errors")] == ["BPCER", 4, 3, 2]
    assert [replay[key] for key in ("rate", "tracks", "decided", "errors")] == ["APCER", 3, 2, 1]
    assert replay["value"] == 0.5
    assert replay["wilson_95"][0] < 0.5 < replay["wilson_95"][1]


def test_an_alarm_that_ended_without_a_verdict_is_a_decision():
    rates = summarise([track("bona_fide", Verdict.UNDECIDED, alarmed=True)], min_scores=3)["rates"]
    assert rates["office / bona_fide"]["value"] == 1.0


def test_rates_without_decided_tracks_are_null_with_their_counts(tmp_path):
    judged = [track("bona_fide", Verdict.UNDECIDED), track("replay", Verdict.ABSTAIN, n_scores=0)]
    path = tmp_path / "new" / "clips.json"
    write_judgement(path, judged, [], engines=[load_manifest(MANIFEST)], min_scores=3)
    content = json.loads(path.read_text(), parse_constant=refuse)
    cell = content["rates"]["office / replay"]
    assert (cell["tracks"], cell["decided"], cell["value"], cell["wilson_95"]) == (1, 0, None, None)


def test_an_area_without_bona_fide_tracks_is_null_with_its_counts():
    areas = summarise([track("print", Verdict.ATTACK)], min_scores=3)["auc_of_last_track_score"]
    assert areas == {"print": {"auc": None, "bona_fide": 0, "attacks": 1}}


def test_tracks_with_too_few_looks_have_no_part_in_the_area():
    judged = [
        track("bona_fide", Verdict.BONA_FIDE, 0.2),
        track("bona_fide", Verdict.UNDECIDED, 0.9, n_scores=3),
        track("replay", Verdict.ATTACK, 0.8),
    ]

    def area(min_scores):
        return summarise(judged, min_scores=min_scores)["auc_of_last_track_score"]["replay"]

    assert area(3) == {"auc": 0.5, "bona_fide": 2, "attacks": 1}
    assert area(4) == {"auc": 1.0, "bona_fide": 1, "attacks": 1}


def said(name, p, family=None, *, n_scores=5, problem=None):
    return DetectorScore(
        name=name, method=name, family=family, n_scores=n_scores, probability=p, problem=problem
    )


def test_each_detector_is_judged_by_itself_beside_what_they_say_together():
    cut_off = said("made", None, n_scores=0, problem=QualityProblem.CUT_OFF)
    judged = [
        track("bona_fide", Verdict.BONA_FIDE, 0.3, detectors=(said("shown", 0.3), cut_off)),
        track(
            "bona_fide", Verdict.BONA_FIDE, 0.4, detectors=(said("shown", 0.1), said("made", 0.4))
        ),
        track("replay", Verdict.ATTACK, 0.9, detectors=(said("shown", 0.9), said("made", 0.2))),
        track("replay", Verdict.ATTACK, 0.5, detectors=(said("shown", 0.2), said("made", 0.5))),
    ]
    summary = summarise(judged, min_scores=3)
    shown, made = summary["detectors"]
    assert summary["auc_of_last_track_score"]["replay"]["auc"] == 1.0
    assert shown["auc_of_last_track_score"]["replay"] == {"auc": 0.75, "bona_fide": 2, "attacks": 2}
    assert made["auc_of_last_track_score"]["replay"] == {"auc": 0.5, "bona_fide": 1, "attacks": 2}
    assert (shown["abstained"], made["abstained"]) == ({}, {"cut_off": 1})


def test_alarms_are_counted_by_the_family_that_was_said():
    judged = [
        track("replay", Verdict.ATTACK, family=AttackFamily.PRESENTATION),
        track("replay", Verdict.ATTACK, family=AttackFamily.UNSURE),
        track("replay", Verdict.BONA_FIDE),
        track("bona_fide", Verdict.ATTACK, family=AttackFamily.DIGITAL),
    ]
    assert summarise(judged, min_scores=3)["families_of_alarms"] == {
        "bona_fide": {"digital": 1},
        "replay": {"presentation": 1, "unsure": 1},
    }


def _clip(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for level in range(5):
            grey = np.full((120, 160, 3), 40 * level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())


def test_the_command_judges_clips_and_pictures_without_a_face(tmp_path):
    _clip(tmp_path / "empty.mp4")
    Image.new("RGB", (160, 120), "grey").save(tmp_path / "empty.png")
    (tmp_path / "clips.yaml").write_text(
        "clips: [{path: empty.mp4, group: none, label: bona_fide}]\n"
        "stills: [{path: empty.png, group: none, label: print}]\n"
    )
    words = [
        *("judge", str(tmp_path / "clips.yaml"), "--root", str(tmp_path)),
        *("--manifest", str(MANIFEST), "--out", str(tmp_path / "out.json")),
    ]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.exception
    assert "no face" in result.output
    content = json.loads((tmp_path / "out.json").read_text(), parse_constant=refuse)
    assert content["rates"] == {}
    assert content["stills"][0]["probability"] is None
    assert [engine["name"] for engine in content["engines"]] == ["lgsc"]


def _portrait(light):
    return (astronaut()[:230, 115:335] * light).astype(np.uint8)


def test_the_command_judges_with_two_engines_and_says_what_each_says(
    tiny_engine, bright_engine, tmp_path
):
    with av.open(str(tmp_path / "face.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 220, 230, "yuv420p", 2**22
        for _ in range(15):
            frame = av.VideoFrame.from_ndarray(_portrait(0.4), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    Image.fromarray(_portrait(1.0)).save(tmp_path / "face.png")
    (tmp_path / "clips.yaml").write_text(
        "clips: [{path: face.mp4, group: dark, label: print}]\n"
        "stills: [{path: face.png, group: bright, label: deepfake}]\n"
    )
    words = [
        *("judge", str(tmp_path / "clips.yaml"), "--root", str(tmp_path)),
        *("--manifest", str(tiny_engine), "--manifest", str(bright_engine)),
        *("--out", str(tmp_path / "out.json")),
    ]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.exception
    assert "tiny alone: AUC print" in result.output
    content = json.loads((tmp_path / "out.json").read_text(), parse_constant=refuse)
    assert [engine["family"] for engine in content["engines"]] == [None, "digital"]
    assert content["families_of_alarms"] == {"print": {"unsure": 1}}
    (judged,), (still,) = content["tracks"], content["stills"]
    dark, bright = judged["detectors"]
    assert (judged["alarmed"], dark["probability"] > 0.9 > 0.1 > bright["probability"]) == (
        True,
        True,
    )
    by_dark, by_bright = still["detectors"]
    assert by_dark < 0.5 < by_bright
    assert still["probability"] == pytest.approx(by_bright, abs=0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"clips: [{path: a, group: b, labl: print}]", "unknown key; did you mean 'label'"),
        (b"clips: [\xff]", "can't read the list"),
        (b"clips: [", "can't read the list"),
        (b"", "clips.yaml: "),
    ],
)
def test_a_wrong_list_of_clips_is_refused_by_name(text, message, tmp_path):
    path = tmp_path / "clips.yaml"
    path.write_bytes(text)
    with pytest.raises(TrainError, match=message):
        load_labelled(path)
