"""Loops compiled with Numba, for CPUs: an extra, without which PyTorch's and NumPy's operations do the same."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import torch


def has_numba() -> bool:
    """Whether Numba is installed, and not switched off (NUMBA_DISABLE_JIT=1)."""
    return importlib.util.find_spec("numba") is not None and os.environ.get("NUMBA_DISABLE_JIT", "0") == "0"


@functools.cache
def compiled_loops(module_name: str) -> ModuleType | None:
    """The module with the compiled form of something.

    Args:
        module_name: Its name, with the package.

    Returns:
        The module; `None` where there is no Numba (see [`has_numba`]), or it cannot be imported.
    """
    if not has_numba():
        return None
    try:
        return importlib.import_module(module_name)
    except Exception as error:
        # A release of NumPy that it does not know, no folder to write compiled code to: no reason to stop.
        warnings.warn(f"Loops run without Numba, more slowly: {error!r}", stacklevel=2)
        return None


def share_out(work: Callable[[int, int], None], count: int) -> None:
    """Share independent items among as many threads as PyTorch uses.

    Args:
        work: Called with the first item and the one after the last. It has to release the lock of the interpreter.
        count: Number of items.
    """
    threads = min(torch.get_num_threads(), count)
    # For some time after an operation of PyTorch its own threads wait for the next one in a loop that takes all the
    # time of their cores, and starting another takes a while: two threads gain nothing (measured).
    if threads <= 2:
        work(0, count)
        return
    # For the same reason each takes what is next: threads with equal shares would not end together.
    firsts = iter(range(count))

    def take() -> None:
        for first in firsts:
            work(first, first + 1)

    # New threads each time: a pool that is kept does not survive the fork of a worker that loads data.
    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(take) for _ in range(threads - 1)]
        take()
    for other in others:
        other.result()
