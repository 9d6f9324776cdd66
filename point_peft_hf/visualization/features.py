"""Features of many clouds, projected to a plane."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..extras import install_command
from .figure import GRID, INK, add_legend, new_figure, save_figure
from .palette import MARKER_SHAPES, category_colors

PROJECTIONS = ("pca", "tsne")


def project_features(features: np.ndarray, method: str = "pca", seed: int = 0) -> np.ndarray:
    """Project features to a plane.

    Args:
        features: Features of shape `(num_clouds, num_features)`.
        method: "pca" for the two directions of largest variance; "tsne" for t-SNE of scikit-learn, which keeps
            neighbours together, but neither distances nor directions.
        seed: Seed of t-SNE.

    Returns:
        Coordinates of shape `(num_clouds, 2)`.

    Raises:
        ImportError: If t-SNE is asked for and scikit-learn is not installed.
        ValueError: If there is no such method, or the features are not finite or fewer than 3.
    """
    features = np.asarray(features, dtype=np.float64)
    if method not in PROJECTIONS:
        raise ValueError(f"`method` must be one of {', '.join(PROJECTIONS)}, got {method!r}.")
    if features.ndim != 2 or len(features) < 3 or not np.isfinite(features).all():
        raise ValueError(
            f"Features must be finite and of shape (num_clouds, num_features) with at least 3 clouds, got shape "
            f"{features.shape}."
        )
    if method == "tsne":
        return _tsne(features, seed)
    left, scales, _ = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    left, scales = left[:, :2], scales[:2]
    # The sign of a direction is arbitrary: the cloud that is farthest along it gets a positive place.
    signs = np.sign(left[np.abs(left).argmax(axis=0), np.arange(left.shape[1])])
    places = left * scales * np.where(signs == 0, 1, signs)
    return np.pad(places, ((0, 0), (0, 2 - places.shape[1])))


def plot_features(
    features: Mapping[str, np.ndarray],
    labels: np.ndarray,
    class_names: Sequence[str],
    path: str | os.PathLike,
    *,
    method: str = "pca",
    seed: int = 0,
) -> Path:
    """Draw features of the same clouds side by side, such as before and after tuning.

    Args:
        features: By title, features of shape `(num_clouds, num_features)`.
        labels: Class of each cloud, of shape `(num_clouds,)`.
        class_names: Names of the classes.
        path: The file.
        method: As in [`project_features`].
        seed: As in [`project_features`].

    Returns:
        The file.

    Raises:
        ImportError: If matplotlib, or scikit-learn for t-SNE, is not installed.
        ValueError: If sizes do not fit.
    """
    labels = np.asarray(labels)
    for title, rows in features.items():
        if len(rows) != len(labels):
            raise ValueError(f"{title!r} has features of {len(rows)} clouds, but there are {len(labels)} labels.")
    if not features or labels.min() < 0 or labels.max() >= len(class_names):
        raise ValueError(
            f"There must be features, and labels of the {len(class_names)} classes; got {len(features)} sets of "
            f"features and labels from {labels.min()} to {labels.max()}."
        )
    figure, axes = new_figure(4.6 * len(features) + 1.6, 4.8, ncols=len(features), squeeze=False)
    colors = category_colors(len(class_names))
    names = {"pca": "principal component", "tsne": "t-SNE dimension"}
    for panel, (title, rows) in zip(axes[0], features.items(), strict=True):
        places = project_features(rows, method, seed)
        for label in np.unique(labels):
            panel.scatter(
                *places[labels == label].T,
                s=30,
                color=colors[label],
                marker=MARKER_SHAPES[label % len(MARKER_SHAPES)],
                edgecolors=INK,
                linewidths=0.35,
                label=class_names[label],
            )
        panel.set(title=title, xlabel=f"{names[method]} 1", ylabel=f"{names[method]} 2")
        panel.grid(color=GRID, linewidth=0.6)
    handles, texts = axes[0][-1].get_legend_handles_labels()
    add_legend(axes[0][-1], handles, texts, title="class")
    return save_figure(figure, path)


def _tsne(features: np.ndarray, seed: int) -> np.ndarray:
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError(
            f"t-SNE needs scikit-learn, which is not installed: {install_command('viz')}; or use method='pca'."
        ) from error
    perplexity = min(30.0, (len(features) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features)
