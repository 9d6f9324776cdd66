"""Centres to position embeddings."""

import torch
from torch import nn
from torch.nn import functional as F


class PositionEmbedding(nn.Module):
    """Embed the centre of each group: Linear - GELU - Linear (Point-BERT, arXiv 2111.14819).

    Args:
        position_hidden_size: Width between the two layers.
        hidden_size: Width of a token.

    Shapes:
        - input: `(batch_size, num_groups, 3)`, in the unit of the cloud
        - output: `(batch_size, num_groups, hidden_size)`
    """

    def __init__(self, position_hidden_size: int, hidden_size: int):
        super().__init__()
        self.linear1 = nn.Linear(3, position_hidden_size)
        self.linear2 = nn.Linear(position_hidden_size, hidden_size)

    def forward(self, group_centers: torch.Tensor) -> torch.Tensor:
        """Embed the centres."""
        return self.linear2(F.gelu(self.linear1(group_centers.to(self.linear1.weight.dtype))))
