"""Configuration of the voxel adapter."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..config import PointTunerConfig


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

    bottleneck_size: int = field(default=16, metadata={"help": "Width of the bottlenecks."})
    use_neighbors: bool = field(default=True, metadata={"help": "Convolve over the neighbours in the bottleneck."})
    scale: float = field(default=1.0, metadata={"help": "Factor of what the bottleneck adds."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout inside the bottlenecks."})

    card_text = "Voxel adapter: a bottleneck with a local convolution parallel to each feed-forward network"
    card_fields = ("bottleneck_size", "use_neighbors")

    def __post_init__(self):
        super().__post_init__()
        self._check_at_least("bottleneck_size", self.bottleneck_size, 1)
        self._check_above_zero("scale")
        self._check_rates("dropout")
