"""From what a model makes of a cloud to what the cloud is coloured by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..ops import knn_indices
from .inspection import CloudInspection
from .palette import category_colors, part_colors
from .scene import Markers, PointColoring, check_points

_PLAIN = "#b8b8b2"


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
    bank_names: Sequence[str] | None = None,
) -> list[PointColoring]:
    """Colour a cloud by what a model makes of it; what is known of tokens goes to the points nearest to their centres.

    Args:
        inspection: From [`~point_peft_hf.visualization.inspect_cloud`].
        class_names: Names of the classes, or of the parts.
        points: The cloud to colour, of shape `(num_points, 3)`, in the place and unit of the inspected one (usually
            the same cloud with more points); default: that itself.
        bank_names: Names of the classes of the bank's entries, which for a part segmentation are categories; default:
            `class_names`, unless these are of parts.

    Returns:
        Colourings by prediction, group, attention and, where there are such, by distance to the local centres and by
        source of the prompts.

    Raises:
        ValueError: If the names do not fit the scores.
    """
    points = inspection.points if points is None else check_points(points)
    if inspection.logits.shape[-1] != len(class_names):
        raise ValueError(
            f"The model has {inspection.logits.shape[-1]} classes, but there are {len(class_names)} names."
        )
    group = nearest(points, inspection.group_centers)
    centers = Markers("group centre", inspection.group_centers)
    colorings = [
        _prediction(inspection, class_names, points),
        PointColoring(
            "nearest group",
            group,
            [f"group {index + 1}" for index in range(len(inspection.group_centers))],
            colors=_map_colors(inspection.group_centers),
            markers=[centers],
        ),
        PointColoring(
            f"attention of {inspection.attention_from}",
            100 * inspection.attention[group],
            unit="% per token",
            markers=[centers],
        ),
    ]
    if inspection.local_centers is not None:
        colorings.append(
            PointColoring(
                "distance of the token to its nearest local centre",
                inspection.local_distances[group],
                unit="cloud radius = 1",
                markers=_center_markers(inspection),
            )
        )
    if inspection.prompts:
        if bank_names is None:
            bank_names = class_names if inspection.logits.ndim == 1 else ()
        colorings.append(_prompt_sources(inspection, bank_names, len(points)))
    return colorings


def _prediction(inspection: CloudInspection, class_names: Sequence[str], points: np.ndarray) -> PointColoring:
    best = inspection.logits.argmax(axis=-1)
    if inspection.logits.ndim == 2:
        own = np.flatnonzero(np.isfinite(inspection.logits).all(axis=0)).tolist()
        values = best[nearest(points, inspection.points)]
        return PointColoring("predicted part", values, class_names, colors=part_colors(len(class_names), own))
    return PointColoring("predicted class", np.full(len(points), best), class_names)


def _center_markers(inspection: CloudInspection) -> list[Markers]:
    centers, are_prompts = inspection.local_centers, inspection.prompt_centers
    if are_prompts is None or not are_prompts.any():
        return [Markers("local centre", centers)]
    return [
        Markers("local centre", centers[~are_prompts]),
        Markers("local centre that is a prompt", centers[are_prompts], category_colors(2)[1], on_top=True),
    ]


def _prompt_sources(inspection: CloudInspection, bank_names: Sequence[str], num_points: int) -> PointColoring:
    places: dict[str, list[np.ndarray]] = {}
    for prompts in inspection.prompts:
        for coordinates, source, label in zip(prompts.coordinates, prompts.sources, prompts.labels, strict=True):
            name = f"from the bank: {bank_names[label]}" if 0 <= label < len(bank_names) else source
            places.setdefault(f"prompt: {name}", []).append(coordinates)
    markers = [
        Markers(name, np.stack(rows), color, on_top=True)
        for (name, rows), color in zip(places.items(), category_colors(len(places)), strict=True)
    ]
    values = np.zeros(num_points, dtype=int)
    return PointColoring("source of the prompts", values, ["cloud"], colors=[_PLAIN], markers=markers)


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
