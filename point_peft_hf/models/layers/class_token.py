"""The class token and its position."""

import torch
from torch import nn

from ...layers import TaskModule


class ClassToken(TaskModule):
    """A learnable token with a learnable position embedding.

    A module of its own, because it is part of the task, not of the pre-training (Point-MAE's checkpoints have none),
    so adapters save it with the head.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.position = nn.Parameter(torch.zeros(1, 1, hidden_size))

    def forward(self, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token and position, each of shape `(batch_size, 1, hidden_size)`."""
        return self.token.expand(batch_size, -1, -1), self.position.expand(batch_size, -1, -1)
