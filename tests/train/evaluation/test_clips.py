"""Labelled clips judged by an engine: rates with counts, and JSON that any reader takes."""

import json

import av
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from stream.records import Verdict
from train.__main__ import main
from train.errors import TrainError
from train.evaluation.clip_tracks import ClipTrack
from train.evaluation.clips import JudgedTrack, load_labelled, summarise, write_judgement
from trt_engines.manifest import SHIPPED

MANIFEST = SHIPPED / "lgsc_lite0" / "lgsc.manifest.json"


def track(label, verdict, last=0.5, *, alarmed=None, n_scores=5, group="office"):
    return JudgedTrack(
        group=group,
        label=label,
        track=ClipTrack(
            clip="a.mp4",
            track_id=1,
            centre_x=0.5,
            centre_y=0.5,
            seen_s=3.0,
            n_scores=n_scores,
            peak=last,
            last=last,
            alarmed=verdict is Verdict.ATTACK if alarmed is None else alarmed,
            verdict=verdict,
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
    write_judgement(path, judged, [], onnx_sha256="0" * 64, min_scores=3)
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


def test_the_shipped_results_hold_no_number_that_json_has_not():
    json.loads((MANIFEST.parent / "real_clips.json").read_text(), parse_constant=refuse)
