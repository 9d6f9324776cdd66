"""Layers of Point-PEFT as a whole: those of its two modules, and shifts of the biases."""

from __future__ import annotations

import torch
from torch import nn

from ..base import SlotLayer
from ..geometry_adapter.layer import FeedForwardLayerMixin, LocalityLayerMixin, OutputLayerMixin
from ..inserting_layer import InsertingLayer
from ..point_prior_prompt.layer import PriorLayerMixin, PromptLayerMixin
from .config import PointPeftConfig


class BiasShift(nn.Module):
    """A learnable shift.

    Args:
        hidden_size: Width of the tokens.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size))


class PointPeftLayer(SlotLayer):
    """Base of the layers of type POINT_PEFT."""

    prefix = "point_peft_"
    configs: dict[str, PointPeftConfig]


class PointPeftPriorLayer(PriorLayerMixin, PointPeftLayer):
    """Prior layer of type POINT_PEFT."""


class PointPeftPromptLayer(PromptLayerMixin, InsertingLayer, PointPeftLayer):
    """Prompt layer of type POINT_PEFT."""


class PointPeftLocalityLayer(LocalityLayerMixin, PointPeftLayer):
    """Locality layer of type POINT_PEFT."""


class PointPeftFeedForwardLayer(FeedForwardLayerMixin, PointPeftLayer):
    """Feed-forward layer of type POINT_PEFT."""


class PointPeftOutputLayer(OutputLayerMixin, PointPeftLayer):
    """Output layer of type POINT_PEFT."""


class PointPeftBiasLayer(PointPeftLayer):
    """Around a [`~point_peft_hf.slots.BiasSlot`]: shifts the bias of the layer in front of it."""

    parts = ("bias",)

    def create_parts(self, adapter_name: str, config: PointPeftConfig, slot_name: str) -> dict[str, nn.Module]:
        """Create the shift, 0 unless `init_weights=False`."""
        shift = BiasShift(self.slot.hidden_size)
        if not config.init_weights:
            nn.init.normal_(shift.weight, std=0.02)
        return {"bias": shift}

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Shift tokens of shape `(..., hidden_size)`."""
        hidden_states = self.base_layer(hidden_states)
        for name in self.working_adapters():
            hidden_states = hidden_states + self.part("bias", name).weight.to(hidden_states.dtype)
        return hidden_states
