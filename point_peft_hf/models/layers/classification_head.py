"""Pooled features to class scores."""

from collections.abc import Sequence

import torch
from torch import nn

from ...layers import FreezableBatchNorm1d, TaskModule


class ClassificationHead(TaskModule):
    """(Linear - BatchNorm - ReLU - Dropout) twice, then Linear: the head of most models.

    `hidden_size` is the width of both hidden layers, or their two widths.

    Shapes:
        - input: `(batch_size, in_size)`
        - output: `(batch_size, num_labels)`
    """

    def __init__(self, in_size: int, hidden_size: int | Sequence[int], num_labels: int, dropout: float):
        super().__init__()
        first, second = (hidden_size, hidden_size) if isinstance(hidden_size, int) else hidden_size
        self.dense1 = nn.Linear(in_size, first)
        self.norm1 = FreezableBatchNorm1d(first)
        self.dense2 = nn.Linear(first, second)
        self.norm2 = FreezableBatchNorm1d(second)
        self.output = nn.Linear(second, num_labels)
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the class scores (logits)."""
        features = self.dropout(self.activation(self.norm1(self.dense1(features))))
        features = self.dropout(self.activation(self.norm2(self.dense2(features))))
        return self.output(features)


class ShallowClassificationHead(TaskModule):
    """Linear - ReLU - Dropout - Linear: the head of Point-BERT.

    Shapes:
        - input: `(batch_size, in_size)`
        - output: `(batch_size, num_labels)`
    """

    def __init__(self, in_size: int, hidden_size: int, num_labels: int, dropout: float):
        super().__init__()
        self.dense = nn.Linear(in_size, hidden_size)
        self.output = nn.Linear(hidden_size, num_labels)
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the class scores (logits)."""
        return self.output(self.dropout(self.activation(self.dense(features))))
