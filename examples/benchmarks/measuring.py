"""Times in alternation, and memory."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from torch import nn


class Clock:
    """Time of an operation in seconds.

    Args:
        device: Where it runs; on a GPU its own clock is read.
        kind: "wall", or "cpu" for the computing time of this process alone, on a machine that others use, too.
    """

    def __init__(self, device: torch.device, kind: str = "wall"):
        self.device = device
        self.now = time.process_time if kind == "cpu" else time.perf_counter

    def time(self, function: Callable[[], object]) -> float:
        """Run a function and return how long it took."""
        if self.device.type != "cuda":
            start = self.now()
            function()
            return self.now() - start
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) / 1e3


@dataclass
class Row:
    """One line of the report.

    Attributes:
        section: The section it belongs to.
        case: Shape and batch size.
        name: What was measured.
        values: Numbers by the name of their column.
    """

    section: str
    case: str
    name: str
    values: dict[str, float]


@dataclass
class Report:
    """All that was measured."""

    rows: list[Row] = field(default_factory=list)

    def add(self, section: str, case: str, name: str, **values: float) -> None:
        """Add a line."""
        self.rows.append(Row(section, case, name, values))

    def value(self, section: str, case: str, name: str, column: str) -> float | None:
        """Look up a number; `None` if it was not measured."""
        for row in self.rows:
            if (row.section, row.case, row.name) == (section, case, name):
                return row.values.get(column)
        return None

    def ratio(self, section: str, case: str, name: str, other: str, column: str = "ms") -> float | None:
        """The number of one line over that of another."""
        values = self.value(section, case, name, column), self.value(section, case, other, column)
        return None if None in values else values[0] / values[1]

    def table(self, section: str) -> str:
        """The lines of a section as a Markdown table."""
        rows = [row for row in self.rows if row.section == section]
        columns = list(dict.fromkeys(column for row in rows for column in row.values))
        lines = [f"| {section} | | {' | '.join(columns)} |", f"|---|---|{'---:|' * len(columns)}"]
        for row in rows:
            cells = (f"{row.values[c]:.4g}" if c in row.values else "" for c in columns)
            lines.append(f"| {row.case} | {row.name} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def as_list(self) -> list[dict]:
        """The lines as dictionaries, for a JSON file."""
        return [asdict(row) for row in self.rows]


def alternate(functions: dict[str, Callable[[], object]], clock: Clock, rounds: int) -> dict[str, float]:
    """Time functions in alternation, so that whatever slows the machine down hits all of them.

    Args:
        functions: By name.
        clock: The clock.
        rounds: How often each is timed, after one run to warm up.

    Returns:
        The median time of each, in milliseconds.
    """
    times = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(clock.time(function))
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def saved_for_backward(model: nn.Module, run: Callable[[], object]) -> float:
    """MiB that a forward pass keeps for the backward pass, each storage counted once, without the model's own."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    # What is dropped again before the end does not count: checkpointing does so where there is nothing to go back to.
    kept: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def keep(tensor: torch.Tensor) -> _Kept:
        holder = _Kept(tensor)
        kept.add(holder)
        return holder

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda holder: holder.tensor):
        result = run()
    storages = {storage.data_ptr(): storage.nbytes() for storage in (held.tensor.untyped_storage() for held in kept)}
    del result  # Till here it holds the graph.
    return sum(size for place, size in storages.items() if place not in own) / 2**20


class _Kept:
    """Holds a tensor for the graph, and lives as long as the graph does."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor


def peak_memory(device: torch.device, run: Callable[[], object]) -> float:
    """MiB that a run allocates at its peak beyond what is there before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    allocated = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            allocated += event.nbytes()
            peak = max(peak, allocated)
    return peak / 2**20
