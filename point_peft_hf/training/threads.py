"""How many cores of the CPU a training uses."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import psutil
import torch
from accelerate import PartialState

# Accelerate takes it with underscores as well.
_FLAG = "--num-cpu-threads-per-process"


def use_all_cores() -> None:
    """Let a single process on a CPU use all cores, if nobody asked for fewer.

    `accelerate launch` gives it one thread where neither `OMP_NUM_THREADS` nor `--num_cpu_threads_per_process` says
    how many. The numbers of threads of several processes are left as they are.
    """
    state = PartialState()
    if state.device.type != "cpu" or state.num_processes > 1 or "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return
    try:
        launcher = psutil.Process().parent()
        is_asked_for = launcher is None or asks_for_threads(launcher.cmdline(), launcher.environ())
    except psutil.Error:
        return  # nobody knows
    if not is_asked_for:
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(min(psutil.cpu_count(logical=False) or allowed, allowed))


def asks_for_threads(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether a launcher was told how many threads to use.

    Args:
        command: Its command line.
        environment: Its environment variables.
    """
    options = {part.partition("=")[0].replace("_", "-") for part in command}
    return "OMP_NUM_THREADS" in environment or _FLAG in options
