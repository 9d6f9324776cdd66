"""Configuration of the Geometry-aware Adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..config import PointTunerConfig


@dataclass
class GeometryOptions:
    """Fields of the Geometry-aware Adapter (Point-PEFT, arXiv 2310.03059, section 3.3).

    The defaults are the paper's values.

    Args:
        bottleneck_size: Width of the bottlenecks behind the feed-forward network and at the end of a block.
        ffn_scale: Factor of what the bottleneck behind the feed-forward network adds.
        dropout: Dropout inside the bottlenecks.
        num_local_centers: Local centres; default: half of the groups.
        num_local_neighbors: Tokens of a neighbourhood; default: half of the points of a group.
        local_attention_size: Inner width of the attention inside a neighbourhood.
        local_attention_heads: Its heads.
        share_local_attention: Whether all blocks of a stage share one local attention.
        local_drop_path: Stochastic depth of the local attention in the last block; it grows linearly from 0 at the
            first.
        center_scale: Factor of the centre's own token in a neighbourhood's feature.
        gate_center: Whether the centre's term is multiplied by the weight of the neighbourhood's BatchNorm, which
            starts at 0 for the "zero" initialization: only so a fresh adapter changes nothing. Default: as
            `initialization` needs it (`False` for "published": the formula of the paper).
        propagation_scale: Factor of what the neighbourhoods give back to the tokens (the paper has 0.2 for
            Point-M2AE).
        propagation_power: Power of the distance in the propagation weights.
        propagation_eps: Added to that power of the distance.
        local_pooling: "max" or "mean" over a neighbourhood.
        center_selection: "fps", or "random" for an ablation: the same random tokens in every cloud.
        neighbor_selection: "knn", or "random" for an ablation.
        use_ffn_bottleneck: Whether there is a bottleneck behind the feed-forward network.
        use_output_bottleneck: Whether there is a bottleneck at the end of a block.
        use_local_aggregation: Whether neighbourhoods are aggregated at all.
        use_local_attention: Whether tokens of a neighbourhood attend to each other before pooling.
        use_propagation: Whether a neighbourhood's feature is propagated to all tokens; if not, only its centre gets
            it.
    """

    bottleneck_size: int = field(default=16, metadata={"help": "Width of the bottlenecks."})
    ffn_scale: float = field(default=0.7, metadata={"help": "Factor of the bottleneck behind the FFN."})
    dropout: float = field(default=0.1, metadata={"help": "Dropout inside the bottlenecks."})
    num_local_centers: int | None = field(default=None, metadata={"help": "Local centres; None: half of the groups."})
    num_local_neighbors: int | None = field(default=None, metadata={"help": "Neighbours; None: half of group_size."})
    local_attention_size: int = field(default=18, metadata={"help": "Inner width of the local attention."})
    local_attention_heads: int = field(default=6, metadata={"help": "Heads of the local attention."})
    share_local_attention: bool = field(default=True, metadata={"help": "One local attention for a stage."})
    local_drop_path: float = field(default=0.1, metadata={"help": "Stochastic depth of the local attention."})
    center_scale: float = field(default=0.3, metadata={"help": "Factor of the centre's own token."})
    gate_center: bool | None = field(default=None, metadata={"help": "Gate the centre's term."})
    propagation_scale: float = field(default=0.3, metadata={"help": "Factor of the propagated features."})
    propagation_power: float = field(default=2.0, metadata={"help": "Power of the distance."})
    propagation_eps: float = field(default=1e-8, metadata={"help": "Added to the power of the distance."})
    local_pooling: str = field(default="max", metadata={"help": "'max' or 'mean'."})
    center_selection: str = field(default="fps", metadata={"help": "'fps' or 'random'."})
    neighbor_selection: str = field(default="knn", metadata={"help": "'knn' or 'random'."})
    use_ffn_bottleneck: bool = field(default=True, metadata={"help": "Bottleneck behind the FFN."})
    use_output_bottleneck: bool = field(default=True, metadata={"help": "Bottleneck at the end of a block."})
    use_local_aggregation: bool = field(default=True, metadata={"help": "Aggregate neighbourhoods."})
    use_local_attention: bool = field(default=True, metadata={"help": "Attention inside a neighbourhood."})
    use_propagation: bool = field(default=True, metadata={"help": "Propagate to all tokens."})

    def _check_geometry(self) -> None:
        if self.gate_center is None:
            self.gate_center = self.initialization == "zero"
        self._check_at_least("bottleneck_size", self.bottleneck_size, 1)
        for name in ("num_local_centers", "num_local_neighbors"):
            if getattr(self, name) is not None:
                self._check_at_least(name, getattr(self, name), 1)
        self._check_at_least("local_attention_heads", self.local_attention_heads, 1)
        self._check_at_least("local_attention_size", self.local_attention_size, 1)
        if self.local_attention_size % self.local_attention_heads:
            raise ValueError(
                "`local_attention_size` must be a multiple of `local_attention_heads`, got "
                f"{self.local_attention_size} and {self.local_attention_heads}."
            )
        for name in ("ffn_scale", "center_scale", "propagation_scale"):
            self._check_at_least(name, getattr(self, name), 0)
        for name in ("propagation_power", "propagation_eps"):
            self._check_above_zero(name)
        self._check_rates("dropout", "local_drop_path")
        self._check_choice("local_pooling", ("max", "mean"))
        self._check_choice("center_selection", ("fps", "random"))
        self._check_choice("neighbor_selection", ("knn", "random"))


@dataclass
class GeometryAdapterConfig(GeometryOptions, PointTunerConfig):
    """Configuration of a Geometry-aware Adapter (type GEOMETRY_ADAPTER).

    See [`GeometryOptions`] for the fields of the method and [`~point_peft_hf.tuners.config.PointTunerConfig`] for
    those of all 3D adapters.

    Raises:
        ValueError: If a value does not fit, with the name of the field and the value got.
    """

    _peft_type_name: ClassVar[str] = "GEOMETRY_ADAPTER"

    def __post_init__(self):
        super().__post_init__()
        self._check_geometry()

    @classmethod
    def describe(cls, fields: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        """See [`~point_peft_hf.tuners.config.PointTunerConfig.describe`]."""
        text = "Geometry-aware Adapter (Point-PEFT, arXiv 2310.03059): attention inside local groups of tokens"
        return text, ("bottleneck_size",)
