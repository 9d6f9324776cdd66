"""Attention of voxels within patches of their order along a curve."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ...ops import reorder, rotate
from ...slots import PatchAttentionSlot, Stage
from ...voxels import Order, Patches, VoxelStage
from ..layers.slotted import SlottedModule


class RelativePositions(nn.Module):
    """A bias to the attention for the distance between two voxels along each axis.

    Args:
        patch_size: Voxels of a patch; distances of more than 2 (4 patch_size)^(1/3) cells count as that.
        num_heads: Attention heads.
    """

    def __init__(self, patch_size: int, num_heads: int):
        super().__init__()
        # As published, in floating point: the root of a cube comes out just below it (15, not 16, for 128 voxels).
        self.reach = int((4 * patch_size) ** (1 / 3) * 2)
        self.table = nn.Parameter(torch.zeros(3 * (2 * self.reach + 1), num_heads))

    def forward(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Biases of shape `(..., num_heads, Q, K)` for cells of shapes `(..., Q, 3)` and `(..., K, 3)`."""
        size = 2 * self.reach + 1
        distances = (queries.unsqueeze(-2) - keys.unsqueeze(-3)).clamp(-self.reach, self.reach)  # (..., Q, K, 3)
        rows = distances + self.reach + size * torch.arange(3, device=distances.device)
        return self.table[rows].sum(dim=-2).movedim(-1, -3)


class PatchAttention(SlottedModule):
    """Multi-head attention of each voxel to those of its patch."""

    def __init__(self, config, stage: Stage, num_heads: int, layer_index: int):
        super().__init__()
        hidden_size = stage.hidden_size
        self.num_heads, self.head_size = num_heads, hidden_size // num_heads
        self.dropout = config.attention_dropout
        qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=config.qkv_bias)
        self.add_layer("qkv", qkv, stage, layer_index, 3 * hidden_size)
        self.add_layer("out_proj", nn.Linear(hidden_size, hidden_size), stage, layer_index)
        self.attention_slot = PatchAttentionSlot(stage, layer_index, num_heads)
        self.relative_positions = None
        if config.relative_positions:
            self.relative_positions = RelativePositions(stage.group_size, num_heads)

    def forward(
        self,
        rows: torch.Tensor,
        voxels: VoxelStage,
        order: Order,
        rotation: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Attend within the patches of an order.

        Args:
            rows: Features after the norm, of shape `(N, hidden_size)`.
            voxels: The stage.
            order: The order of the block.
            rotation: Of the coordinates, from [`~point_peft_hf.ops.rotation`].

        Returns:
            Of the shape of `rows`.
        """
        qkv = self.run_layer("qkv", rows)
        query, key, value = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(1)  # (N, H, D) each
        if rotation is not None:
            qkv = torch.stack([rotate(query, rotation), rotate(key, rotation), value], dim=1).flatten(1)
        grid = voxels.grid.index_select(0, order.rows) if self.relative_positions is not None else None
        output = self._attend(reorder(qkv, order.rows, order.places), voxels.patches, grid)
        output = reorder(output, order.places, order.rows).unflatten(-1, (self.num_heads, -1))
        output = self.attention_slot(output, query, voxels).flatten(1)
        return self.run_layer("out_proj", output)

    def _attend(self, qkv: torch.Tensor, patches: Patches, grid: torch.Tensor | None) -> torch.Tensor:
        """Attention of rows in the order of the patches, of shape `(N, 3 * hidden_size)`."""
        num_full, size = patches.num_full, patches.size
        full, *short = qkv.split([num_full * size, *(piece.stop - piece.start for piece in patches.pieces)])
        outputs = []
        if num_full:
            cells = None if grid is None else grid[: num_full * size].view(num_full, size, 3)
            outputs.append(self._attention(full.view(num_full, size, -1), None, cells, cells).flatten(0, 1))
        # One gather for all: each slice of a tensor costs a gradient of its whole size.
        numbers = [number for piece in patches.pieces for number in piece.more]
        more = (
            full.index_select(0, torch.tensor(numbers, dtype=torch.long, device=qkv.device)) if numbers else full[:0]
        )
        mores = more.split([len(piece.more) for piece in patches.pieces])
        for piece, own, others in zip(patches.pieces, short, mores, strict=True):
            own_cells = cells = None
            if grid is not None:
                own_cells = grid[piece.start : piece.stop]
                cells = torch.cat([grid[piece.more.start : piece.more.stop], own_cells])[None]
                own_cells = own_cells[None]
            outputs.append(self._attention(own[None], others[None], own_cells, cells)[0])
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attention(
        self,
        own: torch.Tensor,
        others: torch.Tensor | None,
        own_cells: torch.Tensor | None,
        cells: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attention of rows `(P, Q, 3 * hidden_size)` to themselves and others in front, `(P, R, 3 * hidden_size)`."""
        query, key, value = own.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (P, H, Q, D) each
        if others is not None and others.shape[1]:
            _, *more = others.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
            key, value = (torch.cat(pair, dim=-2) for pair in zip(more, (key, value), strict=True))
        bias = None if cells is None else self.relative_positions(own_cells, cells).to(query.dtype)
        dropout = self.dropout if self.training else 0.0
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        return output.transpose(1, 2).flatten(2)
