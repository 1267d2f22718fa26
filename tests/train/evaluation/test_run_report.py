"""A run is evaluated on its own faces or on any others, never unawares on what it learned from."""

import csv
import hashlib
import json
import re
import socket
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from train.__main__ import main
from train.config import Recipe
from train.data.overlap import LEARNED
from train.data.selection import open_data
from train.data.shard_writer import ShardWriter
from train.data.shards import PreparedConfig, encode_crop
from train.errors import TrainError
from train.evaluation.compare import compare_runs
from train.evaluation.provenance import origin
from train.evaluation.report import json_schema, parse_threshold
from train.evaluation.run_report import Evaluation, report_on_run
from train.evaluation.scores import read_scores
from train.fit.checkpoint import trained_model
from train.fit.loop import fit
from train.fit.ranks import Ranks
from train.release.calibrate import calibrate_run

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = Path(__file__).with_name("_ranks.py")
ALONE = Ranks(0, 1, torch.device("cpu"))
MADE = origin(datetime(2026, 11, 28, tzinfo=UTC), ["evaluate"], ALONE.device)


def recipe_of(folder, **changes):
    return Recipe.model_validate(
        {
            "method": "lgsc",
            "options": {
                "size_px": 32,
                "margin": 0.5,
                "decoder_widths": [4, 4, 4, 4, 4],
                "decoder_norm": "batch",
                "score": "classifier",
            },
            "data": {"prepared": [folder], "bona_fide_per_step": 2, "attacks_per_step": 2},
            "loader": {"kind": "torch", "workers": 0},
            "optimiser": {"kind": "adamw", "learning_rate": 0.001},
            "steps": 2,
            "log_every": 1,
            "seed": 7,
            **changes,
        }
    )


def trained(run, folder, **changes):
    recipe = recipe_of(folder, **changes)
    data = open_data(recipe.data.prepared, recipe.data.protocol)
    fit(recipe, run, data, ALONE)
    calibrate_run(run, data, ALONE)
    return run


def prepared(folder, records):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in records]
    faces = [(record, encode_crop(picture)) for record, picture in zip(records, noise, strict=True)]
    with ShardWriter(folder, PreparedConfig(size_px=64, margin=2.0, code_version="test")) as shards:
        shards.add(sorted(faces, key=lambda face: face[0].video_id))
    (folder / "problems.jsonl").touch()
    return folder


@pytest.fixture(scope="module")
def videos(face_record):
    """Make both classes of a split: `<name>0`, `<name>1`; digests and people of their own."""

    def made(split, name=None, **known):
        return [
            face_record(
                f"{name or split}/{kind}{i}",
                frame,
                split=split,
                attack_type=kind,
                **{
                    "subject": f"two_folders:{name or split}-{i}",
                    "source_sha256": hashlib.sha256(
                        f"{name or split}{kind}{i}".encode()
                    ).hexdigest(),
                    **known,
                },
            )
            for kind in (None, "print")
            for i in range(2)
            for frame in range(2)
        ]

    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory, videos):
    """A run of two steps on noise, with train, dev and test."""
    folder = tmp_path_factory.mktemp("noise")
    faces = [face for split in ("train", "dev", "test") for face in videos(split)]
    return trained(folder / "run", prepared(folder / "faces", faces))


@pytest.fixture(scope="module")
def smoke_run(tmp_path_factory, faces):
    """A run on drawn faces that learned something; calibrated."""
    return trained(
        tmp_path_factory.mktemp("smoke") / "run",
        faces,
        steps=8,
        data={"prepared": [faces], "bona_fide_per_step": 4, "attacks_per_step": 4},
        validate_every=4,
    )


def report_of(run, *prepared, **wanted):
    """Return what `report.json` would hold, without the pictures."""
    options = {
        "protocol": None,
        "every_split": False,
        "allow_overlap": False,
        "threshold": None,
        "aggregate": "logit_mean",
        "worst": 3,
        **wanted,
    }
    evaluation = Evaluation(prepared=prepared, **options)
    of_run = report_on_run(run, trained_model(run), ALONE, evaluation, MADE)
    return json.loads(of_run.report.document.model_dump_json())


def refusal(run, *prepared, **wanted):
    with pytest.raises(TrainError) as refused:
        report_of(run, *prepared, **wanted)
    return str(refused.value)


