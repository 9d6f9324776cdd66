"""PointGPT: auto-regressively generative pre-training of point-cloud transformers (arXiv 2305.11487).

From the top: points -> groups in the order of a path -> tokens -> blocks in which a token sees itself and those in
front of it -> read-out, and the heads on it. Where the released code differs from the paper, the models here follow
the code, which the released weights belong to.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from transformers.utils import can_return_tuple

from ...ops import gather_points, greedy_path, group_points, validate_points
from ..layers import ClassificationHead, ClassToken, SegmentationHead, TokenFusion
from ..modeling import PointPreTrainedModel, classification_loss
from ..modeling_outputs import (
    PointClassifierOutput,
    PointModelOutput,
    PointSegmentationOutput,
)
from ..segmentation import check_category_ids, segmentation_loss
from .configuration_point_gpt import PointGPTConfig
from .layers import (
    PointGPTBlocks,
    PointGPTGenerator,
    PointGPTPatchEmbedding,
    PointGPTPositionEmbedding,
    causal_mask,
    generation_loss,
)


class PointGPTPreTrainedModel(PointPreTrainedModel):
    """Base of the PointGPT models."""

    config_class = PointGPTConfig
    config: PointGPTConfig
    base_model_prefix = "point_gpt"
    _no_split_modules = ["PointGPTLayer"]
    # Files hold the generator and the heads of what they were made for.
    _keys_to_ignore_on_load_unexpected = [r"^generator", r"^classifier", r"^segmentation_head", r"^token_layernorm"]

    def _wants_hidden_states(self, value: bool | None) -> bool:
        return self.config.output_hidden_states if value is None else value


class PointGPTEncoded(NamedTuple):
    """What the encoder makes of clouds.

    Attributes:
        hidden_states: Tokens that entered the first block, and that left each block, each of shape
            `(batch_size, 2 + num_groups, hidden_size)`: start token, class token, patch tokens.
        last_hidden_state: The last of them after the final norm.
        neighborhoods: Points of the groups relative to their centres, of shape
            `(batch_size, num_groups, group_size, 3)`.
        group_centers: The centres, of shape `(batch_size, num_groups, 3)`.
    """

    hidden_states: tuple[torch.Tensor, ...]
    last_hidden_state: torch.Tensor
    neighborhoods: torch.Tensor
    group_centers: torch.Tensor


class PointGPTModel(PointGPTPreTrainedModel):
    """The encoder: points -> groups in the order of a path -> tokens -> causal blocks.

    Patch tokens see the start token, the class token and the patch tokens in front of them; the class token sees only
    the start token, so its half of the pooled features is the same for every cloud.

    Args:
        config: Configuration.
        use_class_token: Whether a class token follows the start token; pre-training has none.
        use_readout: Whether there is the norm of the read-out; without, the pooled features are those after the final
            norm.
    """

    task_module_names = ("class_token", "readout_layernorm")

    def __init__(self, config: PointGPTConfig, use_class_token: bool = True, use_readout: bool = True):
        super().__init__(config)
        size = config.hidden_size
        self.patch_embedding = PointGPTPatchEmbedding(tuple(config.patch_hidden_sizes), size)
        self.position_embedding = PointGPTPositionEmbedding(size)
        self.start_token = ClassToken(size)
        self.class_token = ClassToken(size) if use_class_token else None
        self.encoder = PointGPTBlocks(
            config, config.num_hidden_layers, config.num_attention_heads, config.drop_path_rate
        )
        self.layernorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        # New in fine-tuning, like the class token.
        self.readout_layernorm = nn.LayerNorm(size, eps=config.layer_norm_eps) if use_readout else None
        self.post_init()

    def group(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Group the clouds, and order the groups along a path from centre to centre.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`.

        Returns:
            Groups relative to their centre, of shape `(batch_size, num_groups, group_size, 3)`, and the centres.

        Raises:
            ValueError: If the clouds are no float tensor of that shape, not finite or too small.
        """
        config = self.config
        validate_points(points, minimum=max(config.num_groups, config.group_size))
        points = points if points.dtype == torch.float64 else points.float()
        neighborhoods, centers = group_points(
            points, config.num_groups, config.group_size, skip_near_origin=config.skip_near_origin
        )
        order = greedy_path(centers)
        return gather_points(neighborhoods.flatten(2), order).unflatten(2, (-1, 3)), gather_points(centers, order)

    def run_blocks(
        self, tokens: torch.Tensor, group_centers: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Put start token and, if there is one, class token in front, and run the blocks.

        Args:
            tokens: Embedded groups, of shape `(batch_size, num_groups, hidden_size)`.
            group_centers: Their centres.
            attention_mask: Additive mask for the whole sequence.

        Returns:
            The tokens that entered the first block and that left each block.
        """
        start, start_position = self.start_token(len(tokens))
        rows = [start, tokens]
        # Computed in the dtype of the coordinates.
        positions = [start_position, self.position_embedding(group_centers).to(tokens.dtype)]
        if self.class_token is not None:
            token, position = self.class_token(len(tokens))
            rows.insert(1, token)
            # Crossed, as in the released models: the start token has the position of the class token.
            positions.insert(0, position)
        return self.encoder(torch.cat(rows, dim=1), torch.cat(positions, dim=1), attention_mask)

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens in front of the patch tokens."""
        return 1 if self.class_token is None else 2

    def encode(self, points: torch.Tensor) -> PointGPTEncoded:
        """Encode clouds.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`.

        Raises:
            ValueError: If the clouds are no float tensor of that shape, not finite or too small.
        """
        neighborhoods, centers = self.group(points)
        mask = causal_mask(self.num_prefix_tokens + self.config.num_groups, centers.device)
        hidden_states = self.run_blocks(self.patch_embedding(neighborhoods), centers, mask)
        return PointGPTEncoded(hidden_states, self.layernorm(hidden_states[-1]), neighborhoods, centers)

    def read_out(self, last_hidden_state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What a classification head reads.

        Args:
            last_hidden_state: Tokens after the final norm, of shape `(batch_size, 2 + num_groups, hidden_size)`.

        Returns:
            The tokens after one more norm, and the pooled features [class token, maximum over the patch tokens], of
            shape `(batch_size, 2 * hidden_size)`; without a class token the maximum alone.
        """
        tokens = last_hidden_state if self.readout_layernorm is None else self.readout_layernorm(last_hidden_state)
        prefix = self.num_prefix_tokens
        pooled = [*tokens[:, 1:prefix].unbind(dim=1), tokens[:, prefix:].amax(dim=1)]
        return tokens, torch.cat(pooled, dim=-1)

    @can_return_tuple
    def forward(
        self, points: torch.Tensor, output_hidden_states: bool | None = None, **kwargs
    ) -> PointModelOutput | tuple:
        """Encode clouds.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`, with at least `num_groups` and `group_size` points.
            output_hidden_states: Whether to return the tokens at every block; default: as in the configuration.
            **kwargs: `return_dict`; other keys, which trainers pass along, are ignored.

        Returns:
            The tokens after the norm of the read-out (start token, class token, patch tokens), the pooled features,
            and the centres in the order of the tokens.

        Raises:
            ValueError: If the clouds are no float tensor of that shape, not finite or too small.
        """
        encoded = self.encode(points)
        tokens, pooled = self.read_out(encoded.last_hidden_state)
        return PointModelOutput(
            last_hidden_state=tokens,
            pooler_output=pooled,
            hidden_states=encoded.hidden_states if self._wants_hidden_states(output_hidden_states) else None,
            group_centers=encoded.group_centers,
        )


class PointGPTForClassification(PointGPTPreTrainedModel):
    """PointGPT with a classification head on [class token, maximum over the patch tokens].

    With `generation_loss_weight`, a generator predicts the points of each group from those in front of it, which helps
    fine-tuning; it runs only where a loss is asked for.

    Args:
        config: Configuration; `num_labels` is the number of classes.
    """

    task_module_names = ("classifier", "class_token", "readout_layernorm")
    _keys_to_ignore_on_load_unexpected = [r"^generator", r"^segmentation_head", r"^token_layernorm"]

    def __init__(self, config: PointGPTConfig):
        super().__init__(config)
        self.point_gpt = PointGPTModel(config)
        self.classifier = ClassificationHead(
            2 * config.hidden_size, config.classifier_hidden_size, config.num_labels, config.classifier_dropout
        )
        self.generator = PointGPTGenerator(config) if config.generation_loss_weight else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        points: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> PointClassifierOutput | tuple:
        """Classify clouds.

        Args:
            points: As for the encoder.
            labels: Class indices of shape `(batch_size,)`, for the loss.
            output_hidden_states: As for the encoder.
            **kwargs: As for the encoder.

        Returns:
            Logits of shape `(batch_size, num_labels)`, and the loss if `labels` are given: cross-entropy, and
            `generation_loss_weight` times the generation loss.

        Raises:
            ValueError: If the clouds or the labels do not fit the model.
        """
        encoded = self.point_gpt.encode(points)
        _, pooled = self.point_gpt.read_out(encoded.last_hidden_state)
        logits = self.classifier(pooled)
        loss = None
        if labels is not None:
            loss = classification_loss(logits, labels, self.config)
            if self.generator is not None:
                loss = loss + self.config.generation_loss_weight * self.generation_loss(encoded)
        return PointClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=encoded.hidden_states if self._wants_hidden_states(output_hidden_states) else None,
        )

    def generation_loss(self, encoded: PointGPTEncoded) -> torch.Tensor:
        """How well each group is predicted from those in front of it; in fine-tuning, where it is in the cloud.

        Args:
            encoded: The encoded clouds.

        Returns:
            The loss, a scalar.
        """
        states, centers = encoded.last_hidden_state, encoded.group_centers
        # Without the class token, and without the last group, which predicts nothing.
        states = torch.cat([states[:, :1], states[:, 2:-1]], dim=1)
        predicted = self.generator(states, centers, causal_mask(centers.shape[1], centers.device))
        return generation_loss(predicted, encoded.neighborhoods + centers.unsqueeze(2))


class PointGPTForSegmentation(PointGPTPreTrainedModel):
    """PointGPT with a part segmentation head on the tokens of several depths.

    Args:
        config: Configuration; `num_labels` is the number of parts. Published with 128 groups of 32 for 2048 points.
    """

    task_module_names = ("segmentation_head", "class_token", "token_layernorm")
    _keys_to_ignore_on_load_unexpected = [r"^generator", r"^classifier", r"readout_layernorm"]

    def __init__(self, config: PointGPTConfig):
        super().__init__(config)
        self.point_gpt = PointGPTModel(config, use_readout=False)
        # The head reads the tokens of each depth after this norm.
        self.token_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        sizes = [config.hidden_size] * len(config.feature_layers)
        self.segmentation_head = SegmentationHead(
            TokenFusion(sizes, config.segmentation_token_size),
            config.segmentation_propagation_sizes,
            config.segmentation_hidden_sizes,
            config.num_labels,
            config.num_categories,
            config.segmentation_dropout,
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        points: torch.Tensor,
        labels: torch.Tensor | None = None,
        category_ids: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> PointSegmentationOutput | tuple:
        """Score the parts of clouds.

        Args:
            points: As for the encoder.
            labels: Part of each point, of shape `(batch_size, num_points)`, for the loss; points with -100 do not
                count.
            category_ids: Category of each object, of shape `(batch_size,)`, for a model with `num_categories`.
            output_hidden_states: As for the encoder.
            **kwargs: As for the encoder.

        Returns:
            Logits of shape `(batch_size, num_points, num_labels)`, and the loss if `labels` are given.

        Raises:
            ValueError: If the clouds, the labels or the categories do not fit the model.
        """
        if category_ids is not None:
            category_ids = check_category_ids(category_ids, points, self.config)
        encoded = self.point_gpt.encode(points)
        layers = self.config.feature_layers
        features = [self.token_layernorm(encoded.hidden_states[layer + 1][:, 2:]) for layer in layers]
        logits = self.segmentation_head(features, [encoded.group_centers], points, category_ids)
        return PointSegmentationOutput(
            loss=None if labels is None else segmentation_loss(logits, labels, self.config),
            logits=logits,
            hidden_states=encoded.hidden_states if self._wants_hidden_states(output_hidden_states) else None,
        )


__all__ = [
    "PointGPTForClassification",
    "PointGPTForSegmentation",
    "PointGPTModel",
    "PointGPTPreTrainedModel",
]
