"""The layer of patch prompts."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ...slots import PatchAttentionSlot
from ...voxels import VoxelStage
from ..slot_layer import SlotLayer
from .config import PatchPromptConfig


class Prompts(nn.Module):
    """Keys, values and gates of a block.

    Args:
        num_heads: Attention heads.
        count: Number of prompts.
        head_size: Width of a head.
        init_weights: `True`: the gates are closed; otherwise open.
    """

    def __init__(self, num_heads: int, count: int, head_size: int, init_weights=True):
        super().__init__()
        self.keys = nn.Parameter(torch.empty(num_heads, count, head_size))
        self.values = nn.Parameter(torch.empty(num_heads, count, head_size))
        self.gates = nn.Parameter(torch.zeros(num_heads))
        nn.init.normal_(self.keys, std=head_size**-0.5)
        nn.init.normal_(self.values, std=head_size**-0.5)
        if init_weights is not True:
            nn.init.normal_(self.gates)

    def forward(self, query: torch.Tensor) -> torch.Tensor:
        """What is to be added for queries of shape `(N, num_heads, head_size)`."""
        query = query.to(self.keys.dtype).transpose(0, 1)  # (H, N, D)
        attended = F.scaled_dot_product_attention(query[None], self.keys[None], self.values[None])[0]
        return (self.gates.tanh()[:, None, None] * attended).transpose(0, 1)


class PatchPromptLayer(SlotLayer):
    """After the attention of a block, before its output projection."""

    slot_class = PatchAttentionSlot
    parts = ("prompts",)

    def create_parts(self, adapter_name: str, config: PatchPromptConfig, slot_name: str) -> dict[str, nn.Module]:
        """Create the prompts."""
        heads = self.slot.num_heads
        head_size = self.slot.hidden_size // heads
        return {"prompts": Prompts(heads, config.num_prompt_tokens, head_size, config.init_weights)}

    def adapt(self, name: str, output: torch.Tensor, query: torch.Tensor, voxels: VoxelStage) -> torch.Tensor:
        """Add the gated attention to the prompts to that to the patch, of shape `(N, num_heads, head_size)`."""
        return output + self.part("prompts", name)(query).to(output.dtype)
