"""Point Transformer V3 and its relatives: voxels of whole scenes -> features of each voxel.

From the top: voxels -> stages of blocks, with pooling between them -> up-cast or decoder -> classes. One
implementation for Point Transformer V3 (arXiv 2312.10035), Sonata (2503.16429), Concerto (2510.23607) and Utonia
(2603.03283). Where published outputs depend on chance or on the other clouds of a batch, these here do not: each cloud
has curves and patches of its own size, and curves are shuffled in training only.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ...layers import TaskModule
from ...ops import rotation
from ...slots import Stage
from ...voxels import VoxelStage
from ..layers import ClassificationHead
from ..modeling import BackbonePreTrainedModel, classification_loss
from ..modeling_outputs import SceneClassifierOutput, SceneModelOutput, SceneSegmentationOutput
from .attention import RelativePositions
from .checks import check_labels, check_voxels
from .configuration_ptv3 import PointTransformerV3Config
from .heads import SemanticHead
from .layers import LayerScale, PointTransformerV3Layer, Pooling, Stem, SubmanifoldConv, Unpooling


class PointTransformerV3PreTrainedModel(BackbonePreTrainedModel):
    """Base of the models of the family."""

    config_class = PointTransformerV3Config
    config: PointTransformerV3Config
    base_model_prefix = "ptv3"
    main_input_name = "features"
    input_modalities = ("voxels",)
    _no_split_modules = ["PointTransformerV3Layer"]
    _supports_sdpa = True
    _can_record_outputs = {"hidden_states": OutputRecorder(PointTransformerV3Layer, index=0)}
    # Files hold the heads, and the decoder, of what they were made for.
    _keys_to_ignore_on_load_unexpected = [r"^classifier\.", r"^semantic_head\.", r"(^|\.)decoder\."]

    def __init__(self, config: PointTransformerV3Config, *args, **kwargs):
        config.settle()
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
            return
        super()._init_weights(module)
        if isinstance(module, SubmanifoldConv):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, RelativePositions):
            init.trunc_normal_(module.table, std=std)
        elif isinstance(module, LayerScale):
            init.constant_(module.gamma, module.initial)

    def get_input_embeddings(self) -> nn.Module:
        """Return the stem; gradient checkpointing hooks its output."""
        return getattr(self, self.base_model_prefix, self).stem


class EncoderStage(nn.Module):
    """The blocks of a stage, and the pooling in front of them.

    Args:
        config: Configuration.
        stage: The stage.
        num_heads: Attention heads.
        rates: Stochastic depth of each block.
        in_size: Width of the stage before; `None` for no pooling.
    """

    def __init__(self, config, stage: Stage, num_heads: int, rates: Sequence[float], in_size: int | None = None):
        super().__init__()
        self.pooling = None if in_size is None else Pooling(config, in_size, stage.hidden_size)
        self.layers = nn.ModuleList(
            PointTransformerV3Layer(config, stage, num_heads, index, rate)
            for index, rate in zip(stage.layers, rates, strict=True)
        )
        self.rope_base, self.head_size = config.rope_base, stage.hidden_size // num_heads

    def forward(
        self, rows: torch.Tensor, voxels: VoxelStage, position_rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the blocks on rows of shape `(N, hidden_size)`; `position_rows` as for the first block."""
        turn = None if self.rope_base is None else rotation(voxels.coordinates, self.rope_base, self.head_size)
        for layer in self.layers:
            rows, position_rows = layer(rows, position_rows, voxels, turn)
        return rows


