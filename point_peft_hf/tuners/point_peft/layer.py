"""Layers of Point-PEFT as a whole, besides those of its two modules."""

from __future__ import annotations

import torch
from torch import nn

from ..base import SlotLayer
from ..geometry_adapter.layer import SharedAttentionLayer
from ..point_prior_prompt.layer import BankLayer
from .config import PointPeftConfig


class BiasShift(nn.Module):
    """A learnable shift.

    Args:
        hidden_size: Width of the tokens.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size))


class BiasLayer(SlotLayer):
    """Around a [`~point_peft_hf.slots.LayerSlot`]: shifts the bias of the layer in front of it."""

    parts = ("bias",)

    def create_parts(self, adapter_name: str, config: PointPeftConfig, slot_name: str) -> dict[str, nn.Module]:
        """Create the shift, 0 unless `init_weights=False`."""
        shift = BiasShift(self.slot.hidden_size)
        if config.init_weights is False:
            nn.init.normal_(shift.weight, std=0.02)
        return {"bias": shift}

    def adapt(self, name: str, output: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Shift features of shape `(..., hidden_size)`."""
        return output + self._modules[self.prefix + "bias"]._modules[name].weight.to(output.dtype)


class StageLayer(BankLayer, SharedAttentionLayer):
    """In front of a stage: the bank of the prompts, the local attention of the geometry."""

    parts = SharedAttentionLayer.parts
    buffer_parts = BankLayer.buffer_parts

    def create_parts(self, adapter_name: str, config: PointPeftConfig, slot_name: str) -> dict[str, nn.Module]:
        """Create what the configuration has."""
        created = {}
        if config.use_prompts and config.use_bank and self.slot.stage.is_last:
            created |= BankLayer.create_parts(self, adapter_name, config, slot_name)
        if config.use_geometry:
            created |= SharedAttentionLayer.create_parts(self, adapter_name, config, slot_name)
        return created

    def adapt(self, name, tokens, backbone):
        """Share it with the blocks."""
        if self.part("bank", name) is not None:
            tokens = BankLayer.adapt(self, name, tokens, backbone)
        if self.part("local_attention", name) is not None:
            tokens = SharedAttentionLayer.adapt(self, name, tokens, backbone)
        return tokens
