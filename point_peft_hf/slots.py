"""Where adapters attach: the contract between the blocks of a backbone and the adapters.

A backbone that wants 3D adapters holds *slots*: modules without parameters that return their input unchanged. An
adapter replaces a slot by a layer of its own and puts the slot back when it is unloaded, so no key of the backbone
ever changes and other PEFT methods (LoRA on the projections, ...) do not notice.

One value moves, [`~point_peft_hf.tokens.Tokens`], and slots map it. A forward pass reads

    cloud = point_slot(cloud, backbone)                            # before the points are grouped
    tokens = token_slot(tokens, backbone)                          # before the blocks of a stage
    for block in blocks:
        tokens = entry_slot(tokens)                                # start of a block
        hidden = tokens.embedded()                                 # positions are added
        inputs = norm1_slot(norm1(hidden), hidden)                 # likewise q_proj, k_proj, v_proj, out_proj
        update, tokens = attention_slot(attention(inputs), inputs, tokens, drop_path)
        hidden = hidden + update
        inputs = norm2_slot(norm2(hidden), hidden)                 # likewise fc1, fc2
        update, tokens = ffn_slot(mlp(inputs), inputs, tokens, drop_path)
        tokens = output_slot(tokens.with_features(hidden + update)).drop_passing()
    hidden = layernorm_slot(layernorm(tokens.features), tokens.features)
    pooled = readout_slot(pool(hidden), tokens, (tokens.with_features(hidden),))

Encoders of scenes work on packed rows, one a voxel, of clouds of any size: no sequence exists to insert tokens into,
and what a block knows of its voxels is a [`~point_peft_hf.voxels.VoxelStage`]. Besides the slots after norms and
linear layers they have two kinds of slots of their own, which map plain rows; adapters of objects do not attach to
them:

    output = attention_slot(attention(query, key, value), query, voxels)
    hidden = hidden + drop_path(out_proj_slot(out_proj(output), output))
    hidden = hidden + drop_path(ffn_slot(mlp(inputs), inputs, voxels))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .tokens import Cloud, Tokens


@dataclass(frozen=True)
class Stage:
    """The part of a backbone whose blocks work on the same tokens; most backbones have one.

    Attributes:
        hidden_size: Width of the tokens.
        group_size: Number of points of a group.
        num_layers: Number of blocks of the stage.
        first_layer: Number of its first block, counted from 0 over all stages.
        total_layers: Number of blocks of the backbone.
        index: Number of the stage.
        count: Number of stages.
        num_class: Number of class tokens in front of the patch tokens.
        is_encoder: Whether its blocks are part of the encoder. Those of a decoder, which only pre-training needs, are
            left alone by adapters, and `output_hidden_states` does not record them.
        num_groups: Number of patch tokens, where it is known before the first pass.
    """

    hidden_size: int
    group_size: int
    num_layers: int
    first_layer: int = 0
    total_layers: int | None = None
    index: int = 0
    count: int = 1
    num_class: int = 0
    is_encoder: bool = True
    num_groups: int | None = None

    def __post_init__(self):
        if self.total_layers is None:
            object.__setattr__(self, "total_layers", self.num_layers)

    @property
    def is_last(self) -> bool:
        """Whether the features of the backbone come from this stage."""
        return self.index == self.count - 1

    @property
    def layers(self) -> range:
        """Numbers of its blocks."""
        return range(self.first_layer, self.first_layer + self.num_layers)


class Backbone:
    """What adapters in front of the blocks may ask of the model they are attached to.

    Not the model itself: hooks that move what a module is called with to a device must not move a model.

    Args:
        model: The encoder.
    """

    def __init__(self, model: nn.Module):
        self._model = model

    @property
    def config(self) -> Any:
        """Its configuration."""
        return self._model.config

    def embed(
        self, points: torch.Tensor, num_groups: int, group_size: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features, position embeddings and centres of further tokens, from its own grouping and embedding."""
        return self._model.embed(points, num_groups, group_size)

    def position_embedding(self, coordinates: torch.Tensor, stage: int = 0) -> torch.Tensor:
        """Position embeddings of places of shape `(batch_size, count, 3)`, in the width of a stage."""
        return self._model.position_embedding(coordinates, *([stage] if stage else []))

    def frozen_tokens(self, cloud: Cloud, depth: int | None = None) -> Tokens:
        """Tokens of the pre-trained encoder after a number of blocks, untouched by any adapter; no gradient."""
        return self._model.frozen_tokens(cloud, depth)

    def frozen_features(self, cloud: Cloud) -> torch.Tensor:
        """Features of the pre-trained encoder, of shape `(batch_size, hidden_size)`; no gradient."""
        return self._model.frozen_features(cloud)

    def summarize(self, tokens: Tokens) -> torch.Tensor:
        """What `frozen_features` makes of tokens after the final norm."""
        return self._model.summarize(tokens)

    def check_frozen(self, reason: str) -> None:
        """Check that nothing is trained of the pre-trained encoder; `reason` says in the message why not."""
        self._model.check_frozen(reason)


