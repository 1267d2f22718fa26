"""The report of tables of scores: every figure with its variant, threshold source and counts."""

import base64
import hashlib
import json
import math
import re
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.metrics import roc_auc_score

from train.__main__ import main
from train.data.protocols import DevBpcer, DevEer, FixedThreshold
from train.errors import TrainError
from train.evaluation.metrics.roc import roc
from train.evaluation.page import write_report
from train.evaluation.plots import _grid, _histogram
from train.evaluation.published import PublishedMeasure, load_published
from train.evaluation.report import (
    ReportConfig,
    ReportDocument,
    build_report,
    json_schema,
    parse_threshold,
)
from train.evaluation.scores import FrameScore, write_scores

A = {
    None: [0.05, 0.10, 0.20, 0.35, 0.60],
    "print": [0.30, 0.80, 0.90],
    "replay": [0.55, 0.70, 0.40, 0.95],
}
B = {None: [0.02, 0.08, 0.15, 0.30], "any": [0.25, 0.45, 0.70, 0.90]}
PNG = b"\x89PNG\r\n\x1a\n"


DOCS = Path(__file__).resolve().parents[3] / "docs"


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def table(scores, dataset="a", subject=None):
    """One picture per score, so that frames and videos are the same."""
    return [
        FrameScore(
            sample_id=f"{dataset}/{kind}{i}",
            dataset=dataset,
            video_id=f"{kind or 'live'}{i}",
            subject=subject,
            label=int(kind is not None),
            attack_type=kind,
            score=score,
        )
        for kind, values in scores.items()
        for i, score in enumerate(values)
    ]


def drawn(n, seed, dataset, shift=2.0):
    rng = np.random.default_rng(seed)
    live, attack = rng.normal(0, 1, n), rng.normal(shift, 1, n)
    return table({None: 1 / (1 + np.exp(-live)), "swap": 1 / (1 + np.exp(-attack))}, dataset)


def config(threshold="dev_eer", **other):
    return ReportConfig(
        protocol="made up", threshold=parse_threshold(threshold), replicates=200, **other
    )


def report(dev, tests, *args, published=(), **options):
    return build_report(dev, tests, config(*args, **options), published=published).document


def of(document, name, level="video"):
    (found,) = [s for s in document.sets if (s.name, s.level) == (name, level)]
    return found


def values(found):
    return {measure.name: measure.value for measure in found.measures}


def exactly(value):
    return pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("level", ["video", "frame"])
def test_measures_at_a_dev_threshold_equal_the_worked_example(level):
    found = of(report(table(B, "b"), {"a": table(A)}), "a", level)
    assert found.threshold.value == exactly(0.30)
    assert (found.threshold.rule, found.threshold.oracle) == ("dev_eer", False)
    assert "4 bona fide" in found.threshold.source
    got = values(found)
    assert got["apcer_pooled"] == exactly(0.0)
    assert got["bpcer"] == exactly(0.4)
    assert got["hter"] == exactly(0.2)
    assert got["hter:test_eer"] == exactly(0.1714285714285714)
    assert got["accuracy_at_half"] == exactly(0.75)


def test_measures_of_the_worked_example_carry_variant_source_and_counts():
    found = of(report(None, {"a": table(A)}, "fixed=0.4"), "a")
    expected = {
        "apcer:print": (1 / 3, 0, 3),
        "apcer:replay": (0.0, 0, 4),
        "apcer_max": (1 / 3, 0, 7),
        "apcer_pooled": (1 / 7, 0, 7),
        "bpcer": (0.2, 5, 0),
        "acer": (0.26666666666, 5, 7),
        "acer_pooled": (0.1714285714, 5, 7),
        "hter": (0.1714285714, 5, 7),
        "accuracy": (0.8333333333, 5, 7),
    }
    for name, (value, n_bona_fide, n_attack) in expected.items():
        measure = found.measure(name)
        assert (measure.value, measure.n_bona_fide, measure.n_attack) == (
            exactly(value),
            n_bona_fide,
            n_attack,
        )
        assert (measure.threshold.rule, measure.threshold.value) == ("fixed", 0.4)
        assert measure.variant
    assert found.n_by_type == {"print": 3, "replay": 4}
    rest = {
        "auc": 0.8857142857142857,
        "average_precision": 0.9240362811791383,
        "eer_interpolated": 0.2,
        "eer_nearest": 0.1714285714285714,
        "eer_convex_hull": 0.1764705882352941,
        "bpcer_at_apcer:0.1": 0.4,
        "bpcer_at_apcer:0.05": 0.4,
        "bpcer_at_apcer:0.01": 0.4,
        "log_loss": 0.4317869876316855,
        "brier": 0.14416666666666664,
        "min_cllr": 0.40535039968275355,
    }
    got = values(found)
    assert {name: got[name] for name in rest} == {k: exactly(v) for k, v in rest.items()}