class Decoder(TaskModule):
    """From the last stage back to the voxels of the input."""

    def __init__(self, config: PointTransformerV3Config):
        super().__init__()
        # The block that is the first of the decoder drops most.
        rates = drop_path_rates(config.drop_path_rate, config.decoder_depths)
        in_sizes = [*config.decoder_hidden_sizes[1:], config.hidden_sizes[-1]]
        self.unpoolings = nn.ModuleList(
            Unpooling(config, *sizes)
            for sizes in zip(in_sizes, config.hidden_sizes[:-1], config.decoder_hidden_sizes, strict=True)
        )
        self.stages = nn.ModuleList(
            EncoderStage(config, stage, heads, part[::-1])
            for stage, heads, part in zip(
                stages_of(config, is_decoder=True), config.decoder_num_attention_heads, rates, strict=True
            )
        )
        self.reads_skipped = config.pooling == "code"

    def forward(self, levels: Sequence[torch.Tensor], voxels: Sequence[VoxelStage]) -> torch.Tensor:
        """Decode the features of all stages, each of shape `(N, hidden_size)`, to those of the first."""
        rows = levels[-1]
        for index in reversed(range(len(self.stages))):
            rows, skipped = self.unpoolings[index](rows, levels[index], voxels[index + 1].clusters)
            rows = self.stages[index](rows, voxels[index], skipped if self.reads_skipped else None)
        return rows


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Stochastic depth of the blocks of each stage, growing linearly from 0 over all of them."""
    total = sum(depths)
    return [
        [rate * block / max(total - 1, 1) for block in range(sum(depths[:stage]), sum(depths[: stage + 1]))]
        for stage in range(len(depths))
    ]


def stages_of(config: PointTransformerV3Config, is_decoder: bool = False) -> list[Stage]:
    """The stages of encoder or decoder, for the slots.

    The blocks of a decoder that a checkpoint has are adapted as well: they are numbered after those of the encoder.
    """
    depths = config.decoder_depths if is_decoder else config.depths
    sizes = config.decoder_hidden_sizes if is_decoder else config.hidden_sizes
    patches = config.decoder_patch_sizes if is_decoder else config.patch_sizes
    first = sum(config.depths) if is_decoder else 0
    total = sum(config.depths) + sum(config.decoder_depths)
    count = len(config.depths) + len(config.decoder_depths)
    stages = []
    for index, (depth, size, patch_size) in enumerate(zip(depths, sizes, patches, strict=True)):
        number = index + (len(config.depths) if is_decoder else 0)
        stages.append(Stage(size, patch_size, depth, first, total, number, count))
        first += depth
    return stages


class Encoded(NamedTuple):
    """What the encoder makes of voxels.

    Attributes:
        levels: Features of each stage, of shape `(N_s, hidden_sizes[s])`.
        voxels: The stages.
        decoded: Features of the decoder, of shape `(N, decoder_hidden_sizes[0])`; `None` without one.
    """

    levels: tuple[torch.Tensor, ...]
    voxels: tuple[VoxelStage, ...]
    decoded: torch.Tensor | None


class PointTransformerV3Model(PointTransformerV3PreTrainedModel):
    """The encoder, with the decoder if the configuration has one.

    Args:
        config: Configuration.
    """

    def __init__(self, config: PointTransformerV3Config):
        super().__init__(config)
        rates = drop_path_rates(config.drop_path_rate, config.depths)
        self.stem = Stem(config)
        self.stages = nn.ModuleList(
            EncoderStage(config, stage, heads, part, in_size)
            for stage, heads, part, in_size in zip(
                stages_of(config), config.num_attention_heads, rates, (None, *config.hidden_sizes[:-1]), strict=True
            )
        )
        self.decoder = Decoder(config) if config.has_decoder else None
        self.post_init()

    def voxel_stages(
        self, coordinates: torch.Tensor, grid_coordinates: torch.Tensor, batch_index: torch.Tensor
    ) -> tuple[VoxelStage, ...]:
        """The voxels of all stages; arguments as for `forward`."""
        config = self.config
        shuffles = [self._shuffle() for _ in config.depths]
        curves = [list(config.orders) if s is None else [config.orders[i] for i in s] for s in shuffles]
        stages = [VoxelStage.first(coordinates, grid_coordinates, batch_index, curves[0], config.patch_sizes[0])]
        for index, stride in enumerate(config.strides, 1):
            pooled = stages[-1].pooled(
                stride, config.patch_sizes[index], curves[index], shuffles[index], config.pooling == "code"
            )
            stages.append(pooled)
        return tuple(stages)

    def _shuffle(self) -> list[int] | None:
        if not (self.training and self.config.shuffle_orders):
            return None
        return torch.randperm(len(self.config.orders)).tolist()

    def encode(
        self,
        coordinates: torch.Tensor,
        grid_coordinates: torch.Tensor,
        features: torch.Tensor,
        batch_index: torch.Tensor | None = None,
    ) -> Encoded:
        """Encode clouds; arguments as for `forward`."""
        coordinates, grid, features, batch_index = check_voxels(
            coordinates, grid_coordinates, features, batch_index, self.config
        )
        voxels = self.voxel_stages(coordinates, grid, batch_index)
        # With adapters, in half precision, the stem is what has the dtype of the model.
        rows = self.stem(features.to(self.stem.norm.weight.dtype), voxels[0])
        levels = []
        for stage, known in zip(self.stages, voxels, strict=True):
            if stage.pooling is not None:
                rows = stage.pooling(rows, known.clusters)
            rows = stage(rows, known)
            levels.append(rows)
        decoded = None if self.decoder is None else self.decoder(levels, voxels)
        return Encoded(tuple(levels), voxels, decoded)

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        coordinates: torch.Tensor,
        grid_coordinates: torch.Tensor,
        features: torch.Tensor,
        batch_index: torch.Tensor | None = None,
        **kwargs,
    ) -> SceneModelOutput | tuple:
        """Encode the voxels of clouds, packed one cloud after the other.

        Args:
            coordinates: Of shape `(N, 3)`, in metres, after the shift of the processor.
            grid_coordinates: Cells of shape `(N, 3)`, integers of at least 0, no cell twice in a cloud.
            features: Of shape `(N, in_channels)`.
            batch_index: Number of the cloud of each voxel, ascending from 0, of shape `(N,)`; default: one cloud.
            **kwargs: `output_hidden_states`: whether to return the features at every block, each of the voxels of its
                stage. `return_dict`. Other keys, which trainers pass along, are ignored.

        Returns:
            Features of the last stage, or of the decoder if there is one, and where its voxels are.

        Raises:
            ValueError: If the tensors have other shapes or types, or cannot be voxels.
        """
        encoded = self.encode(coordinates, grid_coordinates, features, batch_index)
        own = encoded.voxels[-1] if encoded.decoded is None else encoded.voxels[0]
        return SceneModelOutput(
            last_hidden_state=encoded.levels[-1] if encoded.decoded is None else encoded.decoded,
            coordinates=own.coordinates,
            grid_coordinates=own.grid,
            batch_index=own.batch_index,
        )


class PointTransformerV3ForSemanticSegmentation(PointTransformerV3PreTrainedModel):
    """A class for each voxel: a linear layer on the features of all stages ("upcast"), or on those of the decoder.

    Args:
        config: Configuration; `num_labels` is the number of classes.
    """

    task_module_names = ("semantic_head",)

    def __init__(self, config: PointTransformerV3Config):
        super().__init__(config)
        self.ptv3 = PointTransformerV3Model(config)
        sizes = config.decoder_hidden_sizes[:1] if config.has_decoder else config.hidden_sizes
        self.semantic_head = SemanticHead(sizes, config.num_labels)
        self.post_init()

    def note_loading(self, missing: Collection[str]) -> None:
        """See [`~point_peft_hf.attaching.RandomPartsGuard`]; a decoder that starts untrained is a part of the task."""
        if any(name.startswith("ptv3.decoder.") for name in missing):
            self.task_module_names = (*type(self).task_module_names, "decoder")
        super().note_loading(missing)

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        coordinates: torch.Tensor,
        grid_coordinates: torch.Tensor,
        features: torch.Tensor,
        batch_index: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> SceneSegmentationOutput | tuple:
        """Segment clouds.

        The arguments are those of the encoder, and `labels`: the class of each voxel, of shape `(N,)`; -100 for none.

        Returns:
            Logits of shape `(N, num_labels)`, and the loss over the labelled voxels if `labels` are given.

        Raises:
            ValueError: If the voxels or the labels do not fit the model.
        """
        encoded = self.ptv3.encode(coordinates, grid_coordinates, features, batch_index)
        levels = encoded.levels if encoded.decoded is None else (encoded.decoded,)
        logits = self.semantic_head(levels, encoded.voxels)
        loss = None if labels is None else self.loss(logits, labels)
        return SceneSegmentationOutput(loss=loss, logits=logits, last_hidden_state=levels[-1])

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy over the labelled voxels, a scalar; 0 if there is none. Arguments as for [`check_labels`]."""
        labels = check_labels(labels, logits, self.config)
        config = self.config
        weights = None if config.class_weights is None else logits.new_tensor(config.class_weights).float()
        if not bool((labels >= 0).any()):
            # The mean over nothing; with a graph, for the backward pass.
            return 0.0 * logits.float().sum()
        return F.cross_entropy(logits.float(), labels, weight=weights, label_smoothing=config.label_smoothing)


