"""Runs beside each other: what they are, how they did, and how far seeds spread."""

import csv
import json

import pytest

from train.errors import TrainError
from train.evaluation.compare import as_csv, as_rows, as_text, compare_runs, summarise_seeds
from train.evaluation.run_record import RunRecord, write_record


@pytest.fixture
def run(tmp_path):
    """Write the folder of a run."""

    def write(name, seed=0, dev=((10, 0.7), (20, 0.9)), test=None, **changes):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        about = {
            "method": "lgsc",
            "recipe_digest": "aaa",
            "seed": seed,
            "steps": 30,
            "protocol": None,
            "faces_digest": "fff",
            "n_train": 2,
            "n_dev": 2,
            "processes": 1,
            "device": "a processor",
            "facewarden": "0",
            "torch": "0",
            "python": "0",
        }
        write_record(folder, RunRecord.model_validate(about | changes))
        lines = ["step,dev_auc,faces", *(f"{step},{auc},64" for step, auc in dev)]
        (folder / "validation.csv").write_text("\n".join(lines) + "\n")
        if test is not None:
            (folder / "report").mkdir()
            figures = [{"name": name, "value": value} for name, value in test.items()]
            sets = [
                {"name": name, "level": level, "figures": figures}
                for name in ("dev", "test")
                for level in ("video", "frame")
            ]
            (folder / "report" / "report.json").write_text(json.dumps({"sets": sets}))
        return folder

    return write


def table(*folders):
    head, *rows = as_rows(compare_runs(folders))
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_a_run_shows_its_best_validation_and_of_equals_the_latest(run):
    (row,) = table(run("a", dev=[(10, 0.9), (20, 0.9), (30, 0.8)]))
    assert (row["dev_auc"], row["best_step"], row["steps"]) == ("0.9000", "20", "30")


def test_a_report_adds_the_measures_of_test_videos(run):
    (row,) = table(run("a", test={"auc": 0.875, "bpcer": 0.25, "brier": 0.1, "apcer_max": None}))
    assert {name: value for name, value in row.items() if name.startswith("test ")} == {
        "test auc": "0.8750",
        "test bpcer": "0.2500",
    }
    assert not [name for name in row if name.startswith("dev ")]


def test_runs_that_differ_in_the_seed_have_mean_and_deviation(run):
    folders = [run(f"s{i}", seed=i, dev=[(10, auc)]) for i, auc in enumerate((0.8, 0.9, 1.0))]
    *_, mean, deviation = table(*folders, run("other", recipe_digest="bbb"))
    assert (mean["run"], mean["dev_auc"]) == ("mean of 3", "0.9000")
    assert (deviation["run"], deviation["dev_auc"]) == ("deviation of 3", "0.1000")


def test_runs_of_other_faces_or_another_protocol_are_not_averaged(run):
    rows = table(run("a"), run("b", faces_digest="ggg"), run("c", protocol="ocim_C"))
    assert len(rows) == 3


def test_a_folder_of_seeds_stands_for_them_in_the_order_of_numbers(run, tmp_path):
    for seed in (10, 9):
        run(f"x/seed-{seed}", seed=seed)
    rows = table(tmp_path / "x")
    assert [row["seed"] for row in rows] == ["9", "10", "", ""]


def test_the_summary_of_seeds_is_kept_in_their_folder(run, tmp_path):
    for seed, auc in ((0, 0.5), (1, 0.7)):
        run(f"x/seed-{seed}", seed=seed, dev=[(10, auc)])
    summarise_seeds(tmp_path / "x")
    (spread,) = json.loads((tmp_path / "x" / "seeds.json").read_text())["spreads"]
    assert spread["mean"]["dev_auc"] == pytest.approx(0.6)
    assert spread["standard_deviation"]["dev_auc"] == pytest.approx(0.1 * 2**0.5)


def test_a_run_that_was_not_validated_yet_has_an_empty_cell(run):
    first, second = table(run("a", dev=()), run("b", recipe_digest="bbb"))
    assert (first["dev_auc"], first["best_step"]) == ("", "")
    assert second["dev_auc"] == "0.9000"


def test_the_table_lines_up_and_is_csv_too(run):
    rows = as_rows(compare_runs([run("a"), run("a_longer_name", recipe_digest="bbb")]))
    lines = as_text(rows).splitlines()
    assert len({line.index("lgsc") for line in lines[1:]}) == 1
    assert list(csv.reader(as_csv(rows).splitlines())) == rows


def test_a_folder_of_no_run_is_refused_by_name(tmp_path):
    with pytest.raises(TrainError, match=rf"{tmp_path}: no folder of a training run"):
        compare_runs([tmp_path])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.json", "{}", r"run\.json: method: Field required"),
        ("validation.csv", "step,dev_auc\n1,\n", r"validation\.csv: damaged"),
        ("report/report.json", "{", r"report\.json: "),
    ],
)
def test_a_damaged_file_is_named(run, name, text, message):
    folder = run("a", test={})
    (folder / name).write_text(text)
    with pytest.raises(TrainError, match=message):
        compare_runs([folder])
