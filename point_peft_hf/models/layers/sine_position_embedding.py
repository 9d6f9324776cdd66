"""Sines and cosines of centres to position embeddings."""

import torch
from torch import nn

from .position_embedding import PositionEmbedding


class SinePositionEmbedding(PositionEmbedding):
    """Embed sines and cosines of the centre of each group: Linear - GELU - Linear (PCP-MAE, arXiv 2408.08753).

    Of the channels of a token, a sixth are sines of an axis and a sixth its cosines, with frequencies that fall
    geometrically from 1 to almost 1/10000 radians per unit of the cloud.

    Shapes:
        - input: `(batch_size, num_groups, 3)`, in the unit of the cloud
        - output: `(batch_size, num_groups, hidden_size)`
    """

    def __init__(self, position_hidden_size: int, hidden_size: int):
        super().__init__(position_hidden_size, hidden_size)
        self.num_frequencies = hidden_size // 6
        self.linear1 = nn.Linear(6 * self.num_frequencies, position_hidden_size)

    def forward(self, group_centers: torch.Tensor, *args) -> torch.Tensor:
        """Embed the centres; further arguments as for [`PositionEmbedding`]."""
        steps = torch.arange(self.num_frequencies, device=group_centers.device, dtype=group_centers.dtype)
        frequencies = 10000 ** (-steps / self.num_frequencies)
        angles = group_centers.unsqueeze(-1) * frequencies  # (B, G, 3, C / 6)
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1)  # (B, G, 3, C / 3)
        return super().forward(waves.flatten(2), *args)
