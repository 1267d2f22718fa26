"""Tables of scores: what is read is what was written, and nothing wrong gets in unnamed."""

import math

import numpy as np
import pytest
from scipy.special import expit

from train.errors import TrainError
from train.evaluation.metrics.roc import roc
from train.evaluation.scores import (
    FrameScore,
    aggregated,
    checked_scores,
    frame_samples,
    read_scores,
    video_auc,
    video_samples,
    write_scores,
)

VIDEOS = {
    "r1": [0.1, 0.2, 0.9],
    "r2": [0.3, 0.3, 0.3],
    "r3": [0.2, 0.4],
    "f1": [0.9, 0.8, 0.7],
    "f2": [0.05, 0.95],
    "f3": [0.35, 0.25, 0.35, 0.25],
}


def row(video="r1", frame=0, score=0.5, **other):
    attack = video.startswith("f")
    values = {
        "sample_id": f"{video}-{frame}",
        "dataset": "made",
        "video_id": video,
        "label": int(attack),
        "attack_type": "swap" if attack else None,
        "frame": frame,
        "score": score,
    }
    return FrameScore(**{**values, **other})


def rows_of(videos):
    return [row(name, i, s) for name, scores in videos.items() for i, s in enumerate(scores)]


def accuracy(samples):
    return np.mean((samples.scores >= 0.5) == samples.labels)


def auc(samples):
    return roc(samples.labels, samples.scores).auc()


def exactly(value):
    return pytest.approx(value, abs=1e-9)


def test_frames_equal_the_worked_example():
    frames = frame_samples(checked_scores(rows_of(VIDEOS)))
    assert len(frames.scores) == 17
    assert auc(frames) == exactly(0.6597222222222221)
    assert accuracy(frames) == exactly(0.6470588235294118)


@pytest.mark.parametrize(
    ("aggregate", "area", "right"),
    [
        ("mean", 0.7222222222222222, 5 / 6),
        ("max", 0.7222222222222222, 2 / 3),
        ("median", 5 / 6, 5 / 6),
        ("top2", 7 / 9, None),  # f2 lies at 0.5 but for rounding
        ("logit_mean", 7 / 9, None),
    ],
)
def test_videos_equal_the_worked_example(aggregate, area, right):
    videos = video_samples(checked_scores(rows_of(VIDEOS)), aggregate)
    assert auc(videos) == exactly(area)
    if right is not None:
        assert accuracy(videos) == exactly(right)


@pytest.mark.parametrize(
    ("high", "middle", "low", "expected"),
    [
        (12, 15, 0, 0.9),  # 12 > 27 // 2.5 = 10
        (11, 5, 0, (11 * 0.9 + 5 * 0.5) / 16),  # 11 are too few
        (12, 20, 0, (12 * 0.9 + 20 * 0.5) / 32),  # 12 = 32 // 2.5: not more
        (0, 1, 19, 0.1),
        (0, 1, 9, (9 * 0.1 + 0.5) / 10),  # nine tenths: not more
    ],
)
def test_confident_frames_speak_for_the_video(high, middle, low, expected):
    scores = np.array([0.9] * high + [0.5] * middle + [0.1] * low)
    assert aggregated(scores, "confident") == exactly(expected)


def test_an_unknown_aggregate_is_refused():
    with pytest.raises(ValueError, match="unknown aggregate 'top0'"):
        aggregated(np.array([0.5]), "top0")


@pytest.mark.parametrize(
    ("policy", "scores"),
    [("half", [0.5, 0.9, 0.5, 0.2]), ("exclude", [0.9, 0.2]), ("error", [0.0, 0.9, 1.0, 0.2])],
)
def test_videos_without_a_face_count_as_the_policy_says(policy, scores):
    videos = {"f1": [None, None], "f2": [0.9, None], "r1": [None], "r2": [0.2]}
    found = video_samples(checked_scores(rows_of(videos)), no_face=policy)
    assert found.scores.tolist() == scores
    assert found.no_face == (1, 1)


def test_frames_without_a_face_are_counted_per_class():
    videos = {"f1": [None, None], "f2": [0.9, None], "r1": [None], "r2": [0.2]}
    frames = frame_samples(checked_scores(rows_of(videos)))
    assert frames.no_face == (1, 3)
    assert frames.names.tolist() == ["made/f2#0", "made/r2#0"]


