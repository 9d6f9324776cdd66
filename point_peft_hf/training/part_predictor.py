"""From a file to the parts of its points."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..data import PointCloudProcessor, write_point_cloud
from ..data.readers import read_shifted, shift_to_float32
from ..models.configuration import class_names_of
from ..ops import knn_indices
from ..visualization.palette import part_colors, to_rgb
from .precision import check_precision, in_precision
from .segmentation import predict_parts
from .sharing import SharedValues, run_model


@dataclass
class PartPrediction:
    """The parts of a cloud.

    Attributes:
        points: All points of the cloud, of shape `(num_points, 3)`, where they are in the file and in its unit;
            float32, or float64 where float32 would lose the shape far from the origin.
        labels: The part of each, int64, of shape `(num_points,)`.
        part_names: Names of all parts, by label.
        own_parts: The parts that objects of its category can have; `None` if that is not known.
    """

    points: np.ndarray
    labels: np.ndarray
    part_names: list[str]
    own_parts: list[int] | None = None

    def shares(self) -> dict[str, float]:
        """The share of the points that each part has, by its name; parts that do not occur are left out."""
        labels, counts = np.unique(self.labels, return_counts=True)
        return {self.part_names[label]: count / len(self.labels) for label, count in zip(labels, counts, strict=True)}

    def colors(self) -> np.ndarray:
        """A colour for each point, uint8 of shape `(num_points, 3)`: that of its part in pictures."""
        palette = (255 * to_rgb(part_colors(len(self.part_names), self.own_parts))).round().astype(np.uint8)
        return palette[self.labels]

    def write(self, path: str | Path) -> None:
        """Write points and labels: .ply with a colour and a property "label", .npy with four columns.

        `load_dataset(..., parts=True)` reads both.

        Args:
            path: The file; an existing one is replaced.

        Raises:
            ValueError: If its name has another ending.
        """
        colors = None if Path(path).suffix.lower() == ".npy" else self.colors()
        write_point_cloud(path, self.points, colors, self.labels)


class PartPredictor:
    """A model for part segmentation with its preprocessing.

    Args:
        model: The model; its configuration names parts and categories.
        processor: Prepares the clouds.
        precision: What matrices are multiplied in: "float32" or "bfloat16".
    """

    def __init__(self, model: nn.Module, processor: PointCloudProcessor, precision: str = "float32"):
        self.model = model.eval()
        self.precision = check_precision(precision)
        self.processor = processor
        self.part_names = class_names_of(model.config)
        self.category_names = list(model.config.category_names or ())

    @property
    def needs_category(self) -> bool:
        """Whether the model must know the category of an object."""
        return self.model.config.num_categories > 0

    def category_index(self, category: str | None) -> int | None:
        """Number of a category.

        Args:
            category: Its name; `None` for a model that needs none.

        Returns:
            The number, which the model is told in `category_ids`; `None` for a model that needs none.

        Raises:
            ValueError: If the category is missing or unknown.
        """
        if not self.needs_category:
            if category is not None:
                raise ValueError(f"The model knows no categories, got {category!r}. Leave it out (--category).")
            return None
        if category is None or category not in self.category_names:
            got = "none was given" if category is None else f"got {category!r}"
            known = ", ".join(self.category_names) or "(no names)"
            raise ValueError(
                f"The model knows objects of the categories {known}, and must know which one a cloud is of: {got}. "
                "Pass one of them as `category` (--category)."
            )
        return self.category_names.index(category)

    @torch.no_grad()
    def predict(
        self,
        cloud: Any,
        category: str | None = None,
        *,
        drop_invalid: bool = False,
        shared: SharedValues | None = None,
    ) -> PartPrediction:
        """Tell the parts of one cloud apart.

        The model sees the points that the processor samples; each of the others is of the part of the nearest of them.

        Args:
            cloud: A file, or coordinates of shape `(num_points, 3)`.
            category: Name of the object's category, one of `category_names`. Needed by a model that was trained on
                several.
            drop_invalid: Leave out points with NaN or infinite coordinates instead of refusing the cloud.
            shared: Values that several models share on this cloud.

        Returns:
            The part of each point of the cloud that is not left out.

        Raises:
            ValueError: If the cloud cannot be read or used, or the category is missing or unknown.
        """
        index = self.category_index(category)
        category_ids = None if index is None else torch.tensor([index], device=next(self.model.parameters()).device)
        points, placed = _read(cloud, drop_invalid)
        # The numbers of the points go through the sampling as labels do, and say which were taken.
        batch = self.processor([points], part_labels=[torch.arange(len(points))])
        sampled = batch["points"].to(next(self.model.parameters()).device)
        with in_precision(self.precision, sampled.device):
            logits = run_model(self.model, sampled, shared, category_ids=category_ids).logits.float()
        labels = predict_parts(logits, category_ids, self.model.config.category_parts)
        if points.dtype != np.float32:  # which would blur the distances far from the origin
            points = (points - points.min(axis=0)).astype(np.float32)
        points = torch.from_numpy(points)
        labelled = points[batch["part_labels"][0]]
        nearest = knn_indices(points[None], labelled[None], 1)[0, :, 0]
        category_parts = self.model.config.category_parts
        own_parts = None if index is None or category_parts is None else list(category_parts[index])
        return PartPrediction(placed, labels[0].cpu()[nearest].numpy(), self.part_names, own_parts)


def _read(cloud: Any, drop_invalid: bool) -> tuple[np.ndarray, np.ndarray]:
    """Give a cloud as the processor gets it, and in its place as it is returned; both of shape `(num_points, 3)`."""
    if isinstance(cloud, str | Path):
        points, shift = read_shifted(cloud, drop_invalid=drop_invalid)
        return points, points + shift if shift.any() else points
    points = np.asarray(cloud)[:, :3]
    if drop_invalid:
        points = points[np.isfinite(points).all(axis=1)]
    rounded, shift = shift_to_float32(points, "the cloud")
    return points, points.astype(np.float64) if shift.any() else rounded
