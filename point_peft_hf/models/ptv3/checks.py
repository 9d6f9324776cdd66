"""What is checked of the input of a scene encoder."""

from __future__ import annotations

import torch


def check_voxels(
    coordinates: torch.Tensor,
    grid: torch.Tensor,
    features: torch.Tensor,
    batch_index: torch.Tensor | None,
    config,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Check the voxels of a batch.

    Args:
        coordinates: Of shape `(N, 3)`.
        grid: Of shape `(N, 3)`.
        features: Of shape `(N, in_channels)`.
        batch_index: Of shape `(N,)`, or `None` for one cloud.
        config: Configuration of the model.

    Returns:
        The same, coordinates in float32 at least, cells and numbers of clouds in int64.
    """
    count = len(coordinates)
    for name, tensor, width in (
        ("coordinates", coordinates, 3),
        ("grid_coordinates", grid, 3),
        ("features", features, config.in_channels),
    ):
        if tensor.shape != (count, width):
            hint = f" The features of this model are {list(config.feature_names)}." if name == "features" else ""
            raise ValueError(f"`{name}` must have shape ({count}, {width}), got {tuple(tensor.shape)}.{hint}")
    if not count:
        raise ValueError("The batch has no voxels. Leave empty tiles out of it.")
    for name, tensor in (("grid_coordinates", grid), ("batch_index", batch_index)):
        if tensor is not None and (tensor.is_floating_point() or tensor.dtype == torch.bool):
            raise ValueError(f"`{name}` must be of an integer type, got {tensor.dtype}.")
    for name, tensor in (("coordinates", coordinates), ("features", features)):
        if not tensor.is_floating_point():
            raise ValueError(f"`{name}` must be of a floating-point type, got {tensor.dtype}.")
        if not bool(tensor.isfinite().all()):
            row = int(tensor.isfinite().all(dim=1).logical_not().nonzero()[0])
            raise ValueError(f"`{name}` are not finite in row {row}: {tensor[row].tolist()}. Remove such points.")
    if bool((grid < 0).any()):
        raise ValueError(
            f"`grid_coordinates` must be at least 0, got {int(grid.min())}. Subtract the minimum of each cloud."
        )
    if batch_index is None:
        batch_index = torch.zeros(count, dtype=torch.int64, device=grid.device)
    elif batch_index.shape != (count,):
        raise ValueError(f"`batch_index` must have shape ({count},), got {tuple(batch_index.shape)}.")
    batch_index = batch_index.to(torch.int64)
    steps = batch_index.diff()
    if int(batch_index[0]) != 0 or bool(((steps != 0) & (steps != 1)).any()):
        raise ValueError(
            "`batch_index` must ascend from 0 in steps of 1: one cloud after the other, none of them empty. It goes "
            f"from {int(batch_index[0])} to {int(batch_index[-1])}."
        )
    if coordinates.dtype != torch.float64:
        coordinates = coordinates.float()
    return coordinates, grid.to(torch.int64), features, batch_index


def check_labels(labels: torch.Tensor, logits: torch.Tensor, config) -> torch.Tensor:
    """Check the classes of voxels.

    Args:
        labels: Of shape `(N,)`, -100 for none.
        logits: Of shape `(N, num_labels)`.
        config: Configuration of the model.
    """
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"`labels` must have shape ({len(logits)},), one a voxel, got {tuple(labels.shape)}.")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"`labels` must be class indices of an integer type, got {labels.dtype}. Use labels.long().")
    labels = labels.to(logits.device, torch.int64)
    wrong = (labels != -100) & ((labels < 0) | (labels >= config.num_labels))
    if bool(wrong.any()):
        raise ValueError(
            f"`labels` contain {int(labels[wrong][0])}, but the model has num_labels={config.num_labels} classes (0 "
            f"to {config.num_labels - 1}, and -100 for voxels without one). Load the backbone with `num_labels=` the "
            "number of your classes."
        )
    return labels
