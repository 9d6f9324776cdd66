"""Centres to position embeddings."""

import torch
from torch import nn
from torch.nn import functional as F

from .slotted import original


class PositionEmbedding(nn.Module):
    """Embed the centre of each group: Linear - GELU - Linear (Point-BERT, arXiv 2111.14819).

    Shapes:
        - input: `(batch_size, num_groups, 3)`, in the unit of the cloud
        - output: `(batch_size, num_groups, hidden_size)`
    """

    def __init__(self, position_hidden_size: int, hidden_size: int):
        super().__init__()
        self.linear1 = nn.Linear(3, position_hidden_size)
        self.linear2 = nn.Linear(position_hidden_size, hidden_size)

    def forward(self, group_centers: torch.Tensor, frozen: bool = False) -> torch.Tensor:
        """Embed the centres, or embed them as the module was pre-trained to (`frozen`)."""
        linear1, linear2 = (original(m) if frozen else m for m in (self.linear1, self.linear2))
        return linear2(F.gelu(linear1(group_centers.to(_dtype(self.linear1)))))


def _dtype(linear: nn.Module) -> torch.dtype:
    weight = original(linear).weight
    # A quantised layer has a method in the place of the weight, and takes float32.
    return weight.dtype if isinstance(weight, torch.Tensor) and weight.is_floating_point() else torch.float32
