"""Point-BERT: pre-training point-cloud transformers with masked point modelling (arXiv 2111.14819)."""

from __future__ import annotations

import torch
from torch import nn

from ..layers import ShallowClassificationHead
from ..modeling import PointClassificationMixin, PointPreTrainedModel
from ..segmentation import SingleStageSegmentationMixin
from ..single_stage import SingleStageEncoderMixin
from .configuration_point_bert import PointBertConfig


class PointBertPreTrainedModel(PointPreTrainedModel):
    """Base of the Point-BERT models."""

    config_class = PointBertConfig
    config: PointBertConfig
    base_model_prefix = "point_bert"


class PointBertModel(SingleStageEncoderMixin, PointBertPreTrainedModel):
    """The encoder: points -> groups -> tokens -> blocks, with a class token in front.

    The features for a point-prior bank are the maximum over the patch tokens after the final norm, as for Point-MAE,
    so that the same adapter configuration means the same on both. The class token takes part in computing them: unlike
    that of Point-MAE it is pre-trained, and the encoder never saw patch tokens without it.

    Args:
        config: Configuration.
    """

    is_pretrained_with_class_token = True

    def __init__(self, config: PointBertConfig):
        super().__init__(config)
        self._build(config, config.patch_embedding_size, use_class_token=True)
        self.patch_projection = nn.Linear(config.patch_embedding_size, config.hidden_size)
        self.post_init()

    def embed_groups(self, neighborhoods: torch.Tensor) -> torch.Tensor:
        """Embed groups and project them to the width of the blocks.

        Args:
            neighborhoods: Points relative to the centre of their group, of shape
                `(batch_size, num_groups, group_size, 3)`, in the unit of the cloud.

        Returns:
            Tokens of shape `(batch_size, num_groups, hidden_size)`.
        """
        return self.patch_projection(self.patch_embedding(neighborhoods))

    def _embedding_modules(self) -> tuple[nn.Module, ...]:
        return (self.patch_embedding, self.patch_projection)


class PointBertForClassification(PointClassificationMixin, PointBertPreTrainedModel):
    """Point-BERT with a classification head on [class token, maximum over the patch tokens].

    Args:
        config: Configuration; `num_labels` is the number of classes.
    """

    task_module_names = ("classifier", "class_token")

    def __init__(self, config: PointBertConfig):
        super().__init__(config)
        self.point_bert = PointBertModel(config)
        self.classifier = ShallowClassificationHead(
            2 * config.hidden_size, config.classifier_hidden_size, config.num_labels, config.classifier_dropout
        )
        self.post_init()


class PointBertForSegmentation(SingleStageSegmentationMixin, PointBertPreTrainedModel):
    """Point-BERT with a part segmentation head on the tokens of several depths.

    Args:
        config: Configuration; `num_labels` is the number of parts. Published with 128 groups of 32 for 2048 points.
    """

    task_module_names = ("segmentation_head", "class_token")

    def __init__(self, config: PointBertConfig):
        super().__init__(config)
        self.point_bert = PointBertModel(config)
        self.segmentation_head = self._build_head(self._build_fusion())
        self.post_init()


__all__ = [
    "PointBertForClassification",
    "PointBertForSegmentation",
    "PointBertModel",
    "PointBertPreTrainedModel",
]
