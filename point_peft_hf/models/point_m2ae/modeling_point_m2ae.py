"""Point-M2AE: multi-scale masked autoencoders for point clouds (arXiv 2205.14401)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import nn

from ...ops import gather_points
from ...slots import BlockContext, pool_tokens
from ..layers import (
    ClassificationHead,
    PatchEmbedding,
    PointTransformerEncoder,
    PositionEmbedding,
    TokenPyramid,
    check_frozen,
    is_pretrained,
    pretrained_behavior,
)
from ..modeling import PointClassificationMixin, PointPreTrainedModel
from ..modeling_outputs import PointModelOutput
from ..segmentation import PointSegmentationMixin
from .configuration_point_m2ae import PointM2AEConfig
from .hierarchy import PointHierarchy, group_nested, radius_mask


class PointM2AEPreTrainedModel(PointPreTrainedModel):
    """Base of the Point-M2AE models."""

    config_class = PointM2AEConfig
    config: PointM2AEConfig
    base_model_prefix = "point_m2ae"
    # A pre-training checkpoint brings its decoder and the norms of all stages; the encoder and the classifier only use
    # that of the last stage.
    _keys_to_ignore_on_load_unexpected = [
        r"^decoder",
        r"^mask_token",
        r"^reconstruction_head",
        r"^token_propagations",
        r"^stage_layernorms",
    ]

    def get_input_embeddings(self) -> nn.Module:
        """Return the layer that turns groups into tokens; gradient checkpointing hooks its output."""
        return getattr(self, self.base_model_prefix, self).patch_embeddings[0]


class PointM2AEModel(PointM2AEPreTrainedModel):
    """The encoder: in each stage groups -> tokens -> blocks, the tokens of a stage being the points of the next.

    Args:
        config: Configuration.
        use_local_attention: Whether attention is limited to `attention_radii`, as in the published fine-tuning. The
            published pre-training sees all visible tokens, so its own encoder has no limit.
    """

    def __init__(self, config: PointM2AEConfig, use_local_attention: bool = True):
        super().__init__(config)
        self.use_local_attention = use_local_attention
        self.patch_embeddings = nn.ModuleList()
        self.position_embeddings = nn.ModuleList()
        self.stages = nn.ModuleList()
        in_size, patch_hidden_sizes, num_layers = 3, tuple(config.patch_hidden_sizes), 0
        for stage, (hidden_size, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True)):
            if stage > 0:
                in_size = config.hidden_sizes[stage - 1]
                patch_hidden_sizes = (in_size, in_size, hidden_size)
            self.patch_embeddings.append(PatchEmbedding(in_size, patch_hidden_sizes, hidden_size))
            self.position_embeddings.append(PositionEmbedding(hidden_size, hidden_size))
            self.stages.append(
                PointTransformerEncoder(
                    config,
                    hidden_size,
                    config.num_attention_heads,
                    depth,
                    config.group_sizes[stage],
                    first_layer_index=num_layers,
                    total_num_layers=config.num_hidden_layers,
                    is_first_stage=stage == 0,
                    is_last_stage=stage == config.num_stages - 1,
                )
            )
            num_layers += depth
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def group(self, points: torch.Tensor) -> PointHierarchy:
        """Check and group the clouds.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`.

        Returns:
            The groups of all stages.

        Raises:
            ValueError: If the clouds are no float tensor of that shape, not finite or too small.
        """
        config = self.config
        points = self._check_points(points, config.num_groups[0], config.group_sizes[0])
        return group_nested(points, config.num_groups, config.group_sizes, skip_near_origin=config.skip_near_origin)

    def forward(
        self,
        points: torch.Tensor,
        query_features: torch.Tensor | None = None,
        sample_ids: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> PointModelOutput | tuple:
        """Encode clouds.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`, with at least `num_groups[0]` and `group_sizes[0]`
                points.
            query_features: Features that a point-prior bank is asked with, of shape `(batch_size, hidden_size)`, as
                `extract_prior_features` returns them. Computed here when an adapter needs them and none are given;
                pass them to save that pass where the clouds are not augmented.
            sample_ids: Numbers of the clouds in their data set, of shape `(batch_size,)`, -1 where unknown. Only
                adapters need them that leave a cloud's own entry out of its bank or update it, and only in training.
            output_hidden_states: Whether to return the tokens at every block; their number and width change from stage
                to stage. Default: as in the configuration.
            output_attentions: Whether to return the attention weights; needs `attn_implementation="eager"`.
            return_dict: Whether to return a [`PointModelOutput`] instead of a tuple; default: as in the configuration.
            **kwargs: Ignored; keys that trainers pass along.

        Returns:
            The tokens of the last stage after the final norm, the pooled features (mean and maximum over the tokens,
            added up or side by side as `pooling` says), and the centres of the last stage.

        Raises:
            ValueError: If the clouds are no float tensor of that shape, not finite or too small.
        """
        hierarchy = self.group(points)
        tokens = self.patch_embeddings[0](hierarchy.neighborhoods)
        prior_slot = self.stages[-1].prior_slot
        if self._is_trained_with(prior_slot):
            check_frozen(self)
        shared = tokens.detach() if is_pretrained(self.patch_embeddings[0]) else None
        if query_features is None and prior_slot.needs_query_features:
            query_features = self._prior_features(hierarchy, shared)
        context = BlockContext(hierarchy.centers[0], query_features=query_features, sample_ids=sample_ids)
        shared_depths = {depth for depth in prior_slot.query_depths if self._tokens_are_pretrained(depth)}
        if other_depths := prior_slot.query_depths - shared_depths:
            context.token_features = self._token_features(hierarchy, other_depths, shared)
        hidden_states, all_hidden_states, attentions = self._encode(
            hierarchy, tokens, self.use_local_attention, context, shared_depths
        )
        hidden_states = self.layernorm(hidden_states)

        if self.config.pooling == "sum":
            pooled = hidden_states.mean(dim=1) + hidden_states.amax(dim=1)
        else:
            # The published read-out takes the first token for a class token, which this model does not have.
            maximum = hidden_states[:, 1:] if hidden_states.shape[1] > 1 else hidden_states
            pooled = torch.cat([hidden_states.mean(dim=1), maximum.amax(dim=1)], dim=-1)
        if prior_slot.updates_bank:
            prior_slot.update_banks(
                self._adapted_context(context, hierarchy, [tokens, *all_hidden_states], hidden_states)
            )
        wants_hidden_states = self._wants("output_hidden_states", output_hidden_states)
        output = PointModelOutput(
            last_hidden_state=hidden_states,
            pooler_output=pooled,
            hidden_states=(tokens, *all_hidden_states) if wants_hidden_states else None,
            attentions=tuple(attentions) if self._wants("output_attentions", output_attentions) else None,
            group_centers=hierarchy.centers[-1],
            stage_centers=tuple(hierarchy.centers) if wants_hidden_states else None,
        )
        return output if self._wants("return_dict", return_dict) else output.to_tuple()

    def _encode(
        self,
        hierarchy: PointHierarchy,
        tokens: torch.Tensor,
        use_local_attention: bool,
        context: BlockContext,
        token_depths: Collection[int] = (),
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor | None]]:
        """Run the stages on the tokens of the first; return as [`PointTransformerEncoder`] does, over all stages."""
        all_hidden_states, all_attentions = [], []
        hidden_states = tokens
        for stage in range(len(self.stages)):
            entered = self._enter_stage(stage, hierarchy, hidden_states, use_local_attention, context)
            depths = token_depths if stage == len(self.stages) - 1 else ()
            hidden_states, stage_hidden_states, stage_attentions = self.stages[stage](*entered, depths)
            all_hidden_states += stage_hidden_states
            all_attentions += stage_attentions
        return hidden_states, all_hidden_states, all_attentions

    def _enter_stage(
        self,
        stage: int,
        hierarchy: PointHierarchy,
        hidden_states: torch.Tensor,
        use_local_attention: bool,
        context: BlockContext,
    ) -> tuple[torch.Tensor, torch.Tensor, BlockContext]:
        """What a stage is fed with: tokens (made of those of the stage before), position embeddings, context."""
        centers = hierarchy.centers[stage]
        if stage > 0:
            hidden_states = self.patch_embeddings[stage](
                gather_points(hidden_states, hierarchy.neighbor_indices[stage])
            )
        radius = self.config.attention_radii[stage] if use_local_attention else 0
        mask = radius_mask(centers, radius, hidden_states.dtype)
        context = replace(context, group_centers=centers, attention_mask=mask)
        return hidden_states, self.position_embeddings[stage](centers), context

    @torch.no_grad()
    def extract_prior_features(self, points: torch.Tensor, query_depth: int | None = None) -> torch.Tensor:
        """Features of the pre-trained encoder, untouched by any adapter: mean + maximum over the tokens at its end.

        Computed as in pre-training, so without the limit on attention.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`.
            query_depth: 0: return the mean over the tokens that enter the last stage instead, as adapters with
                `query="tokens"` ask their bank with. These are computed as in the main pass, with its limit.

        Returns:
            Features of shape `(batch_size, hidden_size)`, without gradient.
        """
        if query_depth is None:
            return self._prior_features(self.group(points))
        return self._token_features(self.group(points), (query_depth,))[query_depth]

    def _tokens_are_pretrained(self, depth: int) -> bool:
        """Whether the tokens of this pass are those of the pre-trained encoder up to a block of the last stage."""
        before = [layer for stage in self.stages[:-1] for layer in stage.layers]
        blocks = [*before, *self.stages[-1].layers[:depth]]
        is_noisy = self.training and (self.config.drop_path_rate > 0 or self.config.attention_dropout > 0)
        if is_noisy and blocks:
            return False
        return all(map(is_pretrained, (*self.patch_embeddings, *self.position_embeddings, *blocks)))

    def _token_features(
        self, hierarchy: PointHierarchy, depths: Collection[int], tokens: torch.Tensor | None = None
    ) -> dict[int, torch.Tensor]:
        """The mean over the tokens of the pre-trained encoder, by the blocks of the last stage they have passed."""
        context = BlockContext(hierarchy.centers[0])
        with pretrained_behavior(self):
            hidden_states = self.patch_embeddings[0](hierarchy.neighborhoods) if tokens is None else tokens
            for stage, encoder in enumerate(self.stages):
                entered = self._enter_stage(stage, hierarchy, hidden_states, self.use_local_attention, context)
                if stage == len(self.stages) - 1:
                    return encoder.token_features(*entered, depths)
                hidden_states, _, _ = encoder(*entered)

    @torch.no_grad()
    def _adapted_context(
        self,
        context: BlockContext,
        hierarchy: PointHierarchy,
        all_hidden_states: list[torch.Tensor],
        hidden_states: torch.Tensor,
    ) -> BlockContext:
        """A context with what the adapted model has in the places that banks are asked from.

        Args:
            context: What the pass began with.
            hierarchy: The groups.
            all_hidden_states: The tokens that entered the first stage, and those that left each block.
            hidden_states: The tokens after the final norm.
        """
        prior_slot, last = self.stages[-1].prior_slot, len(self.stages) - 1
        adapted = {}
        if prior_slot.query_depths:
            num_blocks = len(self.stages[-1].layers)
            before, blocks = all_hidden_states[-num_blocks - 1], all_hidden_states[-num_blocks:]
            entered, _, _ = self._enter_stage(last, hierarchy, before, self.use_local_attention, context)
            adapted = {depth: pool_tokens([entered, *blocks][depth]) for depth in prior_slot.query_depths}
        pooled = hidden_states.mean(dim=1) + hidden_states.amax(dim=1)
        return replace(context, query_features=pooled, token_features=adapted)

    def _prior_features(self, hierarchy: PointHierarchy, tokens: torch.Tensor | None = None) -> torch.Tensor:
        context = BlockContext(hierarchy.centers[0])
        with pretrained_behavior(self):
            if tokens is None:
                tokens = self.patch_embeddings[0](hierarchy.neighborhoods)
            hidden_states = self.layernorm(self._encode(hierarchy, tokens, False, context)[0])
            return hidden_states.mean(dim=1) + hidden_states.amax(dim=1)


class PointM2AEForClassification(PointClassificationMixin, PointM2AEPreTrainedModel):
    """Point-M2AE with a classification head on mean and maximum over the tokens of the last stage.

    Args:
        config: Configuration; `num_labels` is the number of classes.
    """

    task_module_names = ("classifier",)

    def __init__(self, config: PointM2AEConfig):
        super().__init__(config)
        self.point_m2ae = PointM2AEModel(config)
        pooled_size = config.hidden_size * (1 if config.pooling == "sum" else 2)
        self.classifier = ClassificationHead(
            pooled_size, config.classifier_hidden_size, config.num_labels, config.classifier_dropout
        )
        self.post_init()


class PointM2AEForSegmentation(PointSegmentationMixin, PointM2AEPreTrainedModel):
    """Point-M2AE with a part segmentation head on the tokens of all stages, from the coarsest to the finest.

    Args:
        config: Configuration; `num_labels` is the number of parts.
    """

    task_module_names = ("segmentation_head",)

    def __init__(self, config: PointM2AEConfig):
        super().__init__(config)
        self.point_m2ae = PointM2AEModel(config)
        self.segmentation_head = self._build_head(
            TokenPyramid(config.hidden_sizes, config.segmentation_token_size, config.layer_norm_eps)
        )
        self.post_init()

    def _select_features(self, outputs: PointModelOutput) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
        # The last block of each stage; the first of the hidden states is what enters the first block.
        last_blocks = [sum(self.config.depths[: stage + 1]) for stage in range(self.config.num_stages)]
        hidden_states = [outputs.hidden_states[block] for block in last_blocks[:-1]]
        return [*hidden_states, outputs.last_hidden_state], outputs.stage_centers


__all__ = [
    "PointM2AEForClassification",
    "PointM2AEForSegmentation",
    "PointM2AEModel",
    "PointM2AEPreTrainedModel",
]
