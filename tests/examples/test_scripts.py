"""The scripts run from the command line, on tiny settings."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from point_peft_hf.data import read_point_cloud, write_point_cloud
from point_peft_hf.pretrained import backbone_folder

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def script(monkeypatch, tmp_path):
    def run(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.syspath_prepend(EXAMPLES)
        try:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        except SystemExit as exit:
            if exit.code not in (0, None):
                raise

    return run


def test_pretrain_then_train_then_predict(script, tmp_path, capsys):
    script(
        *[
            "pretrain.py",
            "--output_dir",
            "backbone",
            "--max_steps",
            3,
            "--per_device_train_batch_size",
            4,
            "--num_points",
            64,
            "--assembly_share",
            0.5,
        ],
        *["--hidden_size", 24, "--num_hidden_layers", 2, "--num_attention_heads", 2, "--num_groups", 8],
        *[
            "--group_size",
            8,
            "--patch_hidden_sizes",
            8,
            16,
            16,
            "--decoder_num_hidden_layers",
            1,
            "--dataloader_num_workers",
            0,
        ],
    )
    record = json.loads((tmp_path / "backbone" / "pretraining.json").read_text())
    assert np.isfinite(record["final_chamfer_x1000"])
    card = (tmp_path / "backbone" / "README.md").read_text()
    assert "50 % random assemblies of primitives, the rest 27 classes: airplane" in card
    assert "accelerate launch examples/pretrain.py --hidden_size 24 " in card

    script(
        *[
            "train.py",
            "--model",
            "backbone",
            "--num_train_epochs",
            1,
            "--clouds_per_class",
            3,
            "--max_test_clouds",
            24,
        ],
        *["--method", "linear", "geometry", "--output_dir", "runs", "--per_device_train_batch_size", 16],
    )
    printed = capsys.readouterr().out
    assert "| linear " in printed
    assert "| geometry " in printed

    write_point_cloud(tmp_path / "cloud.ply", np.random.default_rng(0).normal(size=(300, 3)))
    script("predict.py", "cloud.ply", "--adapter", "runs/geometry", "--top", 2)
    line = capsys.readouterr().out.strip()
    assert line.startswith("cloud.ply: ")
    assert line.count("%") == 2


OWN_TYPE = """
from dataclasses import dataclass
import torch
from torch import nn
from point_peft_hf.slots import OutputSlot
from point_peft_hf.tuners import PointTunerConfig, SlotLayer, SlotTuner, register_method


@dataclass
class OffsetConfig(PointTunerConfig):
    start: float = 0.0


class Offset(nn.Module):
    def __init__(self, size, start):
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), start))


class OffsetLayer(SlotLayer):
    slot_class = OutputSlot
    parts = ("value",)

    def create_parts(self, adapter_name, config, slot_name):
        return {"value": Offset(self.slot.hidden_size, config.start)}

    def adapt(self, name, tokens):
        return tokens.with_features(tokens.features + self.part("value", name).weight)


@register_method("offset_in_a_script", OffsetConfig)
class OffsetModel(SlotTuner):
    layer_classes = (OffsetLayer,)
