"""Features of a scene encoder -> classes of voxels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ...layers import TaskModule
from ...ops import spread
from ...voxels import VoxelStage


class SemanticHead(TaskModule):
    """A linear layer on the features of all stages, or of the decoder, for each voxel of the input.

    The features of the stages are not put side by side, which would need more memory than the rest of the model: each
    stage has its own columns of the weight, and the scores are what goes back to the finer voxels.
    """

    def __init__(self, sizes: Sequence[int], num_labels: int):
        super().__init__()
        self.sizes = list(sizes)
        self.linear = nn.Linear(sum(sizes), num_labels)

    def forward(self, levels: Sequence[torch.Tensor], voxels: Sequence[VoxelStage]) -> torch.Tensor:
        """Score voxels.

        Args:
            levels: Features of the stages, each of shape `(N_s, sizes[s])`, the finest first.
            voxels: The stages.

        Returns:
            Class scores of shape `(N_0, num_labels)`.
        """
        weights = self.linear.weight.split(self.sizes, dim=1)
        scores = None
        for index in reversed(range(len(levels))):
            own = F.linear(levels[index], weights[index], self.linear.bias if index == 0 else None)
            scores = own if scores is None else own + spread(scores, voxels[index + 1].clusters)
        return scores
