"""What is drawn: points, what they are coloured by, and markers among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .palette import category_colors

# uint16, the type in which a page holds categories.
MAX_CATEGORIES = 2**16


@dataclass
class Markers:
    """Places to mark among the points, such as the centres of groups.

    Attributes:
        name: What they are, for the legend.
        points: Coordinates of shape `(num_markers, 3)`, in the unit of the cloud.
        color: "#rrggbb"; default: that of the background, with a rim in that of the text, as all have.
        on_top: Whether they are drawn over points that hide them, such as for places inside of an object.
    """

    name: str
    points: np.ndarray
    color: str | None = None
    on_top: bool = False

    def __post_init__(self):
        self.points = check_points(self.points, f"The markers {self.name!r}")


@dataclass
class PointColoring:
    """What the points of a cloud are coloured by.

    Attributes:
        name: Of what is shown, for the legend and the choice in the page.
        values: One for each point, of shape `(num_points,)`: indices of `categories`, or numbers if there are none.
        categories: Names of the categories; `None` for numbers, which are shown on a scale.
        unit: Unit of the numbers, for the scale.
        colors: A colour for each category as "#rrggbb"; default: those of
            [`~point_peft_hf.visualization.palette.category_colors`].
        markers: Places to mark.
        shares: What the legend says of the whole cloud in place of the categories: names with numbers from 0 to 1.
    """

    name: str
    values: np.ndarray
    categories: Sequence[str] | None = None
    unit: str = ""
    colors: Sequence[str] | None = None
    markers: Sequence[Markers] = field(default_factory=tuple)
    shares: Sequence[tuple[str, float]] = ()

    def __post_init__(self):
        self.values = np.asarray(self.values)
        if self.values.ndim != 1 or self.values.dtype.kind not in "fiub":
            raise ValueError(
                f"The values of {self.name!r} must be numbers of shape (num_points,), got {self.values.dtype} of "
                f"shape {self.values.shape}."
            )
        if self.categories is None:
            self.values = self.values.astype(np.float32)
            if not np.isfinite(self.values).all():
                raise ValueError(f"The values of {self.name!r} are not all finite. Replace NaN and infinity first.")
            return
        self.categories = [str(name) for name in self.categories]
        self.colors = list(self.colors or category_colors(len(self.categories)))
        if len(self.categories) > MAX_CATEGORIES or len(self.colors) != len(self.categories):
            raise ValueError(
                f"{self.name!r} has {len(self.categories)} categories and {len(self.colors)} colours; there must be "
                f"as many of both, and at most {MAX_CATEGORIES}."
            )
        if self.values.dtype.kind == "f":
            raise ValueError(
                f"The values of {self.name!r} must be indices of its {len(self.categories)} categories, got "
                f"{self.values.dtype}. Leave `categories` out to colour by numbers."
            )
        if self.values.size and not 0 <= self.values.min() <= self.values.max() < len(self.categories):
            raise ValueError(
                f"The values of {self.name!r} go from {self.values.min()} to {self.values.max()}, but there are "
                f"categories 0 to {len(self.categories) - 1}."
            )

    @property
    def present(self) -> list[int]:
        """Indices of the categories that occur."""
        return np.unique(self.values).astype(int).tolist()

    @property
    def label(self) -> str:
        """Name and unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


def check_points(points: np.ndarray, name: str = "The cloud") -> np.ndarray:
    """Give coordinates of shape `(num_points, 3)` as float32; another shape, and NaN or infinity, are errors."""
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] != 3 or points.dtype.kind not in "fiu" or len(points) == 0:
        raise ValueError(
            f"{name} must have coordinates of shape (num_points, 3) and at least one point, got {points.dtype} of "
            f"shape {points.shape}."
        )
    if not np.isfinite(points).all():
        count = int((~np.isfinite(points)).any(axis=1).sum())
        raise ValueError(
            f"{name} has {count} points with NaN or infinite coordinates. Leave them out: "
            "read_point_cloud(file, drop_invalid=True)."
        )
    return points.astype(np.float32)


def check_scene(points: np.ndarray, colorings: Sequence[PointColoring]) -> np.ndarray:
    """Check that colourings, one or more, fit a cloud, whose coordinates it gives as float32."""
    points = check_points(points)
    if not colorings:
        raise ValueError("There is nothing to colour the cloud by. Pass at least one PointColoring.")
    for coloring in colorings:
        if len(coloring.values) != len(points):
            raise ValueError(
                f"{coloring.name!r} has {len(coloring.values)} values for {len(points)} points. Give one for each "
                "point; `nearest` brings values of tokens to points."
            )
    return points
