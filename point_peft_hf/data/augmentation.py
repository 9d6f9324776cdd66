"""Augmentation of batches of points, on the CPU or the GPU, repeatable with a generator.

Every function takes `points` of shape `(batch_size, num_points, 3)` and gives new ones of the same shape, type and
device; the input is left as it is. A `torch.Generator` may live on either device; without one, the global generator of
the device of the points is used. Lengths are in the unit of the points: the defaults suit the unit sphere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Augmentation = Callable[..., Tensor]


def _uniform(
    points: Tensor, shape: Sequence[int], low: float, high: float, generator: torch.Generator | None
) -> Tensor:
    device = points.device if generator is None else generator.device
    drawn = torch.rand(tuple(shape), generator=generator, device=device, dtype=torch.float32)
    return (low + (high - low) * drawn).to(points)


def _normal(points: Tensor, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
    device = points.device if generator is None else generator.device
    return torch.randn(tuple(shape), generator=generator, device=device, dtype=torch.float32).to(points)


def _check(points: Tensor) -> None:
    if not isinstance(points, Tensor) or points.dim() != 3 or points.shape[-1] != 3 or not points.is_floating_point():
        got = tuple(points.shape) if isinstance(points, Tensor) else type(points).__name__
        dtype = f" of {points.dtype}" if isinstance(points, Tensor) else ""
        raise ValueError(f"points must be a float tensor of shape (batch_size, num_points, 3), got {got}{dtype}")


def random_scale(
    points: Tensor,
    low: float = 2 / 3,
    high: float = 3 / 2,
    per_axis: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Scale each cloud by factors from U(low, high), one an axis or one a cloud."""
    _check(points)
    return points * _uniform(points, (len(points), 1, 3 if per_axis else 1), low, high, generator)


def random_translate(points: Tensor, distance: float = 0.2, generator: torch.Generator | None = None) -> Tensor:
    """Move each cloud along each axis by U(-distance, distance)."""
    _check(points)
    return points + _uniform(points, (len(points), 1, 3), -distance, distance, generator)


def random_rotate(
    points: Tensor, axis: str = "y", max_angle: float = torch.pi, generator: torch.Generator | None = None
) -> Tensor:
    """Turn each cloud about the origin.

    The `axis` is `"x"`, `"y"` (up, the default) or `"z"` for an angle from U(-max_angle, max_angle), radians; or
    `"any"` for a rotation drawn uniformly from all of them.
    """
    _check(points)
    if axis not in ("x", "y", "z", "any"):
        raise ValueError(f"axis must be x, y, z or any, got {axis!r}")
    batch = len(points)
    if axis == "any":
        # A normal 4-vector has no preferred direction, so as a unit quaternion it is a uniform rotation.
        quaternion = torch.nn.functional.normalize(_normal(points, (batch, 4), generator).float(), dim=1)
    else:
        half = _uniform(points, (batch,), -max_angle / 2, max_angle / 2, generator).float()
        quaternion = torch.zeros(batch, 4, device=points.device)
        quaternion[:, 0] = half.cos()
        quaternion[:, 1 + "xyz".index(axis)] = half.sin()
    return points @ _rotation_matrix(quaternion).to(points).transpose(1, 2)


def _rotation_matrix(quaternion: Tensor) -> Tensor:
    """Turn unit quaternions (w, x, y, z) into matrices of shape `(batch_size, 3, 3)`."""
    w, x, y, z = quaternion.unbind(dim=1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], dim=1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], dim=1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], dim=1),
    ]
    return torch.stack(rows, dim=1)


def jitter(points: Tensor, std: float = 0.01, clip: float = 0.05, generator: torch.Generator | None = None) -> Tensor:
    """Move each point by normal noise, at most `clip` an axis (PointNet, arXiv 1612.00593)."""
    _check(points)
    return points + (std * _normal(points, points.shape, generator)).clamp(-clip, clip)


