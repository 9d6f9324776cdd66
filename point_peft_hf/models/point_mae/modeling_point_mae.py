"""Point-MAE: masked autoencoders for point clouds (arXiv 2203.06604)."""

from __future__ import annotations

import torch
from torch import nn
from transformers import initialization as init

from ...ops import chamfer_distance, gather_points
from ...slots import BlockContext
from ..layers import ClassificationHead, PointTransformerEncoder, PositionEmbedding, SinePositionEmbedding
from ..modeling import PointClassificationMixin, PointPreTrainedModel
from ..modeling_outputs import PointReconstructionOutput
from ..segmentation import SingleStageSegmentationMixin
from ..single_stage import SingleStageEncoderMixin
from .configuration_point_mae import PointMAEConfig


class PointMAEPreTrainedModel(PointPreTrainedModel):
    """Base of the Point-MAE models."""

    config_class = PointMAEConfig
    config: PointMAEConfig
    base_model_prefix = "point_mae"
    # A pre-training checkpoint brings its decoder; the encoder and the classifier do not miss it.
    _keys_to_ignore_on_load_unexpected = [r"^decoder", r"^mask_token", r"^reconstruction_head"]


class PointMAEModel(SingleStageEncoderMixin, PointMAEPreTrainedModel):
    """The encoder: points -> groups -> tokens -> blocks.

    Args:
        config: Configuration.
        use_class_token: Whether a class token is put in front of the patch tokens; pre-training has none.
    """

    def __init__(self, config: PointMAEConfig, use_class_token: bool = True):
        super().__init__(config)
        self._build(config, config.hidden_size, use_class_token)
        if config.position_embedding == "sincos":
            self.position_embedding = SinePositionEmbedding(config.position_hidden_size, config.hidden_size)
        self.post_init()


class PointMAEForClassification(PointClassificationMixin, PointMAEPreTrainedModel):
    """Point-MAE with a classification head on [class token, maximum over the patch tokens].

    Args:
        config: Configuration; `num_labels` is the number of classes.
    """

    task_module_names = ("classifier", "class_token")
    _keys_to_ignore_on_load_unexpected = [
        *PointMAEPreTrainedModel._keys_to_ignore_on_load_unexpected,
        r"^segmentation_head",
    ]

    def __init__(self, config: PointMAEConfig):
        super().__init__(config)
        self.point_mae = PointMAEModel(config)
        self.classifier = ClassificationHead(
            2 * config.hidden_size, config.classifier_hidden_size, config.num_labels, config.classifier_dropout
        )
        self.post_init()


class PointMAEForSegmentation(SingleStageSegmentationMixin, PointMAEPreTrainedModel):
    """Point-MAE with a part segmentation head on the tokens of several depths, without a class token.

    Args:
        config: Configuration; `num_labels` is the number of parts. Published with 128 groups of 32 for 2048 points.
    """

    task_module_names = ("segmentation_head",)
    _keys_to_ignore_on_load_unexpected = [
        *PointMAEPreTrainedModel._keys_to_ignore_on_load_unexpected,
        r"class_token",
        r"^classifier",
    ]

    def __init__(self, config: PointMAEConfig):
        super().__init__(config)
        self.point_mae = PointMAEModel(config, use_class_token=False)
        self.segmentation_head = self._build_head(self._build_fusion())
        self.post_init()


class PointMAEForPreTraining(PointMAEPreTrainedModel):
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
            mask: Groups to mask, of shape `(batch_size, num_groups)`, the same number in each cloud; random by
                default.
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
        hidden_states = self.point_mae.encode_groups(
            gather_points(neighborhoods.flatten(2), visible).unflatten(2, (-1, 3)), visible_centers
        )

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
                f"`mask` must be a bool tensor of shape (batch_size, num_groups) = {expected}, got {mask.dtype} of "
                f"shape {tuple(mask.shape)}."
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
    "PointMAEForSegmentation",
    "PointMAEModel",
    "PointMAEPreTrainedModel",
]
