"""From what a model makes of a cloud to what the cloud is coloured by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..ops import knn_indices
from ..tuners.explain import Picture, Places
from .inspection import CloudInspection
from .palette import category_colors, part_colors
from .scene import Markers, PointColoring, check_points

_PLAIN = "#b8b8b2"
_MAX_SHARES = 10


def nearest(points: np.ndarray, places: np.ndarray) -> np.ndarray:
    """For each point the nearest place, such as the centre of the nearest group.

    Args:
        points: Coordinates of shape `(num_points, 3)`.
        places: Coordinates of shape `(num_places, 3)`, in the same unit.

    Returns:
        Indices of places, of shape `(num_points,)`.
    """
    tensors = (torch.from_numpy(check_points(rows, "An argument of `nearest`"))[None] for rows in (points, places))
    return knn_indices(*tensors, 1)[0, :, 0].numpy()


def inspection_colorings(
    inspection: CloudInspection,
    class_names: Sequence[str],
    points: np.ndarray | None = None,
    reference_names: Sequence[str] | None = None,
) -> list[PointColoring]:
    """Colour a cloud by what a model makes of it; what is known of tokens goes to the points nearest to their centres.

    Args:
        inspection: From [`~point_peft_hf.visualization.inspect_cloud`].
        class_names: Names of the classes, or of the parts.
        points: The cloud to colour, of shape `(num_points, 3)`, in the place and unit of the inspected one (usually
            the same cloud with more points); default: that itself.
        reference_names: Names of the classes of training clouds, which for a part segmentation are categories;
            default: `class_names`, unless these are of parts.

    Returns:
        Colourings by prediction, group and attention, and what the adapters have to show.

    Raises:
        ValueError: If the names do not fit the scores.
    """
    points = inspection.points if points is None else check_points(points)
    if inspection.logits.shape[-1] != len(class_names):
        raise ValueError(
            f"The model has {inspection.logits.shape[-1]} classes, but there are {len(class_names)} names."
        )
    if reference_names is None:
        reference_names = class_names if inspection.logits.ndim == 1 else ()
    group_centers = inspection.group_centers
    centers = Places("group centre", group_centers)
    attention = Picture(
        f"attention of {inspection.attention_from}",
        [centers],
        100 * inspection.attention,
        group_centers,
        unit="% per token",
    )
    return [
        _prediction(inspection, class_names, points),
        PointColoring(
            "nearest group",
            nearest(points, group_centers),
            [f"group {index + 1}" for index in range(len(group_centers))],
            colors=_map_colors(group_centers),
            markers=_markers([centers]),
        ),
        *(_picture(picture, points, reference_names) for picture in (attention, *inspection.pictures)),
    ]


def _prediction(inspection: CloudInspection, class_names: Sequence[str], points: np.ndarray) -> PointColoring:
    best = inspection.logits.argmax(axis=-1)
    if inspection.logits.ndim == 2:
        own = np.flatnonzero(np.isfinite(inspection.logits).all(axis=0)).tolist()
        values = best[nearest(points, inspection.points)]
        return PointColoring("predicted part", values, class_names, colors=part_colors(len(class_names), own))
    shares = np.exp(inspection.logits - inspection.logits.max())
    shares = shares / shares.sum()
    order = np.argsort(-shares, kind="stable")[:_MAX_SHARES]
    ranked = [(class_names[index], float(shares[index])) for index in order]
    return PointColoring("predicted class", np.full(len(points), best), class_names, shares=ranked)


def _picture(picture: Picture, points: np.ndarray, reference_names: Sequence[str]) -> PointColoring:
    markers = _markers(picture.places, reference_names)
    if picture.values is None:
        one_color = np.zeros(len(points), dtype=int)
        return PointColoring(picture.name, one_color, ["cloud"], colors=[_PLAIN], markers=markers)
    values = picture.values[nearest(points, picture.coordinates)]
    return PointColoring(picture.name, values, unit=picture.unit, markers=markers)


def _markers(places: Sequence[Places], reference_names: Sequence[str] = ()) -> list[Markers]:
    """Markers by name, with a colour for those on top; places with a known class go by its name as well."""
    rows: dict[tuple[str, bool], list[np.ndarray]] = {}
    for group in places:
        labels = [-1] * len(group.coordinates) if group.labels is None else group.labels
        for coordinates, label in zip(group.coordinates, labels, strict=True):
            name = f"{group.name}: {reference_names[label]}" if 0 <= label < len(reference_names) else group.name
            rows.setdefault((name, group.on_top), []).append(coordinates)
    colors = category_colors(len(rows))
    return [
        Markers(name, np.stack(points), color if on_top else None, on_top)
        for ((name, on_top), points), color in zip(rows.items(), colors, strict=True)
    ]


def _map_colors(centers: np.ndarray) -> list[str]:
    """Colours as on a map of countries: a few, and groups of the same colour far from each other."""
    palette = category_colors(8)
    # Distance of each group to the nearest one that has a colour already, by colour.
    distances = np.full((len(centers), len(palette)), np.inf)
    chosen = []
    for index, center in enumerate(centers):
        color = int(distances[index].argmax())
        chosen.append(palette[color])
        distances[:, color] = np.minimum(distances[:, color], np.linalg.norm(centers - center, axis=1))
    return chosen
