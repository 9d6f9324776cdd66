"""Point-MAE configuration."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from ..configuration import SingleStageConfig


@strict
class PointMAEConfig(SingleStageConfig):
    """Configuration of Point-MAE (arXiv 2203.06604); the defaults are the published ModelNet40 classifier.

    Args:
        decoder_num_hidden_layers: Blocks of the decoder (pre-training only).
        decoder_num_attention_heads: Attention heads of the decoder.
        mask_ratio: Share of the groups that is masked in pre-training.
        **kwargs: Fields of [`~point_peft_hf.models.configuration.SingleStageConfig`], of
            [`~point_peft_hf.models.configuration.PointTransformerConfig`] and of transformers.

    Raises:
        ValueError: If a field does not exist or does not fit, with the name of the field.
    """

    model_type = "point_mae"

    decoder_num_hidden_layers: int = 4
    decoder_num_attention_heads: int = 6
    mask_ratio: float = 0.6

    def _check_ranges(self) -> None:
        super()._check_ranges()
        for name in ("decoder_num_hidden_layers", "decoder_num_attention_heads"):
            self._check_positive(name, getattr(self, name))
        if not 0 < self.mask_ratio < 1:
            raise ValueError(
                f"`mask_ratio` of {type(self).__name__} must be above 0 and below 1, got {self.mask_ratio}."
            )


__all__ = ["PointMAEConfig"]
