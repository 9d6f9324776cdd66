"""A cloud as a person sees it and as a model sees it, in one place and unit."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..data import PointCloudProcessor, read_point_cloud

# More points make a page larger (16 bytes each), but no clearer.
MAX_DISPLAYED_POINTS = 100_000


def prepare_for_display(
    cloud: str | os.PathLike | np.ndarray,
    processor: PointCloudProcessor,
    max_points: int = MAX_DISPLAYED_POINTS,
) -> tuple[np.ndarray, np.ndarray]:
    """Prepare a cloud for a model, and move all its points to where the model sees it.

    Args:
        cloud: A file, or coordinates of shape `(num_points, 3)`.
        processor: The model's processor.
        max_points: Points to display at most; of a larger cloud some are chosen at random, always the same.

    Returns:
        The points to display, of shape `(num_displayed, 3)`, and those for the model, of shape `(num_points, 3)`; both
        y up, in the unit of the model.

    Raises:
        ValueError: If the cloud cannot be read or used.
    """
    if isinstance(cloud, str | os.PathLike):
        cloud = read_point_cloud(cloud)
    cloud = np.asarray(cloud)
    indices: Any = None
    if cloud.ndim == 2:
        indices = [np.arange(len(cloud))]
    prepared = processor(cloud, part_labels=indices)
    points, chosen = (prepared[key][0].numpy() for key in ("points", "part_labels"))
    # What the processor did to its points (turn, move, scale) is the affine map between them and where they came from.
    source = cloud[:, :3].astype(np.float64)
    origin = source.mean(axis=0)
    scale = np.abs(source - origin).max()
    source = np.column_stack([(source - origin) / scale, np.ones(len(source))])
    transform = np.linalg.lstsq(source[chosen], points.astype(np.float64), rcond=None)[0]
    if len(source) > max_points:
        source = source[np.random.default_rng(0).choice(len(source), max_points, replace=False)]
    return (source @ transform).astype(np.float32), points
