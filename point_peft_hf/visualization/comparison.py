"""Methods compared: scores with their intervals."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .figure import GRID, INK, new_figure, save_figure
from .palette import MARKER_SHAPES, category_colors


def plot_intervals(
    rows: Sequence[Mapping[str, Any]],
    path: str | os.PathLike,
    label: str = "test accuracy (%)",
    title: str = "",
    baseline: float | None = None,
) -> Path:
    """Draw the score of each method with its interval.

    Args:
        rows: For each method its "name", and "mean", "low" and "high" of its score, from the first at the top; "style"
            is the number of its colour and mark, for pictures of some of the methods that are to agree.
        path: The file.
        label: What the score is, with its unit.
        title: Title; default: none.
        baseline: A value to draw a line at, for example 0 for differences; numbers then say how far a method is from
            it. Default: none.

    Returns:
        The file.

    Raises:
        ValueError: If a row lacks something, or its mean is outside of its interval.
    """
    means, errors = _intervals(rows)
    figure, axes = new_figure(6.8, 1.3 + 0.42 * len(rows))
    if baseline is not None:
        axes.axvline(baseline, color=INK, linewidth=1.2)
    styles = [row.get("style", place) for place, row in enumerate(rows)]
    colors = category_colors(max(styles, default=0) + 1)
    for place, (style, mean, error) in enumerate(zip(styles, means, errors.T, strict=True)):
        axes.errorbar(
            mean,
            place,
            xerr=error[:, None],
            fmt=MARKER_SHAPES[style % len(MARKER_SHAPES)],
            color=colors[style],
            markersize=7,
            capsize=4,
            linewidth=2,
        )
        axes.annotate(
            f"{mean:.1f}" if baseline is None else f"{mean - baseline:+.1f}",
            (mean, place),
            (0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set(ylim=(len(rows) - 0.5, -0.7), xlabel=label, title=title)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    return save_figure(figure, path)


def plot_accuracy_against_parameters(
    rows: Sequence[Mapping[str, Any]], path: str | os.PathLike, label: str = "test accuracy (%)", title: str = ""
) -> Path:
    """Draw the score of each method over its number of trained parameters.

    Args:
        rows: For each method its "name", "mean", "low" and "high" of its score, and its "parameters".
        path: The file.
        label: What the score is, with its unit.
        title: Title; default: none.

    Returns:
        The file.

    Raises:
        ValueError: If a row lacks something, or its mean is outside of its interval.
    """
    means, errors = _intervals(rows, "parameters")
    parameters = np.array([row["parameters"] for row in rows], dtype=np.float64)
    if not (parameters > 0).all():
        raise ValueError(f"'parameters' must be above 0 for a logarithmic axis, got {parameters.min():g}.")
    figure, axes = new_figure(7.4, 4.6)
    for index, color in enumerate(category_colors(len(rows))):
        axes.errorbar(
            parameters[index],
            means[index],
            yerr=errors[:, index, None],
            fmt=MARKER_SHAPES[index % len(MARKER_SHAPES)],
            color=color,
            markersize=8,
            capsize=4,
            linewidth=1.8,
            label=f"{rows[index]['name']} ({_short(parameters[index])})",
        )
    axes.set(xscale="log", xlabel="trained parameters", ylabel=label, title=title)
    # Methods of nearly the same size must not hide in one column of a whole decade.
    axes.set_xlim(parameters.min() / 1.6, parameters.max() * 1.6)
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    axes.xaxis.set_minor_formatter(lambda value, _: _short(value) if f"{value:e}"[0] in "25" else "")
    axes.tick_params(axis="x", which="minor", labelsize=9)
    axes.grid(color=GRID, linewidth=0.6)
    axes.legend(
        loc="center left", bbox_to_anchor=(1.02, 0.5), title="method (parameters)", alignment="left", frameon=False
    )
    return save_figure(figure, path)


def _intervals(rows: Sequence[Mapping[str, Any]], *more: str) -> tuple[np.ndarray, np.ndarray]:
    """Means of shape `(num_rows,)`, and how far the interval reaches below and above, `(2, num_rows)`."""
    if not rows:
        raise ValueError("There is no method to draw. Pass at least one row.")
    for row in rows:
        lacking = [name for name in ("name", "mean", "low", "high", *more) if name not in row]
        if lacking:
            raise ValueError(f"A row lacks {', '.join(lacking)}: {dict(row)}.")
        if not row["low"] <= row["mean"] <= row["high"]:
            raise ValueError(
                f"The mean of {row['name']!r}, {row['mean']}, is not between its low {row['low']} and its high "
                f"{row['high']}."
            )
    means, low, high = (np.array([row[name] for row in rows], dtype=np.float64) for name in ("mean", "low", "high"))
    return means, np.stack([means - low, high - means])


def _short(count: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.3g}"
