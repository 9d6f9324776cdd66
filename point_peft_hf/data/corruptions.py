"""Corruptions of test clouds at five strengths, to ask how far an accuracy can be trusted outside of the laboratory.

Noise, rotation and density follow ModelNet40-C (arXiv 2201.12296), dropout PointCloud-C (arXiv 2202.03377). Outliers
and occlusion are of this package: those benchmarks add other numbers of points, and cast rays on meshes, which clouds
do not have. So only single columns compare with published ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .procedural.corruption import add_outliers, jitter, remove_hidden_points, resample

STRENGTHS = (1, 2, 3, 4, 5)


def corrupt(points: np.ndarray, name: str, strength: int, rng: np.random.Generator) -> np.ndarray:
    """Corrupt a cloud.

    - "noise": Gaussian, standard deviation 1, 1.5, 2, 2.5, 3 % of the radius of the cloud.
    - "outliers": 2, 4, 6, 8, 10 % of the points replaced by points anywhere in the bounding box.
    - "dropout": 25, 37.5, 50, 62.5, 75 % of the points missing, at random.
    - "occlusion": what a camera in a random direction does not see is missing, by 20, 40, 60, 80, 100 %.
    - "rotation": about a random axis, by 2.5, 5, 7.5, 10, 15 degrees.
    - "density": 1 to 5 regions of a tenth of the points each, thinned out to a quarter.

    Args:
        points: Cloud of shape `(num_points, 3)`, y up.
        name: One of `CORRUPTIONS`.
        strength: 1 to 5.
        rng: Random generator.

    Returns:
        The corrupted cloud, of shape `(at most num_points, 3)`.

    Raises:
        ValueError: If there is no such corruption or strength.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"There is no corruption {name!r}. Choose one of {', '.join(CORRUPTIONS)}.")
    if strength not in STRENGTHS:
        raise ValueError(f"`strength` must be one of {STRENGTHS}, got {strength!r}.")
    return CORRUPTIONS[name](np.asarray(points, dtype=np.float64), strength, rng).astype(np.float32)


def _radius(points: np.ndarray) -> float:
    return np.linalg.norm(points - points.mean(axis=0), axis=1).max()


def _rotation(points: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    angle = math.radians((2.5, 5.0, 7.5, 10.0, 15.0)[strength - 1])
    axis = rng.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    # Rodrigues' formula.
    rotation = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    return points @ rotation.T


def _density(points: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    size = len(points) // 10
    keep = np.ones(len(points), dtype=bool)
    for center in points[rng.choice(len(points), min(strength, len(points)), replace=False)]:
        region = np.argsort(((points - center) ** 2).sum(axis=1), kind="stable")[:size]
        keep[rng.choice(region, 3 * size // 4, replace=False)] = False
    return points[keep]


CORRUPTIONS: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "noise": lambda points, strength, rng: jitter(
        points, rng, std=_radius(points) * (0.01, 0.015, 0.02, 0.025, 0.03)[strength - 1]
    ),
    "outliers": lambda points, strength, rng: add_outliers(points, rng, fraction=0.02 * strength),
    "dropout": lambda points, strength, rng: resample(
        points, rng, max(round((0.75, 0.625, 0.5, 0.375, 0.25)[strength - 1] * len(points)), 1)
    ),
    "occlusion": lambda points, strength, rng: remove_hidden_points(points, rng, fraction=0.2 * strength),
    "rotation": _rotation,
    "density": _density,
}
