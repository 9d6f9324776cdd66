"""Pre-training of Point-M2AE: masking across the stages, and a decoder that upsamples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils import can_return_tuple

from ...layers import FreezableBatchNorm1d
from ...ops import chamfer_distance, gather_points, inverse_distance_weights
from ...slots import Backbone, Stage
from ...tokens import Cloud, start_tokens
from ..layers import PointTransformerEncoder, PositionEmbedding
from ..modeling import MaskedAutoencoderMixin
from ..modeling_outputs import PointReconstructionOutput
from .configuration_point_m2ae import PointM2AEConfig
from .hierarchy import PointHierarchy, blocked_scores
from .modeling_point_m2ae import PointM2AEModel, PointM2AEPreTrainedModel


class ResidualPointLayer(nn.Module):
    """GELU(x + Norm(Linear(GELU(Norm(Linear(x))))))."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear1 = nn.Linear(hidden_size, hidden_size)
        self.norm1 = FreezableBatchNorm1d(hidden_size)
        self.linear2 = nn.Linear(hidden_size, hidden_size)
        self.norm2 = FreezableBatchNorm1d(hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Refine tokens of shape `(rows, hidden_size)`."""
        residual = self.norm2(self.linear2(F.gelu(self.norm1(self.linear1(hidden_states)))))
        return F.gelu(hidden_states + residual)


class TokenPropagation(nn.Module):
    """Upsample tokens from their 3 nearest neighbours, and fuse them with what the finer stage knows."""

    def __init__(self, coarse_size: int, fine_size: int, depth: int):
        super().__init__()
        self.fuse_linear = nn.Linear(fine_size + coarse_size, fine_size)
        self.fuse_norm = FreezableBatchNorm1d(fine_size)
        self.layers = nn.ModuleList(ResidualPointLayer(fine_size) for _ in range(depth))

    def forward(
        self,
        fine_centers: torch.Tensor,
        coarse_centers: torch.Tensor,
        fine_tokens: torch.Tensor,
        coarse_tokens: torch.Tensor,
    ) -> torch.Tensor:
        """Upsample.

        Args:
            fine_centers: Of shape `(batch_size, num_fine, 3)`.
            coarse_centers: Of shape `(batch_size, num_coarse, 3)`.
            fine_tokens: Of shape `(batch_size, num_fine, fine_size)`.
            coarse_tokens: Of shape `(batch_size, num_coarse, coarse_size)`.

        Returns:
            Tokens of shape `(batch_size, num_fine, fine_size)`.
        """
        num_neighbors = min(3, coarse_centers.shape[1])
        weights = inverse_distance_weights(fine_centers, coarse_centers, num_neighbors=num_neighbors)
        interpolated = weights.to(coarse_tokens.dtype) @ coarse_tokens
        fused = self.fuse_linear(torch.cat([fine_tokens, interpolated], dim=-1)).flatten(0, 1)
        fused = F.gelu(self.fuse_norm(fused))
        for layer in self.layers:
            fused = layer(fused)
        return fused.view(*fine_tokens.shape[:2], -1)


@dataclass
class VisibleTokens:
    """The visible tokens of a stage, in front of each row; rows are as long as the fullest.

    Attributes:
        indices: Which groups they are, of shape `(batch_size, max_visible)`.
        is_valid: Which entries are tokens, of shape `(batch_size, max_visible)`; the others fill up.
    """

    indices: torch.Tensor
    is_valid: torch.Tensor

    def scatter(self, tokens: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """Put visible tokens `(batch_size, max_visible, C)` back to their places in `table` `(batch_size, G, C)`."""
        indices = self.indices[..., None].expand_as(tokens)
        # Filling entries point at masked groups, and leave them as they are.
        values = torch.where(self.is_valid[..., None], tokens, table.gather(1, indices))
        return table.scatter(1, indices, values)

    def attention_mask(self, dtype: torch.dtype) -> torch.Tensor:
        """Additive mask `(batch_size, 1, max_visible, max_visible)`: what fills up is only seen by itself."""
        itself = torch.eye(self.is_valid.shape[1], dtype=torch.bool, device=self.is_valid.device)
        return blocked_scores(~(self.is_valid[:, None] | itself), dtype)


def select_visible(mask: torch.Tensor) -> VisibleTokens:
    """The groups that are not masked, from a mask of shape `(batch_size, num_groups)`."""
    counts = (~mask).sum(dim=1)
    max_visible = int(counts.max())
    indices = mask.to(torch.uint8).argsort(dim=1, stable=True)[:, :max_visible]
    return VisibleTokens(indices, torch.arange(max_visible, device=mask.device) < counts[:, None])


def masks_of_all_stages(mask: torch.Tensor, hierarchy: PointHierarchy) -> list[torch.Tensor]:
    """Carry the mask of the last stage to the finer ones: a token is visible if it is part of a visible group.

    Args:
        mask: Masked groups of the last stage, of shape `(batch_size, num_groups[-1])`.
        hierarchy: The groups.

    Returns:
        A mask for each stage, of shape `(batch_size, num_groups[i])`.
    """
    masks = [mask]
    for stage in range(len(hierarchy.centers) - 1, 0, -1):
        members = hierarchy.neighbor_indices[stage]
        visible = (~masks[0])[..., None].expand_as(members).to(torch.uint8)
        finer = torch.zeros(hierarchy.centers[stage - 1].shape[:2], dtype=torch.uint8, device=mask.device)
        finer = finer.scatter_reduce(1, members.flatten(1), visible.flatten(1), reduce="amax")
        masks.insert(0, finer == 0)
    return masks


class PointM2AEForPreTraining(MaskedAutoencoderMixin, PointM2AEPreTrainedModel):
    """Multi-scale masked autoencoding: predict the points of masked groups from the visible ones.

    Groups of the last stage are masked at random, and with them what belongs to no visible group in the finer stages.
    The decoder goes back from the last stage, and predicts the groups of the stage where it ends.

    Args:
        config: Configuration; `mask_ratio` and the `decoder_*` fields describe the task.
    """

    _keys_to_ignore_on_load_unexpected = [r"^classifier"]

    def __init__(self, config: PointM2AEConfig):
        super().__init__(config)
        self.point_m2ae = PointM2AEModel(config, use_local_attention=False)
        # The last stage has its norm in the encoder.
        self.stage_layernorms = nn.ModuleList(
            nn.LayerNorm(hidden_size, eps=config.layer_norm_eps) for hidden_size in config.hidden_sizes[:-1]
        )
        self.mask_token = nn.Parameter(torch.zeros(1, config.hidden_size))
        hidden_sizes = config.hidden_sizes[::-1][: len(config.decoder_depths)]
        group_sizes = config.group_sizes[::-1]
        self.decoder_position_embeddings = nn.ModuleList(PositionEmbedding(size, size) for size in hidden_sizes)
        self.decoder_stages = nn.ModuleList(
            PointTransformerEncoder(
                config, Stage(size, group_size, depth, is_encoder=False), config.num_attention_heads
            )
            for size, depth, group_size in zip(hidden_sizes, config.decoder_depths, group_sizes, strict=False)
        )
        self.token_propagations = nn.ModuleList(
            TokenPropagation(coarse, fine, depth)
            for coarse, fine, depth in zip(
                hidden_sizes[:-1], hidden_sizes[1:], config.decoder_propagation_depths, strict=True
            )
        )
        self.decoder_layernorm = nn.LayerNorm(hidden_sizes[-1], eps=config.layer_norm_eps)
        self.reconstruction_head = nn.Linear(hidden_sizes[-1], 3 * config.group_sizes[0])
        self.post_init()

    @can_return_tuple
    def forward(
        self, points: torch.Tensor, mask: torch.BoolTensor | None = None, **kwargs
    ) -> PointReconstructionOutput | tuple:
        """Mask groups and predict their points.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`.
            mask: Groups of the last stage to mask, of shape `(batch_size, num_groups[-1])`; random by default.
            **kwargs: `return_dict`; keys that trainers pass along are ignored.

        Returns:
            The Chamfer distance between the masked groups of the decoder's last stage and their reconstruction, and
            both. The number of these groups differs from cloud to cloud, so they are in one row: `reconstruction` has
            shape `(num_masked, group_sizes[0], 3)`, `target` `(num_masked, group_sizes[i], 3)`, in the order of the
            `True` entries of `mask`, of shape `(batch_size, num_groups[i])`.

        Raises:
            ValueError: If the clouds or the mask do not fit the model.
        """
        hierarchy = self.point_m2ae.group(points)
        centers = hierarchy.centers[-1]
        mask = self._random_mask(centers) if mask is None else self._check_mask(mask, centers, "num_groups[-1]")
        masks = masks_of_all_stages(mask, hierarchy)
        visible = [select_visible(stage_mask) for stage_mask in masks]
        hidden_states, stage = self._decode(hierarchy, visible, self._encode_visible(hierarchy, visible))

        masked = masks[stage]
        reconstruction = self.reconstruction_head(hidden_states[masked]).unflatten(1, (-1, 3)).float()
        if stage > 0:
            members = gather_points(hierarchy.centers[stage - 1], hierarchy.neighbor_indices[stage])
            neighborhoods = members - hierarchy.centers[stage][:, :, None]
        else:
            neighborhoods = hierarchy.neighborhoods
        target = neighborhoods[masked]
        return PointReconstructionOutput(
            loss=chamfer_distance(reconstruction, target).mean(),
            reconstruction=reconstruction,
            target=target,
            mask=masked,
            group_centers=hierarchy.centers[stage],
        )

    def _encode_visible(self, hierarchy: PointHierarchy, visible: list[VisibleTokens]) -> list[torch.Tensor]:
        """For each stage the visible tokens after its norm, of shape `(batch_size, max_visible, hidden_sizes[i])`."""
        model, encoded, table = self.point_m2ae, [], None
        cloud = Cloud(hierarchy.centers[0], hierarchy.centers[0])
        for stage, encoder in enumerate(model.stages):
            table = model.embed_stage(stage, hierarchy, table)
            here = visible[stage]
            features, centers = (
                gather_points(table, here.indices),
                gather_points(hierarchy.centers[stage], here.indices),
            )
            positions, mask = model.position_embeddings[stage](centers), here.attention_mask(features.dtype)
            tokens, _ = encoder(start_tokens(features, centers, cloud, positions, mask=mask), Backbone(model))
            table = here.scatter(tokens.patches, table)
            norm = self.stage_layernorms[stage] if stage < len(self.stage_layernorms) else model.layernorm
            encoded.append(norm(tokens.patches))
        return encoded

    def _decode(
        self, hierarchy: PointHierarchy, visible: list[VisibleTokens], encoded: list[torch.Tensor]
    ) -> tuple[torch.Tensor, int]:
        """Tokens of all groups of the stage where the decoder ends, and the number of that stage."""
        hidden_states = None
        last = len(encoded) - 1
        for step, decoder in enumerate(self.decoder_stages):
            stage = last - step
            centers, tokens = hierarchy.centers[stage], encoded[stage]
            empty = tokens.new_zeros(*centers.shape[:2], tokens.shape[-1])
            if step == 0:
                hidden_states = visible[stage].scatter(tokens, empty + self.mask_token.to(tokens.dtype))
            else:
                hidden_states = self.token_propagations[step - 1](
                    centers, hierarchy.centers[stage + 1], visible[stage].scatter(tokens, empty), hidden_states
                )
            positions = self.decoder_position_embeddings[step](centers)
            tokens, _ = decoder(
                start_tokens(hidden_states, centers, Cloud(centers, centers), positions), Backbone(self)
            )
            hidden_states = tokens.patches
        return self.decoder_layernorm(hidden_states), last + 1 - len(self.decoder_stages)
