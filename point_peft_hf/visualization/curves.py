"""How a run went: learning curves, and which classes are taken for which."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from .figure import GRID, INK, add_legend, in_words, new_figure, save_figure
from .palette import category_colors

# Cells of a larger confusion matrix have no room for their number.
MAX_CLASSES_WITH_NUMBERS = 24
_DASHES = ("-", "--", "-.", ":")


def plot_learning_curves(histories: Mapping[str, Sequence[Mapping[str, float]]], path: str | os.PathLike) -> Path:
    """Draw the training loss and the validation score of runs over their epochs.

    Args:
        histories: By name of the run, its rows as in the "history" of a "run.json": each with "epoch", "loss" and one
            or more scores from 0 to 1 whose names begin with "validation_".
        path: The file.

    Returns:
        The file.

    Raises:
        ValueError: If there is nothing to draw, or a row lacks something.
    """
    scores = _score_names(histories)
    figure, axes = new_figure(9.6, 3.9, ncols=2)
    colors = category_colors(len(histories))
    for color, dashes, (name, rows) in zip(colors, cycle(_DASHES), histories.items(), strict=False):
        style = {"color": color, "linestyle": dashes, "marker": "o", "markersize": 4, "label": name}
        epochs = [row["epoch"] for row in rows]
        axes[0].plot(epochs, [row["loss"] for row in rows], **style)
        axes[1].plot(epochs, [100 * row[scores] for row in rows], **style)
    axes[0].set(xlabel="epoch", ylabel="training loss")
    axes[1].set(xlabel="epoch", ylabel=f"{in_words(scores)} (%)")
    for panel in axes:
        panel.grid(color=GRID, linewidth=0.6)
        panel.xaxis.get_major_locator().set_params(integer=True)
    add_legend(axes[1], *axes[1].get_legend_handles_labels())
    return save_figure(figure, path)


def plot_confusion_matrix(confusion: np.ndarray, class_names: Sequence[str], path: str | os.PathLike) -> Path:
    """Draw which classes are taken for which; cells are coloured by their share of the true class.

    Args:
        confusion: Counts of shape `(num_classes, num_classes)`; rows are the true classes, columns the predicted ones.
        class_names: Names of the classes.
        path: The file.

    Returns:
        The file.

    Raises:
        ValueError: If sizes do not fit, or there are counts below 0.
    """
    confusion, count = np.asarray(confusion), len(class_names)
    if confusion.shape != (count, count) or not (confusion >= 0).all():
        raise ValueError(
            f"`confusion` must hold counts of shape (num_classes, num_classes) = ({count}, {count}), got shape "
            f"{confusion.shape}."
        )
    shares = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = max(4.2, 0.36 * count + 1.8)
    figure, axes = new_figure(side + 1.2, side)
    # White to blue: readable without colour vision, and dark numbers on light cells.
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, label="share of the true class (%)", shrink=0.8)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_xticks(range(count), class_names, rotation=45, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_yticks(range(count), class_names, fontsize=9)
    if count <= MAX_CLASSES_WITH_NUMBERS:
        for row, column in zip(*np.nonzero(confusion), strict=True):
            color = "white" if shares[row, column] > 55 else INK
            axes.text(column, row, str(confusion[row, column]), ha="center", va="center", color=color, fontsize=8)
    return save_figure(figure, path)


def _score_names(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """The score that all rows have, the first one named."""
    rows: list[Mapping[str, Any]] = [row for history in histories.values() for row in history]
    if not rows:
        raise ValueError(
            "There is no epoch to draw. Pass the rows of at least one run: the 'history' of its run.json."
        )
    common = [name for name in rows[0] if name.startswith("validation_") and all(name in row for row in rows)]
    lacking = [name for name in ("epoch", "loss") if not all(name in row for row in rows)]
    if lacking or not common:
        raise ValueError(
            "Each row must have 'epoch', 'loss' and the same score, whose name begins with 'validation_'; got a row "
            f"with {sorted(rows[0])}."
        )
    return common[0]