def test_a_cluster_is_the_person_or_else_the_source_video():
    rows = [
        row("f1", subject="anna"),
        row("f2", source_id="r1"),
        row("r1"),
        row("r2", subject="anna"),
    ]
    found = dict(zip(["f1", "f2", "r1", "r2"], video_samples(rows).clusters, strict=True))
    assert found["f1"] == found["r2"] == "made/person anna"
    assert found["f2"] == found["r1"] == "made/video r1"


def test_a_table_survives_being_written(tmp_path):
    rows = checked_scores(
        [row("f1", 3, 0.1 + 0.2, logit=-1.5, subject="anna"), row("r1", score=None)]
    )
    path = tmp_path / "new" / "scores.jsonl"
    write_scores(path, rows)
    assert read_scores(path) == rows
    assert [p.name for p in path.parent.iterdir()] == ["scores.jsonl"]


def test_an_interrupted_write_leaves_the_old_table(tmp_path):
    path = tmp_path / "scores.jsonl"
    write_scores(path, [row()])

    def broken():
        yield row("r2")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_scores(path, broken())
    assert read_scores(path) == [row()]


def test_a_sample_that_came_twice_counts_once():
    repeated = [row(score=0.5), row("r2"), row(score=0.5000001)]
    assert checked_scores(repeated) == [row(score=0.5), row("r2")]


@pytest.mark.parametrize("other", [{"score": 0.6}, {"score": None}, {"video_id": "r7"}])
def test_one_sample_id_with_two_meanings_is_refused(other):
    twin = row().model_copy(update=other)
    with pytest.raises(TrainError, match=r"made/r\d frame 0 \(r1-0\).*not unique"):
        checked_scores([row(), twin])


@pytest.mark.parametrize("score", [math.nan, math.inf, 1.5, -0.1])
def test_scores_that_are_no_probabilities_are_refused_by_name(score):
    with pytest.raises(TrainError, match=rf"made/f2 frame 7 \(f2-7\): score {score}"):
        checked_scores([row(), row("f2", 7, score)])


def test_a_score_that_is_no_number_is_not_taken_for_a_missing_face_once_written(tmp_path):
    write_scores(tmp_path / "scores.jsonl", [row(score=math.nan)])
    with pytest.raises(TrainError, match=r"scores\.jsonl: .*score nan"):
        read_scores(tmp_path / "scores.jsonl")


def test_a_logit_that_is_no_number_is_refused_by_name():
    with pytest.raises(TrainError, match=r"\(r1-0\): logit nan"):
        checked_scores([row(logit=math.nan)])


def test_many_wrong_rows_are_counted():
    with pytest.raises(TrainError, match="and 15 more rows"):
        checked_scores([row(frame=i, score=math.nan) for i in range(20)])


def test_a_video_of_both_labels_is_refused():
    with pytest.raises(TrainError, match=r"made/r1.*different video ids"):
        checked_scores([row(), row(frame=1, label=1, attack_type="swap")])


LOG_ODDS = {"r1": [14.0, 14.0], "r2": [-3.0, 22.0], "f1": [25.0, 25.0], "f2": [20.0, -2.0]}


def of_log_odds(videos, scale=1.0, offset=0.0):
    return [
        row(name, i, score=float(expit((x - offset) / scale)), logit=x)
        for name, found in videos.items()
        for i, x in enumerate(found)
    ]


def test_the_dev_auc_ranks_videos_by_their_mean_log_odds_where_probabilities_saturate():
    rows = of_log_odds(LOG_ODDS)
    assert video_auc(rows) == exactly(2 / 4)  # means 14, 9.5 against 25, 9
    assert auc(video_samples(rows, "mean")) == exactly(
        3 / 4
    )  # which the mean probability gets wrong


def test_the_dev_auc_is_the_same_number_before_and_after_calibration():
    calibrated = of_log_odds(LOG_ODDS, scale=9.0, offset=11.0)
    assert video_auc(calibrated) == video_auc(of_log_odds(LOG_ODDS))
    by_score = [r.model_copy(update={"logit": None}) for r in calibrated]
    assert video_auc(by_score) == video_auc(calibrated)


def test_a_video_without_a_face_has_no_part_in_the_dev_auc():
    rows = [*of_log_odds(LOG_ODDS), row("f9", score=None)]
    assert video_auc(rows) == video_auc(of_log_odds(LOG_ODDS))


def test_the_dev_auc_of_one_class_or_of_log_odds_that_are_no_numbers_is_refused():
    with pytest.raises(TrainError, match="found 2 bona fide videos and 0 attacks with a face"):
        video_auc([row("r1"), row("r2"), row("f1", score=None)])
    with pytest.raises(TrainError, match="did the network diverge"):
        video_auc([row("r1"), row("f1", logit=math.inf)])