def command(run, *options):
    words = ["evaluate", run, *options]
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def written(smoke_run):
    """What the command writes of the run that learned something."""
    out = smoke_run / "report"
    result = command(smoke_run, "--worst", 3)
    assert result.exit_code == 0, result.exception or result.output
    assert str(out / "report.html") in result.output
    return out


@pytest.fixture
def copy_of(tmp_path):
    """Copy a run's weights and record, with changes to the weights' file."""

    def copied(run, name, **changes):
        folder = tmp_path / name
        folder.mkdir()
        (folder / LEARNED).write_bytes((run / LEARNED).read_bytes())
        content = torch.load(run / "best.pt", weights_only=True)
        torch.save({**content, **changes}, folder / "best.pt")
        return folder

    return copied


def measure(report, of_set, name, level="video"):
    (found,) = [s for s in report["sets"] if (s["name"], s["level"]) == (of_set, level)]
    return next(m for m in found["figures"] if m["name"] == name)


# What was learned from


def test_a_runs_own_test_faces_share_nothing_with_what_it_learned_from(run):
    report = report_of(run)
    assert not any("verlap" in caution for caution in report["warnings"])
    assert report["about"]["dev"] == "the run's own"


def test_training_videos_given_as_test_are_refused_by_name_and_count(run, tmp_path, videos):
    folder = prepared(tmp_path / "leak", [*videos("test", "train"), *videos("test", "new")])
    message = refusal(run, folder)
    assert "in the run's train and in test: 4 videos (two_folders:train/None0" in message
    assert "--allow-overlap" in message


def test_a_copy_of_a_training_video_under_another_name_is_refused(run, tmp_path, videos):
    of_train = hashlib.sha256(b"trainNone0").hexdigest()
    folder = prepared(tmp_path / "copy", videos("test", "new", source_sha256=of_train))
    assert "1 byte-identical files (two_folders:train/None0 = two_folders:new/" in refusal(
        run, folder
    )


def test_people_of_training_and_videos_of_dev_are_refused(run, tmp_path, videos):
    people = prepared(tmp_path / "a", videos("test", "new", subject="two_folders:train-0"))
    assert "subjects (two_folders:train-0" in refusal(run, people)
    of_dev = prepared(tmp_path / "b", videos("test", "dev"))
    assert "in the run's dev and in test: 4 videos" in refusal(run, of_dev)


def test_training_videos_given_as_dev_are_refused(run, tmp_path, videos):
    folder = prepared(tmp_path / "leak", [*videos("dev", "train"), *videos("test", "new")])
    assert "in the run's train and in dev: 4 videos" in refusal(run, folder)


def test_an_allowed_overlap_stands_first_in_the_report(run, tmp_path, videos):
    folder = prepared(tmp_path / "leak", videos("test", "train"))
    result = command(run, "--out", tmp_path / "out", "--prepared", folder, "--allow-overlap")
    assert result.exit_code == 0, result.exception
    said = "Overlap, allowed: in the run's train and in test: 4 videos (two_folders:train/None0"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["warnings"][0].startswith(said)
    assert "<li>Overlap, allowed: " in (tmp_path / "out" / "report.html").read_text()


def test_a_run_without_a_record_says_that_nothing_could_be_checked(run, tmp_path, videos, copy_of):
    old = copy_of(run, "old")
    (old / LEARNED).unlink()
    folder = prepared(tmp_path / "leak", videos("test", "train"))
    assert "could not be checked" in report_of(old, folder)["warnings"][0]


# Any faces to test on


def test_a_folder_of_test_faces_alone_is_judged_at_the_threshold_of_the_runs_own_dev(
    run, tmp_path, videos
):
    own = report_of(run)
    report = report_of(run, prepared(tmp_path / "foreign", videos("test", "new")))
    assert [s["name"] for s in report["sets"]] == ["dev", "test", "dev", "test"]
    thresholds = [[s["threshold"] for s in r["sets"]] for r in (own, report)]
    assert thresholds[0] == thresholds[1]
    assert report["provenance"]["data"]["dev"] == own["provenance"]["data"]["dev"]
    assert any("run's own dev faces" in caution for caution in report["warnings"])


def test_dev_faces_of_both_classes_beside_the_tests_give_the_threshold(run, tmp_path, videos):
    folder = prepared(tmp_path / "f", [*videos("dev", "new_dev"), *videos("test", "new")])
    report = report_of(run, folder)
    assert report["about"]["dev"] == "beside the test faces"
    assert report["provenance"]["data"]["dev"]["source"] == str(folder)


