"""A cloud as a PNG file."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .figure import INK, MAX_LEGEND_ENTRIES, add_legend, new_figure, save_figure
from .palette import VIRIDIS, to_rgb
from .scene import Markers, PointColoring, check_scene


def save_cloud_image(
    points: np.ndarray,
    coloring: PointColoring,
    path: str | os.PathLike,
    title: str = "",
    *,
    yaw: float = 35.0,
    pitch: float = 20.0,
) -> Path:
    """Draw a cloud, in parallel projection; what is far is paler.

    Args:
        points: Coordinates of shape `(num_points, 3)`, y up.
        coloring: What it is coloured by, and what is marked in it.
        path: The file.
        title: Title; default: none.
        yaw: Degrees that the cloud is turned by about its vertical axis.
        pitch: Degrees above the horizon that it is seen from.

    Returns:
        The file.

    Raises:
        ValueError: If the colouring does not fit the cloud, or either is not finite.
    """
    points = check_scene(points, [coloring])
    figure, axes = new_figure(8.0, 6.0)
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    axes.set_title(title)
    if coloring.categories is None:
        colormap = LinearSegmentedColormap.from_list("viridis_of_pages", list(VIRIDIS))
        scale = ScalarMappable(Normalize(coloring.values.min(), coloring.values.max()), colormap)
        colors = scale.to_rgba(coloring.values)[:, :3]
        figure.colorbar(scale, ax=axes, label=textwrap.fill(coloring.label, 46), shrink=0.7)
    else:
        colors = to_rgb(coloring.colors)[coloring.values]
    _draw_points(axes, points, colors, coloring.markers, _rotation(yaw, pitch))
    add_legend(axes, *_legend_entries(coloring), title=coloring.label if coloring.categories else None)
    return save_figure(figure, path)


def _legend_entries(coloring: PointColoring) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    def dot(color: str, edge: str) -> Any:
        return Line2D([], [], linestyle="", marker="o", markersize=8, color=color, markeredgecolor=edge)

    present = coloring.present if coloring.categories is not None else []
    # A few names out of many are of no use.
    present = present if len(present) <= MAX_LEGEND_ENTRIES else []
    handles = [dot(coloring.colors[index], coloring.colors[index]) for index in present]
    labels = [coloring.categories[index] for index in present]
    marked = [dot(markers.color or "white", INK) for markers in coloring.markers]
    return handles + marked, labels + [markers.name for markers in coloring.markers]


def _rotation(yaw: float, pitch: float) -> np.ndarray:
    """Rows are the directions to the right, up, and towards the eye."""
    (sy, cy), (sp, cp) = ((np.sin(angle), np.cos(angle)) for angle in np.radians([yaw, pitch]))
    return np.array([[cy, 0, sy], [sp * sy, cp, -sp * cy], [-cp * sy, sp, cp * cy]])


def _draw_points(
    axes: Any, points: np.ndarray, colors: np.ndarray, markers: Sequence[Markers], rotation: np.ndarray
) -> None:
    """Draw everything in one go, from back to front, so that what is near hides what is far."""
    everything = np.concatenate([points, *(m.points for m in markers)]) @ rotation.T
    middle = (everything.min(axis=0) + everything.max(axis=0)) / 2
    x, y, depth = (everything - middle).T
    half_width, half_height = (max(float(np.abs(values).max()), 1e-6) * 1.08 for values in (x, y))
    radius = max(float(np.linalg.norm(everything - middle, axis=1).max()), 1e-6)
    axes.set(xlim=(-half_width, half_width), ylim=(-half_height, half_height), aspect="equal")
    axes.axis("off")

    paleness = 0.5 * (1 - (depth[: len(points)] / radius + 1) / 2)[:, None]
    faces = [colors + paleness * (1 - colors)]
    faces += [to_rgb([m.color or "#ffffff"]).repeat(len(m.points), axis=0) for m in markers]
    num_markers = len(everything) - len(points)
    # Wide enough to close the surface of a typical object: a few times the mean spacing of its points.
    diameter = float(np.clip(radius * np.sqrt(16 / len(points)), 0.006 * radius, 0.045 * radius))
    inches = min(5.6 / (2 * half_width), 5.2 / (2 * half_height))
    size = (diameter * inches * 72) ** 2
    sizes = np.r_[np.full(len(points), size), np.full(num_markers, 52.0)]
    # Markers come forward a little, so that the points around a centre do not bury it.
    forward = [np.full(len(m.points), 4.0 if m.on_top else 0.06) for m in markers]
    depth[len(points) :] += radius * np.concatenate([np.zeros(0), *forward])
    order = np.argsort(depth, kind="stable")
    axes.scatter(
        x[order],
        y[order],
        s=sizes[order],
        c=np.concatenate(faces)[order],
        edgecolors=INK,
        linewidths=np.r_[np.zeros(len(points)), np.full(num_markers, 1.3)][order],
        clip_on=False,
    )
    _draw_axes(axes, rotation)


def _draw_axes(axes: Any, rotation: np.ndarray) -> None:
    """Show in a corner where x, y and z point to."""
    corner = axes.inset_axes((-0.15, -0.06, 0.17, 0.17))
    corner.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), aspect="equal")
    corner.axis("off")
    for axis, name in enumerate("xyz"):
        right, up = rotation[:2, axis]
        corner.plot([0, right], [0, up], color=INK, linewidth=1.4)
        corner.text(1.35 * right, 1.35 * up, name, ha="center", va="center", fontweight="bold")