def test_an_empty_table_is_refused(tmp_path):
    (tmp_path / "scores.jsonl").touch()
    with pytest.raises(TrainError, match=r"scores\.jsonl: the table of scores is empty"):
        read_scores(tmp_path / "scores.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"sample_id": "a"', "line 2: Invalid JSON"),
        (row().model_dump_json().replace('"label":0', '"label":2'), "line 2: label: "),
        (
            row().model_dump_json().replace("frame", "frames"),
            "line 2: frames: unknown key; did you mean 'frame'",
        ),
        (row().model_dump_json().replace('type":null', 'type":"swap"'), "line 2: .*have none"),
        (row().model_dump_json().replace(',"score":0.5', ""), "line 2: score: Field required"),
    ],
)
def test_a_wrong_row_of_a_file_is_named_with_its_line(line, message, tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_text(f"{row().model_dump_json()}\n{line}\n")
    with pytest.raises(TrainError, match=rf"scores\.jsonl: {message}"):
        read_scores(path)


@pytest.mark.parametrize("damage", [b"\xff\xfe", b'{"sample_id": "\xe9"}', b"\x00\x01"])
def test_a_damaged_line_is_named_whatever_its_bytes(damage, tmp_path):
    path = tmp_path / "scores.jsonl"
    good = row().model_dump_json().encode()
    path.write_bytes(good + b"\n" + damage + b"\n" + row("r2").model_dump_json().encode())
    with pytest.raises(TrainError, match=r"scores\.jsonl: line 2: "):
        read_scores(path)


def test_a_byte_order_mark_and_empty_lines_are_no_damage(tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_text(f"\ufeff{row().model_dump_json()}\r\n\n{row('r2').model_dump_json()}\n\n")
    assert read_scores(path) == [row(), row("r2")]


@pytest.mark.parametrize("log_odds", [math.nan, math.inf, 3.0])
def test_log_odds_that_are_not_those_of_the_score_are_refused(log_odds):
    with pytest.raises(TrainError, match=r"made/r1 frame 0 \(r1-0\): log_odds"):
        checked_scores([row(score=0.5, log_odds=log_odds)])


def of_odds(videos):
    return [
        row(name, i, score=float(expit(x)), log_odds=x)
        for name, odds in videos.items()
        for i, x in enumerate(odds)
    ]


def test_log_odds_rank_videos_and_frames_whose_scores_are_all_one():
    rows = of_odds({"r1": [40.0, 60.0], "r2": [45.0, 45.0], "f1": [50.0, 52.0], "f2": [90.0, 90.0]})
    videos, frames = video_samples(rows), frame_samples(rows)
    assert (videos.scores == 1).all()
    assert auc(videos) == 0.5
    assert roc(videos.labels, videos.evidence).auc() == 1.0  # 50 and 45 against 51 and 90
    assert roc(frames.labels, frames.evidence).auc() == exactly(14 / 16)


def test_a_video_of_one_frame_has_its_very_score():
    scores = [0.4, 0.1 + 0.2, 1e-30, 1.0, 0.0]
    videos = video_samples([row(f"r{i}", score=score) for i, score in enumerate(scores)])
    assert videos.scores.tolist() == scores


@pytest.mark.parametrize("aggregate", ["logit_mean", "mean", "max"])
def test_what_ranks_videos_never_contradicts_their_scores(aggregate):
    rng = np.random.default_rng(0)
    videos = {f"{'rf'[i % 2]}{i}": rng.uniform(0, 1, 3).tolist() for i in range(40)}
    videos |= {"r98": [None], "f99": [None]}
    for policy in ("half", "error"):
        samples = video_samples(checked_scores(rows_of(videos)), aggregate, policy)
        order = np.argsort(samples.evidence, kind="stable")
        assert (np.diff(samples.scores[order]) >= -1e-12).all()


def test_the_threshold_of_an_operating_point_is_a_score_of_the_samples():
    samples = video_samples([row(f"r{i}", score=s) for i, s in enumerate((0.1, 0.3, 0.7))])
    ranked = sorted(samples.evidence)
    assert samples.threshold_at(ranked[1]) == 0.3
    assert samples.threshold_at(ranked[1] + 1e-9) == 0.7
    assert samples.threshold_at(math.inf) == math.inf
    assert math.isnan(samples.threshold_at(math.nan))


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(TrainError, match=r"absent\.jsonl: can't read"):
        read_scores(tmp_path / "absent.jsonl")
