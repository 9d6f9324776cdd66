"""`point-peft evaluate`, on what training wrote."""

import csv
import json

import numpy as np
import pytest

from point_peft_hf.data import write_point_cloud
from point_peft_hf.training import finetune
from point_peft_hf.training.evaluation import judge_classes

NAMES = ("cup", "jug", "pan")


def write_classes(folder, names, count=8):
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            points = np.random.default_rng([label, index]).normal(size=(150, 3)) * (1, 1 + NAMES.index(name), 1)
            write_point_cloud(folder / name / f"{index}.ply", points)


@pytest.fixture(scope="module")
def run(tiny_backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_classes(folder / "data", NAMES)
    arguments = {"model": tiny_backbone, "output_dir": str(folder), "num_train_epochs": 2, "method": "linear"}
    record = finetune(arguments | {"data": str(folder / "data")}, report=lambda line: None)
    return folder, record


def read(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_test_split_again(point_peft, run, tmp_path, capsys):
    folder, record = run
    assert point_peft("evaluate", folder / "linear") == 0
    printed = capsys.readouterr().out
    assert f"accuracy: {100 * record['test']['accuracy']:.1f} % (95 % interval " in printed
    assert "Note" not in printed
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    assert summary["count"] == record["clouds"]["test"]
    assert summary["mean_class_accuracy"] == pytest.approx(record["test"]["mean_class_accuracy"])
    rows = read(tmp_path / "evaluation" / "predictions.csv")
    # Training wrote the same table.
    trained = read(folder / "linear" / "predictions.csv")
    assert [(row["file"], row["predicted"]) for row in rows] == [(row["file"], row["predicted"]) for row in trained]
    assert [row["true"] for row in rows] == [row["file"].split("/")[-2] for row in rows]
    confusion = read(tmp_path / "evaluation" / "confusion.csv")
    right = sum(int(row[row["true class"]]) for row in confusion)
    assert right / len(rows) == pytest.approx(summary["accuracy"]) == record["test"]["accuracy"]
    assert {row["class"] for row in read(tmp_path / "evaluation" / "classes.csv")} == set(NAMES)


def test_new_data_of_some_of_the_classes(point_peft, run, tmp_path, capsys):
    folder, _ = run
    write_classes(tmp_path / "new", ("jug", "pan"), count=4)
    (tmp_path / "new" / "jug" / "bad.ply").write_text("no cloud")
    options = ["--data", "new", "--split", "all", "--output_dir", "found"]
    with pytest.raises(SystemExit, match=r"error: .*bad\.ply"):
        point_peft("evaluate", folder / "linear", *options)
    with pytest.warns(UserWarning, match=r"bad\.ply"):
        point_peft("evaluate", folder / "linear", *options, "--skip_bad_files")
    assert "new: 8 clouds, split all" in capsys.readouterr().out
    rows = read(tmp_path / "found" / "predictions.csv")
    assert sorted(row["true"] for row in rows) == ["jug"] * 4 + ["pan"] * 4
    assert all(row["true"] == row["file"].split("/")[-2] for row in rows)
    (tmp_path / "new" / "pan").rename(tmp_path / "new" / "pot")
    with pytest.raises(SystemExit, match="error: The adapter does not know the classes pot of new. It knows cup, jug"):
        point_peft("evaluate", folder / "linear", *options, "--skip_bad_files")


def test_training_clouds_are_never_measured_without_a_word(point_peft, run, capsys):
    folder, _ = run
    for options in (["--split", "train"], ["--split", "all", "--data", folder / "data"]):
        point_peft("evaluate", folder / "linear", *options)
        assert "Note: the adapter was trained on some of these." in capsys.readouterr().out


def test_measures_by_hand():
    probabilities = np.array([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.2, 0.8, 0.0], [0.3, 0.7, 0.0]])
    found = judge_classes(["a", "b", "c"], list("wxyz"), np.array([0, 1, 1, 0]), probabilities)
    np.testing.assert_array_equal(found.confusion, [[1, 1, 0], [1, 1, 0], [0, 0, 0]])
    assert found.summary["accuracy"] == found.summary["mean_class_accuracy"] == 0.5
    # Bins of 0.6 to 0.7 (one wrong), 0.7 (one wrong), 0.8 and 0.9 (right): mean of 0.6, 0.7, 0.2 and 0.1.
    assert found.summary["calibration_error"] == pytest.approx(0.4)
    assert [row["file"] for row in found.predictions] == ["z", "x", "y", "w"]
    assert [row["clouds"] for row in found.classes] == [2, 2, 0]
    assert np.isnan(found.classes[2]["accuracy"])