def test_confusion_is_counted_at_every_threshold_that_is_shown():
    operating, half, eer, least = of(report(None, {"a": table(A)}, "fixed=0.4"), "a").confusion
    counts = [
        (c.attacks_detected, c.attacks_missed, c.bona_fide_passed, c.bona_fide_alarmed)
        for c in (operating, half, eer, least)
    ]
    assert counts == [(6, 1, 4, 1), (5, 2, 4, 1), (6, 1, 4, 1), (7, 0, 3, 2)]
    assert operating.missed_by_type == {"print": 1, "replay": 0}
    assert [c.threshold.rule for c in (half, eer, least)] == [
        "fixed",
        "test_eer",
        "test_best_acer",
    ]


def test_each_attack_type_has_its_area_and_eer_against_all_bona_fide_samples():
    rng = np.random.default_rng(2)
    scores = {None: rng.uniform(0, 0.8, 30), "print": rng.uniform(0.3, 1, 20), "mask": [0.9] * 9}
    document = report(None, {"a": table(scores)}, "fixed=0.5")
    for level in ("video", "frame"):
        found = of(document, "a", level)
        for kind in ("print", "mask"):
            both = [*scores[None], *scores[kind]]
            labels = [0] * 30 + [1] * len(scores[kind])
            area = found.measure(f"auc:{kind}")
            assert area.value == exactly(roc_auc_score(labels, both))
            assert (area.n_bona_fide, area.n_attack) == (30, len(scores[kind]))
            eer = found.measure(f"eer_interpolated:{kind}")
            assert eer.value == exactly(float(roc(labels, both).eer_interpolated()))
    low, high = of(document, "a").measure("auc:print").bootstrap95
    assert low < of(document, "a").measure("auc:print").value < high


def test_areas_equal_scikit_learns_for_scores_next_to_0_and_1():
    rng = np.random.default_rng(3)
    live, swap = 10.0 ** -rng.uniform(0.1, 15, 60), 1 - 10.0 ** -rng.uniform(0.1, 15, 60)
    live[:20], swap[:20] = 1 - live[:20], 1 - swap[:20]
    document = report(None, {"a": table({None: live, "swap": swap})}, "fixed=0.5")
    expected = roc_auc_score([0] * 60 + [1] * 60, [*live, *swap])
    for level in ("video", "frame"):
        assert of(document, "a", level).measure("auc").value == exactly(expected)


def test_cllr_takes_out_the_prior_that_scores_were_meant_for():
    found = of(report(None, {"a": table(A)}, "fixed=0.4", prior=7 / 12), "a")
    assert values(found)["cllr"] == exactly(0.6384038795248643)
    assert values(found)["calibration_loss"] == exactly(0.6384038795248643 - 0.40535039968275355)


def test_a_detection_rate_at_fewer_false_alarms_than_can_be_seen_has_a_reason_instead():
    document = report(None, {"a": drawn(150, 1, "a")}, "fixed=0.5")
    found = of(document, "a")
    assert found.measure("tpr_at_fpr:0.01").value is not None
    refused = found.measure("tpr_at_fpr:0.001")
    assert refused.value is None
    assert refused.reason == "needs 1000 bona fide samples or more, found 150"
    (caution,) = [c for c in document.cautions if "TPR at a low FPR" in c]  # not one a level
    assert "too few have a (150)" in caution


def test_oracles_are_marked_and_never_the_operating_point():
    found = of(report(table(B, "b"), {"a": table(A)}), "a")
    oracles = {f.name for f in found.measures if f.threshold and f.threshold.oracle}
    assert oracles == {"hter:test_eer", "acer:test_eer", "acer:test_best_acer"}
    assert {f.threshold.rule for f in found.measures if f.name in oracles} == {
        "test_eer",
        "test_best_acer",
    }
    assert found.measure("hter:test_eer").threshold.value == exactly(0.40)
    assert found.measure("acer:test_best_acer").threshold.value == exactly(0.30)


