"""Point-PEFT with switches that only a study of its parts needs: `--method ablation_types:AblationConfig`.

The study is `studies/ablation.yaml`. A type of one's own needs no more than this: a configuration, layers that differ
in what they override, and a tuner. With all switches at their defaults it computes the function of `PointPeftConfig`,
to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from point_peft_hf import PointPeftConfig, PointPeftModel
from point_peft_hf.slots import AdapterSlot
from point_peft_hf.tokens import Tokens
from point_peft_hf.tuners import SlotLayer, register_method
from point_peft_hf.tuners.geometry_adapter.layer import (
    FeedForwardLayer,
    LocalNeighborhoods,
    OutputLayer,
    SharedAttentionLayer,
)


@dataclass
class AblationConfig(PointPeftConfig):
    """Configuration of Point-PEFT with parts removed or made random.

    Args:
        use_ffn_bottleneck: Whether there is a bottleneck after the feed-forward network.
        use_output_bottleneck: Whether there is a bottleneck at the end of a block.
        use_local_aggregation: Whether neighbourhoods are aggregated at all.
        use_local_attention: Whether tokens of a neighbourhood attend to each other before pooling.
        use_propagation: Whether the feature of a neighbourhood is propagated to all tokens; if not, only the local
            centre gets it.
        use_prompt_coordinates: Whether prompts have coordinates. They learn from the propagation, so without it there
            are none.
        local_pooling: "max" or "mean" over a neighbourhood.
        center_selection: "fps", or "random": the same random tokens in every cloud.
        neighbor_selection: "knn", or "random": the same random tokens in every cloud.

    Raises:
        ValueError: If a value does not fit, with the name of the field and the value got.
    """

    use_ffn_bottleneck: bool = field(default=True, metadata={"help": "Bottleneck after the FFN."})
    use_output_bottleneck: bool = field(default=True, metadata={"help": "Bottleneck at the end of a block."})
    use_local_aggregation: bool = field(default=True, metadata={"help": "Aggregate neighbourhoods."})
    use_local_attention: bool = field(default=True, metadata={"help": "Attention inside a neighbourhood."})
    use_propagation: bool = field(default=True, metadata={"help": "Propagate to all tokens."})
    use_prompt_coordinates: bool = field(default=True, metadata={"help": "Give prompts coordinates."})
    local_pooling: str = field(default="max", metadata={"help": "'max' or 'mean'."})
    center_selection: str = field(default="fps", metadata={"help": "'fps' or 'random'."})
    neighbor_selection: str = field(default="knn", metadata={"help": "'knn' or 'random'."})

    def __post_init__(self):
        super().__post_init__()
        self._check_choice("local_pooling", ("max", "mean"))
        self._check_choice("center_selection", ("fps", "random"))
        self._check_choice("neighbor_selection", ("knn", "random"))
        # What nothing learns from would be a part that is declared and never trained.
        self.use_prompt_coordinates &= self.use_geometry and self.use_local_aggregation and self.use_propagation


class AblationAttentionLayer(SharedAttentionLayer):
    """The local attention, unless it is removed."""

    @classmethod
    def wants(cls, config: AblationConfig, slot: AdapterSlot) -> bool:
        """Whether tokens of a neighbourhood attend to each other."""
        return config.use_local_aggregation and config.use_local_attention


class AblationFeedForwardLayer(FeedForwardLayer):
    """The bottleneck after the feed-forward network, unless it is removed."""

    @classmethod
    def wants(cls, config: AblationConfig, slot: AdapterSlot) -> bool:
        """Whether it is the branch of the feed-forward network, and has a bottleneck."""
        return config.use_ffn_bottleneck and super().wants(config, slot)


class AblationOutputLayer(OutputLayer):
    """Aggregation, propagation and bottleneck at the end of a block, each as the configuration has it."""

    @classmethod
    def wants(cls, config: AblationConfig, slot: AdapterSlot) -> bool:
        """Whether anything is left of them."""
        return config.use_local_aggregation or config.use_output_bottleneck

    def create_parts(self, adapter_name: str, config: AblationConfig, slot_name: str) -> dict[str, nn.Module]:
        """Create what is left."""
        created = super().create_parts(adapter_name, config, slot_name)
        if not config.use_output_bottleneck:
            del created["output_bottleneck"]
        if not config.use_local_aggregation:
            del created["pooled_bn"]
        return created

    def choose_centers(self, name: str, points: torch.Tensor, num_centers: int) -> torch.Tensor:
        """Choose the local centres, `(batch_size, num_centers)` of the places `(batch_size, num_places, 3)`."""
        if self.configs[name].center_selection == "fps":
            return super().choose_centers(name, points, num_centers)
        order = torch.randperm(points.shape[1], generator=torch.Generator().manual_seed(0))
        return order[:num_centers].to(points.device).expand(len(points), -1)

    def choose_neighbors(
        self, name: str, centers: torch.Tensor, points: torch.Tensor, num_neighbors: int
    ) -> torch.Tensor:
        """Choose the neighbourhoods, of shape `(batch_size, num_centers, num_neighbors)`."""
        if self.configs[name].neighbor_selection == "knn":
            return super().choose_neighbors(name, centers, points, num_neighbors)
        noise = torch.rand(centers.shape[1], points.shape[1], generator=torch.Generator().manual_seed(1))
        return noise.argsort(dim=1)[:, :num_neighbors].to(points.device).expand(len(points), -1, -1)

    def pool(self, name: str, tokens: Tokens, neighborhoods: LocalNeighborhoods) -> torch.Tensor | None:
        """One feature for each neighbourhood, of shape `(batch_size * num_local_centers, hidden_size)`."""
        config = self.configs[name]
        if not config.use_local_aggregation:
            return None
        if config.use_local_attention and config.local_pooling == "max":
            return super().pool(name, tokens, neighborhoods)
        rows = neighborhoods.neighbor_rows
        features = tokens.features.flatten(0, 1).to(self.part("pooled_bn", name).weight.dtype)
        neighbors = F.embedding(rows, features)  # (batch_size * num_local_centers, num_local_neighbors, hidden_size)
        if config.use_local_attention:
            update = tokens.cloud.shared[f"{self.key(name)}.local_attention"](features, rows)
            kept = self.drop_path(name, features, len(rows))
            neighbors = neighbors + (update if kept is None else kept[:, None, None] * update)
        return neighbors.amax(dim=1) if config.local_pooling == "max" else neighbors.mean(dim=1)

    def propagation_weights(
        self, name: str, centers: torch.Tensor, points: torch.Tensor, center_indices: torch.Tensor, num_front: int
    ) -> torch.Tensor:
        """Weights from the local centres to the tokens of a block; without propagation 1 for a centre's own token."""
        if self.configs[name].use_propagation:
            return super().propagation_weights(name, centers, points, center_indices, num_front)
        groups = torch.arange(points.shape[1] - centers.shape[1], points.shape[1], device=points.device)
        is_center = groups[None, :, None] == center_indices[:, None]  # (batch_size, num_groups, num_local_centers)
        return F.pad(is_center.to(points.dtype), (0, 0, num_front, 0))


_REPLACED = {
    SharedAttentionLayer: AblationAttentionLayer,
    FeedForwardLayer: AblationFeedForwardLayer,
    OutputLayer: AblationOutputLayer,
}


def _replaced(layers: tuple[type[SlotLayer], ...]) -> tuple[type[SlotLayer], ...]:
    return tuple(_REPLACED.get(layer, layer) for layer in layers)


@register_method("ablation", AblationConfig)
class AblationModel(PointPeftModel):
    """Adds Point-PEFT with parts removed or made random."""

    layer_classes = _replaced(PointPeftModel.layer_classes)

    def layers_of(self, peft_config: AblationConfig) -> tuple[type[SlotLayer], ...]:
        """The layers of the parts that are switched on."""
        return _replaced(super().layers_of(peft_config))
