"""Figures as PNG files, by matplotlib."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..extras import install_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, GRID = "#1c1c1a", "#d4d4ce"
DOTS_PER_INCH = 150
# Names that a legend of a picture has room for; a page has room for all.
MAX_LEGEND_ENTRIES = 20
_STYLE = {
    "font.size": 11,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "legend.frameon": False,
    "text.color": INK,
}


def in_words(measure: str) -> str:
    """The name of a measure as people write it: "instance_miou" is "instance mIoU"."""
    return measure.replace("_", " ").replace("miou", "mIoU")


def new_figure(width: float, height: float, **subplots: Any) -> tuple[Figure, Any]:
    """A figure of its own, in inches, which no other code of the process sees, and what `Figure.subplots` returns."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"Pictures need matplotlib, which is not installed: {install_command('viz')}. Interactive pages of "
            "clouds need nothing."
        ) from error
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained", facecolor="white")
        return figure, figure.subplots(**subplots)


def save_figure(figure: Figure, path: str | os.PathLike) -> Path:
    """Save a figure, with nothing cut off, in the format of the ending; the folders are made if need be."""
    import matplotlib

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_STYLE):
        figure.savefig(path, bbox_inches="tight", pad_inches=0.12)
    return path


def add_legend(axes: Any, handles: Sequence[Any], labels: Sequence[str], title: str | None = None) -> None:
    """Add a legend next to axes; it says how many names beyond `MAX_LEGEND_ENTRIES` it leaves out."""
    if not handles:
        return
    left_out = len(handles) - MAX_LEGEND_ENTRIES
    if left_out > 0:
        title = f"{title or ''} ({left_out} more not named)".lstrip()
    legend = axes.legend(
        handles[:MAX_LEGEND_ENTRIES],
        [textwrap.shorten(label, 44, placeholder="…") for label in labels[:MAX_LEGEND_ENTRIES]],
        title=textwrap.fill(title, 34) if title else None,
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        frameon=False,
        alignment="left",
    )
    legend.get_title().set_fontweight("bold")