def test_no_oracle_can_be_asked_for_as_the_operating_point():
    with pytest.raises(TrainError, match="expected dev_eer"):
        parse_threshold("test_eer")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("dev_eer", DevEer(kind="dev_eer")),
        ("dev_bpcer=0.25", DevBpcer(kind="dev_bpcer", at=0.25)),
        ("fixed=0.7", FixedThreshold(kind="fixed", value=0.7)),
    ],
)
def test_threshold_rules_are_read(text, rule):
    assert parse_threshold(text) == rule


def test_a_threshold_at_few_dev_false_alarms_is_the_lowest_such():
    found = of(report(table(B, "b"), {"a": table(A)}, "dev_bpcer=0.25"), "dev")
    assert found.threshold.value == exactly(0.25)
    assert values(found)["bpcer"] == exactly(0.25)


def test_a_rule_of_dev_needs_dev_scores_of_the_classes():
    with pytest.raises(TrainError, match="needs both classes in the dev set, found no dev scores"):
        report(None, {"a": table(A)})
    with pytest.raises(TrainError, match="found 2 and 0 attacks"):
        report(table({None: [0.1, 0.2]}, "b"), {"a": table(A)})


def test_bootstrap_intervals_hold_the_value_and_repeat_with_the_seed():
    tests = {"a": drawn(60, 1, "a")}
    first, second = (of(report(None, tests, "fixed=0.5"), "a") for _ in range(2))
    assert first == second
    for name in ("auc", "bpcer", "acer", "eer_interpolated", "log_loss", "cllr"):
        low, high = first.measure(name).bootstrap95
        assert low <= first.measure(name).value <= high
        assert high - low < 0.5
    other = of(report(None, tests, "fixed=0.5", seed=7), "a")
    assert other.measure("auc").bootstrap95 != first.measure("auc").bootstrap95


def test_intervals_are_wide_where_all_frames_are_of_few_videos():
    rng = np.random.default_rng(5)
    rows = [
        FrameScore(
            sample_id=f"{v}-{i}",
            dataset="few",
            video_id=f"v{v}",
            label=v % 2,
            attack_type="swap" if v % 2 else None,
            frame=i,
            score=float(np.clip(0.2 + 0.4 * (v % 2) + offset + rng.normal(0, 0.02), 0, 1)),
        )
        for v, offset in enumerate(rng.normal(0, 0.25, 12))
        for i in range(30)
    ]
    many = [r.model_copy(update={"video_id": f"{r.video_id}-{r.frame}"}) for r in rows]
    few_videos, many_videos = (
        of(report(None, {"a": t}, "fixed=0.5"), "a", "frame").measure("auc") for t in (rows, many)
    )
    assert few_videos.value == many_videos.value
    width = np.ptp(few_videos.bootstrap95)
    assert width > 3 * np.ptp(many_videos.bootstrap95)


def test_single_rates_of_videos_have_wilsons_interval_and_frames_have_none():
    document = report(None, {"a": table(A)}, "fixed=0.4")
    bpcer = of(document, "a").measure("bpcer")
    assert bpcer.wilson95 == (exactly(0.0362241086), exactly(0.6244653702))
    assert of(document, "a").measure("acer").wilson95 is None
    assert of(document, "a", "frame").measure("bpcer").wilson95 is None


def test_videos_without_a_face_are_published_and_judged_by_the_policy():
    rows = [*table(A), *table({"mask": [None]}, "m"), *table({None: [None]}, "n")]
    left_out, wrong = (
        of(report(None, {"a": rows}, "fixed=0.4", no_face=policy), "a")
        for policy in ("exclude", "error")
    )
    assert left_out.n_no_face == wrong.n_no_face == {"bona_fide": 1, "attack": 1}
    assert left_out.measure("bpcer").n_bona_fide == 5
    assert wrong.measure("bpcer").value == exactly(2 / 6)
    assert wrong.measure("apcer:mask").value == 1.0


def test_mean_and_spread_over_test_sets_are_of_samples():
    tests = {"first": drawn(100, 1, "x"), "second": drawn(100, 2, "y", shift=0.5)}
    document = report(drawn(100, 3, "z"), tests)
    areas = [of(document, name).measure("auc").value for name in tests]
    (spread,) = [
        s for s in document.over_test_sets if (s.measure, s.level) == ("auc", "video")
    ]  # dev is not one of them
    assert (spread.mean, spread.n_sets) == (exactly(np.mean(areas)), 2)
    assert spread.standard_deviation == exactly(np.std(areas, ddof=1))


