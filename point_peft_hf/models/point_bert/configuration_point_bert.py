"""Point-BERT configuration."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from ..configuration import LearnedPositionConfig


@strict
class PointBertConfig(LearnedPositionConfig):
    """Configuration of Point-BERT (arXiv 2111.14819); the defaults are the published ModelNet40 classifier.

    Args:
        patch_embedding_size: Width of an embedded group, before it is projected to `hidden_size`.
        **kwargs: Fields of [`~point_peft_hf.models.configuration.LearnedPositionConfig`], of
            [`~point_peft_hf.models.configuration.PointTransformerConfig`] and of transformers.

    Raises:
        ValueError: If a field does not exist or does not fit, with the name of the field.
    """

    model_type = "point_bert"

    patch_embedding_size: int = 256

    _positive = (*LearnedPositionConfig._positive, "patch_embedding_size")