def test_faces_without_any_split_are_all_tested(run, tmp_path, videos):
    folder = prepared(tmp_path / "foreign", videos(None, "new"))
    assert report_of(run, folder)["sets"][1]["n_attack"] == 2


def test_faces_of_other_splits_are_tested_on_request_only(run, tmp_path, videos):
    folder = prepared(tmp_path / "foreign", videos("train", "new"))
    message = refusal(run, folder)
    assert "no face is of split test" in message
    assert "--every-split" in message
    assert report_of(run, folder, every_split=True)["sets"][1]["n_bona_fide"] == 2


def test_a_test_set_of_attacks_alone_is_judged(run, tmp_path, videos):
    attacks = [record for record in videos("test", "new") if record.label == 1]
    report = report_of(run, prepared(tmp_path / "attacks", attacks))
    assert any("only APCER says anything" in caution for caution in report["warnings"])
    assert measure(report, "test", "apcer:print")["n_attack"] == 2


def test_a_protocol_needs_no_training_faces_to_test(run, tmp_path, videos):
    folder = prepared(tmp_path / "foreign", videos("test", "new"))
    report = report_of(run, folder, protocol="two_folders")
    assert report["config"]["protocol"] == "two_folders"
    assert report["about"]["dev"] == "the run's own"


def test_a_run_whose_own_dev_faces_are_gone_needs_a_threshold(run, tmp_path, videos, copy_of):
    recipe = json.loads(torch.load(run / "best.pt", weights_only=True)["recipe"])
    recipe["data"]["prepared"] = [str(tmp_path / "gone")]
    moved = copy_of(run, "moved", recipe=json.dumps(recipe))
    folder = prepared(tmp_path / "foreign", videos("test", "new"))
    message = refusal(moved, folder)
    assert "the run's own dev faces, which can't be opened" in message
    assert "--threshold fixed=0.5" in message
    report = report_of(moved, folder, threshold=parse_threshold("fixed=0.5"))
    assert report["sets"][0]["name"] == "test"
    assert report["sets"][0]["threshold"]["value"] == 0.5


@pytest.mark.parametrize(
    "options",
    [
        ("--threshold", "best"),
        ("--threshold", "dev_eer=1"),
        ("--aggregate", "best"),
        ("--worst", "-1"),
        ("--every-split",),
    ],
)
def test_a_wrong_option_ends_the_command_with_code_2(options, run):
    result = command(run, *options)
    assert result.exit_code == 2
    assert options[0] in result.output


# One number


def test_the_report_shows_the_dev_auc_of_validation_csv(smoke_run, written):
    report = json.loads((written / "report.json").read_text())
    rows = list(csv.DictReader((smoke_run / "validation.csv").read_text().splitlines()))
    best = max(float(row["dev_auc"]) for row in rows)
    assert measure(report, "dev", "dev_auc")["value"] == pytest.approx(best, abs=1e-12)
    assert report["about"]["calibration"] == "platt"  # linear, so that ranks are those before it
    assert measure(report, "dev", "auc")["value"] == pytest.approx(best, abs=1e-12)


def test_a_network_whose_probabilities_saturate_is_ranked_by_its_log_odds(run, copy_of):
    weights = torch.load(run / "best.pt", weights_only=True)["model"]
    plain = copy_of(run, "plain", calibrated=False)
    scale = {"calibration.scale": torch.tensor(1e-4), "calibration.offset": torch.tensor(0.0)}
    sure = copy_of(run, "sure", calibrated=False, model={**weights, **scale})
    expected, saturated = report_of(plain), report_of(sure)
    for of_set in ("dev", "test"):
        auc = measure(expected, of_set, "auc")["value"]
        assert measure(saturated, of_set, "auc")["value"] == auc
    assert measure(saturated, "dev", "dev_auc") == measure(expected, "dev", "dev_auc")


# What a researcher looks for


