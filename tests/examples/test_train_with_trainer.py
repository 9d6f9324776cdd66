"""The road by way of `transformers.Trainer` ends where train.py does."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from point_peft_hf import PointCloudProcessor, PointMAEConfig, PointMAEModel

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("method", ["point_peft", "lora"])
def test_both_scripts_train_the_same_adapter(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_groups": 8, "group_size": 8}
    config = PointMAEConfig(**sizes, patch_hidden_sizes=(8, 16, 16), classifier_hidden_size=16)
    PointMAEModel(config, use_class_token=False).save_pretrained("backbone")
    PointCloudProcessor(num_points=128).save_pretrained("backbone")
    options = ["--method", method, "--model", "backbone", "--epochs", 2, "--clouds_per_class", 4]
    options += ["--max_test_clouds", 24, "--batch_size", 12]
    for script in ("train.py", "train_with_trainer.py"):
        monkeypatch.setattr(sys, "argv", [script, *map(str, options), "--output_dir", script])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")

    (expected,) = Path(f"train.py/{method}/checkpoints/step-00000006/model_0").glob("*.safetensors")
    expected = load_file(expected)
    got = load_file("train_with_trainer.py/checkpoints/checkpoint-6/adapter_model.safetensors")
    assert expected.keys() == got.keys()
    assert [name for name in expected if not torch.equal(expected[name], got[name])] == []

    # The epoch that was chosen is the same, too.
    best = load_file(f"train.py/{method}/adapter_model.safetensors")
    got = load_file("train_with_trainer.py/adapter_model.safetensors")
    assert [name for name in best if not torch.equal(best[name], got[name])] == []
    state = json.loads(Path("train_with_trainer.py/checkpoints/checkpoint-6/trainer_state.json").read_text())
    losses = [entry["eval_accuracy"] for entry in state["log_history"] if "eval_accuracy" in entry]
    history = json.loads(Path(f"train.py/{method}/run.json").read_text())["history"]
    assert losses == [row["validation_accuracy"] for row in history]
