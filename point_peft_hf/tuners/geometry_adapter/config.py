"""Configuration of the Geometry-aware Adapter."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import PointTunerConfig, option


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

    bottleneck_size: int = option(16, "Width of the bottlenecks.", at_least=1)
    ffn_scale: float = option(0.7, "Factor of the bottleneck after the FFN.", at_least=0)
    dropout: float = option(0.1, "Dropout on prompts and inside the bottlenecks.", is_rate=True)
    num_local_centers: int | None = option(None, "Local centres; None: half of the groups.", at_least=1)
    num_local_neighbors: int | None = option(None, "Neighbours; None: half of group_size.", at_least=1)
    local_drop_path: float = option(0.1, "Stochastic depth of the local attention.", is_rate=True)
    propagation_scale: float = option(0.3, "Factor of the propagated features.", at_least=0)


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
