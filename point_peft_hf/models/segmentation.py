"""Part segmentation: what the models of all point transformers share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from .configuration import PointTransformerConfig
from .layers import SegmentationHead, TokenFusion, TokenPyramid
from .modeling_outputs import PointModelOutput, PointSegmentationOutput

# Points that no label is known of.
IGNORE_INDEX = -100


class PointSegmentationMixin:
    """The forward pass of a part segmentation: the encoder, then `segmentation_head` on its tokens and the points.

    The scores of a point follow the point: with the first point where it was, clouds whose points come in another
    order give the same scores in that order. (The first point is where the sampling of the groups starts; another one
    gives other groups.)
    """

    def _build_head(self, fusion: TokenFusion | TokenPyramid) -> SegmentationHead:
        config = self.config
        return SegmentationHead(
            fusion,
            config.segmentation_propagation_sizes,
            config.segmentation_hidden_sizes,
            config.num_labels,
            config.num_categories,
            config.segmentation_dropout,
        )

    def _select_features(self, outputs: PointModelOutput) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
        """The normalised tokens that the head reads, and their centres."""
        raise NotImplementedError

    def forward(
        self,
        points: torch.Tensor,
        labels: torch.Tensor | None = None,
        category_ids: torch.Tensor | None = None,
        query_features: torch.Tensor | None = None,
        sample_ids: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> PointSegmentationOutput | tuple:
        """Tell the parts of clouds apart.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`, with at least as many points as there are groups and
                as a group has points.
            labels: Part of each point, of shape `(batch_size, num_points)`, for the loss; points with -100 do not
                count.
            category_ids: Category of each object, of shape `(batch_size,)`, for a model with `num_categories`. A model
                that was trained with them is less sure without.
            query_features: Features that a point-prior bank is asked with, of shape `(batch_size, hidden_size)`, as
                `extract_prior_features` returns them. Computed here when an adapter needs them and none are given;
                pass them to save that pass where the clouds are not augmented.
            sample_ids: Numbers of the clouds in their data set, of shape `(batch_size,)`, passed on to the encoder.
            output_hidden_states: Whether to return the tokens at every block; default: as in the configuration.
            output_attentions: Whether to return the attention weights; needs `attn_implementation="eager"`.
            return_dict: Whether to return a [`PointSegmentationOutput`] instead of a tuple; default: as in the
                configuration.
            **kwargs: Ignored; keys that trainers pass along.

        Returns:
            Logits of shape `(batch_size, num_points, num_labels)`, and the loss if `labels` are given.

        Raises:
            ValueError: If the clouds, the labels or the categories do not fit the model.
        """
        if category_ids is not None:
            category_ids = check_category_ids(category_ids, points, self.config)
        outputs = self.base_model(
            points,
            query_features=query_features,
            sample_ids=sample_ids,
            output_hidden_states=True,
            output_attentions=output_attentions,
            return_dict=True,
        )
        logits = self.segmentation_head(*self._select_features(outputs), points, category_ids)
        wants_hidden_states = self._wants("output_hidden_states", output_hidden_states)
        output = PointSegmentationOutput(
            loss=None if labels is None else segmentation_loss(logits, labels, self.config),
            logits=logits,
            hidden_states=outputs.hidden_states if wants_hidden_states else None,
            attentions=outputs.attentions,
        )
        return output if self._wants("return_dict", return_dict) else output.to_tuple()


class SingleStageSegmentationMixin(PointSegmentationMixin):
    """Part segmentation from the tokens that leave some of the blocks (`feature_layers` of the configuration)."""

    def _build_fusion(self) -> TokenFusion:
        config = self.config
        return TokenFusion([config.hidden_size] * len(config.feature_layers), config.segmentation_token_size)

    def _select_features(self, outputs: PointModelOutput) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
        layernorm, num_groups = self.base_model.layernorm, outputs.group_centers.shape[1]
        layers = self.config.feature_layers
        # The first of the hidden states is what enters the first block; a class token comes before the others.
        chosen = [layernorm(outputs.hidden_states[layer + 1][:, -num_groups:]) for layer in layers]
        return chosen, [outputs.group_centers]


def check_category_ids(
    category_ids: torch.Tensor, points: torch.Tensor, config: PointTransformerConfig
) -> torch.Tensor | None:
    """Check the categories of a batch.

    Args:
        category_ids: Categories of shape `(batch_size,)`.
        points: The clouds.
        config: Configuration of the model.

    Returns:
        The categories, int64, on the device of the points; `None` for a model that is not told them.

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
