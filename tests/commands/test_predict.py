"""`point-peft predict`: files, folders, files of many clouds, bad files."""

import csv
import json

import numpy as np
import pytest

from point_peft_hf import AutoModelForPointCloudClassification, PointCloudProcessor
from point_peft_hf.data import read_labelled_cloud, write_point_cloud
from point_peft_hf.data.listing import list_clouds
from point_peft_hf.io import save_adapter
from point_peft_hf.training import Predictor, finetune, load_backbone, load_segmentation_task, prepare_method


def cloud(seed, size=200):
    return np.random.default_rng(seed).normal(size=(size, 3)).astype(np.float32)


@pytest.fixture
def scans(tmp_path):
    """Five clouds, two bad files, and what lies beside clouds."""
    folder = tmp_path / "scans"
    (folder / "hall" / ".cache").mkdir(parents=True)
    for number in range(3):
        write_point_cloud(folder / f"{number}.ply", cloud(number))
    write_point_cloud(folder / "hall" / "3.npy", cloud(3, 90))
    np.save(folder / "hall" / "many.npy", np.stack([cloud(4), cloud(5)]))
    (folder / "hall" / "broken.ply").write_text("no cloud")
    np.savetxt(folder / "hall" / "nan.xyz", np.insert(cloud(6), 0, np.nan, axis=0))
    (folder / "README.txt").write_text("1 2 3")
    (folder / "hall" / ".cache" / "9.ply").write_text("")
    return folder


NAMES = ["0.ply", "1.ply", "2.ply", "hall/3.npy", "hall/broken.ply", "hall/many.npy[0]", "hall/many.npy[1]"]
NAMES += ["hall/nan.xyz"]


def test_the_clouds_of_a_folder(scans, tmp_path):
    assert [listed.name for listed in list_clouds([scans])] == [f"{scans}/{name}" for name in NAMES]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: holds no point clouds; read are .asc"):
        list(list_clouds([tmp_path / "empty"]))


def test_a_scene_in_a_folder_is_one(tmp_path):
    (tmp_path / "rooms" / "a").mkdir(parents=True)
    np.save(tmp_path / "rooms" / "a" / "coord.npy", cloud(0))
    np.save(tmp_path / "rooms" / "a" / "color.npy", cloud(1))
    write_point_cloud(tmp_path / "rooms" / "b.ply", cloud(2))
    listed = [cloud.source.name for cloud in list_clouds([tmp_path / "rooms"], scenes=True)]
    assert sorted(listed) == ["a", "b.ply"]
    assert [cloud.source.name for cloud in list_clouds([tmp_path / "rooms" / "a"], scenes=True)] == ["a"]
    # An object's colours are no cloud either.
    assert [cloud.source.name for cloud in list_clouds([tmp_path / "rooms"])] == ["b.ply", "coord.npy"]


def test_a_folder_to_csv(point_peft, adapter, scans, tmp_path, capsys):
    assert point_peft("predict", "scans", "--adapter", adapter, "--output", "out/found.csv", "--batch_size", 3) == 3
    printed = capsys.readouterr().out
    assert "6 of 8 clouds predicted -> out/found.csv" in printed
    assert "2 of 8 clouds could not be read" in printed
    predictor = Predictor.from_pretrained(str(adapter))
    rows = list(csv.DictReader(open(tmp_path / "out" / "found.csv", encoding="utf-8")))
    assert [row["file"] for row in rows] == [f"scans/{name}" for name in NAMES]
    for row, points in zip((rows[0], rows[3], rows[6]), (cloud(0), cloud(3, 90), cloud(5)), strict=True):
        expected = dict(predictor.predict(points, top=99))
        found = {name: float(row[f"probability_{name}"]) for name in predictor.class_names}
        assert found == pytest.approx(expected, abs=1e-5)
        assert row["class"] == max(expected, key=expected.get)
        assert float(row["probability"]) == pytest.approx(max(expected.values()), abs=1e-5)
        assert row["error"] == ""
    assert "broken.ply" in rows[4]["error"]
    assert "1 of 201 points have NaN" in rows[7]["error"]
    assert rows[4]["class"] == rows[4]["probability"] == rows[4][f"probability_{predictor.class_names[0]}"] == ""


