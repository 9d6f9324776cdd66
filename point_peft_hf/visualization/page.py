"""A cloud as an interactive page: one HTML file that needs no network."""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from .palette import VIRIDIS
from .scene import PointColoring, check_scene

# The script of a page, in the order in which its parts need each other.
SCRIPTS = ("scene.js", "drawing.js", "legend.js", "pointing.js", "page.js")


def cloud_page(points: np.ndarray, colorings: Sequence[PointColoring], title: str = "Point cloud") -> str:
    """A page on which a person turns and zooms a cloud, and chooses what it is coloured by.

    It draws by WebGL, so that 100,000 points stay smooth. Everything is in the page: script, style and data.

    Args:
        points: Coordinates of shape `(num_points, 3)`, y up.
        colorings: What to choose from; the first is shown first.
        title: Heading of the page.

    Returns:
        The page, as HTML.

    Raises:
        ValueError: If the colourings do not fit the cloud, or either is not finite.
    """
    points = check_scene(points, colorings)
    scene = {
        "title": title,
        "count": len(points),
        "positions": _encode(points, "<f4"),
        "ramp": VIRIDIS,
        "colorings": [_describe(coloring) for coloring in colorings],
    }
    # "<" would let a name such as "</script>" end the data.
    data = json.dumps(scene, allow_nan=False).replace("<", "\\u003c")
    folder = resources.files(__package__) / "viewer"
    parts = {
        "TITLE": html.escape(title),
        "SCRIPT": "\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS),
        "DATA": data,
    }
    # In one pass, so that nothing in a part is taken for a placeholder.
    template = (folder / "page.html").read_text(encoding="utf-8")
    return re.sub("__(TITLE|SCRIPT|DATA)__", lambda match: parts[match[1]], template)


def save_cloud_page(
    points: np.ndarray,
    colorings: Sequence[PointColoring],
    path: str | os.PathLike,
    title: str = "Point cloud",
) -> Path:
    """Save a page with a cloud; see [`cloud_page`].

    Args:
        points: Coordinates of shape `(num_points, 3)`, y up.
        colorings: What to choose from; the first is shown first.
        path: The HTML file.
        title: Heading of the page.

    Returns:
        The file.

    Raises:
        ValueError: If the colourings do not fit the cloud, or either is not finite.
    """
    path = Path(path)
    page = cloud_page(points, colorings, title)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _describe(coloring: PointColoring) -> dict[str, Any]:
    is_category = coloring.categories is not None
    return {
        "name": coloring.name,
        "label": coloring.label,
        "values": _encode(coloring.values, "<u2" if is_category else "<f4"),
        "categories": coloring.categories,
        "colors": coloring.colors,
        "shares": list(coloring.shares),
        "markers": [
            {
                "name": markers.name,
                "color": markers.color,
                "onTop": markers.on_top,
                "positions": _encode(markers.points, "<f4"),
            }
            for markers in coloring.markers
        ],
    }


def _encode(values: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=dtype).tobytes()).decode("ascii")