class AdapterSlot(nn.Module):
    """A place for adapters: no parameters, returns its input.

    Args:
        stage: The stage it belongs to.
        hidden_size: Width of what passes; default: that of the tokens.
    """

    bias = None
    # Whether the slot is inside a block. The others serve all blocks in `layers`.
    is_in_block = False

    def __init__(self, stage: Stage, hidden_size: int | None = None):
        super().__init__()
        self.stage = stage
        self.hidden_size = stage.hidden_size if hidden_size is None else hidden_size
        # Empty and not saved: it only follows the model to its device and dtype, which is what PEFT asks the `weight`
        # of the module under an adapter for.
        self.register_buffer("weight", torch.empty(0), persistent=False)

    @property
    def layers(self) -> range:
        """Numbers of the blocks that the slot serves."""
        return self.stage.layers

    def forward(self, value: Any, *inputs: Any) -> Any:
        """Return the first argument unchanged."""
        return value

    def shift(self) -> torch.Tensor | None:
        """What is added to every row, of shape `(hidden_size,)`, where nothing else is done; `None` elsewhere."""
        return None

    def extra_repr(self) -> str:
        """Describe the slot where the model is printed."""
        return f"hidden_size={self.hidden_size}"


class PointSlot(AdapterSlot):
    """Before the points are grouped, once in a forward pass: `forward(cloud, backbone) -> cloud`.

    A layer may move points or append some. What it shares reaches all stages.
    """

    @property
    def layers(self) -> range:
        """Numbers of the blocks that the slot serves: all."""
        return range(self.stage.total_layers)


class TokenSlot(AdapterSlot):
    """Before the blocks of a stage: `forward(tokens, backbone) -> tokens`.

    `backbone` gives a layer further tokens, position embeddings, and the tokens of the pre-trained encoder.
    """


class BlockSlot(AdapterSlot):
    """A slot inside a block.

    Args:
        stage: The stage of the block.
        layer_index: Number of the block, counted from 0 over all stages.
        hidden_size: Width of what passes; default: that of the tokens.
    """

    is_in_block = True

    def __init__(self, stage: Stage, layer_index: int, hidden_size: int | None = None):
        super().__init__(stage, hidden_size)
        self.layer_index = layer_index

    @property
    def layers(self) -> range:
        """Number of the block, as a range."""
        return range(self.layer_index, self.layer_index + 1)

    def extra_repr(self) -> str:
        """Describe the slot where the model is printed."""
        return f"hidden_size={self.hidden_size}, layer_index={self.layer_index}"


class EntrySlot(BlockSlot):
    """At the start of a block, before positions are added: `forward(tokens) -> tokens`."""