def test_the_temperature_of_calibrated_dev_scores_is_one():
    rng = np.random.default_rng(4)
    p = rng.uniform(0, 1, 4000)
    attack = rng.uniform(0, 1, 4000) < p
    document = report(table({None: p[~attack], "swap": p[attack]}, "d"), {"a": table(A)})
    assert of(document, "dev").measure("temperature").value == pytest.approx(1, abs=0.1)
    assert of(document, "a").measure("temperature") is None


# Cautions


def cautions_of(dev, tests, *args, **options):
    return "\n".join(report(dev, tests, *args, **options).cautions)


def test_a_set_of_one_class_gets_a_caution_and_reasons():
    document = report(None, {"a": table({None: [0.1, 0.6]})}, "fixed=0.5")
    assert "a, videos: there are no attacks, so only BPCER says anything." in document.cautions
    found = of(document, "a")
    assert found.measure("bpcer").value == 0.5
    assert found.measure("auc").value is None
    assert found.measure("auc").reason == "of 2 bona fide samples and 0 attacks"
    attacks = cautions_of(None, {"a": table({"swap": [0.9]})}, "fixed=0.5")
    assert "no bona fide samples, so only APCER" in attacks


def test_reversed_labels_get_a_caution():
    reversed_ = drawn(50, 1, "a", shift=-2.0)
    found = cautions_of(None, {"a": reversed_}, "fixed=0.5")
    assert re.search(r"a, videos: AUC is 0\.0\d+, far below 0\.5.*reversed", found)
    assert "reversed" not in cautions_of(None, {"a": drawn(50, 1, "a")}, "fixed=0.5")


def test_scores_without_any_difference_get_a_caution():
    same = table({None: [0.5] * 30, "swap": [0.5] * 30})
    assert "all scores are equal" in cautions_of(None, {"a": same}, "fixed=0.5")


def test_a_threshold_chosen_on_test_scores_gets_a_caution():
    rows = drawn(40, 1, "a")
    found = cautions_of(rows, {"a": rows[5:]})
    assert "a: 75 of its videos are in dev too. The threshold was chosen on test scores" in found


def test_people_in_both_dev_and_test_get_a_caution():
    dev = table(B, "a", subject="anna")
    test = [r.model_copy(update={"video_id": f"t{r.video_id}"}) for r in dev]
    assert "a: 1 of its people are in dev too" in cautions_of(dev, {"a": test})
    assert "are in dev too" not in cautions_of(table(B, "b"), {"a": table(A)})


def test_faces_lost_in_one_class_more_than_in_the_other_get_a_caution():
    blind = table({None: [0.1] * 40, "swap": [0.9] * 36 + [None] * 4})
    found = cautions_of(None, {"a": blind}, "fixed=0.5")
    assert "no face was found in 0.0% of the bona fide samples and in 10.0% of the attacks" in found


def test_few_people_get_a_caution():
    assert "a class has only 5 people or source videos" in cautions_of(
        None, {"a": table(A)}, "fixed=0.5"
    )


def test_scores_that_are_no_numbers_are_refused_by_name():
    with pytest.raises(TrainError, match=r"^a: a/print0 frame 0 \(a/print0\): score nan"):
        report(None, {"a": table({"print": [math.nan]})}, "fixed=0.5")


def test_a_set_in_which_no_face_was_found_is_refused():
    with pytest.raises(TrainError, match="a: no face was found in any of 2 frames"):
        report(None, {"a": table({None: [None], "swap": [None]})}, "fixed=0.5")


@pytest.mark.parametrize("name", ["../a", "", "dev", "a b", ".hidden", "a/b"])
def test_a_name_that_can_not_be_a_files_is_refused(name):
    with pytest.raises(TrainError, match="can't name a test set"):
        report(None, {name: table(A)}, "fixed=0.5")


def test_a_report_without_test_sets_is_refused():
    with pytest.raises(TrainError, match="at least one test set"):
        report(table(B), {})


# Published figures


def figure(**other):
    given = {"test": "a", "level": "video", "metric": "auc", "value": 0.9, "source": "Table 2"}
    return PublishedMeasure(**{**given, **other})


