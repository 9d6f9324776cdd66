"""Configuration of the Geometry-aware Adapter."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..config import PointTunerConfig


@dataclass
class GeometryOptions:
    """Fields of the Geometry-aware Adapter (Point-PEFT, arXiv 2310.03059, section 3.3).

    The defaults are the paper's values.

    Args:
        bottleneck_size: Width of the bottlenecks after the feed-forward network and at the end of a block.
        ffn_scale: Factor of what the bottleneck after the feed-forward network adds.
        dropout: Dropout inside the bottlenecks.
        num_local_centers: Local centres; default: half of the groups.
        num_local_neighbors: Tokens of a neighbourhood; default: half of the points of a group.
        local_drop_path: Stochastic depth of the local attention in the last block; it grows linearly from 0 at the
            first.
        propagation_scale: Factor of what the neighbourhoods give back to the tokens (the paper has 0.2 for
            Point-M2AE).
    """

    bottleneck_size: int = field(default=16, metadata={"help": "Width of the bottlenecks."})
    ffn_scale: float = field(default=0.7, metadata={"help": "Factor of the bottleneck after the FFN."})
    dropout: float = field(default=0.1, metadata={"help": "Dropout on prompts and inside the bottlenecks."})
    num_local_centers: int | None = field(default=None, metadata={"help": "Local centres; None: half of the groups."})
    num_local_neighbors: int | None = field(default=None, metadata={"help": "Neighbours; None: half of group_size."})
    local_drop_path: float = field(default=0.1, metadata={"help": "Stochastic depth of the local attention."})
    propagation_scale: float = field(default=0.3, metadata={"help": "Factor of the propagated features."})

    def _check_geometry(self) -> None:
        self._check_at_least("bottleneck_size", self.bottleneck_size, 1)
        for name in ("num_local_centers", "num_local_neighbors"):
            if getattr(self, name) is not None:
                self._check_at_least(name, getattr(self, name), 1)
        for name in ("ffn_scale", "propagation_scale"):
            self._check_at_least(name, getattr(self, name), 0)
        self._check_rates("dropout", "local_drop_path")


@dataclass
class GeometryAdapterConfig(GeometryOptions, PointTunerConfig):
    """Configuration of a Geometry-aware Adapter (type GEOMETRY_ADAPTER).

    See [`GeometryOptions`] for the fields of the method and [`~point_peft_hf.tuners.config.PointTunerConfig`] for
    those of all 3D adapters.

    Raises:
        ValueError: If a value does not fit, with the name of the field and the value got.
    """

    card_text = "Geometry-aware Adapter (Point-PEFT, arXiv 2310.03059): attention inside local groups of tokens"
    card_fields = ("bottleneck_size",)

    def __post_init__(self):
        super().__post_init__()
        self._check_geometry()
