"""The layer that Point-PEFT as a whole adds to those of its two modules."""

from __future__ import annotations

import torch
from torch import nn

from ...slots import AdapterSlot, LayerSlot
from ..slot_layer import SlotLayer
from .config import PointPeftConfig


class BiasLayer(SlotLayer):
    """Around a [`~point_peft_hf.slots.LayerSlot`]: shifts the bias of the layer in front of it."""

    slot_class = LayerSlot
    parts = ("bias",)

    @classmethod
    def wants(cls, config: PointPeftConfig, slot: AdapterSlot) -> bool:
        """Whether the layer is part of a block and has a bias."""
        return slot.is_in_block and slot.has_bias

    def create_parts(self, adapter_name: str, config: PointPeftConfig, slot_name: str) -> dict[str, nn.Module]:
        """Create the shift, 0 unless `init_weights=False`."""
        shift = nn.ParameterDict({"weight": torch.zeros(self.slot.hidden_size)})
        if config.init_weights is False:
            nn.init.normal_(shift.weight, std=0.02)
        return {"bias": shift}

    def shift(self) -> torch.Tensor | None:
        """The sum of the shifts, if there is no adapter of another type around the slot."""
        names = self.working_adapters()
        if self.base_layer is not self.slot or not names:
            return None
        first, *others = (self._modules[self.prefix + "bias"]._modules[name].weight for name in names)
        return sum(others, first)

    def adapt(self, name: str, output: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Shift features of shape `(..., hidden_size)`."""
        return output + self._modules[self.prefix + "bias"]._modules[name].weight.to(output.dtype)
