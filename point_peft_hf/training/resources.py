"""What a run costs, and what it ran on: parameters, memory, bytes, versions."""

from __future__ import annotations

import ctypes
import gc
import math
import platform
import sys
from pathlib import Path

import accelerate
import peft
import torch
import transformers
from torch import nn


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
    }