@pytest.mark.parametrize(
    ("other", "ours", "within"),
    [
        ({"tolerance": 0.02}, 0.8857142857, True),
        ({"tolerance": 0.01}, 0.8857142857, False),
        ({}, 0.8857142857, None),
        ({"value": 88.6, "unit": "percent", "tolerance": 0.1}, 88.57142857, True),
        ({"value": None, "tolerance": 1}, 0.8857142857, None),
        ({"metric": "tpr_at_fpr:0.01"}, None, None),
    ],
)
def test_published_figures_stand_beside_ours(other, ours, within):
    document = report(None, {"a": table(A)}, "fixed=0.4", published=[figure(**other)])
    (row,) = document.published
    assert row.ours == (None if ours is None else pytest.approx(ours, abs=1e-7))
    assert row.within_tolerance is within
    assert not any("counterpart" in warning for warning in document.cautions)


def test_a_published_figure_without_counterpart_gets_a_caution():
    document = report(None, {"a": table(A)}, "fixed=0.4", published=[figure(test="b")])
    assert any("no counterpart" in warning for warning in document.cautions)


def test_published_figures_are_read_from_a_recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "method: lgsc\nexpected:\n"
        "  - {test: a, level: frame, metric: auc, value: null, source: not found}\n"
    )
    assert load_published(path) == (figure(level="frame", value=None, source="not found"),)
    path.write_text("method: lgsc\nexpected: null\n")
    assert load_published(path) == ()
    path.write_text("expected: [{metric: auc}]\n")
    with pytest.raises(TrainError, match=r"recipe\.yaml: the published figures: expected\.0\.test"):
        load_published(path)


# Files


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    tests = {"far": drawn(60, 2, "far", shift=0.7), "live_only": table({None: [0.1, 0.2]}, "l")}
    built = build_report(
        drawn(60, 1, "near"),
        tests,
        config(no_face="exclude"),
        published=[figure(test="far", source="<script>alert(1)</script>")],
        about={"run": "runs/<b>x</b>"},
    )
    return built, write_report(built, folder)


def test_the_json_holds_every_figure_and_no_number_that_json_has_not(written):
    built, page = written

    content = json.loads((page.parent / "report.json").read_text(), parse_constant=refuse)
    assert content["format"] == "facewarden/report/v1"
    assert len(content["sets"]) == 6
    auc = next(f for f in content["sets"][1]["figures"] if f["name"] == "auc")
    assert auc["value"] == of(built.document, "far").measure("auc").value
    assert content["config"]["threshold"] == {"kind": "dev_eer"}


def test_the_page_is_self_contained_and_escapes_what_it_shows(written):
    _, page = written
    text = page.read_text()
    assert not re.search(r"(src|href)=\"(?!data:image/(png|jpeg);base64,)", text)
    assert "@import" not in text
    assert "url(" not in text
    assert "<script" not in text
    assert "runs/&lt;b&gt;x&lt;/b&gt;" in text
    assert "prefers-color-scheme: dark" in text


def test_the_page_shows_measures_oracles_and_cautions(written):
    built, page = written
    text = page.read_text()
    far = of(built.document, "far")
    assert f"{far.measure('auc').value:.4f}" in text
    assert f"{100 * far.measure('acer').value:.2f} %" in text
    assert f"{100 * far.measure('hter:test_eer').value:.2f} % *" in text
    assert "APCER, worst type" in text
    assert "there are no attacks, so only BPCER says anything." in text
    assert "needs 100 bona fide samples or more, found 60" in text


def test_the_pictures_of_the_page_lie_beside_it(written):
    _, page = written
    inline = re.findall(r"base64,([^\"]+)", page.read_text())
    files = {path.stem: path.read_bytes() for path in page.parent.glob("*.png")}
    # Every video here is one frame, so frames would only repeat the videos.
    assert set(files) == {
        *(f"video_{plot}" for plot in ("det", "roc", "reliability", "scores")),
        *("video_types_dev", "video_types_far"),
    }
    assert {base64.b64decode(image) for image in inline} == set(files.values())
    assert all(content.startswith(PNG) for content in files.values())
    assert {p.suffix for p in page.parent.iterdir()} == {".png", ".json", ".html"}


def test_the_legend_of_a_histogram_lies_above_the_bars():
    (axes,), figure = _grid(1)
    _histogram(axes, np.full(9, 0.5), np.full(9, 0.55), 0.5, "print")
    figure.canvas.draw()
    assert axes.get_legend().get_window_extent().y0 >= axes.bbox.y1
    assert axes.title.get_window_extent().y0 >= axes.get_legend().get_window_extent().y1 - 1


