"""A scene: the points of a room, a street or a forest, with what is known of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import PointCloudError
from ..formats.arrays import looks_transposed
from ..part_files import UNLABELLED
from ..readers import as_array, check_size, finite_rows, shift_to_float32

# Parsed scenes are kept in float32, which has all whole numbers up to here.
MAX_LABEL = 2**24
# Bits of 24 colours, read as float32, are far below this.
_TINY = 1e-30


@dataclass
class Scene:
    """Points with colours, normals and labels, where there are any.

    Attributes:
        points: Coordinates in metres, z up, of shape `(num_points, 3)`, float32, relative to `origin`.
        colors: Red, green and blue of shape `(num_points, 3)`, uint8.
        normals: Unit normals of shape `(num_points, 3)`, float32.
        labels: The label of each point, of shape `(num_points,)`, int64; -100 where there is none.
        origin: What must be added to the points in float64 for the coordinates of the file, of shape `(3,)`.
        name: What messages call it.
    """

    points: np.ndarray
    colors: np.ndarray | None = None
    normals: np.ndarray | None = None
    labels: np.ndarray | None = None
    origin: np.ndarray = field(default_factory=lambda: np.zeros(3))
    name: str = "the scene"

    def __len__(self) -> int:
        return len(self.points)

    def select(self, rows: np.ndarray) -> Scene:
        """Give some of the points, by their numbers or a mask."""
        parts = {name: getattr(self, name) for name in ("points", "colors", "normals", "labels")}
        return replace(self, **{name: None if part is None else part[rows] for name, part in parts.items()})

    @classmethod
    def make(
        cls,
        points: Any,
        colors: Any = None,
        normals: Any = None,
        labels: Any = None,
        *,
        origin: np.ndarray | None = None,
        name: str = "the scene",
        drop_invalid: bool = False,
        least: int = 2,
    ) -> Scene:
        """Check arrays and make a scene of them.

        Args:
            points: Coordinates of shape `(num_points, 3)`, array or tensor.
            colors: Red, green and blue of shape `(num_points, 3)`, as `color_bytes` takes them.
            normals: Normals of shape `(num_points, 3)`; they are scaled to length 1.
            labels: Whole numbers of shape `(num_points,)`; any number below 0 means none.
            origin: What the points are relative to, of shape `(3,)`.
            name: What messages call it.
            drop_invalid: Leave out points with NaN or infinite numbers instead of refusing the scene.
            least: Number of points that a scene must have; a tile of one may have a single one.

        Returns:
            The scene. Coordinates far from the origin are shifted, by its `origin`.

        Raises:
            PointCloudError: If a shape or a type is another, a number is NaN or infinite, or there are too few points.
        """
        arrays = {"points": points, "colors": colors, "normals": normals, "labels": labels}
        arrays = {key: _as_array(value, key, name) for key, value in arrays.items() if value is not None}
        count = len(arrays["points"])
        for key, array in arrays.items():
            shape = (count,) if key == "labels" else (count, 3)
            if array.shape != shape:
                raise PointCloudError(
                    f"{name}: {key} must be of shape {shape}, one for each of the {count} points, got {array.shape}"
                )
        arrays = _drop_invalid(arrays, name, drop_invalid)
        check_size(len(arrays["points"]), name, "a scene", least)
        if "colors" in arrays:
            arrays["colors"] = color_bytes(arrays["colors"], name)
        if "labels" in arrays:
            arrays["labels"] = whole_labels(arrays["labels"], name)
        if "normals" in arrays:
            normals = arrays["normals"].astype(np.float32, copy=False)
            length = np.sqrt(np.einsum("ij,ij->i", normals, normals))[:, None]
            arrays["normals"] = normals / np.where(length > 0, length, 1)
        arrays["points"], shift = shift_to_float32(arrays["points"], name)
        return cls(**arrays, origin=shift if origin is None else origin + shift, name=name)

    @classmethod
    def from_any(
        cls, scene: Scene | Mapping[str, Any] | Any, name: str, drop_invalid: bool = False, least: int = 2
    ) -> Scene:
        """Make a scene of a mapping with `points` and more, or of coordinates of shape `(num_points, 3)`.

        Args:
            scene: The scene, mapping, array or tensor.
            name: What messages call it.
            drop_invalid: As in `make`.
            least: As in `make`.

        Returns:
            The scene, checked.

        Raises:
            PointCloudError: As `make`, and if a mapping has no `points`.
        """
        checks = {"drop_invalid": drop_invalid, "least": least}
        if isinstance(scene, Scene):
            parts = {key: getattr(scene, key) for key in ("points", "colors", "normals", "labels", "origin")}
            return cls.make(**parts, name=scene.name, **checks)
        if not isinstance(scene, Mapping):
            return cls.make(scene, name=name, **checks)
        if "points" not in scene:
            raise PointCloudError(
                f"{name}: a scene needs 'points', and may have 'colors', 'normals' and 'labels'; got {sorted(scene)}"
            )
        parts = {key: scene.get(key) for key in ("points", "colors", "normals", "labels")}
        return cls.make(**parts, name=name, **checks)


def _as_array(value: Any, key: str, name: str) -> np.ndarray:
    array = as_array(value)
    if array.dtype.kind not in "fiu":
        raise PointCloudError(f"{name}: {key} must be numbers, got {array.dtype}")
    if key == "points" and (array.ndim != 2 or array.shape[1] != 3):
        hint = "; it looks transposed, coordinates come last" if looks_transposed(array.shape) else ""
        hint = hint or "; colours, normals and labels are given apart from the coordinates"
        raise PointCloudError(f"{name}: points must be of shape (num_points, 3), got {array.shape}{hint}")
    return array


def _drop_invalid(arrays: dict[str, np.ndarray], name: str, drop: bool) -> dict[str, np.ndarray]:
    keep = np.ones(len(arrays["points"]), dtype=bool)
    for key, array in arrays.items():
        what = {"points": "coordinates", "colors": "colours"}.get(key, key)
        finite = finite_rows(array, name, drop, what=what)
        if isinstance(finite, np.ndarray):
            keep &= finite
    return arrays if keep.all() else {key: array[keep] for key, array in arrays.items()}


def color_bytes(colors: np.ndarray, name: str) -> np.ndarray:
    """Give colours as uint8, whichever of the usual ranges they have; an error if that is not clear.

    The ranges are whole numbers from 0 to 255, numbers from 0 to 1, and 16 bits as uint16.
    """
    low, high = (float(colors.min()), float(colors.max())) if colors.size else (0.0, 0.0)
    if colors.dtype == np.uint8:
        return colors
    if colors.dtype == np.uint16 and high > 255:
        return np.round(colors * np.float32(255 / 65535)).astype(np.uint8)
    if low < 0 or high > 255:
        raise PointCloudError(
            f"{name}: colours go from 0 to 255 or from 0 to 1, got {low:g} to {high:g}; are these the colours? Those "
            "of 16 bits are read from .las files and arrays of uint16; divide others by 257"
        )
    if colors.dtype.kind != "f" or high > 1:
        return np.round(colors).astype(np.uint8)
    if high == 1 and (colors == np.round(colors)).all():
        raise PointCloudError(
            f"{name}: cannot tell whether its colours, all 0 or 1, go to 1 (black and full) or to 255 (almost black); "
            "save them as integers from 0 to 255"
        )
    return np.round(colors * 255).astype(np.uint8)


def unpack_colors(packed: np.ndarray) -> np.ndarray:
    """Unpack colours that the Point Cloud Library keeps in the bits of one number; uint8, of shape `(num_points, 3)`.

    The numbers, `(num_points,)`, are whole ones, or the same bits read as float32, which are tiny numbers then.
    """
    if packed.dtype.kind == "f" and np.abs(packed).max(initial=0) < _TINY:
        bits = packed.astype(np.float32).view(np.uint32)
    else:
        bits = packed.astype(np.int64)
    return np.stack([(bits >> shift) & 255 for shift in (16, 8, 0)], axis=1).astype(np.uint8)


def whole_labels(labels: np.ndarray, name: str) -> np.ndarray:
    """Give whole numbers of any type as int64, -100 for those below 0; other numbers are errors."""
    whole = labels if labels.dtype.kind in "iu" else np.round(labels)
    if (whole != labels).any():
        wrong = labels[whole != labels][0]
        raise PointCloudError(f"{name}: labels must be whole numbers, got {wrong:g}; is it the column of the labels?")
    if labels.size and labels.max() > MAX_LABEL:
        raise PointCloudError(
            f"{name}: the label {labels.max():.0f} is too large for a class; number the classes from 0 on (of a "
            "SemanticKITTI label the lower 16 bits are the class)"
        )
    return np.where(whole < 0, UNLABELLED, whole).astype(np.int64)