class LayerSlot(AdapterSlot):
    """After a norm, a linear layer or an embedding: `forward(output, inputs) -> output`.

    Args:
        stage: The stage.
        layer: Name of the layer: "norm1", "q_proj", "k_proj", "v_proj", "out_proj", "norm2", "fc1" (before the
            activation), "fc2"; in scene encoders "qkv", "position_linear" and "position_norm" as well; outside of the
            blocks "patch_embedding" and "layernorm".
        layer_index: Number of the block, or `None` outside of the blocks.
        hidden_size: Width of the output; default: that of the tokens.
        has_bias: Whether the layer has a bias of its own.
    """

    def __init__(
        self,
        stage: Stage,
        layer: str,
        layer_index: int | None = None,
        hidden_size: int | None = None,
        has_bias: bool = True,
    ):
        super().__init__(stage, hidden_size)
        self.layer = layer
        self.layer_index = layer_index
        self.has_bias = has_bias
        self.is_in_block = layer_index is not None

    @property
    def layers(self) -> range:
        """Numbers of the blocks that the slot serves."""
        if self.layer_index is None:
            return self.stage.layers
        return range(self.layer_index, self.layer_index + 1)

    def extra_repr(self) -> str:
        """Describe the slot where the model is printed."""
        return f"hidden_size={self.hidden_size}, layer={self.layer}"


class BranchSlot(BlockSlot):
    """After a branch of a block, before its residual connection.

    `forward(output, inputs, tokens, drop_path) -> (update, tokens)`: `output` is what the branch made of `inputs`
    (after the norm), `tokens.features` the residual stream. A layer that adds to `output` before it calls its base
    layer is inside of stochastic depth; what it adds to the result is outside.
    """

    def __init__(self, stage: Stage, layer_index: int, branch: str):
        super().__init__(stage, layer_index)
        self.branch = branch

    def forward(
        self, output: torch.Tensor, inputs: torch.Tensor, tokens: Tokens, drop_path: Callable[[torch.Tensor], Any]
    ) -> tuple[torch.Tensor, Tokens]:
        """Return `drop_path(output)`, what is added to the residual stream, and the tokens unchanged."""
        return drop_path(output), tokens


class OutputSlot(BlockSlot):
    """At the end of a block, before tokens that live for one block leave: `forward(tokens) -> tokens`."""


class VoxelSlot(BlockSlot):
    """A slot in a block of a scene encoder, which works on packed rows of voxels."""


class PatchAttentionSlot(VoxelSlot):
    """After the attention within patches, before its output projection: `forward(output, query, voxels) -> output`.

    `output` and `query` are of shape `(N, num_heads, head_size)`, the query before any rotation and not scaled.
    """

    def __init__(self, stage: Stage, layer_index: int, num_heads: int):
        super().__init__(stage, layer_index)
        self.num_heads = num_heads


class VoxelFFNSlot(VoxelSlot):
    """After the feed-forward network, inside of stochastic depth: `forward(output, inputs, voxels) -> output`.

    `output` is what the network made of `inputs` (after the norm), both of shape `(N, hidden_size)`.
    """


class ReadoutSlot(AdapterSlot):
    """Between pooling and head: `forward(pooled, tokens, levels) -> pooled`.

    `pooled` is of shape `(batch_size, pooled_size)`, `tokens` are those that left the last block, before the final
    norm, and `levels` the same after it; for a part segmentation they are the tokens of each depth that its head
    reads, after the final norm.

    A layer may return features of another width, if its tuner says so (`readout_size`): the adapter's own head is
    built for it.

    Args:
        stage: The last stage.
        kind: "cloud": what a classification head reads. "points": what the head of a part segmentation knows of the
            whole cloud.
        pooled_size: Width of `pooled`.
        num_levels: Number of depths whose tokens come as `levels`.
    """

    def __init__(self, stage: Stage, kind: str, pooled_size: int, num_levels: int = 1):
        super().__init__(stage, pooled_size)
        self.kind = kind
        self.num_levels = num_levels
        # Whether a head reads what passes here.
        self.is_read = True

    @property
    def layers(self) -> range:
        """Numbers of the blocks that the slot serves: all."""
        return range(self.stage.total_layers)
