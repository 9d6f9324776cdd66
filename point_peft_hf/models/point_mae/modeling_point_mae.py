"""Point-MAE: masked autoencoders for point clouds (arXiv 2203.06604)."""

from __future__ import annotations

import torch
from torch import nn
from transformers import initialization as init

from ...ops import chamfer_distance, gather_points, group_points
from ...slots import BlockContext
from ..layers import (
    ClassificationHead,
    ClassToken,
    PatchEmbedding,
    PointTransformerEncoder,
    PositionEmbedding,
    pretrained_behavior,
)
from ..modeling import PointPreTrainedModel, classification_loss
from ..modeling_outputs import PointClassifierOutput, PointModelOutput, PointReconstructionOutput
from .configuration_point_mae import PointMAEConfig


class PointMAEPreTrainedModel(PointPreTrainedModel):
    """Base of the Point-MAE models."""

    config_class = PointMAEConfig
    config: PointMAEConfig
    base_model_prefix = "point_mae"
    # A pre-training checkpoint brings its decoder; the encoder and the classifier do not miss it.
    _keys_to_ignore_on_load_unexpected = [r"^decoder", r"^mask_token", r"^reconstruction_head"]


class PointMAEModel(PointMAEPreTrainedModel):
    """The encoder: points -> groups -> tokens -> blocks.

    Args:
        config: Configuration.
        use_class_token: Whether a class token is put in front of the patch tokens; pre-training has none.
    """

    task_module_names = ("class_token",)

    def __init__(self, config: PointMAEConfig, use_class_token: bool = True):
        super().__init__(config)
        self.patch_embedding = PatchEmbedding(3, tuple(config.patch_hidden_sizes), config.hidden_size)
        self.position_embedding = PositionEmbedding(config.position_hidden_size, config.hidden_size)
        self.class_token = ClassToken(config.hidden_size) if use_class_token else None
        self.encoder = PointTransformerEncoder(
            config, config.hidden_size, config.num_attention_heads, config.num_hidden_layers, config.group_size
        )
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def group(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Check and group the clouds.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`.

        Returns:
            Groups relative to their centre, of shape `(batch_size, num_groups, group_size, 3)`, and the centres.

        Raises:
            ValueError: If the clouds are no float tensor of that shape, not finite or too small.
        """
        config = self.config
        points = self._check_points(points, config.num_groups, config.group_size)
        return group_points(points, config.num_groups, config.group_size, skip_near_origin=config.skip_near_origin)

    def forward(
        self,
        points: torch.Tensor,
        query_features: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> PointModelOutput | tuple:
        """Encode clouds.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`, with at least `num_groups` and `group_size` points.
            query_features: Features that a point-prior bank is asked with, of shape `(batch_size, hidden_size)`, as
                `extract_prior_features` returns them. Computed here when an adapter needs them and none are given; pass
                them to save that pass where the clouds are not augmented.
            output_hidden_states: Whether to return the tokens at every block; default: as in the configuration.
            output_attentions: Whether to return the attention weights; needs `attn_implementation="eager"`.
            return_dict: Whether to return a [`PointModelOutput`] instead of a tuple; default: as in the configuration.
            **kwargs: Ignored; keys that trainers pass along.

        Returns:
            The tokens after the final norm (class token first), the pooled features
            `(batch_size, 2 * hidden_size)` = [class token, maximum over the patch tokens], and the centres.

        Raises:
            ValueError: If the clouds are no float tensor of that shape, not finite or too small.
        """
        neighborhoods, group_centers = self.group(points)
        tokens = self.patch_embedding(neighborhoods)
        positions = self.position_embedding(group_centers)
        if query_features is None and self.encoder.needs_query_features:
            query_features = self._prior_features(tokens, group_centers)
        context = BlockContext(group_centers, 0, query_features)

        hidden_states = tokens
        if self.class_token is not None:
            class_token, class_position = self.class_token(len(tokens))
            hidden_states = torch.cat([class_token, hidden_states], dim=1)
            positions = torch.cat([class_position, positions], dim=1)
            context.num_prefix_tokens = 1
        embeddings = hidden_states
        hidden_states, all_hidden_states, attentions = self.encoder(hidden_states, positions, context)
        hidden_states = self.layernorm(hidden_states)

        pooled = hidden_states[:, context.num_prefix_tokens :].amax(dim=1)
        if self.class_token is not None:
            pooled = torch.cat([hidden_states[:, 0], pooled], dim=-1)
        output = PointModelOutput(
            last_hidden_state=hidden_states,
            pooler_output=pooled,
            hidden_states=(embeddings, *all_hidden_states) if self._wants("output_hidden_states", output_hidden_states) else None,
            attentions=tuple(attentions) if self._wants("output_attentions", output_attentions) else None,
            group_centers=group_centers,
        )
        return output if self._wants("return_dict", return_dict) else output.to_tuple()

    @torch.no_grad()
    def extract_prior_features(self, points: torch.Tensor) -> torch.Tensor:
        """Features of the pre-trained encoder: the maximum over the patch tokens after the final norm, no class token.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`.

        Returns:
            Features of shape `(batch_size, hidden_size)`, without gradient.
        """
        neighborhoods, group_centers = self.group(points)
        with pretrained_behavior(self.patch_embedding):
            tokens = self.patch_embedding(neighborhoods)
        return self._prior_features(tokens, group_centers)

    def _prior_features(self, tokens: torch.Tensor, group_centers: torch.Tensor) -> torch.Tensor:
        with pretrained_behavior(self):
            hidden_states, _, _ = self.encoder(
                tokens.detach(), self.position_embedding(group_centers), BlockContext(group_centers)
            )
            return self.layernorm(hidden_states).amax(dim=1)


class PointMAEForClassification(PointMAEPreTrainedModel):
    """Point-MAE with a classification head on [class token, maximum over the patch tokens].

    Args:
        config: Configuration; `num_labels` is the number of classes.
    """

    task_module_names = ("classifier", "class_token")

    def __init__(self, config: PointMAEConfig):
        super().__init__(config)
        self.point_mae = PointMAEModel(config)
        self.classifier = ClassificationHead(
            2 * config.hidden_size, config.classifier_hidden_size, config.num_labels, config.classifier_dropout
        )
        self.post_init()

    def forward(
        self,
        points: torch.Tensor,
        labels: torch.Tensor | None = None,
        query_features: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> PointClassifierOutput | tuple:
        """Classify clouds.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`, with at least `num_groups` and `group_size` points.
            labels: Class indices of shape `(batch_size,)`, for the loss.
            query_features: As in [`PointMAEModel`].
            output_hidden_states: As in [`PointMAEModel`].
            output_attentions: As in [`PointMAEModel`].
            return_dict: As in [`PointMAEModel`].
            **kwargs: Ignored; keys that trainers pass along.

        Returns:
            Logits of shape `(batch_size, num_labels)`, and the loss if `labels` are given.

        Raises:
            ValueError: If the clouds or the labels do not fit the model.
        """
        outputs = self.point_mae(
            points,
            query_features=query_features,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        logits = self.classifier(outputs.pooler_output)
        output = PointClassifierOutput(
            loss=None if labels is None else classification_loss(logits, labels, self.config),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return output if self._wants("return_dict", return_dict) else output.to_tuple()


class PointMAEForPreTraining(PointMAEPreTrainedModel):
    """Masked autoencoding: predict the points of masked groups from the visible ones.

    Args:
        config: Configuration; `mask_ratio` and the `decoder_*` fields describe the task.
    """

    _keys_to_ignore_on_load_unexpected = [r"class_token", r"^classifier"]

    def __init__(self, config: PointMAEConfig):
        super().__init__(config)
        self.point_mae = PointMAEModel(config, use_class_token=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.decoder_position_embedding = PositionEmbedding(config.position_hidden_size, config.hidden_size)
        self.decoder = PointTransformerEncoder(
            config,
            config.hidden_size,
            config.decoder_num_attention_heads,
            config.decoder_num_hidden_layers,
            config.group_size,
        )
        self.decoder_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.reconstruction_head = nn.Linear(config.hidden_size, 3 * config.group_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PointMAEForPreTraining):
            init.trunc_normal_(module.mask_token, std=self.config.initializer_range)

    def forward(
        self,
        points: torch.Tensor,
        mask: torch.BoolTensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> PointReconstructionOutput | tuple:
        """Mask groups and predict their points.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`.
            mask: Groups to mask, of shape `(batch_size, num_groups)`, the same number in each cloud; random by default.
            return_dict: Whether to return a [`PointReconstructionOutput`] instead of a tuple.
            **kwargs: Ignored; keys that trainers pass along.

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
        tokens = self.point_mae.patch_embedding(gather_points(neighborhoods.flatten(2), visible).unflatten(2, (-1, 3)))
        hidden_states, _, _ = self.point_mae.encoder(
            tokens, self.point_mae.position_embedding(visible_centers), BlockContext(visible_centers)
        )
        hidden_states = self.point_mae.layernorm(hidden_states)

        masked_centers = gather_points(group_centers, masked)
        all_centers = torch.cat([visible_centers, masked_centers], dim=1)
        mask_tokens = self.mask_token.expand(len(points), num_masked, -1).to(hidden_states.dtype)
        hidden_states, _, _ = self.decoder(
            torch.cat([hidden_states, mask_tokens], dim=1),
            self.decoder_position_embedding(all_centers),
            BlockContext(all_centers),
        )
        hidden_states = self.decoder_layernorm(hidden_states[:, -num_masked:])
        reconstruction = self.reconstruction_head(hidden_states).unflatten(2, (-1, 3)).float()
        target = gather_points(neighborhoods.flatten(2), masked).unflatten(2, (-1, 3))
        output = PointReconstructionOutput(
            loss=chamfer_distance(reconstruction.flatten(0, 1), target.flatten(0, 1)).mean(),
            reconstruction=reconstruction,
            target=target,
            mask=mask,
            group_centers=group_centers,
        )
        return output if self._wants("return_dict", return_dict) else output.to_tuple()

    def _random_mask(self, group_centers: torch.Tensor) -> torch.Tensor:
        batch_size, num_groups, _ = group_centers.shape
        num_masked = min(max(int(self.config.mask_ratio * num_groups), 1), num_groups - 1)
        noise = torch.rand(batch_size, num_groups, device=group_centers.device)
        return torch.zeros_like(noise, dtype=torch.bool).scatter(1, noise.argsort(dim=1)[:, :num_masked], True)

    def _check_mask(self, mask: torch.Tensor, group_centers: torch.Tensor) -> torch.Tensor:
        expected = tuple(group_centers.shape[:2])
        if tuple(mask.shape) != expected or mask.dtype != torch.bool:
            raise ValueError(
                f"`mask` must be a bool tensor of shape (batch_size, num_groups) = {expected}, got {mask.dtype} of shape "
                f"{tuple(mask.shape)}."
            )
        counts = mask.sum(dim=1)
        if counts.min() != counts.max() or counts[0] == 0 or counts[0] == expected[1]:
            raise ValueError(
                "`mask` must mask the same number of groups in each cloud, at least one and not all, got "
                f"{counts.tolist()} of {expected[1]}."
            )
        return mask


__all__ = [
    "PointMAEForClassification",
    "PointMAEForPreTraining",
    "PointMAEModel",
    "PointMAEPreTrainedModel",
]
