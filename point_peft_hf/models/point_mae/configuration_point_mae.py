"""Point-MAE configuration."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from ..configuration import LearnedPositionConfig


@strict
class PointMAEConfig(LearnedPositionConfig):
    """Configuration of Point-MAE (arXiv 2203.06604); the defaults are the published ModelNet40 classifier.

    Args:
        position_embedding: What the position embedding of a group is made of: the "coordinates" of its centre, or
            their sines and cosines ("sincos"), as in PCP-MAE (arXiv 2408.08753).
        decoder_num_hidden_layers: Blocks of the decoder (pre-training only).
        decoder_num_attention_heads: Attention heads of the decoder.
        mask_ratio: Share of the groups that is masked in pre-training.
        **kwargs: Fields of [`~point_peft_hf.models.configuration.LearnedPositionConfig`], of
            [`~point_peft_hf.models.configuration.PointTransformerConfig`] and of transformers.

    Raises:
        ValueError: If a field does not exist or does not fit, with the name of the field.
    """

    model_type = "point_mae"

    position_embedding: str = "coordinates"
    decoder_num_hidden_layers: int = 4
    decoder_num_attention_heads: int = 6
    mask_ratio: float = 0.6

    _shares = ("mask_ratio",)
    _positive = (*LearnedPositionConfig._positive, "decoder_num_hidden_layers", "decoder_num_attention_heads")
    _choices = {"position_embedding": ("coordinates", "sincos")}

    def _check_ranges(self) -> None:
        super()._check_ranges()
        if self.position_embedding == "sincos" and self.hidden_size % 6:
            raise ValueError(
                f"`hidden_size` of {type(self).__name__} must be a multiple of 6 with "
                f'position_embedding="sincos" (sine and cosine of three axes), got {self.hidden_size}.'
            )
