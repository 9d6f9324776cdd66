"""Clouds a second and peak memory of fine-tuning with one process and with several, for the same clouds of a step.

    OMP_NUM_THREADS=1 python examples/benchmark_processes.py --processes 1 2            # on the CPU, one thread each
    python examples/benchmark_processes.py --processes 1 2 4 8 --clouds_per_step 128    # one GPU each, where there are

Each is a run of `examples/train.py` by torchrun; options that are not known here are passed on to it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch


def measure(num_processes: int, clouds_per_step: int, options: list[str]) -> dict:
    """Train with some processes, and give the record of the run."""
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment["ACCELERATE_USE_CPU"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
        script = str(Path(__file__).with_name("train.py"))
        fixed = [
            "--output_dir",
            folder,
            "--per_device_train_batch_size",
            str(clouds_per_step // num_processes),
            "--sync_batch_norm",
        ]
        command = [sys.executable, *launcher, script, "--method", "point_peft", *fixed, *options]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{done.stderr}\n{num_processes} processes: train.py failed")
        (record,) = Path(folder).glob("*/run.json")
        return json.loads(record.read_text())


def main() -> None:
    """Measure each number of processes, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="Numbers of processes.")
    parser.add_argument("--clouds_per_step", type=int, default=16, help="Clouds of a step, over all processes.")
    args, options = parser.parse_known_args()
    for number in args.processes:
        if number < 1 or args.clouds_per_step % number:
            sys.exit(f"error: --clouds_per_step {args.clouds_per_step} cannot be shared by {number} processes.")
    print("| processes | clouds a step and process | clouds/s | peak memory a process | device |")
    print("|---|---|---|---|---|")
    for number in args.processes:
        record = measure(number, args.clouds_per_step, ["--num_train_epochs", "2", *options])
        # The first epoch pays for what is only done once.
        row = record["history"][-1]
        batches = record["clouds"]["train"] // args.clouds_per_step
        clouds = batches * args.clouds_per_step
        speed = clouds / row["seconds"]
        print(
            f"| {number} | {args.clouds_per_step // number} | {speed:.1f} | {record['peak_memory_mib']:.0f} MiB "
            f"| {record['device']}, {record['threads']} threads a process |",
            flush=True,
        )


if __name__ == "__main__":
    main()
