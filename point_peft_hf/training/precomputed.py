"""What a model computes of each cloud alone, kept from epoch to epoch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import nn


class PrecomputedValues:
    """Values of the clouds of a split that come again with the same points, for `model(precomputed=...)`.

    A batch is computed ahead when it comes for the first time. Which values there are is up to the model (groups,
    tokens that leave frozen blocks) and its adapters (bases of PointGST, queries of a bank).

    Args:
        accelerator: The Accelerator.
        max_bytes: Memory of the CPU that the values may take. Clouds whose values do not fit are computed every time.
    """

    def __init__(self, accelerator: Accelerator, max_bytes: int):
        self.accelerator, self.max_bytes, self.bytes_left = accelerator, max_bytes, max_bytes
        # By number of the cloud and of its view.
        self.rows: dict[tuple[int, int], dict[str, torch.Tensor]] = {}
        self.is_needed = max_bytes > 0

    @torch.no_grad()
    def of(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
        """The values of a batch with `points`, `sample_ids` and maybe `views`, or `None`."""
        numbers = batch["sample_ids"].tolist()
        if not self.is_needed or any(number < 0 for number in numbers):
            return None
        views = batch["views"].tolist() if "views" in batch else [0] * len(numbers)
        keys = list(zip(numbers, views, strict=True))
        if any(key not in self.rows for key in keys):
            if self.bytes_left <= 0:
                return None
            self._add(model, keys, batch["points"])
        if not self.is_needed:
            return None
        names = self.rows[keys[0]]
        device = batch["points"].device
        return {name: torch.stack([self.rows[key][name] for key in keys]).to(device) for name in names}

    def _add(self, model: nn.Module, keys: list[tuple[int, int]], points: torch.Tensor) -> None:
        model = self.accelerator.unwrap_model(model)
        was_training = model.training
        with self.accelerator.autocast():
            values = {name: value.cpu() for name, value in model.eval().precompute(points).items()}
        model.train(was_training)
        self.is_needed = bool(values)
        for row, key in enumerate(keys):
            if key not in self.rows:
                self.rows[key] = {name: value[row].clone() for name, value in values.items()}
                self.bytes_left -= sum(value.nbytes for value in self.rows[key].values())
        if self.bytes_left <= 0:
            warnings.warn(
                f"What is computed once for each cloud fills {self.max_bytes / 2**30:.2g} GiB with {len(self.rows)} "
                "views of clouds; the others are computed every time. More memory: --cache_gib.",
                stacklevel=2,
            )
