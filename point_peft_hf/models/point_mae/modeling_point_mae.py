"""Point-MAE: masked autoencoders for point clouds (arXiv 2203.06604).

From the top: points -> groups -> tokens -> blocks -> read-out (`PointMAEModel.encode`), and the heads on it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import nn
from transformers.utils import can_return_tuple

from ...ops import chamfer_distance, gather_points, group_points
from ...slots import Backbone, LayerSlot, PointSlot, ReadoutSlot, Stage
from ...tokens import CLASS, Cloud, Memo, Tokens, start_tokens
from ..configuration import SingleStageConfig
from ..layers import (
    ClassToken,
    PatchEmbedding,
    PointTransformerEncoder,
    PositionEmbedding,
    SinePositionEmbedding,
    SlottedModule,
    TokenFusion,
    current,
    is_constant,
    is_pretrained,
    original,
)
from ..modeling import (
    Encoded,
    MaskedAutoencoderMixin,
    PointClassificationMixin,
    PointEncoderMixin,
    PointPreTrainedModel,
)
from ..modeling_outputs import PointReconstructionOutput
from ..segmentation import PointSegmentationMixin
from .configuration_point_mae import PointMAEConfig


class PointMAEPreTrainedModel(PointPreTrainedModel):
    """Base of the Point-MAE models."""

    config_class = PointMAEConfig
    config: PointMAEConfig
    base_model_prefix = "point_mae"
    # A pre-training checkpoint brings its decoder; the encoder and the classifier do not miss it.
    _keys_to_ignore_on_load_unexpected = [r"^decoder", r"^mask_token", r"^reconstruction_head"]


class SingleStageEncoder(PointEncoderMixin, SlottedModule):
    """An encoder whose blocks all work on the same groups; Point-MAE, and with other layers Point-BERT."""

    task_module_names = ("class_token",)
    # Whether the class token comes from pre-training; only then it has a say in the features of the pre-trained
    # encoder.
    is_pretrained_with_class_token = False
    num_class_tokens = 1
    # What is put in front of the patch tokens.
    prefix_names: ClassVar[tuple[str, ...]] = ("class_token",)
    encoder_class: ClassVar[type[PointTransformerEncoder]] = PointTransformerEncoder

    def _build(self, config: SingleStageConfig, use_class_token: bool) -> None:
        size, num_class = config.hidden_size, self.num_class_tokens if use_class_token else 0
        stage = Stage(
            size,
            config.group_size,
            config.num_hidden_layers,
            num_class=num_class,
            num_groups=config.num_groups,
        )
        self.point_slot = PointSlot(stage)
        self.patch_embedding = self._build_patch_embedding(config)
        self.patch_embedding_slot = LayerSlot(stage, "patch_embedding")
        self.position_embedding = self._build_position_embedding(config)
        self.class_token = ClassToken(size) if use_class_token else None
        self.encoder = self.encoder_class(config, stage, config.num_attention_heads)
        self.add_layer("layernorm", nn.LayerNorm(size, eps=config.layer_norm_eps), stage)
        self.readout_slot = ReadoutSlot(stage, "cloud", (num_class + 1) * size)

    def _build_patch_embedding(self, config: SingleStageConfig) -> PatchEmbedding:
        return PatchEmbedding(3, tuple(config.patch_hidden_sizes), config.hidden_size)

    def _build_position_embedding(self, config: SingleStageConfig) -> nn.Module:
        return PositionEmbedding(config.position_hidden_size, config.hidden_size)

    # -- Points to groups to tokens -----------------------------------------------------------------------------------

    def group(
        self, points: torch.Tensor, num_groups: int | None = None, group_size: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Group the clouds.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`.
            num_groups: Number of groups; default: as configured.
            group_size: Points of a group; default: as configured.

        Returns:
            Groups relative to their centre, of shape `(batch_size, num_groups, group_size, 3)`, and the centres.
        """
        config = self.config
        num_groups, group_size = num_groups or config.num_groups, group_size or config.group_size
        points = self.check_points(points, num_groups, group_size)
        return group_points(points, num_groups, group_size, skip_near_origin=config.skip_near_origin)

    def embed_groups(self, neighborhoods: torch.Tensor, frozen: bool = False) -> torch.Tensor:
        """Embed groups.

        Args:
            neighborhoods: Points relative to the centre of their group, of shape
                `(batch_size, num_groups, group_size, 3)`, in the unit of the cloud.
            frozen: Whether to embed them as pre-trained, without adapters.

        Returns:
            Tokens of shape `(batch_size, num_groups, hidden_size)`.
        """
        return (original(self.patch_embedding) if frozen else self.patch_embedding)(neighborhoods, frozen)

    def embed(
        self, points: torch.Tensor, num_groups: int, group_size: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Further tokens from the backbone's own grouping and embedding.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`.
            num_groups: Number of tokens.
            group_size: Points of a group.

        Returns:
            Features and position embeddings, of shape `(batch_size, num_groups, hidden_size)`, and centres, of shape
            `(batch_size, num_groups, 3)`.
        """
        neighborhoods, centers = self.group(points, num_groups, group_size)
        features = self.patch_embedding_slot(self.embed_groups(neighborhoods), neighborhoods)
        return features, self.position_embedding(centers), centers

    def _with_prefix(
        self, features: torch.Tensor, centers: torch.Tensor, cloud: Cloud, frozen: bool = False
    ) -> Tokens:
        """The tokens that enter the blocks."""
        position_embedding, class_token = self.position_embedding, self.class_token
        if frozen:
            position_embedding = original(position_embedding)
            class_token = original(class_token) if self.is_pretrained_with_class_token else None
        positions = position_embedding(centers, frozen)
        if class_token is None:
            return start_tokens(features, centers, cloud, positions)
        token, position = class_token(features.shape[0])
        features, positions = torch.cat([token, features], dim=1), torch.cat([position, positions], dim=1)
        return start_tokens(features, centers, cloud, positions, num_class=1)

    # -- The whole way ------------------------------------------------------------------------------------------------

    def encode(
        self,
        points: torch.Tensor,
        sample_ids: torch.Tensor | None = None,
        precomputed: dict[str, torch.Tensor] | None = None,
        levels: tuple[int, ...] = (),
    ) -> Encoded:
        """Encode clouds, with the first arguments of `forward`.

        `levels` are the numbers of the blocks whose tokens are wanted as well, after the final norm.
        """
        cloud = Cloud(points, points, sample_ids, Memo(precomputed))
        backbone = Backbone(self)
        cloud = self.point_slot(cloud, backbone)
        neighborhoods, centers, embedded, is_constant_so_far = self._embed_cloud(cloud)
        cloud.memo.values["backbone.groups"] = neighborhoods
        if cloud.points is points:
            cloud.memo.values["backbone.known"] = neighborhoods, centers, embedded
        features = self.patch_embedding_slot(embedded, neighborhoods)
        tokens = self._with_prefix(features, centers, cloud)
        if is_constant_so_far and features is embedded:
            tokens = replace(tokens, constant=self._constant_prefix())
        self.encoder.own_tokens(tokens)
        tokens, left = self.encoder(tokens, backbone, levels)
        normed = self._norm_for_readout(tokens)
        pooled = normed.patches.amax(dim=1)
        if self.class_token is not None:
            pooled = torch.cat([normed.of(CLASS).flatten(1), pooled], dim=-1)
        pooled = self.readout_slot(pooled, tokens, (normed,))
        return Encoded(tokens, normed, pooled, tuple(self._norm_level(level) for level in left))

    def _embed_cloud(self, cloud: Cloud) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool]:
        """Groups, their centres, their tokens, and whether these are constant: then they are computed once a cloud."""
        memo = cloud.memo
        if memo.kept is None or cloud.points is not cloud.source or cloud.points.requires_grad:
            neighborhoods, centers = self.group(cloud.points)
            return neighborhoods, centers, self.embed_groups(neighborhoods), False
        config, rows = self.config, (len(cloud.points), self.config.num_groups)
        shapes = {"backbone.neighborhoods": (*rows, config.group_size, 3), "backbone.centers": (*rows, 3)}
        neighborhoods, centers = memo.all_once(shapes, lambda: self.group(cloud.points))
        if not is_constant(*self._embedding_modules()):
            return neighborhoods, centers, self.embed_groups(neighborhoods), False
        shape, name = (*rows, config.hidden_size), "backbone.embedded"
        embedded = memo.once(name, lambda: self.embed_groups(neighborhoods), per_cloud=True, shape=shape)
        return neighborhoods, centers, embedded, True

    def _constant_prefix(self) -> str | None:
        """What values of frozen blocks are known by, as the tokens in front have one copy for each adapter.

        `None` if these tokens or the position embeddings are trained.
        """
        prefixes = [module for name in self.prefix_names if (module := getattr(self, name, None)) is not None]
        copies = [current(module) for module in prefixes]
        if not is_constant(self.position_embedding, *copies):
            return None
        chosen = (
            module.active_adapters
            for module, copy in zip(prefixes, copies, strict=True)
            if copy is not original(module)
        )
        return "".join(f".{'+'.join(names)}" for names in dict.fromkeys(map(tuple, chosen)))

    def final_norm(self, tokens: Tokens) -> Tokens:
        """The tokens after the final norm."""
        return tokens.with_features(self.run_layer("layernorm", tokens.features))

    def _norm_for_readout(self, tokens: Tokens) -> Tokens:
        """The tokens as a classification head reads them."""
        return self.final_norm(tokens)

    def _norm_level(self, tokens: Tokens) -> Tokens:
        """The tokens that left a block as the head of a part segmentation reads them."""
        return self.final_norm(tokens)

    def encode_groups(self, neighborhoods: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
        """Encode groups without the others of their cloud, as masked autoencoding does with the visible ones.

        Args:
            neighborhoods: As for `embed_groups`.
            centers: Their centres, of shape `(batch_size, num_groups, 3)`.

        Returns:
            Their tokens after the final norm, of shape `(batch_size, num_groups, hidden_size)`; a class token takes
            part in the attention and is left out here.
        """
        cloud = Cloud(centers, centers)
        tokens = self._with_prefix(self.embed_groups(neighborhoods), centers, cloud)
        tokens, _ = self.encoder(tokens, Backbone(self))
        return self.final_norm(tokens).patches

    # -- As pre-trained -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def frozen_tokens(self, cloud: Cloud, depth: int | None = None) -> Tokens:
        """Tokens of the pre-trained encoder, untouched by any adapter, of the clouds as they were passed in.

        Args:
            cloud: The clouds.
            depth: Number of blocks they have passed, 0 for the tokens that enter the first; default: all.

        Returns:
            The tokens, without position embeddings added and before the final norm; no gradient.
        """
        known = cloud.memo.values.get("backbone.known")
        neighborhoods, centers, features = known or (*self.group(cloud.source), None)
        if features is None or not all(map(is_pretrained, self._embedding_modules())):
            features = self.embed_groups(neighborhoods, frozen=True)
        tokens = self._with_prefix(features.detach(), centers, cloud, frozen=True)
        return self.encoder.run_frozen(tokens, depth)

    @torch.no_grad()
    def frozen_features(self, points: torch.Tensor | Cloud) -> torch.Tensor:
        """Features of the pre-trained encoder, untouched by any adapter: the maximum over the patch tokens at its end.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`.

        Returns:
            Features of shape `(batch_size, hidden_size)`, without gradient.
        """
        tokens = self.frozen_tokens(points if isinstance(points, Cloud) else Cloud(points, points))
        return self.summarize(tokens.with_features(original(self.layernorm)(tokens.features)))

    def summarize(self, tokens: Tokens) -> torch.Tensor:
        """What `frozen_features` makes of tokens after the final norm, of shape `(batch_size, hidden_size)`."""
        return tokens.patches.amax(dim=1)

    def _embedding_modules(self) -> tuple[nn.Module, ...]:
        return (self.patch_embedding,)


class PointMAEModel(SingleStageEncoder, PointMAEPreTrainedModel):
    """The encoder: points -> groups -> tokens -> blocks.

    Args:
        config: Configuration.
        use_class_token: Whether a class token is put in front of the patch tokens; pre-training has none.
    """

    def __init__(self, config: PointMAEConfig, use_class_token: bool = True):
        super().__init__(config)
        self._build(config, use_class_token)
        self.post_init()

    def _build_position_embedding(self, config: PointMAEConfig) -> nn.Module:
        kind = SinePositionEmbedding if config.position_embedding == "sincos" else PositionEmbedding
        return kind(config.position_hidden_size, config.hidden_size)


class PointMAEForClassification(PointClassificationMixin, PointMAEPreTrainedModel):
    """Point-MAE with a classification head on [class token, maximum over the patch tokens].

    Args:
        config: Configuration; `num_labels` is the number of classes.
    """

    encoder_class = PointMAEModel
    task_module_names = ("classifier", "class_token")
    _keys_to_ignore_on_load_unexpected = [
        *PointMAEPreTrainedModel._keys_to_ignore_on_load_unexpected,
        r"^segmentation_head",
    ]


class SingleStageSegmentation(PointSegmentationMixin):
    """Part segmentation from the tokens that leave some of the blocks (`feature_layers` of the configuration)."""

    def _build_fusion(self) -> TokenFusion:
        config = self.config
        return TokenFusion([config.hidden_size] * len(config.feature_layers), config.segmentation_token_size)


class PointMAEForSegmentation(SingleStageSegmentation, PointMAEPreTrainedModel):
    """Point-MAE with a part segmentation head on the tokens of several depths, without a class token.

    Args:
        config: Configuration; `num_labels` is the number of parts. Published with 128 groups of 32 for 2048 points.
    """

    encoder_class = PointMAEModel
    encoder_options = {"use_class_token": False}
    task_module_names = ("segmentation_head",)
    _keys_to_ignore_on_load_unexpected = [
        *PointMAEPreTrainedModel._keys_to_ignore_on_load_unexpected,
        r"class_token",
        r"^classifier",
    ]


class PointMAEForPreTraining(MaskedAutoencoderMixin, PointMAEPreTrainedModel):
    """Masked autoencoding: predict the points of masked groups from the visible ones.

    Args:
        config: Configuration; `mask_ratio` and the `decoder_*` fields describe the task.
    """

    _keys_to_ignore_on_load_unexpected = [r"class_token", r"^classifier", r"^segmentation_head"]

    def __init__(self, config: PointMAEConfig):
        super().__init__(config)
        config._check_heads(config.hidden_size, "decoder_num_attention_heads")
        self.point_mae = PointMAEModel(config, use_class_token=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.decoder_position_embedding = PositionEmbedding(config.position_hidden_size, config.hidden_size)
        stage = Stage(config.hidden_size, config.group_size, config.decoder_num_hidden_layers, is_encoder=False)
        self.decoder = PointTransformerEncoder(config, stage, config.decoder_num_attention_heads)
        self.decoder_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.reconstruction_head = nn.Linear(config.hidden_size, 3 * config.group_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self, points: torch.Tensor, mask: torch.BoolTensor | None = None, **kwargs
    ) -> PointReconstructionOutput | tuple:
        """Mask groups and predict their points.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`.
            mask: Groups to mask, of shape `(batch_size, num_groups)`, the same number in each cloud; random by
                default.
            **kwargs: `return_dict`; keys that trainers pass along are ignored.

        Returns:
            The Chamfer distance between the masked groups and their reconstruction, and both.

        Raises:
            ValueError: If the clouds or the mask do not fit the model.
        """
        neighborhoods, group_centers = self.point_mae.group(points)
        mask = self._random_mask(group_centers) if mask is None else self._check_mask(mask, group_centers)
        # Visible groups first, in both lists in the order of the groups; a stable sort keeps that order.
        order = mask.to(torch.uint8).argsort(dim=1, stable=True)
        num_masked = int(mask[0].sum())
        visible, masked = order[:, :-num_masked], order[:, -num_masked:]

        visible_centers = gather_points(group_centers, visible)
        hidden_states = self.point_mae.encode_groups(
            gather_points(neighborhoods.flatten(2), visible).unflatten(2, (-1, 3)), visible_centers
        )

        masked_centers = gather_points(group_centers, masked)
        all_centers = torch.cat([visible_centers, masked_centers], dim=1)
        mask_tokens = self.mask_token.expand(points.shape[0], num_masked, -1).to(hidden_states.dtype)
        features = torch.cat([hidden_states, mask_tokens], dim=1)
        positions = self.decoder_position_embedding(all_centers)
        tokens, _ = self.decoder(start_tokens(features, all_centers, Cloud(points, points), positions), Backbone(self))
        hidden_states = self.decoder_layernorm(tokens.features[:, -num_masked:])
        reconstruction = self.reconstruction_head(hidden_states).unflatten(2, (-1, 3)).float()
        target = gather_points(neighborhoods.flatten(2), masked).unflatten(2, (-1, 3))
        return PointReconstructionOutput(
            loss=chamfer_distance(reconstruction.flatten(0, 1), target.flatten(0, 1)).mean(),
            reconstruction=reconstruction,
            target=target,
            mask=mask,
            group_centers=group_centers,
        )

    @classmethod
    def _check_mask(cls, mask: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
        mask = super()._check_mask(mask, centers)
        counts = mask.sum(dim=1)
        if counts.min() != counts.max():
            raise ValueError(
                "`mask` must mask the same number of groups in each cloud, at least one and not all, got "
                f"{counts.tolist()} of {mask.shape[1]}."
            )
        return mask
