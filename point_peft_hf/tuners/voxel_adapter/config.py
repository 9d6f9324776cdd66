"""Configuration of the voxel adapter."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import PointTunerConfig, option


@dataclass
class VoxelAdapterConfig(PointTunerConfig):
    """Configuration of a bottleneck parallel to the feed-forward networks of a scene encoder (type VOXEL_ADAPTER).

    Inside the bottleneck a depth-wise convolution over the occupied voxels around each one adds what is near. The
    neighbours are those that the encoder has looked up for its own convolutions.

    Args:
        bottleneck_size: Width of the bottlenecks.
        use_neighbors: Whether there is the convolution; without it each voxel is adapted by itself.
        scale: Factor of what the bottleneck adds.
        dropout: Dropout inside the bottlenecks.

    Raises:
        ValueError: If a value does not fit, with the name of the field and the value got.
    """

    bottleneck_size: int = option(16, "Width of the bottlenecks.", at_least=1)
    use_neighbors: bool = option(True, "Convolve over the neighbours in the bottleneck.")
    scale: float = option(1.0, "Factor of what the bottleneck adds.", above=0)
    dropout: float = option(0.0, "Dropout inside the bottlenecks.", is_rate=True)

    card_text = "Voxel adapter: a bottleneck with a local convolution parallel to each feed-forward network"
    card_fields = ("bottleneck_size", "use_neighbors")