class PointTransformerV3ForClassification(PointTransformerV3PreTrainedModel):
    """A class for each cloud, from the mean over the voxels of the last stage; no decoder.

    Args:
        config: Configuration; `num_labels` is the number of classes.
    """

    task_module_names = ("classifier",)

    def __init__(self, config: PointTransformerV3Config):
        config.settle()
        if config.has_decoder:
            raise ValueError(
                f"A classification reads no decoder, but `decoder_depths`={list(config.decoder_depths)}. Pass "
                "`decoder_depths=[]` and leave out the other fields of the decoder."
            )
        super().__init__(config)
        self.ptv3 = PointTransformerV3Model(config)
        self.classifier = self.build_head(config.hidden_size)
        self.post_init()

    def build_head(self, in_size: int) -> nn.Module:
        """A new head for features of shape `(batch_size, in_size)`."""
        config = self.config
        return ClassificationHead(
            in_size, config.classifier_hidden_sizes, config.num_labels, config.classifier_dropout
        )

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        coordinates: torch.Tensor,
        grid_coordinates: torch.Tensor,
        features: torch.Tensor,
        batch_index: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> SceneClassifierOutput | tuple:
        """Classify clouds.

        The arguments are those of the encoder, and `labels`: the class of each cloud, of shape `(batch_size,)`.

        Returns:
            Logits of shape `(batch_size, num_labels)`, and the loss if `labels` are given.

        Raises:
            ValueError: If the voxels or the labels do not fit the model.
        """
        encoded = self.ptv3.encode(coordinates, grid_coordinates, features, batch_index)
        rows = encoded.levels[-1].split(encoded.voxels[-1].counts)
        pooled = torch.stack([part.mean(dim=0) for part in rows])
        logits = self.classifier(pooled)
        loss = None if labels is None else classification_loss(logits, labels, self.config)
        return SceneClassifierOutput(loss=loss, logits=logits, pooler_output=pooled)
