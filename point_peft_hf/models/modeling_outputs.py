"""What the models return."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class PointModelOutput(ModelOutput):
    """Output of an encoder.

    Args:
        last_hidden_state: Tokens after the final norm, of shape `(batch_size, sequence_length, hidden_size)`.
        pooler_output: What the classification head reads, of shape `(batch_size, pooled_size)`.
        hidden_states: If asked for: the tokens that entered the first block and those that left each block.
        attentions: If asked for: the attention weights of each block.
        group_centers: Centres of the patch tokens, of shape `(batch_size, num_groups, 3)`, in the unit of the cloud.
        stage_centers: With the hidden states of a backbone of several stages: the centres of each stage, of shape
            `(batch_size, num_groups[i], 3)`.
    """

    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    group_centers: torch.FloatTensor | None = None
    stage_centers: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class PointClassifierOutput(ModelOutput):
    """Output of a classifier.

    Args:
        loss: Cross-entropy, a scalar, if `labels` were given.
        logits: Class scores of shape `(batch_size, num_labels)`.
        hidden_states: As in [`PointModelOutput`].
        attentions: As in [`PointModelOutput`].
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class PointSegmentationOutput(PointClassifierOutput):
    """Output of a part segmentation.

    Args:
        loss: Mean cross-entropy over the labelled points, a scalar, if `labels` were given.
        logits: Part scores of each point, of shape `(batch_size, num_points, num_labels)`.
        hidden_states: As in [`PointModelOutput`].
        attentions: As in [`PointModelOutput`].
    """


@dataclass
class PointReconstructionOutput(ModelOutput):
    """Output of masked autoencoding.

    Args:
        loss: Chamfer distance of the masked groups, a scalar.
        reconstruction: Predicted points relative to their centre, of shape
            `(batch_size, num_masked_groups, group_size, 3)`, in the unit of the cloud.
        target: The points that were masked, of the same shape.
        mask: Which groups were masked, of shape `(batch_size, num_groups)`.
        group_centers: Centres of all groups, of shape `(batch_size, num_groups, 3)`.
    """

    loss: torch.FloatTensor | None = None
    reconstruction: torch.FloatTensor | None = None
    target: torch.FloatTensor | None = None
    mask: torch.BoolTensor | None = None
    group_centers: torch.FloatTensor | None = None


@dataclass
class SceneModelOutput(ModelOutput):
    """Output of an encoder of scenes.

    Args:
        last_hidden_state: Features of the voxels of the last stage, of shape `(M, hidden_size)`; of a model with a
            decoder those of the voxels of the input.
        coordinates: Where they are, of shape `(M, 3)`, in the unit of the input.
        grid_coordinates: Their cells, of shape `(M, 3)`.
        batch_index: The cloud of each, of shape `(M,)`.
        hidden_states: If asked for: the features that entered the first block and those that left each block, of the
            voxels of its stage.
    """

    last_hidden_state: torch.FloatTensor | None = None
    coordinates: torch.FloatTensor | None = None
    grid_coordinates: torch.LongTensor | None = None
    batch_index: torch.LongTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class SceneSegmentationOutput(ModelOutput):
    """Output of a segmentation of scenes.

    Args:
        loss: Mean cross-entropy over the labelled voxels, a scalar, if `labels` were given.
        logits: Class scores of each voxel, of shape `(N, num_labels)`.
        last_hidden_state: As in [`SceneModelOutput`].
        hidden_states: As in [`SceneModelOutput`].
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class SceneClassifierOutput(ModelOutput):
    """Output of a classification of clouds of voxels.

    Args:
        loss: Cross-entropy, a scalar, if `labels` were given.
        logits: Class scores of shape `(batch_size, num_labels)`.
        pooler_output: What the head reads, of shape `(batch_size, hidden_size)`.
        hidden_states: As in [`SceneModelOutput`].
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
