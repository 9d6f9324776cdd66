"""PointGPT configuration."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from ..configuration import SingleStageConfig


@strict
class PointGPTConfig(SingleStageConfig):
    """Configuration of PointGPT (arXiv 2305.11487); the defaults are PointGPT-S on ModelNet40.

    | | hidden_size | num_hidden_layers | num_attention_heads | patch_hidden_sizes |
    |---|---|---|---|---|
    | S | 384 | 12 | 6 | (128, 256, 512) |
    | B | 768 | 12 | 12 | (256, 512, 1024, 2048) |
    | L | 1024 | 24 | 16 | (256, 512, 1024, 2048) |

    Args:
        num_groups: Number of groups, hence patch tokens, of a cloud: 64 for 1024 points, 128 for 2048, 512 for 8192.
        qkv_bias: Whether the query, key and value projections have a bias.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 at the first. Published: 0, but
            for part segmentation.
        segmentation_layers: Numbers of the blocks, counted from 0, whose tokens the segmentation head reads; default:
            3, 7 and 11, as published for all sizes, or of fewer than 12 blocks those at one, two and three thirds.
        generator_num_hidden_layers: Blocks of the generator, which predicts the points of groups.
        generator_num_attention_heads: Attention heads of the generator; default: `num_attention_heads`.
        generation_loss_weight: Weight of the generation loss in the loss of the classifier; published 3. With 0 the
            classifier has no generator.
        mask_ratio: Share of the tokens that none but themselves see in pre-training, of those after the first
            `num_seen_groups`.
        num_seen_groups: Tokens at the start of the sequence that are always seen in pre-training.
        **kwargs: Fields of [`~point_peft_hf.models.configuration.PointTransformerConfig`] and of transformers.

    Raises:
        ValueError: If a field does not exist or does not fit, with the name of the field.
    """

    model_type = "point_gpt"

    qkv_bias: bool = True
    drop_path_rate: int | float = 0.0
    generator_num_hidden_layers: int = 4
    generator_num_attention_heads: int | None = None
    generation_loss_weight: int | float = 0.0
    mask_ratio: int | float = 0.7
    num_seen_groups: int = 10

    _rates = (*SingleStageConfig._rates, "mask_ratio")
    _positive = (*SingleStageConfig._positive, "generator_num_hidden_layers")
    _segmentation_depth = 12

    def _check_ranges(self) -> None:
        super()._check_ranges()
        if self.generator_num_attention_heads is not None:
            self._check_heads(self.hidden_size, "generator_num_attention_heads")
        if len(self.patch_hidden_sizes) < 2:
            raise ValueError(
                f"`patch_hidden_sizes` of {type(self).__name__} must have a value for each half of the patch "
                f"embedding, at least 2, got {self.patch_hidden_sizes}."
            )
        for name in ("generation_loss_weight", "num_seen_groups"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` of {type(self).__name__} must be at least 0, got {getattr(self, name)}.")
