"""Point-M2AE: multi-scale masked autoencoders for point clouds (arXiv 2205.14401).

From the top: points -> nested groups -> for each stage tokens and blocks -> read-out (`PointM2AEModel.encode`), and
the heads on it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import nn

from ...ops import gather_points, group_points
from ...slots import Backbone, LayerSlot, PointSlot, ReadoutSlot, Stage
from ...tokens import Cloud, Memo, Tokens, start_tokens
from ..layers import (
    PatchEmbedding,
    PointTransformerEncoder,
    PositionEmbedding,
    SlottedModule,
    TokenPyramid,
    is_constant,
    is_pretrained,
    original,
)
from ..modeling import Encoded, PointClassificationMixin, PointEncoderMixin, PointPreTrainedModel
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


class PointM2AEModel(PointEncoderMixin, SlottedModule, PointM2AEPreTrainedModel):
    """The encoder: in each stage groups -> tokens -> blocks, the tokens of a stage being the points of the next.

    The pooled features are mean and maximum over the tokens of the last stage, added up or side by side as `pooling`
    of the configuration says.

    Args:
        config: Configuration.
        use_local_attention: Whether attention is limited to `attention_radii`, as in the published fine-tuning. The
            published pre-training sees all visible tokens, so its own encoder has no limit.
    """

    def __init__(self, config: PointM2AEConfig, use_local_attention: bool = True):
        super().__init__(config)
        self.use_local_attention = use_local_attention
        self.layout = stages = build_stages(config)
        self.point_slot = PointSlot(stages[-1])
        self.patch_embeddings = nn.ModuleList()
        self.position_embeddings = nn.ModuleList()
        self.stages = nn.ModuleList()
        in_size, patch_hidden_sizes = 3, tuple(config.patch_hidden_sizes)
        for stage in stages:
            size = stage.hidden_size
            if stage.index > 0:
                in_size = stages[stage.index - 1].hidden_size
                patch_hidden_sizes = (in_size, in_size, size)
            self.patch_embeddings.append(PatchEmbedding(in_size, patch_hidden_sizes, size))
            self.position_embeddings.append(PositionEmbedding(size, size))
            self.stages.append(PointTransformerEncoder(config, stage, config.num_attention_heads))
        self.patch_embedding_slots = nn.ModuleList(LayerSlot(stage, "patch_embedding") for stage in stages)
        self.add_layer("layernorm", nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps), stages[-1])
        self.readout_slot = ReadoutSlot(stages[-1], "cloud", pooled_size(config))
        self.post_init()

    # -- Points to groups to tokens -----------------------------------------------------------------------------------

    def group(self, points: torch.Tensor) -> PointHierarchy:
        """Check clouds of shape `(batch_size, num_points, 3)`, and group them in all stages."""
        config = self.config
        points = self.check_points(points, config.num_groups[0], config.group_sizes[0])
        return group_nested(points, config.num_groups, config.group_sizes, skip_near_origin=config.skip_near_origin)

    def embed_stage(
        self, stage: int, hierarchy: PointHierarchy, finer: torch.Tensor | None, frozen: bool = False
    ) -> torch.Tensor:
        """Embed the groups of a stage.

        Args:
            stage: Number of the stage.
            hierarchy: The groups.
            finer: Features of the tokens of the stage before, which the groups of this one consist of; `None` for
                points.
            frozen: Whether to embed them as pre-trained, without adapters.

        Returns:
            Tokens of shape `(batch_size, num_groups[stage], hidden_sizes[stage])`.
        """
        groups = hierarchy.neighborhoods if stage == 0 else gather_points(finer, hierarchy.neighbor_indices[stage])
        embedding = self.patch_embeddings[stage]
        embedded = (original(embedding) if frozen else embedding)(groups, frozen)
        return embedded if frozen else self.patch_embedding_slots[stage](embedded, groups)

    def embed(
        self, points: torch.Tensor, num_groups: int, group_size: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Further tokens from the backbone's own grouping and embedding, as those of the first stage.

        They have features and position embeddings of shape `(batch_size, num_groups, hidden_sizes[0])`, and centres.
        """
        points = self.check_points(points, num_groups, group_size)
        options = {"skip_near_origin": self.config.skip_near_origin}
        neighborhoods, centers = group_points(points, num_groups, group_size, **options)
        features = self.patch_embedding_slots[0](self.patch_embeddings[0](neighborhoods), neighborhoods)
        return features, self.position_embeddings[0](centers), centers

    def position_embedding(self, coordinates: torch.Tensor, stage: int = 0) -> torch.Tensor:
        """Position embeddings of a stage, of shape `(batch_size, count, hidden_sizes[stage])`."""
        return self.position_embeddings[stage](coordinates)

    def _tokens(
        self,
        stage: int,
        hierarchy: PointHierarchy,
        features: torch.Tensor,
        cloud: Cloud,
        frozen: bool = False,
        is_local: bool | None = None,
    ) -> Tokens:
        """The tokens that enter a stage."""
        centers, embedding = hierarchy.centers[stage], self.position_embeddings[stage]
        is_local = self.use_local_attention if is_local is None else is_local
        radius = self.config.attention_radii[stage] if is_local else 0
        positions = (original(embedding) if frozen else embedding)(centers, frozen)
        mask = radius_mask(centers, radius, features.dtype)
        return start_tokens(features, centers, cloud, positions, mask=mask)

    # -- The whole way ------------------------------------------------------------------------------------------------

    def encode(
        self,
        points: torch.Tensor,
        sample_ids: torch.Tensor | None = None,
        precomputed: dict[str, torch.Tensor] | None = None,
        levels: tuple[int, ...] = (),
    ) -> Encoded:
        """Encode clouds, with the first arguments of `forward`.

        `levels` are the numbers of the stages whose tokens are wanted as well (those of the last stage are after the
        final norm).
        """
        cloud = Cloud(points, points, sample_ids, Memo(precomputed))
        backbone = Backbone(self)
        cloud = self.point_slot(cloud, backbone)
        is_kept = cloud.memo.kept is not None and cloud.points is points and not points.requires_grad
        hierarchy = self._kept_groups(cloud) if is_kept else self.group(cloud.points)
        features, left, carry, losses = None, [], {}, ()
        # Whether the tokens that enter the stage depend on the cloud alone.
        is_constant_so_far = is_kept
        for stage, encoder in enumerate(self.stages):
            embedding = (self.patch_embeddings[stage], self.patch_embedding_slots[stage])
            is_constant_so_far = is_constant_so_far and is_constant(*embedding)
            if is_constant_so_far:
                features = self._kept_features(stage, hierarchy, features, cloud)
            else:
                features = self.embed_stage(stage, hierarchy, features)
            if cloud.points is points:
                cloud.memo.values[f"backbone.known.{stage}"] = hierarchy, features
            tokens = self._tokens(stage, hierarchy, features, cloud)
            if is_constant_so_far and is_constant(self.position_embeddings[stage]):
                tokens = replace(tokens, constant="")
            if stage == 0:
                self.stages[0].own_tokens(tokens)
            tokens, _ = encoder(tokens.continuing(carry, losses), backbone)
            left.append(tokens)
            is_constant_so_far = tokens.constant is not None
            features, cloud, carry, losses = tokens.patches, tokens.cloud, tokens.carry, tokens.losses
        normed = tokens.with_features(self.run_layer("layernorm", tokens.features))
        pooled = self._pool(normed.patches)
        pooled = self.readout_slot(pooled, tokens, (normed,))
        left[-1] = normed
        return Encoded(tokens, normed, pooled, tuple(left[level] for level in levels))

    def _kept_groups(self, cloud: Cloud) -> PointHierarchy:
        """The groups, which are computed once for each cloud."""
        config, rows = self.config, cloud.points.shape[0]
        counts = list(enumerate(config.num_groups))
        shapes = {f"backbone.centers.{i}": (rows, count, 3) for i, count in counts}
        shapes |= {f"backbone.neighbors.{i}": (rows, count, config.group_sizes[i]) for i, count in counts}

        def compute() -> list[torch.Tensor]:
            hierarchy = self.group(cloud.points)
            return [*hierarchy.centers, *hierarchy.neighbor_indices]

        known = cloud.memo.all_once(shapes, compute)
        return PointHierarchy.of(cloud.points.to(known[0].dtype), known[: len(counts)], known[len(counts) :])

    def _kept_features(
        self, stage: int, hierarchy: PointHierarchy, finer: torch.Tensor | None, cloud: Cloud
    ) -> torch.Tensor:
        """Tokens of a stage with a frozen embedding, which are computed once for each cloud."""
        shape = (cloud.points.shape[0], self.config.num_groups[stage], self.config.hidden_sizes[stage])
        compute = partial(self.embed_stage, stage, hierarchy, finer)
        return cloud.memo.once(f"backbone.embedded.{stage}", compute, per_cloud=True, shape=shape)

    def _embedding_modules(self) -> tuple[nn.Module, ...]:
        return (self.patch_embeddings[0],)

    def _pool(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.config.pooling == "sum":
            return hidden_states.mean(dim=1) + hidden_states.amax(dim=1)
        # The published read-out takes the first token for a class token, which this model does not have.
        maximum = hidden_states[:, 1:] if hidden_states.shape[1] > 1 else hidden_states
        return torch.cat([hidden_states.mean(dim=1), maximum.amax(dim=1)], dim=-1)

    # -- As pre-trained -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def frozen_tokens(self, cloud: Cloud, depth: int | None = None, is_local: bool | None = None) -> Tokens:
        """Tokens of the pre-trained encoder, untouched by any adapter, of the clouds as they were passed in.

        Args:
            cloud: The clouds.
            depth: Number of blocks they have passed, counted over all stages, 0 for the tokens that enter the first;
                default: all. At the first block of a stage they are those that enter it.
            is_local: Whether attention is limited to the configured radii; default: as in the main pass.

        Returns:
            The tokens, without position embeddings added and before the final norm; no gradient.
        """
        is_local = self.use_local_attention if is_local is None else is_local
        stages = self.layout
        depth = stages[-1].total_layers if depth is None else depth
        last = max(stage.index for stage in stages if stage.first_layer <= depth)
        known = cloud.memo.values.get(f"backbone.known.{last}")
        if known is not None and depth == stages[last].first_layer and self._is_pretrained_before(last, is_local):
            # Nothing that the main pass did so far was adapted.
            return start_tokens(known[1].detach(), known[0].centers[last], cloud)
        hierarchy, features = cloud.memo.values.get("backbone.known.0") or (self.group(cloud.source), None)
        embedding = (self.patch_embeddings[0], self.patch_embedding_slots[0])
        if features is None or not all(map(is_pretrained, embedding)):
            features = self.embed_stage(0, hierarchy, None, frozen=True)
        features = features.detach()
        for index, encoder in enumerate(self.stages[: last + 1]):
            if index > 0:
                features = self.embed_stage(index, hierarchy, features, frozen=True)
            tokens = self._tokens(index, hierarchy, features, cloud, frozen=True, is_local=is_local)
            tokens = encoder.run_frozen(tokens, depth - stages[index].first_layer if index == last else None)
            features = tokens.patches
        return tokens

    def _is_pretrained_before(self, stage: int, is_local: bool) -> bool:
        """Whether the tokens of the main pass are those of the pre-trained encoder when they enter a stage."""
        blocks = self.stages[:stage]
        is_noisy = self.training and (self.config.drop_path_rate > 0 or self.config.attention_dropout > 0)
        if blocks and (is_noisy or is_local != self.use_local_attention):
            return False
        before = (self.patch_embeddings, self.patch_embedding_slots, self.position_embeddings)
        modules = [*(module for part in before for module in part[: stage + 1]), *blocks]
        return all(map(is_pretrained, modules))

    @torch.no_grad()
    def frozen_features(self, points: torch.Tensor | Cloud) -> torch.Tensor:
        """Features of the pre-trained encoder, untouched by any adapter: mean + maximum over the tokens at its end.

        Computed as in pre-training, so without the limit on attention.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`.

        Returns:
            Features of shape `(batch_size, hidden_size)`, without gradient.
        """
        cloud = points if isinstance(points, Cloud) else Cloud(points, points)
        tokens = self.frozen_tokens(cloud, is_local=False)
        return self.summarize(tokens.with_features(original(self.layernorm)(tokens.features)))

    def summarize(self, tokens: Tokens) -> torch.Tensor:
        """What `frozen_features` makes of tokens after the final norm, of shape `(batch_size, hidden_size)`."""
        return tokens.patches.mean(dim=1) + tokens.patches.amax(dim=1)


def build_stages(config: PointM2AEConfig) -> list[Stage]:
    """The stages of a hierarchical encoder, from the finest to the coarsest."""
    stages, first = [], 0
    total, count = sum(config.depths), len(config.depths)
    sizes = zip(config.hidden_sizes, config.group_sizes, config.depths, config.num_groups, strict=True)
    for index, (size, group_size, depth, num_groups) in enumerate(sizes):
        stages.append(Stage(size, group_size, depth, first, total, index, count, num_groups=num_groups))
        first += depth
    return stages


def pooled_size(config: PointM2AEConfig) -> int:
    """Width of the pooled features."""
    return config.hidden_size * (1 if config.pooling == "sum" else 2)


class PointM2AEForClassification(PointClassificationMixin, PointM2AEPreTrainedModel):
    """Point-M2AE with a classification head on mean and maximum over the tokens of the last stage.

    Args:
        config: Configuration; `num_labels` is the number of classes.
    """

    encoder_class = PointM2AEModel
    task_module_names = ("classifier",)


class PointM2AEForSegmentation(PointSegmentationMixin, PointM2AEPreTrainedModel):
    """Point-M2AE with a part segmentation head on the tokens of all stages, from the coarsest to the finest.

    Args:
        config: Configuration; `num_labels` is the number of parts.
    """

    encoder_class = PointM2AEModel
    task_module_names = ("segmentation_head",)

    def _build_fusion(self) -> TokenPyramid:
        config = self.config
        return TokenPyramid(config.hidden_sizes, config.segmentation_token_size, config.layer_norm_eps)

    @property
    def _levels(self) -> tuple[int, ...]:
        return tuple(range(self.config.num_stages))
