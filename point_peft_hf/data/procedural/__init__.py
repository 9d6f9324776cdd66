"""Procedural 3D shapes as point clouds: seeded, labelled data that needs no download."""

from .corruption import (
    CORRUPTION_PRESETS,
    ScanCorruption,
    add_outliers,
    cut_holes,
    get_corruption,
    jitter,
    normalize_unit_sphere,
    remove_hidden_points,
    resample,
    rotate_about_up,
    thin_density,
    tilt,
)
from .dataset import ALL_CLASSES, ASSEMBLY, BASE_CLASSES, HELD_OUT_CLASSES, SPLITS, ProceduralShapes, sample_shape
from .primitives import Surface

__all__ = [
    "ALL_CLASSES",
    "ASSEMBLY",
    "BASE_CLASSES",
    "CORRUPTION_PRESETS",
    "HELD_OUT_CLASSES",
    "SPLITS",
    "ProceduralShapes",
    "ScanCorruption",
    "Surface",
    "add_outliers",
    "cut_holes",
    "get_corruption",
    "jitter",
    "normalize_unit_sphere",
    "remove_hidden_points",
    "resample",
    "rotate_about_up",
    "sample_shape",
    "thin_density",
    "tilt",
]
