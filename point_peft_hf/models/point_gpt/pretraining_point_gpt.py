"""Generative pre-training of PointGPT (arXiv 2305.11487)."""

from __future__ import annotations

import torch
from transformers.utils import can_return_tuple

from ..modeling_outputs import PointReconstructionOutput
from .configuration_point_gpt import PointGPTConfig
from .layers import PointGPTGenerator, causal_mask, generation_loss
from .modeling_point_gpt import PointGPTModel, PointGPTPreTrainedModel


class PointGPTForPreTraining(PointGPTPreTrainedModel):
    """Generative pre-training: predict the points of each group from the groups in front of it.

    Args:
        config: Configuration; `mask_ratio`, `num_seen_groups` and the `generator_*` fields describe the task.
    """

    _keys_to_ignore_on_load_unexpected = [
        r"class_token",
        r"readout_norm",
        r"^classifier",
        r"^segmentation_head",
        r"level_norm",
    ]

    def __init__(self, config: PointGPTConfig):
        super().__init__(config)
        self.point_gpt = PointGPTModel(config, use_class_token=False, reads=None)
        self.generator = PointGPTGenerator(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self, points: torch.Tensor, mask: torch.Tensor | None = None, **kwargs
    ) -> PointReconstructionOutput | tuple:
        """Predict each group.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`.
            mask: Places of the sequence that none but themselves see, bool of shape `(num_groups,)`; place 0 is the
                start token, place i the group i - 1. Random by default, the same for the whole batch.
            **kwargs: `return_dict`; other keys, which trainers pass along, are ignored.

        Returns:
            The loss (Chamfer distance with distances and with their squares), the predicted points relative to their
            centre, the points themselves, and the mask for each cloud.

        Raises:
            ValueError: If the clouds or the mask do not fit the model.
        """
        neighborhoods, centers = self.point_gpt.group(points)
        num_groups = centers.shape[1]
        mask = self._random_mask(num_groups, centers.device) if mask is None else mask
        if mask.shape != (num_groups,) or mask.dtype != torch.bool:
            raise ValueError(
                f"`mask` must be a bool tensor of shape (num_groups,) = ({num_groups},), got {mask.dtype} of shape "
                f"{tuple(mask.shape)}."
            )
        attention_mask = causal_mask(mask)
        # The last group predicts nothing, so it is not encoded.
        states = self.point_gpt.encode_groups(neighborhoods[:, :-1], centers[:, :-1], attention_mask)
        predicted = self.generator(states, centers, attention_mask)
        return PointReconstructionOutput(
            loss=generation_loss(predicted, neighborhoods),
            reconstruction=predicted,
            target=neighborhoods,
            mask=mask.expand(len(points), -1),
            group_centers=centers,
        )

    def _random_mask(self, num_groups: int, device: torch.device) -> torch.Tensor:
        """Hide a share of the places after the first ones."""
        first = min(self.config.num_seen_groups, num_groups)
        num_hidden = int((num_groups - first) * self.config.mask_ratio)
        places = first + torch.randperm(num_groups - first, device=device)[:num_hidden]
        return torch.zeros(num_groups, dtype=torch.bool, device=device).index_fill(0, places, True)
