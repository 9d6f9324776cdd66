"""Part segmentation: what the models of all point transformers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils.output_capturing import capture_outputs

from ..slots import ReadoutSlot
from .configuration import PointTransformerConfig
from .layers import SegmentationHead, TokenFusion, TokenPyramid
from .modeling_outputs import PointSegmentationOutput

# Points that no label is known of.
IGNORE_INDEX = -100


class PointSegmentationMixin:
    """A part segmentation: the encoder, then `segmentation_head` on its tokens and the points.

    The scores of a point follow the point: with the first point where it was, clouds whose points come in another
    order give the same scores in that order. (The first point is where the sampling of the groups starts; another one
    gives other groups.)
    """

    encoder_class: ClassVar[type[PreTrainedModel]]
    encoder_options: ClassVar[dict[str, Any]] = {}

    def __init__(self, config: PointTransformerConfig):
        super().__init__(config)
        setattr(self, self.base_model_prefix, self.encoder_class(config, **self.encoder_options))
        # The head reads the tokens of several depths, not what a classification head would.
        unread = self.base_model.readout_slot
        unread.is_read = False
        stage, fusion = unread.stage, self._build_fusion()
        self.readout_slot = ReadoutSlot(stage, "points", SegmentationHead.global_size(fusion), len(self._levels))
        self.segmentation_head = self.build_head(self.readout_slot.hidden_size)
        self.post_init()

    def build_head(self, in_size: int) -> SegmentationHead:
        """A new head that knows `in_size` features of the whole cloud, in addition to those of the points."""
        config = self.config
        return SegmentationHead(
            self._build_fusion(),
            config.segmentation_propagation_sizes,
            config.segmentation_hidden_sizes,
            config.num_labels,
            config.num_categories,
            config.segmentation_dropout,
            in_size,
        )

    def _build_fusion(self) -> TokenFusion | TokenPyramid:
        """What makes one set of tokens of those of several depths."""
        raise NotImplementedError

    @property
    def _levels(self) -> tuple[int, ...]:
        """Which tokens of the encoder the head reads; see the `encode` of the encoder."""
        return tuple(self.config.feature_layers)

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        points: torch.Tensor,
        labels: torch.Tensor | None = None,
        category_ids: torch.Tensor | None = None,
        sample_ids: torch.Tensor | None = None,
        precomputed: dict[str, torch.Tensor] | None = None,
        **kwargs,
    ) -> PointSegmentationOutput | tuple:
        """Score the parts of clouds.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`, with at least as many points as there are groups and
                as a group has points.
            labels: Part of each point, of shape `(batch_size, num_points)`, for the loss; points with -100 do not
                count.
            category_ids: Category of each object, of shape `(batch_size,)`, for a model with `num_categories`. A model
                that was trained with them is less sure without.
            sample_ids: As for the encoder.
            precomputed: As for the encoder.
            **kwargs: As for the encoder.

        Returns:
            Logits of shape `(batch_size, num_points, num_labels)`, and the loss if `labels` are given.

        Raises:
            ValueError: If the clouds, the labels or the categories do not fit the model.
        """
        if category_ids is not None:
            category_ids = check_category_ids(category_ids, points, self.config)
        encoded = self.base_model.encode(points, sample_ids, precomputed, self._levels)

        def read_out(pooled: torch.Tensor) -> torch.Tensor:
            return self.readout_slot(pooled, encoded.tokens, encoded.levels)

        levels = encoded.levels
        logits = self.segmentation_head(
            [level.patches for level in levels], [level.centers for level in levels], points, category_ids, read_out
        )
        loss = None
        if labels is not None:
            loss = sum(encoded.tokens.losses, segmentation_loss(logits, labels, self.config))
        return PointSegmentationOutput(loss=loss, logits=logits)


def check_category_ids(
    category_ids: torch.Tensor, points: torch.Tensor, config: PointTransformerConfig
) -> torch.Tensor | None:
    """Check the categories of a batch.

    Args:
        category_ids: Categories of shape `(batch_size,)`.
        points: The clouds.
        config: Configuration of the model.

    Returns:
        The categories, int64, on the device of the points; `None` for a model that does not take them.

    Raises:
        ValueError: If they have another shape or type, or are out of range.
    """
    if category_ids.shape != points.shape[:1] or category_ids.dtype.is_floating_point:
        raise ValueError(
            f"`category_ids` must be integers of shape (batch_size,) = ({points.shape[0]},), got "
            f"{category_ids.dtype} of shape {tuple(category_ids.shape)}."
        )
    if config.num_categories == 0:
        return None
    if not torch.compiler.is_compiling():
        low, high = int(category_ids.min()), int(category_ids.max())
        if low < 0 or high >= config.num_categories:
            raise ValueError(
                f"`category_ids` contain {high if high >= config.num_categories else low}, but the model has "
                f"num_categories={config.num_categories} (0 to {config.num_categories - 1}). Load the backbone with "
                "`num_categories=` the number of your categories."
            )
    return category_ids.to(points.device).long()


def leave_out_other_parts(
    logits: torch.Tensor, category_ids: torch.Tensor | None, category_parts: Sequence[Sequence[int]] | None
) -> torch.Tensor:
    """Leave only the parts that the category of each object can have.

    Args:
        logits: Part scores of shape `(batch_size, num_points, num_labels)`.
        category_ids: Category of each object, of shape `(batch_size,)`; `None` to leave all parts.
        category_parts: The parts of each category; `None` likewise.

    Returns:
        The scores, minus infinity for the other parts.
    """
    if category_ids is None or category_parts is None:
        return logits
    allowed = torch.zeros(len(category_parts), logits.shape[-1], dtype=torch.bool, device=logits.device)
    for category, parts in enumerate(category_parts):
        allowed[category, list(parts)] = True
    return logits.masked_fill(~allowed[category_ids][:, None], -torch.inf)


def segmentation_loss(logits: torch.Tensor, labels: torch.Tensor, config: PointTransformerConfig) -> torch.Tensor:
    """Cross-entropy of the labelled points with the label smoothing of the configuration.

    Args:
        logits: Part scores of shape `(batch_size, num_points, num_labels)`.
        labels: Parts of shape `(batch_size, num_points)`, -100 where there is none.
        config: Configuration of the model.

    Returns:
        The mean loss over the labelled points, a scalar; 0 if there are none.

    Raises:
        ValueError: If the labels have another shape or are not parts of this model.
    """
    labels = labels.to(logits.device)
    if labels.shape != logits.shape[:2]:
        raise ValueError(
            f"`labels` must be one a point, of shape (batch_size, num_points) = {tuple(logits.shape[:2])}, got "
            f"{tuple(labels.shape)}. The category of an object goes into `category_ids`."
        )
    if labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise ValueError(f"`labels` must be part indices of an integer type, got {labels.dtype}. Use labels.long().")
    labels = labels.long()
    labelled = labels != IGNORE_INDEX
    if not torch.compiler.is_compiling():
        wrong = labels[labelled & ((labels < 0) | (labels >= config.num_labels))]
        if len(wrong):
            raise ValueError(
                f"`labels` contain {int(wrong[0])}, but the model has num_labels={config.num_labels} parts (0 to "
                f"{config.num_labels - 1}; {IGNORE_INDEX} for points without a label). Load the backbone with "
                "`num_labels=` the number of your parts."
            )
    total = F.cross_entropy(
        logits.flatten(0, 1).float(),
        labels.flatten(),
        ignore_index=IGNORE_INDEX,
        label_smoothing=config.label_smoothing,
        reduction="sum",
    )
    return total / labelled.sum().clamp(min=1)
