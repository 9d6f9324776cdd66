"""What GAPrompt does before the points are grouped: it moves them, and looks at the shape of the cloud."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from ...layers import FreezableBatchNorm1d, recompute_in_backward
from ...ops import (
    farthest_point_sample,
    gather_points,
    interpolate_features,
    knn_indices,
    validate_points,
)
from ...slots import Backbone, PointSlot
from ...tokens import Cloud
from ..explain import Picture, Places
from ..slot_layer import SlotLayer
from .config import GAPromptConfig

# Of the published method: widths of the layers on groups of points, on groups of these, and of the way back.
_FREQUENCIES = (1.0, 2.0, 4.0, 8.0)
_EMBEDDED = 3 * (1 + 2 * len(_FREQUENCIES))
_FINE, _COARSE = (64, 32, 64), (64, 32, 8)
_BACK_TO_FINE, _BACK_TO_POINTS = (64, 32), (32, 32)
_HIDDEN, SHAPE_SIZE = 64, 16
_INTERPOLATION_EPS = 1e-4
_CHAINS = {
    "fine": (_EMBEDDED, *_FINE),
    "coarse": (_FINE[-1], *_COARSE),
    "back_to_fine": (_FINE[-1] + _COARSE[-1], *_BACK_TO_FINE),
    "back_to_points": (_EMBEDDED + _BACK_TO_FINE[-1], *_BACK_TO_POINTS),
}


class NormedLinear(FreezableBatchNorm1d):
    """Linear, BatchNorm, ReLU.

    One flat module: PEFT expects one name after the adapter's name in a state dict.
    """

    def __init__(self, in_size: int, out_size: int):
        super().__init__(out_size)
        self.linear_weight, self.linear_bias = linear_parameters(in_size, out_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features of shape `(..., in_size)` to `(..., out_size)`."""
        rows = F.linear(features.to(self.weight.dtype), self.linear_weight, self.linear_bias)
        return F.relu(super().forward(rows.flatten(0, -2)).view_as(rows))


