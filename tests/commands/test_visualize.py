"""`point-peft visualize`, on what training wrote."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from point_peft_hf import PointCloudProcessor, PointMAEConfig, PointMAEModel
from point_peft_hf.data import write_point_cloud
from point_peft_hf.training import finetune, load_segmentation_task

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_groups": 8, "group_size": 8}
    config = PointMAEConfig(**sizes, patch_hidden_sizes=(8, 16, 16), classifier_hidden_size=16)
    PointMAEModel(config, use_class_token=False).save_pretrained(folder)
    PointCloudProcessor(num_points=128).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(backbone, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    arguments = {"model": str(backbone), "output_dir": str(folder), "num_train_epochs": 1}
    finetune(arguments | {"clouds_per_class": 4, "max_test_clouds": 24}, report=lambda line: None)
    return folder / "point_peft"


def test_everything_is_drawn(point_peft, adapter, tmp_path, capsys):
    write_point_cloud(tmp_path / "scan.ply", np.random.default_rng(0).normal(size=(300, 3)))
    point_peft("visualize", "scan.ply", "--adapter", adapter, "--max_clouds", 24)
    printed = [tmp_path / line for line in capsys.readouterr().out.splitlines() if line.startswith("pictures")]
    assert sorted(printed) == sorted((tmp_path / "pictures").iterdir())
    names = {file.stem for file in printed}
    assert {"cloud", "features", "confusion_matrix", "learning_curves", "cloud_source_of_the_prompts"} <= names
    assert "scan.ply" in (tmp_path / "pictures" / "cloud.html").read_text()


def test_an_adapter_without_its_data(point_peft, adapter, tmp_path, capsys):
    """What a person has who pulled it from the Hub."""
    shutil.copytree(adapter, tmp_path / "pulled")
    record = json.loads((tmp_path / "pulled" / "run.json").read_text())
    record["arguments"]["data"] = "scans"
    (tmp_path / "pulled" / "run.json").write_text(json.dumps(record))
    point_peft("visualize", "--adapter", tmp_path / "pulled")
    printed = capsys.readouterr().out
    assert "pictures/learning_curves.png" in printed
    assert "No features and confusion matrix: the data 'scans' are not here. Pass them: --data." in printed


def test_without_matplotlib_there_is_a_page(point_peft, adapter, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert point_peft("visualize", "--adapter", adapter) == 0
    page, note = capsys.readouterr().out.splitlines()
    assert page == "pictures/cloud.html"
    assert re.match(r"No pictures: Pictures need matplotlib.*pip install .*\[viz\]", note)


def test_a_cloud_that_needs_an_extra(point_peft, adapter, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "laspy", None)
    (tmp_path / "scan.las").write_bytes(b"LASF")
    with pytest.raises(SystemExit, match=r"error: .*laspy"):
        point_peft("visualize", "scan.las", "--adapter", adapter)


def test_parts_are_drawn(point_peft, backbone, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for category, first in (("lamp", 0), ("mug", 2)):
        (tmp_path / "data" / category).mkdir(parents=True)
        for index in range(6):
            points = rng.normal(size=(150, 3))
            write_point_cloud(tmp_path / f"data/{category}/{index}.ply", points, labels=first + (points[:, 1] > 0))
    arguments = {"method": "linear", "model": str(backbone), "task": "segmentation", "output_dir": str(tmp_path)}
    task = load_segmentation_task(str(tmp_path / "data"))
    finetune(arguments | {"num_train_epochs": 1}, task, report=lambda line: None)
    point_peft("visualize", "data/mug/0.ply", "--adapter", tmp_path / "linear", "--category", "mug")
    names = {Path(line).stem for line in capsys.readouterr().out.splitlines()}
    assert {"cloud", "cloud_predicted_part", "learning_curves"} <= names
    assert not {"features", "confusion_matrix"} & names
    with pytest.raises(SystemExit, match="error: The model knows objects of the categories lamp, mug"):
        point_peft("visualize", "data/mug/0.ply", "--adapter", tmp_path / "linear")


def test_data_of_other_classes_are_refused(point_peft, adapter, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(6):
            write_point_cloud(
                tmp_path / "data" / name / f"{index}.ply", np.random.default_rng(index).normal(size=(99, 3))
            )
    with pytest.raises(
        SystemExit, match=r"error: The 2 classes of the data .*the adapter does not know a, b and the data"
    ):
        point_peft("visualize", "--adapter", adapter, "--data", tmp_path / "data")


def test_a_cloud_that_cannot_be_read_is_named(point_peft, adapter, tmp_path):
    (tmp_path / "scan.ply").write_text("no cloud")
    with pytest.raises(SystemExit, match=r"error: scan\.ply: "):
        point_peft("visualize", "scan.ply", "--adapter", adapter)
