"""Point-MAE configuration."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from ..configuration import PointTransformerConfig


@strict
class PointMAEConfig(PointTransformerConfig):
    """Configuration of Point-MAE (arXiv 2203.06604); the defaults are the published ModelNet40 classifier.

    Args:
        hidden_size: Width of the tokens.
        num_hidden_layers: Number of blocks.
        num_groups: Number of groups, hence patch tokens, of a cloud: 64 for 1024 points, 128 for 2048.
        group_size: Number of points of a group.
        patch_hidden_sizes: Widths inside of the patch embedding.
        decoder_num_hidden_layers: Blocks of the decoder (pre-training only).
        decoder_num_attention_heads: Attention heads of the decoder.
        mask_ratio: Share of the groups that is masked in pre-training.
        **kwargs: Fields of [`~point_peft_hf.models.configuration.PointTransformerConfig`] and of transformers.

    Raises:
        ValueError: If a field does not exist or does not fit, with the name of the field.
    """

    model_type = "point_mae"

    hidden_size: int = 384
    num_hidden_layers: int = 12
    num_groups: int = 64
    group_size: int = 32
    patch_hidden_sizes: list[int] | tuple[int, ...] = (128, 256, 512)
    decoder_num_hidden_layers: int = 4
    decoder_num_attention_heads: int = 6
    mask_ratio: float = 0.6

    def _check_ranges(self) -> None:
        super()._check_ranges()
        for name in ("hidden_size", "num_hidden_layers", "num_groups", "group_size"):
            self._check_positive(name, getattr(self, name))
        self._check_heads(self.hidden_size)
        if len(self.patch_hidden_sizes) != 3:
            raise ValueError(
                f"`patch_hidden_sizes` of {type(self).__name__} must be 3 widths, got {self.patch_hidden_sizes}."
            )
        self._check_positive("patch_hidden_sizes", *self.patch_hidden_sizes)
        if not 0 < self.mask_ratio < 1:
            raise ValueError(
                f"`mask_ratio` of {type(self).__name__} must be above 0 and below 1, got {self.mask_ratio}."
            )


__all__ = ["PointMAEConfig"]