"""


def test_a_type_of_ones_own_is_trained_and_predicts(script, tmp_path, tiny_backbone, capsys, monkeypatch):
    (tmp_path / "own_offset.py").write_text(OWN_TYPE)
    monkeypatch.syspath_prepend(tmp_path)
    options = ["--model", tiny_backbone, "--clouds_per_class", 3, "--max_test_clouds", 24, "--output_dir", "runs"]
    method = "own_offset:OffsetConfig"
    script("train.py", "--method", method, "--config", '{"start": 0.25}', "--num_train_epochs", 2, *options)
    printed = capsys.readouterr().out
    assert "learning rate 0.004, the default" in printed
    assert f"| {method} |" in printed
    assert printed.rstrip().endswith(f"--adapter runs/own_offset.OffsetConfig --method {method}")
    folder = tmp_path / "runs" / "own_offset.OffsetConfig"
    assert json.loads((folder / "run.json").read_text())["learning_rate"] == 4e-3
    weights = load_file(folder / "adapter_model.safetensors")
    values = [value for key, value in weights.items() if "offset_in_a_script_value" in key]
    assert len(values) == 2
    assert all(0.2 < float(value.mean()) < 0.3 and value.unique().numel() > 1 for value in values)

    write_point_cloud(tmp_path / "cloud.ply", np.random.default_rng(0).normal(size=(300, 3)))
    script("predict.py", "cloud.ply", "--adapter", folder, "--method", method)
    assert capsys.readouterr().out.startswith("cloud.ply: ")

    # What is wrong with the second method is said before the first is trained.
    for wrong, message in (
        (["own_offset:Offset"], "not a configuration class"),
        (["lore"], "no method 'lore'"),
        (["geometry", "--config", '{"start": 1.0}'], r"GeometryAdapterConfig has no fields \['start'\]"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            script("train.py", "--method", method, *wrong, *options[:-1], "others")
    assert not (tmp_path / "others").exists()


@pytest.mark.parametrize("model_type", ["point_bert", "point_m2ae"])
def test_pretrain_other_architectures_then_train(model_type, script, tmp_path, capsys):
    script(
        *[
            "pretrain.py",
            "--model_type",
            model_type,
            "--output_dir",
            "backbone",
            "--max_steps",
            2,
            "--per_device_train_batch_size",
            4,
        ],
        *["--num_points", 64, "--hidden_size", 24, "--num_hidden_layers", 3, "--num_attention_heads", 2],
        *["--num_groups", 8, "--group_size", 8, "--patch_hidden_sizes", 8, 16, 16, "--dataloader_num_workers", 0],
        *["--decoder_num_hidden_layers", 1],
    )
    config = json.loads((tmp_path / "backbone" / "config.json").read_text())
    assert config["model_type"] == model_type
    record = json.loads((tmp_path / "backbone" / "pretraining.json").read_text())
    assert np.isfinite(record["final_chamfer_x1000"])
    assert f"\n- {model_type}\n" in (tmp_path / "backbone" / "README.md").read_text()
    script(
        *[
            "train.py",
            "--model",
            "backbone",
            "--num_train_epochs",
            1,
            "--clouds_per_class",
            3,
            "--max_test_clouds",
            24,
        ],
        *["--method", "point_peft", "--per_device_train_batch_size", 16],
    )
    assert "| point_peft " in capsys.readouterr().out


def test_benchmark(script, tmp_path, capsys):
    sections = ["embedding", "block", "inference", "step", "memory", "methods", "known", "sharing"]
    script(
        *["benchmark.py", "--hidden_size", 24, "--num_layers", 1, "--batch_size", 2, "--rounds", 1],
        *["--shapes", "scanobjectnn", "--sections", *sections],
    )
    printed = capsys.readouterr().out
    for method in ("full", "linear", "lora", "geometry", "prompt", "point_peft", "published way"):
        assert f"| scanobjectnn x2 | {method} |" in printed
    assert "| training step: point_peft / lora |" in printed
    rows = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    assert {row["section"] for row in rows} == set(sections)
    kept = {row["name"]: row["values"]["kept_ratio"] for row in rows if row["section"] == "methods"}
    assert {"full", "lora", "dapt", "gaprompt", "idpt", "pointgst", "pointlora", "ppt", "stag", "stag, sl"} <= set(
        kept
    )
    assert kept["full"] == 1 > kept["lora"]
    assert "| kept for backward: stag / full |" in printed
    assert all(value > 0 for row in rows for value in row["values"].values())


def test_train_on_parts_then_predict_them(script, tmp_path, capsys):
    generator = np.random.default_rng(0)
    for index in range(12):
        points = generator.normal(size=(300, 3)).astype(np.float32)
        folder = tmp_path / "scans" / ("lamp", "mug")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        write_point_cloud(folder / f"{index}.ply", points, labels=(points[:, 1] > 0).astype(int))
    script(
        *["train.py", "--task", "segmentation", "--data", "scans", "--method", "linear", "--num_train_epochs", 1],
        *[
            "--output_dir",
            "runs",
            "--per_device_train_batch_size",
            4,
            "--num_points",
            128,
            "--model_config",
            '{"num_groups": 8}',
        ],
    )
    assert "| test mIoU | category mIoU |" in capsys.readouterr().out

    script("predict.py", "scans/mug/1.ply", "--adapter", "runs/linear", "--category", "mug", "--output_dir", "parts")
    line = capsys.readouterr().out.strip()
    assert line.startswith("scans/mug/1.ply: part ")
    assert line.endswith("-> parts/1_parts.ply")
    np.testing.assert_array_equal(
        read_point_cloud(tmp_path / "parts/1_parts.ply"), read_point_cloud(tmp_path / "scans/mug/1.ply")
    )
    with pytest.raises(SystemExit, match=r"error: .*categories lamp, mug.*none was given"):
        script("predict.py", "scans/mug/1.ply", "--adapter", "runs/linear")
    points = read_point_cloud(tmp_path / "scans/mug/1.ply")
    write = ["--adapter", "runs/linear", "--category", "mug", "--output_dir", "parts"]
    np.savetxt(tmp_path / "depth.xyz", np.insert(points, [0, 9], np.nan, axis=0), "%.9g")
    capsys.readouterr()
    with pytest.raises(SystemExit, match="^3$"):
        script("predict.py", "depth.xyz", *write)
    assert re.search(r"depth.xyz: 2 of 302 points have NaN .*--drop_invalid", capsys.readouterr().out)
    script("predict.py", "depth.xyz", *write, "--drop_invalid")
    np.testing.assert_array_equal(read_point_cloud(tmp_path / "parts/depth_parts.ply"), points)
    (tmp_path / "1_parts.ply").write_text("corrected by a person")
    for files, message in (
        (("scans/mug/1.ply", "1.obj"), "of scans/mug/1.ply and of 1.obj would both go to 1_parts.ply"),
        (("scans/mug/1.ply", "1_parts.ply"), "of scans/mug/1.ply would replace 1_parts.ply, which is to be read"),
    ):
        with pytest.raises(SystemExit, match=f"error: The labels {message}.*--output_dir"):
            script("predict.py", *files, "--adapter", "runs/linear", "--category", "mug")
    assert (tmp_path / "1_parts.ply").read_text() == "corrected by a person"


def test_a_file_that_is_not_there_ends_with_its_name_not_with_a_traceback(script):
    with pytest.raises(SystemExit, match=r"error: .*nowhere"):
        script("train.py", "--data", "nowhere")


def test_the_shipped_backbone_is_small_and_complete():
    folder = Path(backbone_folder())
    files = {file.name for file in folder.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= files
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 8e6
