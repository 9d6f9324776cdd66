"""What the configurations of all models share."""

from __future__ import annotations

import difflib

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

# Fields that transformers itself passes through a configuration's keyword arguments.
_TRANSFORMERS_KEYS = frozenset(
    {
        "attn_implementation",
        "auto_map",
        "id2label",
        "label2id",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "torch_dtype",
        "transformers_version",
    }
)


def class_names_of(config: PreTrainedConfig) -> list[str]:
    """Names of the classes, in the order of their numbers.

    Raises:
        ValueError: If two classes have the same name, so that predictions could not be told apart.
    """
    names = [config.id2label[index] for index in range(config.num_labels)]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ValueError(
                f"Classes {names.index(name)} and {number} of the model are both called {name!r}. Give each class a "
                "name of its own in `id2label` of the configuration."
            )
    return names


@strict
class PointConfig(PreTrainedConfig):
    """Base of all configurations: the fields that models of objects and of scenes share.

    Args:
        mlp_ratio: Width of the feed-forward network relative to the width of the tokens.
        qkv_bias: Whether the query, key and value projections have a bias.
        hidden_act: Activation of the feed-forward network.
        layer_norm_eps: Epsilon of the layer norms.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 at the first.
        attention_dropout: Dropout on the attention weights.
        classifier_dropout: Dropout in the classification head.
        label_smoothing: Label smoothing of the loss.
        initializer_range: Standard deviation of newly initialised weights.
        weights_license: Licence of the pre-trained weights, as their publisher states it; model cards of adapters
            repeat it.

    Raises:
        ValueError: If a field does not exist or does not fit, with the name of the field.
    """

    mlp_ratio: int | float = 4.0
    qkv_bias: bool = False
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    drop_path_rate: int | float = 0.1
    attention_dropout: int | float = 0.0
    classifier_dropout: int | float = 0.5
    label_smoothing: int | float = 0.0
    initializer_range: float = 0.02
    weights_license: str | None = None

    # Fields by the values that they can have: at least 0 and below 1; above 0 and below 1; above 0; a choice.
    _rates = ("drop_path_rate", "attention_dropout", "classifier_dropout", "label_smoothing")
    _shares = ()
    _positive = ("mlp_ratio", "layer_norm_eps")
    _choices = {}

    def __post_init__(self, **kwargs):
        known = set(_TRANSFORMERS_KEYS) | set(PreTrainedConfig.__dataclass_fields__)
        for name in kwargs:
            if name.startswith("_") or name in known:
                continue
            close = difflib.get_close_matches(name, self.__dataclass_fields__, n=1)
            hint = f" Did you mean `{close[0]}`?" if close else ""
            raise ValueError(f"{type(self).__name__} has no field `{name}` (got {kwargs[name]!r}).{hint}")
        super().__post_init__(**kwargs)
        self._check_ranges()

    def _check_ranges(self) -> None:
        for name in self._rates:
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < 1:
                raise ValueError(f"`{name}` of {type(self).__name__} must be at least 0 and below 1, got {value!r}.")
        for name in self._shares:
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` of {type(self).__name__} must be above 0 and below 1, got {getattr(self, name)}."
                )
        for name in self._positive:
            self._check_positive(name, getattr(self, name))
        for name, choices in self._choices.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"`{name}` of {type(self).__name__} must be one of {', '.join(map(repr, choices))}, got "
                    f"{getattr(self, name)!r}."
                )

    def _check_positive(self, name: str, *values: int | float) -> None:
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise ValueError(f"`{name}` of {type(self).__name__} must be a positive number, got {value!r}.")

    def _check_list(self, name: str, length: int | None = None) -> None:
        """Check that a field is a list of positive numbers, of a given length or at least of length 1."""
        values = getattr(self, name)
        if len(values) != length if length is not None else not len(values):
            wanted = "at least 1 value" if length is None else f"{length} values"
            raise ValueError(f"`{name}` of {type(self).__name__} must have {wanted}, got {values}.")
        self._check_positive(name, *values)


@strict
class PointTransformerConfig(PointConfig):
    """Base of the configurations of models of objects: the fields that they all have.

    Args:
        num_attention_heads: Attention heads of a block.
        classifier_hidden_size: Width of the hidden layers of the classification head.
        num_categories: Number of object categories that the segmentation head is told apart by `category_ids`; 0 for a
            head that is not told. (`num_labels` is the number of parts over all categories.)
        category_names: Names of the categories. None if there are none, or nobody named them.
        category_parts: The labels of the parts that objects of each category can have, for choosing among these only.
            None if any object can have any part.
        segmentation_token_size: Width that the segmentation head reduces the features of a token to; 0 keeps all of
            them, as the published heads do.
        segmentation_propagation_sizes: Widths of the layers of the segmentation head on the features that have been
            propagated to the points; published: (1536, 1024).
        segmentation_hidden_sizes: Widths of its layers after these, which see the whole cloud as well; published:
            (512, 256).
        segmentation_dropout: Dropout in the segmentation head.
        skip_near_origin: Sample centres by the rule of the published CUDA operator, which never selects points within
            a squared distance of 1e-3 of the origin.
        **kwargs: Fields of [`PointConfig`] and of transformers.

    Raises:
        ValueError: If a field does not exist or does not fit, with the name of the field.
    """

    num_attention_heads: int = 6
    classifier_hidden_size: int = 256
    num_categories: int = 0
    category_names: list[str] | tuple[str, ...] | None = None
    category_parts: list[list[int]] | tuple[list[int], ...] | None = None
    segmentation_token_size: int = 128
    segmentation_propagation_sizes: list[int] | tuple[int, ...] = (128,)
    segmentation_hidden_sizes: list[int] | tuple[int, ...] = (128,)
    segmentation_dropout: int | float = 0.5
    skip_near_origin: bool = False

    _rates = (*PointConfig._rates, "segmentation_dropout")
    _positive = (*PointConfig._positive, "classifier_hidden_size")

    def _check_ranges(self) -> None:
        super()._check_ranges()
        self._check_segmentation()

    def _check_segmentation(self) -> None:
        for name in ("segmentation_propagation_sizes", "segmentation_hidden_sizes"):
            self._check_list(name)
        for name in ("segmentation_token_size", "num_categories"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` of {type(self).__name__} must be at least 0, got {getattr(self, name)}.")
        numbers = {
            "num_categories": self.num_categories or None,
            "category_names": None if self.category_names is None else len(self.category_names),
            "category_parts": None if self.category_parts is None else len(self.category_parts),
        }
        if len(set(numbers.values()) - {None}) > 1:
            raise ValueError(
                f"`num_categories`, `category_names` and `category_parts` of {type(self).__name__} must agree on the "
                f"number of categories, got {numbers}."
            )
        for parts in self.category_parts or ():
            if not parts or any(isinstance(part, bool) or part < 0 for part in parts):
                raise ValueError(
                    f"`category_parts` of {type(self).__name__} must have at least one label for each category, and "
                    f"none below 0, got {self.category_parts}."
                )

    def _check_heads(self, hidden_size: int, name: str = "num_attention_heads") -> None:
        heads = getattr(self, name)
        self._check_positive(name, heads)
        if hidden_size % heads:
            raise ValueError(
                f"`hidden_size` of {type(self).__name__} must be a multiple of `{name}`, got "
                f"hidden_size={hidden_size} and {name}={heads}."
            )