def test_frames_are_shown_where_they_are_not_the_videos(tmp_path):
    rows = [
        r.model_copy(update={"video_id": f"v{r.video_id[:-1]}", "frame": i})
        for i, r in enumerate(table(A))
    ]
    page = write_report(build_report(None, {"a": rows}, config("fixed=0.4")), tmp_path)
    assert "<h2>Frames</h2>" in page.read_text()
    assert (tmp_path / "frame_types_a.png").exists()


def test_a_rate_of_all_samples_shows_its_counts(tmp_path):
    built = build_report(None, {"a": table(A)}, config("fixed=0"))
    bpcer = of(built.document, "a").measure("bpcer")
    assert (bpcer.value, bpcer.errors, bpcer.n_bona_fide) == (1.0, 5, 5)
    assert "<td>100.00 %" in (text := write_report(built, tmp_path).read_text())
    assert "5 of 5" in text


def test_the_command_makes_a_report_of_files(tmp_path):
    write_scores(tmp_path / "dev.jsonl", table(B, "b"))
    write_scores(tmp_path / "a.jsonl", table(A))
    run = ["report", "--dev", tmp_path / "dev.jsonl", "--test", f"a={tmp_path / 'a.jsonl'}"]
    result = CliRunner().invoke(main, [*map(str, run), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "report.html").is_file()
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert content["sets"][1]["threshold"]["value"] == exactly(0.30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--test", "a"], "expected NAME=FILE"),
        (["--test", "=x"], "expected NAME=FILE"),
        (["--test", "a="], "expected NAME=FILE"),
        (["--test", "a/b=x"], "can't name a test set"),
        (["--test", "dev=x"], "can't name a test set"),
        (["--test", "a=x", "--test", "a=y"], "each name once"),
        (["--test", "a=x", "--aggregate", "best"], "unknown aggregate 'best'"),
        (["--test", "a=x", "--threshold", "best"], "expected dev_eer"),
        (["--test", "a=x", "--threshold", "fixed=nan"], "expected dev_eer"),
        (["--test", "a=x", "--threshold", "dev_eer=1"], "expected dev_eer"),
    ],
)
def test_wrong_options_of_the_command_end_it_with_code_2(options, message, tmp_path):
    result = CliRunner().invoke(main, ["report", "--out", str(tmp_path), *options])
    assert result.exit_code == 2
    assert message in result.output.replace("\n", " ")


def test_a_table_that_is_missing_is_named(tmp_path):
    options = ["--test", f"a={tmp_path / 'absent.jsonl'}", "--threshold", "fixed=0.5"]
    result = CliRunner().invoke(main, ["report", "--out", str(tmp_path), *options])
    assert isinstance(result.exception, TrainError)
    assert "absent.jsonl: can't read" in str(result.exception)


@pytest.mark.parametrize("name", ["1.jsonl", "[a].jsonl", "a=b #2.jsonl"])
def test_a_file_of_scores_may_have_any_name(name, tmp_path):
    write_scores(tmp_path / name, table(A))
    options = ["--test", f"a={tmp_path / name}", "--threshold", "fixed=0.5"]
    result = CliRunner().invoke(main, ["report", "--out", str(tmp_path / "out"), *options])
    assert result.exit_code == 0, result.exception
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert content["provenance"]["data"]["a"]["sha256"] == digest
    assert content["provenance"]["run"] is None


# The schema


def test_the_published_schema_is_what_the_models_say():
    stored = (DOCS / "report.schema.json").read_text(encoding="utf-8")
    assert stored == json.dumps(json_schema(), indent=1) + "\n"


@pytest.mark.parametrize(
    "tests",
    [
        {"a": table(A), "b": table(B, "b")},
        {"a": table({None: [0.1]})},
        {"a": table({"swap": [0.9]})},
        {"a": table({None: [0.5], "swap": [0.5]})},
        {"a": [*table(A), *table({"mask": [None]}, "m")]},
    ],
)
@pytest.mark.parametrize("rule", ["fixed=0.5", "dev_bpcer=0.01", "fixed=1"])
def test_a_report_is_valid_by_its_schema_and_is_read_again_whatever_the_sets(tests, rule):
    document = report(table(B, "d"), tests, rule)
    text = document.model_dump_json()
    jsonschema.Draft202012Validator(json_schema()).validate(json.loads(text, parse_constant=refuse))
    assert ReportDocument.model_validate_json(text) == document
