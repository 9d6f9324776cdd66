"""Point-M2AE configuration."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from ..configuration import PointTransformerConfig


@strict
class PointM2AEConfig(PointTransformerConfig):
    """Configuration of Point-M2AE (arXiv 2205.14401); the defaults are the published ModelNet40 classifier.

    The published ScanObjectNN classifier has `group_sizes=(32, 16, 16)` and `pooling="concat"`; the published
    ModelNet40 classifier was trained with `label_smoothing=0.3`.

    Args:
        hidden_sizes: Width of the tokens of each stage, from the finest to the coarsest.
        depths: Number of blocks of each stage.
        num_groups: Number of groups, hence tokens, of each stage; each stage's centres are among those of the stage
            before.
        group_sizes: Number of points of a group in the first stage, of tokens of the stage before in the others.
        attention_radii: Tokens of a stage attend to each other if their centres are less than this apart, in the unit
            of the cloud; 0 for no limit.
        patch_hidden_sizes: Widths inside of the patch embedding of the first stage.
        pooling: What the head reads: "sum" for mean + maximum over the tokens (ModelNet40), "concat" for both side by
            side (ScanObjectNN; there the maximum leaves out the first token, as in the published code).
        decoder_depths: Number of blocks of each stage of the decoder, from the coarsest (pre-training only).
        decoder_propagation_depths: Number of residual blocks after each of the decoder's upsamplings, one entry less.
        mask_ratio: Share of the groups of the last stage that is masked in pre-training.
        **kwargs: Fields of [`~point_peft_hf.models.configuration.PointTransformerConfig`] and of transformers.

    Raises:
        ValueError: If a field does not exist or does not fit, with the name of the field.
    """

    model_type = "point_m2ae"

    hidden_sizes: list[int] | tuple[int, ...] = (96, 192, 384)
    depths: list[int] | tuple[int, ...] = (5, 5, 5)
    num_groups: list[int] | tuple[int, ...] = (512, 256, 64)
    group_sizes: list[int] | tuple[int, ...] = (16, 8, 8)
    attention_radii: list[float | int] | tuple[float | int, ...] = (0.32, 0.64, 1.28)
    patch_hidden_sizes: list[int] | tuple[int, ...] = (128, 256, 512)
    pooling: str = "sum"
    decoder_depths: list[int] | tuple[int, ...] = (1, 1)
    decoder_propagation_depths: list[int] | tuple[int, ...] = (1,)
    mask_ratio: float = 0.8

    _shares = ("mask_ratio",)
    _choices = {"pooling": ("sum", "concat")}

    @property
    def hidden_size(self) -> int:
        """Width of the tokens of the last stage."""
        return self.hidden_sizes[-1]

    @property
    def num_hidden_layers(self) -> int:
        """Number of blocks of all stages."""
        return sum(self.depths)

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return len(self.hidden_sizes)

    def _check_ranges(self) -> None:
        super()._check_ranges()
        self._check_list("hidden_sizes")
        for name in ("depths", "num_groups", "group_sizes"):
            self._check_list(name, self.num_stages)
        for hidden_size in self.hidden_sizes:
            self._check_heads(hidden_size)
        self._check_list("patch_hidden_sizes", 3)
        self._check_nesting()
        radii = self.attention_radii
        if len(radii) != self.num_stages or any(isinstance(radius, bool) or radius < 0 for radius in radii):
            raise ValueError(
                f"`attention_radii` of {type(self).__name__} must have {self.num_stages} values of at least 0, got "
                f"{radii}."
            )
        self._check_decoder()

    def _check_nesting(self) -> None:
        for coarse in range(1, self.num_stages):
            if max(self.num_groups[coarse], self.group_sizes[coarse]) > self.num_groups[coarse - 1]:
                raise ValueError(
                    f"`num_groups` and `group_sizes` of stage {coarse} of {type(self).__name__} must not exceed the "
                    f"{self.num_groups[coarse - 1]} groups of the stage before, got {self.num_groups[coarse]} and "
                    f"{self.group_sizes[coarse]}."
                )

    def _check_decoder(self) -> None:
        self._check_list("decoder_depths")
        if len(self.decoder_depths) > self.num_stages:
            raise ValueError(
                f"`decoder_depths` of {type(self).__name__} must not have more stages than `hidden_sizes` "
                f"({self.num_stages}), got {self.decoder_depths}."
            )
        depths = self.decoder_propagation_depths
        if len(depths) != len(self.decoder_depths) - 1 or any(
            isinstance(depth, bool) or depth < 0 for depth in depths
        ):
            raise ValueError(
                f"`decoder_propagation_depths` of {type(self).__name__} must have {len(self.decoder_depths) - 1} "
                f"values of at least 0, got {depths}."
            )
