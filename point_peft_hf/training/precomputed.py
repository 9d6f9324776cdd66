"""What a model computes of each cloud alone, kept for the next time that the cloud comes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch


class PrecomputedValues:
    """Values of the clouds of a split that come again with the same points, for `model(precomputed=...)`.

    They are those that the model itself adds to an empty dict in its first pass on a batch: groups, tokens that leave
    frozen blocks, queries of a bank, bases of PointGST.

    Args:
        max_bytes: Memory of the CPU that the values may take. Clouds whose values do not fit are computed every time.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes, self.bytes_left = max_bytes, max_bytes
        # By number of the cloud and of its view.
        self.rows: dict[tuple[int, int], dict[str, torch.Tensor]] = {}

    def of(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The values of a batch with `points`, `sample_ids` and maybe `views`; none unless all clouds are known."""
        rows = [self.rows.get(key) for key in self._keys(batch)]
        if None in rows:
            return {}
        device = batch["points"].device
        return {name: torch.stack([row[name] for row in rows]).to(device) for name in rows[0]}

    def keep(self, batch: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
        """Keep what a model has added to the values of a batch, if there is memory left."""
        keys = self._keys(batch)
        if self.bytes_left <= 0 or not values or all(key in self.rows for key in keys):
            return
        values = {name: value.cpu() for name, value in values.items()}
        for row, key in enumerate(keys):
            if key not in self.rows and key[0] >= 0:
                self.rows[key] = {name: value[row].clone() for name, value in values.items()}
                self.bytes_left -= sum(value.nbytes for value in self.rows[key].values())
        if self.bytes_left <= 0:
            warnings.warn(
                f"What is computed once for each cloud fills {self.max_bytes / 2**30:.2g} GiB with {len(self.rows)} "
                "views of clouds; the others are computed every time. More memory: --cache_gib.",
                stacklevel=2,
            )

    def clear(self) -> None:
        """Forget all values."""
        self.rows, self.bytes_left = {}, self.max_bytes

    @staticmethod
    def _keys(batch: Mapping[str, torch.Tensor]) -> list[tuple[int, int]]:
        numbers = batch["sample_ids"].tolist()
        views = batch["views"].tolist() if "views" in batch else [0] * len(numbers)
        return list(zip(numbers, views, strict=True))