def test_the_report_tells_where_it_comes_from(smoke_run, written):
    report = json.loads((written / "report.json").read_text())
    made, of_run = report["provenance"]["made"], report["provenance"]["run"]
    assert datetime.fromisoformat(made["date"]).tzinfo is not None
    assert made["command"].startswith("python -m train")
    assert made["code"].startswith("facewarden ")
    assert torch.__version__ in made["machine"]
    assert (of_run["seed"], of_run["steps"], of_run["method"]) == (7, 8, "lgsc")
    assert of_run["step"] in (4, 8)
    assert of_run["weights_sha256"] == _sha256(smoke_run / "best.pt")
    assert of_run["recipe"]["optimiser"]["learning_rate"] == 0.001
    assert (of_run["size_px"], of_run["margin"]) == (32, 0.5)
    assert of_run["parameters"] > 1000
    assert (of_run["trained"]["n_train"], of_run["trained"]["n_dev"]) == (192, 64)
    data = report["provenance"]["data"]
    counts = {name: (d["videos"], d["frames"]) for name, d in data.items()}
    assert counts == {"dev": (64, 64), "test": (64, 64)}
    assert data["dev"]["sha256"] != data["test"]["sha256"]
    assert data["test"]["crop"].startswith("128 px, margin 2")
    page = (written / "report.html").read_text()
    for value in (of_run["weights_sha256"], data["test"]["sha256"], made["machine"]):
        assert value in page


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_digest_of_the_data_changes_with_a_label_and_not_with_the_order(run, tmp_path, videos):
    def digest(name, records):
        report = report_of(run, prepared(tmp_path / name, records))
        return report["provenance"]["data"]["test"]["sha256"]

    faces = videos("test", "new")
    attack = {"label": 1, "attack_type": "print"}
    other = [face.model_copy(update=attack) for face in faces[:2]] + faces[2:]
    assert digest("a", faces) == digest("b", faces[::-1]) != digest("c", other)


def test_the_worst_cases_are_shown_with_their_faces(written):
    report = json.loads((written / "report.json").read_text())
    rows = read_scores(written / "scores" / "test.jsonl")
    worst = report["worst"]["test"]
    bona_fide = sorted((r.score for r in rows if r.label == 0), reverse=True)
    attacks = sorted(r.score for r in rows if r.label == 1)
    assert [case["score"] for case in worst["bona_fide"]] == bona_fide[:3]
    assert [case["score"] for case in worst["attacks"]] == attacks[:3]
    threshold = report["sets"][1]["threshold"]["value"]
    assert [c["wrong"] for c in worst["bona_fide"]] == [s >= threshold for s in bona_fide[:3]]
    assert [c["wrong"] for c in worst["attacks"]] == [s < threshold for s in attacks[:3]]
    page = (written / "report.html").read_text()
    assert len(re.findall(r'<img src="data:image/jpeg;base64,', page)) == 6
    assert worst["attacks"][0]["video_id"] in page


def test_the_page_shows_the_runs_curves(written):
    assert (written / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "losses, dev AUC and learning rate" in (written / "report.html").read_text()


def test_the_report_is_valid_by_its_schema(written):
    report = json.loads((written / "report.json").read_text())
    jsonschema.Draft202012Validator(json_schema()).validate(report)


def test_runs_are_compared_by_what_their_reports_say(smoke_run, written):
    report = json.loads((written / "report.json").read_text())
    (compared,) = compare_runs([smoke_run]).runs
    for name in ("auc", "eer_interpolated", "apcer_max", "bpcer"):
        assert compared.measures[f"test {name}"] == measure(report, "test", name)["value"]
    assert compared.measures["dev_auc"] == measure(report, "dev", "dev_auc")["value"]


def test_an_uncalibrated_run_says_so(run, copy_of):
    report = report_of(copy_of(run, "raw", calibrated=False))
    assert any("not calibrated" in caution for caution in report["warnings"])
    assert report["about"]["calibration"] == "none"


# Ranks


def test_a_rank_without_a_face_takes_part(run, tmp_path, videos, warm):
    folder = prepared(tmp_path / "one", [face for face in videos("test", "new") if face.label][:1])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        warm.start(SCRIPT, run, folder, tmp_path, env={**place, "RANK": str(rank)})
        for rank in range(2)
    ]
    for process in ranks:
        with process:
            _, said = process.communicate()
        assert process.returncode == 0, said
    alone = report_of(run, folder, threshold=parse_threshold("fixed=0.5"))
    (case,) = alone["worst"]["test"]["attacks"]
    for rank in range(2):
        (row,) = read_scores(tmp_path / f"{rank}.jsonl")
        assert row.sample_id == case["sample_id"]
        assert row.score == pytest.approx(case["score"], abs=1e-5)