def test_several_adapters(point_peft, adapter, tiny_backbone, scans, tmp_path, capsys):
    model = prepare_method("lora", load_backbone(tiny_backbone, ["mug", "cone"]))
    save_adapter(model, tmp_path / "mugs", processor=PointCloudProcessor(num_points=64))
    chosen = ["--adapter", adapter, "--adapter", "mugs", "--batch_size", 3]
    assert point_peft("predict", "scans", *chosen, "--output", "found.csv") == 3
    assert "6 of 8 clouds predicted" in capsys.readouterr().out
    rows = list(csv.DictReader(open(tmp_path / "found.csv", encoding="utf-8")))
    assert [row["file"] for row in rows] == [f"scans/{name}" for name in NAMES for _ in range(2)]
    assert [row["adapter"] for row in rows] == [adapter.name, "mugs"] * len(NAMES)
    for own, path in zip((rows[::2], rows[1::2]), (adapter, tmp_path / "mugs"), strict=True):
        assert point_peft("predict", "scans", "--adapter", path, "--output", "alone.csv", "--batch_size", 3) == 3
        for row, alone in zip(own, csv.DictReader(open(tmp_path / "alone.csv", encoding="utf-8")), strict=True):
            assert {name: row[name] for name in alone} == alone
            assert not any(row[name] for name in row.keys() - alone.keys() - {"adapter"})
    assert point_peft("predict", "scans/0.ply", *chosen, "--output", "found.json") == 0
    assert [row["adapter"] for row in json.loads((tmp_path / "found.json").read_text())] == [adapter.name, "mugs"]
    capsys.readouterr()
    assert point_peft("predict", "scans/0.ply", *chosen) == 0
    assert [line.split(": ")[0] for line in capsys.readouterr().out.splitlines()] == [
        f"scans/0.ply, {name}" for name in (adapter.name, "mugs")
    ]
    assert point_peft("predict", "scans/hall/broken.ply", "scans/hall/broken.ply", *chosen) == 3
    *errors, last = capsys.readouterr().out.splitlines()
    start = "scans/hall/broken.ply, "
    assert [line.split(": ")[0] for line in errors] == [start + name for name in (adapter.name, "mugs")] * 2
    assert last.startswith("2 of 2 clouds could not be read")
    with pytest.raises(SystemExit, match="Give one or more adapters, each once"):
        point_peft("predict", "scans/0.ply", "--adapter", adapter, "--adapter", adapter)


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_json(ending, point_peft, adapter, scans, tmp_path):
    assert point_peft("predict", "scans", "--adapter", adapter, "--output", f"found.{ending}", "--drop_invalid") == 3
    text = (tmp_path / f"found.{ending}").read_text()
    rows = json.loads(text) if ending == "json" else [json.loads(line) for line in text.splitlines()]
    assert [row["file"] for row in rows] == [f"scans/{name}" for name in NAMES]
    assert [row["error"] is None for row in rows] == [name != "hall/broken.ply" for name in NAMES]
    assert sum(rows[7]["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_without_output_bad_files_stand_between_the_others(point_peft, adapter, scans, capsys):
    files = ["scans/0.ply", "scans/hall/broken.ply", "nowhere.ply", "scans/1.ply"]
    assert point_peft("predict", *files, "--adapter", adapter, "--top", 2) == 3
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines[:4]] == files
    assert lines[0].count("%") == 2
    assert "no such file" in lines[2]
    assert point_peft("predict", files[0], "--adapter", adapter) == 0


def test_what_cannot_be_done_is_said_before_the_first_file(point_peft, adapter, scans):
    for arguments, message in (
        (["scans", "--output", "found.xlsx"], r"--output must end with .csv, .json, .jsonl, got found.xlsx"),
        (["scans", "--batch_size", 0], "--batch_size must be at least 1, got 0"),
        (["table.csv", "--output", "table.csv"], "--output table.csv is a cloud to be read"),
    ):
        with pytest.raises(SystemExit, match=f"error: {message}"):
            point_peft("predict", *arguments, "--adapter", adapter)


def test_parts_of_a_folder(point_peft, tiny_backbone, tmp_path, capsys):
    for index in range(12):
        points = cloud(index)
        folder = tmp_path / "data" / ("lamp", "mug")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        write_point_cloud(folder / f"{index}.ply", points, labels=2 * (index % 2) + (points[:, 1] > 0))
    arguments = {"method": "linear", "model": tiny_backbone, "task": "segmentation", "output_dir": str(tmp_path)}
    task = load_segmentation_task(str(tmp_path / "data"))
    finetune(arguments | {"num_train_epochs": 1}, task, report=lambda line: None)
    (tmp_path / "data" / "mug" / "bad.ply").write_text("no cloud")
    options = ["--adapter", "linear", "--category", "mug", "--output_dir", "parts", "--output", "found.csv"]
    assert point_peft("predict", "data", *options) == 3
    rows = list(csv.DictReader(open(tmp_path / "found.csv", encoding="utf-8")))
    assert [row["error"] != "" for row in rows] == [row["file"] == "data/mug/bad.ply" for row in rows]
    labelled = read_labelled_cloud(tmp_path / "parts" / "mug" / "1_parts.ply")
    (row,) = [row for row in rows if row["labelled"] == "parts/mug/1_parts.ply"]
    share = float((labelled[:, 3] == 3).mean())
    assert float(row[f"share_{task.class_names[3]}"]) == pytest.approx(share, abs=1e-5)
    with pytest.raises(SystemExit, match="error: .*categories lamp, mug.*got 'jar'"):
        point_peft("predict", "data", "--adapter", "linear", "--category", "jar")


def test_a_category_is_for_parts(point_peft, adapter, scans):
    with pytest.raises(SystemExit, match="error: --category is for parts of objects, and .* predicts classes"):
        point_peft("predict", scans, "--adapter", adapter, "--category", "cup")


def test_an_adapter_that_is_not_there(point_peft, adapter, scans):
    with pytest.raises(SystemExit, match=r"error: There is no folder '.*lineer'. .* holds linear\."):
        point_peft("predict", scans, "--adapter", adapter.with_name("lineer"))


def test_a_backbone_that_is_an_adapter(point_peft, adapter, scans):
    with pytest.raises(SystemExit, match="linear holds an adapter .*, not a backbone"):
        point_peft("predict", scans, "--adapter", adapter, "--model", adapter)
    with pytest.raises(SystemExit, match="linear holds an adapter .*, not a backbone"):
        point_peft("train", "--model", adapter, "--clouds_per_class", 4)


def test_two_classes_of_one_name(adapter, tmp_path, tiny_backbone):
    model = AutoModelForPointCloudClassification.from_pretrained(tiny_backbone, id2label={0: "mug", 1: "mug"})
    with pytest.raises(ValueError, match="Classes 0 and 1 of the model are both called 'mug'"):
        Predictor(model, PointCloudProcessor())