@strict
class SingleStageConfig(PointTransformerConfig):
    """Base of the configurations of point transformers whose blocks all work on the same groups.

    Args:
        hidden_size: Width of the tokens.
        num_hidden_layers: Number of blocks.
        num_groups: Number of groups, hence patch tokens, of a cloud: 64 for 1024 points, 128 for 2048.
        group_size: Number of points of a group.
        patch_hidden_sizes: Widths inside of the patch embedding: of the layers before the maximum over the group, and
            of the one between it and the last layer.
        segmentation_layers: Numbers of the blocks, counted from 0, whose tokens the segmentation head reads; default:
            at one, two and three thirds of the depth (3, 7 and 11 of 12, as published).
        **kwargs: Fields of [`PointTransformerConfig`] and of transformers.

    Raises:
        ValueError: If a field does not exist or does not fit, with the name of the field.
    """

    hidden_size: int = 384
    num_hidden_layers: int = 12
    num_groups: int = 64
    group_size: int = 32
    patch_hidden_sizes: list[int] | tuple[int, ...] = (128, 256, 512)
    segmentation_layers: list[int] | tuple[int, ...] | None = None

    _positive = (*PointTransformerConfig._positive, "hidden_size", "num_hidden_layers", "num_groups", "group_size")
    # The depth that the default of `segmentation_layers` is counted in, if the model is deeper.
    _segmentation_depth = None

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """Numbers of the blocks whose tokens the segmentation head reads."""
        if self.segmentation_layers is not None:
            return tuple(self.segmentation_layers)
        depth = min(self.num_hidden_layers, self._segmentation_depth or self.num_hidden_layers)
        depths = (max(round(third * depth / 3), 1) for third in (1, 2, 3))
        return tuple(dict.fromkeys(depth - 1 for depth in depths))

    def _check_ranges(self) -> None:
        super()._check_ranges()
        self._check_heads(self.hidden_size)
        self._check_list("patch_hidden_sizes")
        layers = self.segmentation_layers
        if layers is not None and (not layers or any(not 0 <= layer < self.num_hidden_layers for layer in layers)):
            raise ValueError(
                f"`segmentation_layers` of {type(self).__name__} must be numbers of blocks, 0 to "
                f"{self.num_hidden_layers - 1}, got {layers}."
            )


@strict
class LearnedPositionConfig(SingleStageConfig):
    """Base of the configurations of point transformers that learn the embedding of positions.

    Args:
        position_hidden_size: Width inside the position embedding.
        **kwargs: Fields of [`SingleStageConfig`], of [`PointTransformerConfig`] and of transformers.

    Raises:
        ValueError: If a field does not exist or does not fit, with the name of the field.
    """

    position_hidden_size: int = 128

    _positive = (*SingleStageConfig._positive, "position_hidden_size")

    def _check_ranges(self) -> None:
        super()._check_ranges()
        self._check_list("patch_hidden_sizes", 3)
