"""What is recorded of a run: its results, what they cost, and all that is needed to repeat it."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import math
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import peft
import torch
import transformers
from accelerate import Accelerator
from torch import nn
from torch.utils.data import Dataset

from ..ops.kernels import has_numba

# Clouds of a split whose points count in its fingerprint, spread evenly.
_SAMPLED_CLOUDS = 64


def describe_environment(accelerator: Accelerator) -> dict[str, Any]:
    """Say what a run runs on: "command", "processes", "threads", "device", "processor", "commit", "versions"."""
    device = accelerator.device
    return {
        # Word by word, so that a push finds the folders of this machine among them.
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": processor(),
        "distributed_type": str(accelerator.distributed_type.value),
        "mixed_precision": accelerator.mixed_precision,
        "commit": source_commit(),
        "versions": versions(),
    }


def processor() -> str:
    """Name of the CPU, and the instructions that PyTorch uses on it: with others, sums are rounded differently."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    name = next(names, platform.processor() or platform.machine())
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def source_commit() -> str | None:
    """The git commit of this package's source, with "-dirty" if it was changed since; `None` outside of a checkout."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # A virtual environment may lie in a checkout of something else.
        git("ls-files", "--error-unmatch", here.name)
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def data_fingerprint(task: Any) -> dict[str, str]:
    """Digests of the splits of a task.

    All labels count, and the order of all clouds; of the points, those of 64 clouds that are spread over the split, so
    that it costs little however large the data set is.

    Args:
        task: The task.

    Returns:
        A digest for each of "train", "validation" and "test".
    """
    return {name: _split_fingerprint(getattr(task, name)) for name in ("train", "validation", "test")}


def _split_fingerprint(dataset: Dataset) -> str:
    digest = hashlib.sha256(json.dumps(list(dataset.class_names)).encode())
    # Scenes have a label for each point, which is digested with the points.
    for values in (getattr(dataset, "labels", ()), dataset.sample_ids):
        digest.update(np.asarray(values, dtype=np.int64).tobytes())
    for index in np.unique(np.linspace(0, len(dataset) - 1, min(_SAMPLED_CLOUDS, len(dataset))).astype(int)):
        item = dataset[int(index)]
        for name in ("points", "part_labels", "colors", "labels"):
            if isinstance(item.get(name), torch.Tensor):
                digest.update(item[name].numpy().tobytes())
    return digest.hexdigest()[:32]


_SCORE_COLUMNS: dict[str, dict[str, Callable[[dict[str, Any]], str]]] = {
    "accuracy": {
        "validation": lambda r: f"{100 * r['validation_accuracy']:.1f} %",
        "test accuracy": lambda r: f"{100 * r['test']['accuracy']:.1f} %",
        "mean class": lambda r: f"{100 * r['test']['mean_class_accuracy']:.1f} %",
    },
    "miou": {
        "validation": lambda r: f"{100 * r['validation_miou']:.1f} %",
        "test mIoU": lambda r: f"{100 * r['test']['miou']:.1f} %",
        "mean class": lambda r: f"{100 * r['test']['mean_accuracy']:.1f} %",
        "points": lambda r: f"{100 * r['test']['accuracy']:.1f} %",
    },
    "instance_miou": {
        "validation": lambda r: f"{100 * r['validation_instance_miou']:.1f} %",
        "test mIoU": lambda r: f"{100 * r['test']['instance_miou']:.1f} %",
        "category mIoU": lambda r: f"{100 * r['test']['category_miou']:.1f} %",
    },
}


def results_table(records: list[dict[str, Any]]) -> str:
    """The records of runs of one task as a table in Markdown."""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "method": lambda r: r["method"],
        "trainable": lambda r: f"{r['parameters']['trainable']:,}",
        "with gradient": lambda r: f"{r['parameters']['received_gradient']:,}",
        "file": lambda r: f"{r['file_bytes'] / 1e6:.2f} MB",
        **_SCORE_COLUMNS[records[0].get("score", "accuracy")],
        "s/epoch": lambda r: f"{r['seconds_per_epoch']:.1f}",
        "peak memory": lambda r: "" if r["peak_memory_mib"] is None else f"{r['peak_memory_mib']:.0f} MiB",
    }
    cells = [list(columns), *([cell(record) for cell in columns.values()] for record in records)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(columns))]
    padded = [[text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in cells]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


class PeakMemory:
    """Peak memory since `start`: that of the GPU if there is one, else of this process.

    On Linux the process's peak can be set back, so that each of several runs in a process has its own (what the run
    before has freed is given back to the system first); elsewhere it is the peak since the process began.
    """

    def start(self) -> None:
        """Set the peak back."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            return
        gc.collect()
        try:
            # Memory that was freed, but that the C library keeps for later, would count as this run's.
            ctypes.CDLL(None).malloc_trim(0)
        except (AttributeError, OSError, TypeError):
            pass  # another C library than glibc's
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass

    def mebibytes(self) -> float:
        """Return the peak, in MiB."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 2**20
        try:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 2**10
        except OSError:
            pass
        try:
            import resource
        except ImportError:  # Windows
            return math.nan
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Count the parameters of a model.

    Returns "total", "trainable", and those that have "received_gradient" since gradients were last cleared.
    Call it after a backward pass; a parameter that is declared trainable but gets no gradient is a mistake.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    return {
        "total": sum(p.numel() for p in model.parameters()),
        "trainable": sum(p.numel() for p in trainable),
        "received_gradient": sum(p.numel() for p in trainable if p.grad is not None),
    }


def folder_bytes(folder: str | Path, pattern: str = "*.safetensors") -> int:
    """Size of the files in a folder that match a pattern, in bytes."""
    return sum(path.stat().st_size for path in Path(folder).glob(pattern))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    import point_peft_hf  # has no version yet while it is imported itself

    return {
        "point_peft_hf": point_peft_hf.__version__,
        "python": platform.python_version(),
        **{module.__name__: module.__version__ for module in (torch, transformers, peft, accelerate)},
        # Its loops round differently from PyTorch's operations.
        **({"numba": metadata.version("numba")} if has_numba() else {}),
    }