class ShiftHead(nn.Module):
    """Linear, ReLU, dropout, linear: features of a point to its shift."""

    def __init__(self, in_size: int, dropout: float):
        super().__init__()
        self.hidden_weight, self.hidden_bias = linear_parameters(in_size, _HIDDEN)
        self.output_weight, self.output_bias = linear_parameters(_HIDDEN, 3)
        nn.init.zeros_(self.hidden_bias)
        nn.init.zeros_(self.output_bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features of shape `(batch_size, num_points, in_size)` to `(batch_size, num_points, 3)`."""
        hidden = F.relu(F.linear(features, self.hidden_weight, self.hidden_bias))
        return F.linear(self.dropout(hidden), self.output_weight, self.output_bias)


class ShapeHead(nn.Module):
    """Linear, GELU, dropout: the code of a shape to what the shape vectors of all stages are made of."""

    def __init__(self, in_size: int, dropout: float):
        super().__init__()
        self.weight, self.bias = linear_parameters(in_size, SHAPE_SIZE)
        self.dropout = nn.Dropout(dropout)

    def forward(self, code: torch.Tensor) -> torch.Tensor:
        """Map codes of shape `(batch_size, in_size)` to `(batch_size, SHAPE_SIZE)`."""
        return self.dropout(F.gelu(F.linear(code, self.weight, self.bias)))


class PointPrompts(nn.Module):
    """Points that join every cloud, before they are scaled."""

    def __init__(self, count: int):
        super().__init__()
        self.coordinates = nn.Parameter(torch.empty(count, 3).uniform_(-0.01, 0.01))


def linear_parameters(in_size: int, out_size: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight and bias of a linear layer, initialised as PyTorch does."""
    bound = 1 / math.sqrt(in_size)
    weight = torch.empty(out_size, in_size).uniform_(-bound, bound)
    return nn.Parameter(weight), nn.Parameter(torch.empty(out_size).uniform_(-bound, bound))


def embed_coordinates(points: torch.Tensor) -> torch.Tensor:
    """Coordinates with their sines and cosines, of shape `(..., 27)`."""
    waves = [wave(frequency * points) for frequency in _FREQUENCIES for wave in (torch.sin, torch.cos)]
    return torch.cat([points, *waves], dim=-1)


class PointLayer(SlotLayer):
    """Around a [`~point_peft_hf.slots.PointSlot`]: moves points, adds some, and shares a code of the shape."""

    slot_class = PointSlot
    parts = (
        *(f"{name}_{index}" for name, sizes in _CHAINS.items() for index in range(len(sizes) - 1)),
        "shift_head",
        "shape_head",
        "point_prompts",
    )

    def create_parts(self, adapter_name: str, config: GAPromptConfig, slot_name: str) -> dict[str, nn.Module]:
        """Create the network that looks at the cloud, and the added points."""
        num_coarse = max(self.slot.stage.num_groups // 2, 1)
        chains = {
            f"{name}_{index}": NormedLinear(*sizes[index : index + 2])
            for name, sizes in _CHAINS.items()
            for index in range(len(sizes) - 1)
        }
        return {
            **chains,
            "shift_head": ShiftHead(_BACK_TO_POINTS[-1], config.shift_dropout),
            "shape_head": ShapeHead(num_coarse * _COARSE[-1], config.shape_dropout),
            "point_prompts": PointPrompts(config.num_points),
        }

    def adapt(self, name: str, cloud: Cloud, backbone: Backbone) -> Cloud:
        """Move the points, and append others."""
        config, stage = self.configs[name], self.slot.stage
        points = cloud.points
        validate_points(points, minimum=max(stage.num_groups, stage.group_size))
        points = points if points.dtype == torch.float64 else points.float()
        features, code = self.look(name, points, backbone.config.skip_near_origin)
        shift = self.part("shift_head", name)(features).to(points.dtype)
        moved = points + config.shift_scale * shift * points
        added = (config.point_scale * self.part("point_prompts", name).coordinates).to(points.dtype)
        points = torch.cat([moved, added.expand(points.shape[0], -1, -1)], dim=1)
        return replace(cloud, points=points).sharing(f"{self.key(name)}.shape", self.part("shape_head", name)(code))

    def look(self, name: str, points: torch.Tensor, skip_near_origin: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of points and of the whole cloud.

        Args:
            name: Name of the adapter.
            points: Clouds of shape `(batch_size, num_points, 3)`.
            skip_near_origin: As in [`~point_peft_hf.ops.farthest_point_sample`].

        Returns:
            Features of the points, of shape `(batch_size, num_points, 32)`, and the code of the shape, of shape
            `(batch_size, num_coarse * 8)`: it follows the order in which centres are sampled.
        """
        config, stage = self.configs[name], self.slot.stage
        num_fine, size = stage.num_groups, stage.group_size
        num_coarse, coarse_size = max(num_fine // 2, 1), max(size // 2, 1)

        def group(where: torch.Tensor, count: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
            centers = gather_points(where, farthest_point_sample(where, count, skip_near_origin=skip_near_origin))
            return centers, knn_indices(centers, where, min(size, where.shape[1]))

        fine, fine_indices = group(points.detach(), num_fine, size)
        coarse, coarse_indices = group(fine, num_coarse, coarse_size)
        embedded = embed_coordinates(points)  # (B, N, 27)
        # Of all layers, those on groups have the most rows.
        of_fine = recompute_in_backward(self._pool, name, "fine", embedded, fine_indices)  # (B, num_fine, 64)
        of_coarse = recompute_in_backward(self._pool, name, "coarse", of_fine, coarse_indices)  # (B, num_coarse, 8)
        options = {"num_neighbors": config.num_center_neighbors, "eps": _INTERPOLATION_EPS}
        back = torch.cat([of_fine, interpolate_features(fine, coarse, of_coarse, **options)], dim=-1)
        back = self._chain(name, "back_to_fine", back)  # (B, num_fine, 32)
        options["num_neighbors"] = config.num_point_neighbors
        spread = interpolate_features(points, fine, back, **options)
        of_points = self._chain(name, "back_to_points", torch.cat([embedded.to(spread.dtype), spread], dim=-1))
        return of_points, of_coarse.flatten(1)

    def _pool(self, name: str, chain: str, features: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """The maximum over each group, of shape `(batch_size, num_groups, size)`."""
        return self._chain(name, chain, gather_points(features, indices)).amax(dim=2)

    def _chain(self, name: str, chain: str, features: torch.Tensor) -> torch.Tensor:
        for index in range(len(_CHAINS[chain]) - 1):
            features = self.part(f"{chain}_{index}", name)(features)
        return features

    def explain(self, name: str, result: Cloud, *inputs: Cloud) -> Iterator[Picture]:
        """Show how far the points were moved, and the added ones."""
        before, after = inputs[0].points[0], result.points[0]
        moved = (after[: len(before)] - before).norm(dim=-1)
        added = Places("added point", after[len(before) :], on_top=True)
        yield Picture("how far the point was moved", [added], moved, before, unit="cloud radius = 1")
