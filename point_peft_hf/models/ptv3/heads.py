"""Features of a scene encoder -> classes of voxels, or of clouds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ...layers import FreezableBatchNorm1d, TaskModule
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


class SceneClassificationHead(TaskModule):
    """(Linear - BatchNorm - ReLU - Dropout) twice, then Linear."""

    def __init__(self, in_size: int, hidden_sizes: Sequence[int], num_labels: int, dropout: float):
        super().__init__()
        first, second = hidden_sizes
        self.dense1, self.norm1 = nn.Linear(in_size, first), FreezableBatchNorm1d(first)
        self.dense2, self.norm2 = nn.Linear(first, second), FreezableBatchNorm1d(second)
        self.output = nn.Linear(second, num_labels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Class scores of shape `(batch_size, num_labels)` of features of shape `(batch_size, in_size)`."""
        features = self.dropout(F.relu(self.norm1(self.dense1(features))))
        features = self.dropout(F.relu(self.norm2(self.dense2(features))))
        return self.output(features)
