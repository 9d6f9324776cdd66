"""Configuration of Point Transformer V3 and its relatives."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from ...ops import CURVES
from ..configuration import PointConfig

_STAGE_LISTS = ("depths", "hidden_sizes", "num_attention_heads", "patch_sizes")
_DECODER_LISTS = ("decoder_hidden_sizes", "decoder_num_attention_heads", "decoder_patch_sizes")
# The published decoders: blocks of a stage, and heads of their narrowest one.
_DECODER_DEPTH, _DECODER_HEADS = 2, 4


@strict
class PointTransformerV3Config(PointConfig):
    """Configuration of the Point Transformer V3 family; the defaults are Sonata-small.

    | | depths | hidden_sizes | num_attention_heads |
    |---|---|---|---|
    | Sonata, Concerto small | 2, 2, 2, 6, 2 | 32, 64, 128, 256, 512 | 2, 4, 8, 16, 32 |
    | Sonata, Concerto base | 3, 3, 3, 12, 3 | 48, 96, 192, 384, 512 | 3, 6, 12, 24, 32 |
    | Concerto large | 3, 3, 3, 12, 3 | 64, 128, 256, 512, 768 | 4, 8, 16, 32, 48 |
    | Utonia | 3, 3, 3, 12, 3 | 54, 108, 216, 432, 576 | 3, 6, 12, 24, 32 |

    | | arXiv | differs in |
    |---|---|---|
    | Point Transformer V3 | 2312.10035 | stem="sparse", pooling="code", norm="batch", a decoder, in_channels=6 |
    | Sonata | 2503.16429 | |
    | Concerto | 2510.23607 | |
    | Utonia | 2603.03283 | rope_base=10, grid_size=0.01 |

    Args:
        in_channels: Features of a voxel.
        feature_names: What they are, three numbers each: "coordinates", "colors", "normals".
        grid_size: Edge of a voxel in metres, after the scale that the processor applies.
        depths: Number of blocks of each stage.
        hidden_sizes: Width of each stage.
        num_attention_heads: Attention heads of each stage.
        patch_sizes: Voxels of a patch of each stage.
        strides: Cells along each axis that are joined to one, between the stages.
        orders: Curves that the voxels are read along, in turn from block to block of a stage.
        shuffle_orders: Whether the curves change their places at random in training, in each stage anew.
        stem: "linear", or "sparse": a submanifold convolution of 5 cells along each axis.
        pooling: "grid": voxels are joined by their cells. "code": by their positions along the first curve.
        norm: Norms of stem, pooling and decoder: "layer" or "batch".
        legacy_position_features: Whether the position encoding reads, from the second block of a stage on, what the
            feed-forward network added instead of the sum, as the released supervised weights were trained.
        relative_positions: Whether attention has a table of biases for the distances between voxels.
        rope_base: Base of the rotations by which attention knows coordinates; `None` for none.
        layer_scale: Initial scale of what attention and feed-forward network add; `None` for no scales.
        hidden_dropout: Dropout after the projections of attention and feed-forward network.
        decoder_depths: Number of blocks of each stage of the decoder, the finest first; empty for no decoder.
        decoder_hidden_sizes: Their widths.
        decoder_num_attention_heads: Their attention heads.
        decoder_patch_sizes: Voxels of their patches; default: those of the encoder's stages.
        read_out: What a segmentation head reads of a voxel: "upcast", its features of all stages, or "decoder", those
            of the decoder. Default: the decoder, if there is one. With "decoder" and no `decoder_depths` the decoder
            has the sizes of the published ones.
        classifier_hidden_sizes: Widths of the two hidden layers of the classification head.
        class_weights: Weight of each class in the loss of the segmentation; `None` for equal weights.
        label_values: Numbers of the classes in the files of the data, for predictions that are written to files.
        **kwargs: Fields of [`~point_peft_hf.models.configuration.PointConfig`] and of transformers.

    Raises:
        ValueError: If a field does not exist or does not fit, with the name of the field.
    """

    model_type = "ptv3"

    in_channels: int = 9
    feature_names: list[str] | tuple[str, ...] = ("coordinates", "colors", "normals")
    grid_size: int | float = 0.02
    depths: list[int] | tuple[int, ...] = (2, 2, 2, 6, 2)
    hidden_sizes: list[int] | tuple[int, ...] = (32, 64, 128, 256, 512)
    num_attention_heads: list[int] | tuple[int, ...] = (2, 4, 8, 16, 32)
    patch_sizes: list[int] | tuple[int, ...] | None = None
    strides: list[int] | tuple[int, ...] | None = None
    orders: list[str] | tuple[str, ...] = CURVES
    shuffle_orders: bool = True
    stem: str = "linear"
    pooling: str = "grid"
    norm: str = "layer"
    legacy_position_features: bool = False
    relative_positions: bool = False
    rope_base: int | float | None = None
    layer_scale: int | float | None = None
    qkv_bias: bool = True
    drop_path_rate: int | float = 0.3
    hidden_dropout: int | float = 0.0
    decoder_depths: list[int] | tuple[int, ...] = ()
    decoder_hidden_sizes: list[int] | tuple[int, ...] | None = None
    decoder_num_attention_heads: list[int] | tuple[int, ...] | None = None
    decoder_patch_sizes: list[int] | tuple[int, ...] | None = None
    read_out: str | None = None
    classifier_hidden_sizes: list[int] | tuple[int, ...] = (256, 128)
    class_weights: list[float] | tuple[float, ...] | None = None
    label_values: list[int] | tuple[int, ...] | None = None

    _rates = (*PointConfig._rates, "hidden_dropout")
    _positive = (*PointConfig._positive, "in_channels", "grid_size")
    _choices = {
        "stem": ("linear", "sparse"),
        "pooling": ("grid", "code"),
        "norm": ("layer", "batch"),
        "read_out": (None, "upcast", "decoder"),
    }

    def __post_init__(self, **kwargs):
        self._fill_in()
        super().__post_init__(**kwargs)

    def settle(self) -> None:
        """Fill in and check what follows from fields that were set after the configuration was made.

        `from_pretrained(name, read_out="decoder")` sets fields of a configuration that is loaded already.
        """
        self._fill_in()
        self._check_ranges()

    def _fill_in(self) -> None:
        if self.patch_sizes is None:
            self.patch_sizes = [1024] * len(self.depths)
        if self.strides is None:
            self.strides = [2] * (len(self.depths) - 1)
        if self.read_out == "decoder" and not len(self.decoder_depths):
            self._add_published_decoder()
        if not self.has_decoder:
            for field in _DECODER_LISTS:
                setattr(self, field, None)
        elif self.decoder_patch_sizes is None:
            self.decoder_patch_sizes = list(self.patch_sizes[:-1])

    def _add_published_decoder(self) -> None:
        head_sizes = [size // heads for size, heads in zip(self.hidden_sizes, self.num_attention_heads, strict=False)]
        self.decoder_depths = [_DECODER_DEPTH] * (len(self.depths) - 1)
        self.decoder_num_attention_heads = [max(heads, _DECODER_HEADS) for heads in self.num_attention_heads[:-1]]
        self.decoder_hidden_sizes = [
            heads * size for heads, size in zip(self.decoder_num_attention_heads, head_sizes, strict=False)
        ]

    @property
    def hidden_size(self) -> int:
        """Width of the last stage."""
        return self.hidden_sizes[-1]

    @property
    def num_hidden_layers(self) -> int:
        """Number of blocks of the encoder."""
        return sum(self.depths)

    @property
    def has_decoder(self) -> bool:
        """Whether there is a decoder."""
        return len(self.decoder_depths) > 0

    def _check_ranges(self) -> None:
        super()._check_ranges()
        name = type(self).__name__
        self._check_list("depths")
        for field in _STAGE_LISTS:
            self._check_list(field, len(self.depths))
        if len(self.depths) > 1 or len(self.strides):
            self._check_list("strides", len(self.depths) - 1)
        self._check_list("classifier_hidden_sizes", 2)
        unknown = [order for order in self.orders if order not in CURVES]
        if unknown or not len(self.orders):
            raise ValueError(f"`orders` of {name} must be at least one of {CURVES}, got {list(self.orders)}.")
        if self.pooling == "code" and any(stride & (stride - 1) for stride in self.strides):
            raise ValueError(f'`strides` of {name} must be powers of 2 with pooling="code", got {list(self.strides)}.')
        self._check_head_sizes("hidden_sizes", "num_attention_heads")
        self._check_features()
        self._check_decoder()
        for field in ("class_weights", "label_values"):
            values = getattr(self, field)
            if values is not None and len(values) != self.num_labels:
                raise ValueError(
                    f"`{field}` of {name} must have a value for each of the {self.num_labels} classes, got "
                    f"{len(values)} values."
                )

    def _check_head_sizes(self, sizes: str, heads: str) -> None:
        name, got = type(self).__name__, [list(getattr(self, field)) for field in (sizes, heads)]
        for size, number in zip(*got, strict=True):
            if size % number:
                raise ValueError(f"`{sizes}` of {name} must be multiples of `{heads}`, got {got[0]} and {got[1]}.")
            if self.rope_base is not None and size // number % 6:
                raise ValueError(
                    f"With `rope_base`, the size of an attention head of {name} must be a multiple of 6, got {sizes}="
                    f"{got[0]} and {heads}={got[1]}."
                )

    def _check_features(self) -> None:
        known = ("coordinates", "colors", "normals")
        if unknown := [feature for feature in self.feature_names if feature not in known]:
            raise ValueError(f"`feature_names` of {type(self).__name__} must be among {known}, got {unknown}.")
        if len(self.feature_names) and 3 * len(self.feature_names) != self.in_channels:
            raise ValueError(
                f"`in_channels` of {type(self).__name__} must be 3 for each of `feature_names`="
                f"{list(self.feature_names)}, got {self.in_channels}. If the features are others, pass "
                "`feature_names=[]`."
            )

    def _check_decoder(self) -> None:
        name = type(self).__name__
        if not self.has_decoder:
            return
        if self.read_out == "upcast":
            raise ValueError(
                f'`read_out`="upcast" of {name} reads no decoder, but `decoder_depths`={list(self.decoder_depths)}. '
                "Pass `decoder_depths=[]` to leave the decoder out, or leave `read_out` out to read it."
            )
        for field in ("decoder_depths", *_DECODER_LISTS):
            if getattr(self, field) is None:
                raise ValueError(f"`{field}` of {name} is missing, but there are `decoder_depths`.")
            self._check_list(field, len(self.depths) - 1)
        self._check_head_sizes("decoder_hidden_sizes", "decoder_num_attention_heads")
