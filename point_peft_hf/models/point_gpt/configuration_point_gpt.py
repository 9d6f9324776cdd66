"""PointGPT configuration."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from ..configuration import PointTransformerConfig


@strict
class PointGPTConfig(PointTransformerConfig):
    """Configuration of PointGPT (arXiv 2305.11487); the defaults are PointGPT-S on ModelNet40.

    | | hidden_size | num_hidden_layers | num_attention_heads | patch_hidden_sizes |
    |---|---|---|---|---|
    | S | 384 | 12 | 6 | (128, 256, 512) |
    | B | 768 | 12 | 12 | (256, 512, 1024, 2048) |
    | L | 1024 | 24 | 16 | (256, 512, 1024, 2048) |

    Args:
        hidden_size: Width of the tokens.
        num_hidden_layers: Number of blocks.
        num_groups: Number of groups, hence patch tokens, of a cloud: 64 for 1024 points, 128 for 2048, 512 for 8192.
        group_size: Number of points of a group.
        patch_hidden_sizes: Widths inside of the patch embedding: of the layers before the maximum over the group, and
            of the one between it and the last layer.
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

    hidden_size: int = 384
    num_hidden_layers: int = 12
    num_groups: int = 64
    group_size: int = 32
    patch_hidden_sizes: list[int] | tuple[int, ...] = (128, 256, 512)
    qkv_bias: bool = True
    drop_path_rate: int | float = 0.0
    segmentation_layers: list[int] | tuple[int, ...] | None = None
    generator_num_hidden_layers: int = 4
    generator_num_attention_heads: int | None = None
    generation_loss_weight: int | float = 0.0
    mask_ratio: int | float = 0.7
    num_seen_groups: int = 10

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """Numbers of the blocks whose tokens the segmentation head reads."""
        if self.segmentation_layers is not None:
            return tuple(self.segmentation_layers)
        depth = min(self.num_hidden_layers, 12)
        depths = (max(round(third * depth / 3), 1) for third in (1, 2, 3))
        return tuple(dict.fromkeys(depth - 1 for depth in depths))

    def _check_ranges(self) -> None:
        super()._check_ranges()
        names = ("hidden_size", "num_hidden_layers", "num_groups", "group_size", "generator_num_hidden_layers")
        for name in names:
            self._check_positive(name, getattr(self, name))
        self._check_heads(self.hidden_size)
        if self.generator_num_attention_heads is not None:
            self._check_heads(self.hidden_size, "generator_num_attention_heads")
        self._check_list("patch_hidden_sizes")
        if len(self.patch_hidden_sizes) < 2:
            raise ValueError(
                f"`patch_hidden_sizes` of {type(self).__name__} must have a value for each half of the patch "
                f"embedding, at least 2, got {self.patch_hidden_sizes}."
            )
        layers = self.segmentation_layers
        if layers is not None and (not layers or any(not 0 <= layer < self.num_hidden_layers for layer in layers)):
            raise ValueError(
                f"`segmentation_layers` of {type(self).__name__} must be numbers of blocks, 0 to "
                f"{self.num_hidden_layers - 1}, got {layers}."
            )
        for name in ("generation_loss_weight", "num_seen_groups"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` of {type(self).__name__} must be at least 0, got {getattr(self, name)}.")
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(
                f"`mask_ratio` of {type(self).__name__} must be at least 0 and below 1, got {self.mask_ratio}."
            )
