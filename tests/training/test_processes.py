"""Two processes give what one gives. They are started as a user starts them, by torchrun on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from point_peft_hf import PointCloudProcessor, PointMAEConfig, PointMAEModel

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# A run of its first argument's backbone, with clouds of a step and process as told, and an odd number of test clouds.
SCRIPT = """
import json, sys
import torch
from accelerate import PartialState
from point_peft_hf.training import Finetuning, load_task, parse_arguments

backbone, output_dir, batch_size = sys.argv[1:]
task = load_task(num_points=128, clouds_per_class=4, max_test_clouds=36)
task.test = task.test.select(range(31))
counted, make_metrics = [], task.metrics


class Metrics(type(make_metrics())):
    def update(self, predictions, *others):
        counted.append(len(predictions))
        super().update(predictions, *others)


task.metrics = lambda: Metrics(len(task.class_names))
for method, config in (("geometry", {"dropout": 0.0, "local_drop_path": 0.0}), ("linear", {})):
    arguments = {
        "model": backbone, "output_dir": output_dir, "num_train_epochs": 2, "config": config, "logging_steps": 1,
        "per_device_train_batch_size": int(batch_size), "sync_batch_norm": True,
    }
    run = Finetuning(method, *parse_arguments(arguments | {"method": method})[1:], task)
    run.run()
draws = run.trainer.accelerator.gather(torch.rand(1)).tolist()
if run.state.is_main_process:
    losses = [row["loss"] for row in run.trainer.state.log_history if "loss" in row]
    print("RESULT", json.dumps({"counts": counted, "draws": draws, "losses": losses}))
PartialState().destroy_process_group()
"""


@pytest.fixture(scope="module")
def backbone_without_dropout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_groups": 8, "group_size": 8}
    rates = {"drop_path_rate": 0.0, "classifier_dropout": 0.0}
    config = PointMAEConfig(**sizes, **rates, patch_hidden_sizes=(8, 16, 16), classifier_hidden_size=16)
    torch.manual_seed(0)
    PointMAEModel(config, use_class_token=False).save_pretrained(folder)
    PointCloudProcessor(num_points=128).save_pretrained(folder)
    return folder


def run(folder, backbone, num_processes, batch_size, preamble=""):
    """Run the script, and give what it printed and the record of its first method."""
    (folder / "script.py").write_text(preamble + SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    environment = {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(
        [
            *[sys.executable, "-W", "ignore", *(launcher if num_processes > 1 else [])],
            *[str(folder / "script.py"), str(backbone), str(folder), str(batch_size)],
        ],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(next(line for line in done.stdout.splitlines() if "RESULT" in line).split("RESULT")[1])
    return result, json.loads((folder / "geometry" / "run.json").read_text())


def test_two_processes_give_what_one_gives(backbone_without_dropout, tmp_path):
    runs = []
    for num_processes, batch_size in ((1, 12), (2, 6)):
        folder = tmp_path / str(num_processes)
        folder.mkdir()
        runs.append(run(folder, backbone_without_dropout, num_processes, batch_size))
    (result1, record1), (result2, record2) = runs
    assert (record1["processes"], record2["processes"]) == (1, 2)

    # The same loss curve, to float32; augmentation is on.
    assert len(result1["losses"]) == 6
    assert result1["losses"] == pytest.approx(result2["losses"], abs=1e-5)
    for first, second in zip(record1["history"], record2["history"], strict=True):
        assert first["loss"] == pytest.approx(second["loss"], abs=1e-5)
    # A backbone that learnt nothing gives scores so close together that rounding decides for a cloud or two.
    assert record1["test"] == pytest.approx(record2["test"], abs=0.1)

    # Two looks at 12 validation clouds and one at 31 test clouds for each of two methods: each cloud counts once.
    assert result1["counts"] == result2["counts"] == [12, 12, 31] * 2
    # The noise of dropout is another in each process.
    assert len(set(result2["draws"])) == 2


# Accelerate offers FSDP for GPUs only: it is told that the processes of the CPU are some.
AS_IF_GPUS = """
from accelerate import state
init = state.PartialState.__init__


def as_if_gpus(self, *args, **kwargs):
    init(self, *args, **kwargs)
    if self.distributed_type == state.DistributedType.MULTI_CPU:
        self.distributed_type = state.DistributedType.MULTI_GPU


state.PartialState.__init__ = as_if_gpus
"""
FSDP2 = {
    **{"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"},
    **{"FSDP_AUTO_WRAP_POLICY": "NO_WRAP", "FSDP_RESHARD_AFTER_FORWARD": "true"},
}


def test_a_model_spread_over_two_processes_gives_what_one_gives(backbone_without_dropout, tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    result1, record1 = run(tmp_path / "one", backbone_without_dropout, 1, 12)
    for name, value in FSDP2.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "two").mkdir()
    result2, record2 = run(tmp_path / "two", backbone_without_dropout, 2, 6, AS_IF_GPUS)
    assert record2["distributed_type"] == "FSDP"
    assert result1["losses"] == pytest.approx(result2["losses"], abs=1e-5)
    weights = [load_file(tmp_path / name / "geometry" / "adapter_model.safetensors") for name in ("one", "two")]
    # Single weights differ: where a gradient is nothing but rounding, AdamW turns it into steps.
    shapes = [{name: tensor.shape for name, tensor in each.items()} for each in weights]
    assert shapes[0] == shapes[1]
    assert record1["test"] == pytest.approx(record2["test"], abs=0.1)


@pytest.mark.parametrize("config", sorted(path.name for path in (EXAMPLES / "accelerate_configs").glob("*.yaml")))
def test_accelerate_reads_the_configurations(config):
    from accelerate.commands.config.config_args import load_config_from_file

    read = load_config_from_file(str(EXAMPLES / "accelerate_configs" / config))
    expected = {"cpu": "NO", "multi_gpu": "MULTI_GPU", "fsdp2": "FSDP", "deepspeed_zero2": "DEEPSPEED"}
    assert read.distributed_type == expected[config.removesuffix(".yaml")]
