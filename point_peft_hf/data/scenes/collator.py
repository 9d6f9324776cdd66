"""Scenes to batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .augmentation import SceneAugmentation
from .processing import SceneProcessor, pack
from .scene import Scene


class Epoch(Protocol):
    """Gives the seed and the epoch of a draw, as [`~point_peft_hf.training.batches.EpochSampler`] does."""

    seed: int
    epoch: int


class SceneCollator:
    """Make a batch of the items of a [`SceneDataset`].

    Args:
        processor: Makes the voxels.
        augmentation: Changes the scenes before, for training.
        epoch: Seed and epoch; what is drawn for a scene depends on these and on its `sample_ids` alone. Without it the
            draws come from the global generator of torch, which a `DataLoader` seeds differently in each worker.
        all_points: Also give the labels of all points and the way to them from the voxels, for evaluation.
    """

    def __init__(
        self,
        processor: SceneProcessor,
        augmentation: SceneAugmentation | None = None,
        *,
        epoch: Epoch | None = None,
        all_points: bool = False,
    ):
        if augmentation is not None and all_points:
            raise ValueError("all_points is for scenes as they are; leave the augmentation out, or all_points")
        self.processor = processor
        self.augmentation = augmentation
        self.epoch = epoch
        self.all_points = all_points

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Make a batch.

        Args:
            items: What the data set gives.

        Returns:
            What [`SceneProcessor.__call__`] gives, with `labels`, and `sample_ids` of shape `(batch_size,)`; with
            `all_points` also `inverse`, the voxel of each point, and `point_labels`, both of shape `(num_points,)`.

        Raises:
            ValueError: If a scene cannot be used.
        """
        names = [f"the scene with sample_ids {item.get('sample_ids')}" for item in items]
        scenes = [Scene.from_any(item, name, least=1) for item, name in zip(items, names, strict=True)]
        prepared = [self._prepare(scene, item) for scene, item in zip(scenes, items, strict=True)]
        batch = dict(pack(prepared, return_inverse=self.all_points))
        if all("sample_ids" in item for item in items):
            batch["sample_ids"] = torch.tensor([item["sample_ids"] for item in items])
        if self.all_points and "labels" in batch:
            batch["point_labels"] = torch.from_numpy(np.concatenate([scene.labels for scene in scenes]))
        return batch

    def _prepare(self, scene: Scene, item: dict[str, Any]) -> dict[str, np.ndarray]:
        if self.augmentation is None:
            return self.processor.prepare(scene)
        if self.epoch is None:
            seed: Any = int(torch.randint(2**63 - 1, ()))
        else:
            seed = [self.epoch.seed, self.epoch.epoch, item["sample_ids"]]
        changed = self.augmentation(scene, np.random.default_rng(seed), self.processor.voxel_size)
        dropped = [name for name in ("colors", "normals") if getattr(scene, name) is not None]
        return self.processor.prepare(changed, known_absent=dropped)
