"""Point-BERT: pre-training point-cloud transformers with masked point modelling (arXiv 2111.14819).

The encoder is that of Point-MAE, but for the embedding of groups and for a class token that is pre-trained.
"""

from __future__ import annotations

import torch
from torch import nn

from ..configuration import SingleStageConfig
from ..layers import PatchEmbedding, ShallowClassificationHead, original
from ..modeling import PointClassificationMixin, PointPreTrainedModel
from ..point_mae.modeling_point_mae import SingleStageEncoder, SingleStageSegmentation
from .configuration_point_bert import PointBertConfig


class PointBertPreTrainedModel(PointPreTrainedModel):
    """Base of the Point-BERT models."""

    config_class = PointBertConfig
    config: PointBertConfig
    base_model_prefix = "point_bert"


class PointBertModel(SingleStageEncoder, PointBertPreTrainedModel):
    """The encoder: points -> groups -> tokens -> blocks, with a class token in front.

    Its frozen features are the maximum over the patch tokens after the final norm, as for Point-MAE, so that the same
    adapter configuration means the same on both. The class token takes part in computing them: unlike that of
    Point-MAE it is pre-trained, and the encoder never saw patch tokens without it.

    Args:
        config: Configuration.
    """

    is_pretrained_with_class_token = True

    def __init__(self, config: PointBertConfig):
        super().__init__(config)
        self._build(config, use_class_token=True)
        self.patch_projection = nn.Linear(config.patch_embedding_size, config.hidden_size)
        self.post_init()

    def _build_patch_embedding(self, config: SingleStageConfig) -> PatchEmbedding:
        return PatchEmbedding(3, tuple(config.patch_hidden_sizes), config.patch_embedding_size)

    def embed_groups(self, neighborhoods: torch.Tensor, frozen: bool = False) -> torch.Tensor:
        """Embed groups and project them to the width of the blocks; arguments as for Point-MAE."""
        projection = original(self.patch_projection) if frozen else self.patch_projection
        return projection(super().embed_groups(neighborhoods, frozen))

    def _embedding_modules(self) -> tuple[nn.Module, ...]:
        return (self.patch_embedding, self.patch_projection)


class PointBertForClassification(PointClassificationMixin, PointBertPreTrainedModel):
    """Point-BERT with a classification head on [class token, maximum over the patch tokens].

    Args:
        config: Configuration; `num_labels` is the number of classes.
    """

    encoder_class = PointBertModel
    task_module_names = ("classifier", "class_token")
    head_class = ShallowClassificationHead


class PointBertForSegmentation(SingleStageSegmentation, PointBertPreTrainedModel):
    """Point-BERT with a part segmentation head on the tokens of several depths.

    Args:
        config: Configuration; `num_labels` is the number of parts. Published with 128 groups of 32 for 2048 points.
    """

    encoder_class = PointBertModel
    task_module_names = ("segmentation_head", "class_token")
