"""ReCon configuration."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from ..configuration import LearnedPositionConfig


@strict
class ReConConfig(LearnedPositionConfig):
    """Configuration of ReCon (arXiv 2302.02318); the defaults are the published ModelNet40 classifier.

    Args:
        **kwargs: Fields of [`~point_peft_hf.models.configuration.LearnedPositionConfig`], of
            [`~point_peft_hf.models.configuration.PointTransformerConfig`] and of transformers.

    Raises:
        ValueError: If a field does not exist or does not fit, with the name of the field.
    """

    model_type = "recon"
