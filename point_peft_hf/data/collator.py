"""Items to batches, for `torch.utils.data.DataLoader` and `transformers.Trainer`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature

from .augmentation import Compose
from .errors import PointCloudError
from .processing import PointCloudProcessor


class PointCloudCollator:
    """Make a batch of the items of a `PointCloudDataset`.

    Args:
        processor: Processes the clouds; without one, they must all have the same number of points.
        augmentation: What `get_augmentation` gives, for training; applied after the processor.
        sample_ids: Keep the `sample_ids`, by which an adapter can leave a training cloud's own entry out of its bank.
        segmentation: Name what there is as the models for part segmentation take it: the parts are the `labels`, the
            classes the `category_ids`.
        drop_invalid: Leave out points with NaN or infinite coordinates instead of refusing their cloud; for this a
            processor is needed.
        generator: Source of randomness of the sampling and the augmentation; by default that of torch, which a
            `DataLoader` seeds differently in each worker.
    """

    def __init__(
        self,
        processor: PointCloudProcessor | None = None,
        augmentation: Compose | None = None,
        *,
        sample_ids: bool = True,
        segmentation: bool = False,
        drop_invalid: bool = False,
        generator: torch.Generator | None = None,
    ):
        self.processor = processor
        self.augmentation = augmentation
        self.sample_ids = sample_ids
        self.segmentation = segmentation
        self.drop_invalid = drop_invalid
        self.generator = generator

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Make a batch.

        Args:
            items: What the data set gives.

        Returns:
            `points` of shape `(batch_size, num_points, 3)`, `labels` and `sample_ids` of shape `(batch_size,)`, and
            `part_labels` of shape `(batch_size, num_points)` when the items have parts. For segmentation `points`,
            `labels` of shape `(batch_size, num_points)`, `category_ids` and `sample_ids`.

        Raises:
            ValueError: If an item lacks one of these, if a cloud cannot be used, or if there is no processor and the
                clouds differ in size.
        """
        clouds = _column(items, "points", "a data set of your own must name its columns so")
        parts = [item["part_labels"] for item in items] if "part_labels" in items[0] else None
        if self.segmentation and parts is None:
            raise ValueError(
                "part segmentation needs a label for each point, but the items have none; give class_parts and "
                "part_labels to the data set, or load it with layout='part_folder' or one of ShapeNetPart"
            )
        if self.processor is not None:
            batch = dict(self._process(items, clouds, parts))
        else:
            sizes = sorted({len(cloud) for cloud in clouds})
            if len(sizes) > 1:
                raise ValueError(
                    f"the clouds have {sizes[0]} to {sizes[-1]} points; give the collator a processor, or the "
                    "data set a num_points"
                )
            batch = {"points": torch.stack([torch.as_tensor(cloud) for cloud in clouds])}
            if parts is not None:
                batch["part_labels"] = torch.stack([torch.as_tensor(labels) for labels in parts])
        if self.augmentation is not None and parts is not None:
            batch["points"], batch["part_labels"] = self.augmentation(
                batch["points"], generator=self.generator, part_labels=batch["part_labels"]
            )
        elif self.augmentation is not None:
            batch["points"] = self.augmentation(batch["points"], generator=self.generator)
        classes = torch.tensor(_column(items, "labels", "rename the column of the classes"))
        if self.segmentation:
            batch["labels"], batch["category_ids"] = batch.pop("part_labels"), classes
        else:
            batch["labels"] = classes
        if self.sample_ids:
            way_out = (
                "pass sample_ids=False to the collator, or number the clouds (by these numbers an adapter leaves a "
                "training cloud's own entry out of its bank)"
            )
            batch["sample_ids"] = torch.tensor(_column(items, "sample_ids", way_out))
        return batch

    def _process(self, items: Sequence[dict[str, Any]], clouds: list, parts: list | None) -> BatchFeature:
        try:
            return self.processor(clouds, part_labels=parts, generator=self.generator, drop_invalid=self.drop_invalid)
        except PointCloudError as error:
            # Its place in a batch that was drawn at random says nothing about a cloud.
            place = re.match(r"cloud (\d+): ", str(error))
            number = items[int(place.group(1))].get("sample_ids") if place else None
            if number is None:
                raise
            raise PointCloudError(f"the cloud with sample_ids {number}: {str(error)[place.end() :]}") from None


def _column(items: Sequence[dict[str, Any]], name: str, way_out: str) -> list:
    missing = next((item for item in items if name not in item), None)
    if missing is not None:
        raise ValueError(f"an item has no {name!r}, it has {sorted(missing)}; {way_out}")
    return [item[name] for item in items]
