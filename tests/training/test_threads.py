"""One process uses all cores of the CPU, unless somebody asked for fewer."""

import os
import subprocess
import sys

import pytest
import torch

from point_peft_hf.training.threads import asks_for_threads

PRINT_THREADS = "import torch\nfrom point_peft_hf.training.threads import use_all_cores\nuse_all_cores()\n"
PRINT_THREADS += "print('threads', torch.get_num_threads())"
LAUNCH = ["accelerate", "launch", "train.py"]


@pytest.mark.parametrize(
    ("command", "environment", "expected"),
    [
        (LAUNCH, {}, False),
        (LAUNCH, {"OMP_NUM_THREADS": "1"}, True),
        ([*LAUNCH[:2], "--num_cpu_threads_per_process", "1", "train.py"], {}, True),
        ([*LAUNCH[:2], "--num-cpu-threads-per-process=1", "train.py"], {}, True),
    ],
)
def test_what_a_launcher_was_told(command, environment, expected):
    assert asks_for_threads(command, environment) is expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="threads of a CPU")
@pytest.mark.skipif(len(getattr(os, "sched_getaffinity", lambda _: [0])(0)) < 2, reason="needs two cores")
@pytest.mark.parametrize(("told", "expected"), [({}, True), ({"OMP_NUM_THREADS": "1"}, False)])
def test_threads_under_accelerate(tmp_path, told, expected):
    script = tmp_path / "threads.py"
    script.write_text(PRINT_THREADS)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", str(script)]
    result = subprocess.run(command, env=environment | told, capture_output=True, text=True, check=True)
    assert (int(result.stdout.rpartition("threads")[2]) > 1) is expected
