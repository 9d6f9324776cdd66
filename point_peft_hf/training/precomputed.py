"""What adapters compute of each cloud alone, kept from epoch to epoch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import nn

# What is kept takes so much memory of the CPU at most.
MAX_BYTES = 2**30


class PrecomputedValues:
    """Values of the clouds of a split whose points are the same in every epoch, for `model(precomputed=...)`.

    A batch is computed ahead when it comes for the first time. Which values there are is up to the adapters (bases of
    PointGST, queries of a bank); where there are none, nothing is done.

    Args:
        accelerator: The Accelerator.
        max_bytes: Clouds whose values do not fit are computed in every epoch.
    """

    def __init__(self, accelerator: Accelerator, max_bytes: int = MAX_BYTES):
        self.accelerator, self.bytes_left = accelerator, max_bytes
        self.rows: dict[int, dict[str, torch.Tensor]] = {}
        self.is_needed = True

    @torch.no_grad()
    def of(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
        """The values of a batch with `points` and `sample_ids`, or `None`."""
        numbers = batch["sample_ids"].tolist()
        if not self.is_needed or any(number < 0 for number in numbers):
            return None
        if any(number not in self.rows for number in numbers):
            if self.bytes_left <= 0:
                return None
            self._add(model, numbers, batch["points"])
        if not self.is_needed:
            return None
        names = self.rows[numbers[0]]
        device = batch["points"].device
        return {name: torch.stack([self.rows[number][name] for number in numbers]).to(device) for name in names}

    def _add(self, model: nn.Module, numbers: list[int], points: torch.Tensor) -> None:
        model = self.accelerator.unwrap_model(model)
        was_training = model.training
        with self.accelerator.autocast():
            values = {name: value.cpu() for name, value in model.eval().precompute(points).items()}
        model.train(was_training)
        self.is_needed = bool(values)
        for row, number in enumerate(numbers):
            self.rows[number] = {name: value[row].clone() for name, value in values.items()}
        self.bytes_left -= sum(value.nbytes for value in values.values())