def point_dropout(
    points: Tensor,
    max_ratio: float = 0.875,
    generator: torch.Generator | None = None,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Replace a share of the points, U(0, max_ratio) for each cloud, by its first point (PointNet++, 1706.02413).

    With `return_indices`, also give the number of the input point in each place, of shape `(batch_size, num_points)`.
    """
    _check(points)
    if not 0 <= max_ratio < 1:
        raise ValueError(f"max_ratio must be from 0 to below 1, got {max_ratio}")
    ratio = _uniform(points, (len(points), 1), 0, max_ratio, generator)
    dropped = _uniform(points, points.shape[:2], 0, 1, generator) < ratio
    points = torch.where(dropped[..., None], points[:, :1], points)
    if not return_indices:
        return points
    return points, torch.arange(points.shape[1], device=points.device).where(~dropped, 0)


def scan_corruption(
    points: Tensor,
    visible_ratio: float = 0.6,
    max_hole_ratio: float = 0.15,
    std: float = 0.01,
    generator: torch.Generator | None = None,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Make clouds sampled all around look like a scan: seen from one side, with a hole, noisy along the line of sight.

    Clouds are of shape `(batch_size, num_points, 3)`, y up. Kept are the points nearest to a viewer at the height of
    the object or above it, a share between `visible_ratio` and 1; then those nearest to one point are cut out, a share
    up to `max_hole_ratio`. Kept points are repeated in the places of the lost ones. `std` is that of the noise, in the
    unit of the points. With `return_indices`, also give the number of the input point in each place, `(batch_size,
    num_points)`.
    """
    _check(points)
    if not 0 <= max_hole_ratio < visible_ratio <= 1:
        raise ValueError(f"needs 0 <= max_hole_ratio < visible_ratio <= 1, got {max_hole_ratio} and {visible_ratio}")
    batch, number, _ = points.shape
    view = _normal(points, (batch, 3), generator)
    view[:, 1] = view[:, 1].abs()  # nobody scans from under the floor
    view = torch.nn.functional.normalize(view, dim=1)[:, None]
    depth = (points * view).sum(dim=2)
    near = depth.argsort(dim=1, descending=True).argsort(dim=1)  # rank of each point, 0 the nearest to the viewer
    seen = near < (number * _uniform(points, (batch, 1), visible_ratio, 1, generator).float()).ceil()
    index = (_uniform(points, (batch,), 0, 1, generator).float() * number).long().clamp(max=number - 1)
    middle = points[torch.arange(batch, device=points.device), index][:, None]
    rank = (points - middle).square().sum(dim=2).argsort(dim=1).argsort(dim=1)
    hole = rank < (number * _uniform(points, (batch, 1), 0, max_hole_ratio, generator).float()).floor()
    points = points + view * (std * _normal(points, (batch, number, 1), generator))
    indices = _fill(seen & ~hole)
    points = points.gather(1, indices[..., None].expand_as(points))
    return (points, indices) if return_indices else points


def _fill(keep: Tensor) -> Tensor:
    """Numbers of the kept points, repeated in turn in the places of the others."""
    order = keep.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    kept = keep.sum(dim=1, keepdim=True).clamp(min=1)
    place = torch.arange(keep.shape[1], device=keep.device)[None] % kept
    return order.gather(1, place)


# Augmentations that put points in the places of others, so that what belongs to a point has to follow.
_MOVING = (point_dropout, scan_corruption)


class Compose:
    """Apply augmentations, pairs of a function and the options it is called with, one after the other."""

    def __init__(self, steps: Sequence[tuple[Augmentation, dict]]):
        self.steps = list(steps)

    def __call__(
        self, points: Tensor, generator: torch.Generator | None = None, *, part_labels: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Augment clouds; with `part_labels`, of shape `(batch_size, num_points)`, these follow their points.

        Returns the new points, and the labels if they were given.
        """
        _check(points)
        for function, options in self.steps:
            if part_labels is not None and function in _MOVING:
                points, indices = function(points, generator=generator, return_indices=True, **options)
                part_labels = part_labels.gather(1, indices.to(part_labels.device))
            else:
                points = function(points, generator=generator, **options)
        return points if part_labels is None else (points, part_labels)

    def __repr__(self) -> str:
        steps = []
        for function, options in self.steps:
            values = (f"{key}={_short(value)}" for key, value in options.items())
            steps.append(f"{function.__name__}({', '.join(values)})")
        return f"Compose({', '.join(steps)})"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


AUGMENTATIONS: dict[str, list[tuple[Augmentation, dict]]] = {
    "none": [],
    # Point-BERT and Point-MAE, classification and pre-training.
    "scale_translate": [
        (random_scale, {"low": 2 / 3, "high": 3 / 2, "per_axis": True}),
        (random_translate, {"distance": 0.2}),
    ],
    # Point-PEFT, ScanObjectNN.
    "rotate": [(random_scale, {"low": 0.9, "high": 1.1, "per_axis": True}), (random_rotate, {"axis": "y"})],
    "rotate_any": [(random_rotate, {"axis": "any"})],
    # Point-MAE, part segmentation.
    "segmentation": [
        (random_scale, {"low": 0.8, "high": 1.25, "per_axis": False}),
        (random_translate, {"distance": 0.1}),
    ],
    # PointNet.
    "rotate_jitter": [(random_rotate, {"axis": "y"}), (jitter, {"std": 0.01, "clip": 0.05})],
    # PointNet++.
    "dropout_scale_translate": [
        (point_dropout, {"max_ratio": 0.875}),
        (random_scale, {"low": 0.8, "high": 1.25, "per_axis": False}),
        (random_translate, {"distance": 0.1}),
    ],
    "scan": [
        (random_rotate, {"axis": "y"}),
        (scan_corruption, {}),
        (random_scale, {"low": 0.9, "high": 1.1, "per_axis": True}),
    ],
}


def get_augmentation(name: str) -> Compose:
    """Get an augmentation by the name of a preset.

    Args:
        name: `"none"`, `"scale_translate"` (Point-BERT, Point-MAE), `"rotate"` (Point-PEFT on ScanObjectNN),
            `"rotate_any"`, `"segmentation"` (Point-MAE), `"rotate_jitter"` (PointNet), `"dropout_scale_translate"`
            (PointNet++) or `"scan"` (seen from one side, with a hole and noise).

    Returns:
        A function of `points` of shape `(batch_size, num_points, 3)` and, as a keyword, `generator`.

    Raises:
        ValueError: If there is no preset of that name.
    """
    if name not in AUGMENTATIONS:
        raise ValueError(f"unknown augmentation {name!r}; there are {', '.join(AUGMENTATIONS)}")
    return Compose(AUGMENTATIONS[name])
