"""What Point-BERT and Point-MAE share: one set of groups, one stack of blocks."""

from __future__ import annotations

import torch
from torch import nn

from ..ops import group_points
from ..slots import BlockContext
from .configuration import SingleStageConfig
from .layers import (
    ClassToken,
    PatchEmbedding,
    PointTransformerEncoder,
    PositionEmbedding,
    is_pretrained,
    pretrained_behavior,
)
from .modeling_outputs import PointModelOutput


class SingleStageEncoderMixin:
    """An encoder whose blocks all work on the same groups: points -> groups -> tokens -> blocks.

    A model calls `_build` in its `__init__`, and may do more to a group than `embed_groups` does.
    """

    task_module_names = ("class_token",)
    # Whether the class token comes from pre-training; only then it has a say in the features of the pre-trained
    # encoder.
    is_pretrained_with_class_token = False

    def _build(self, config: SingleStageConfig, embedding_size: int, use_class_token: bool) -> None:
        self.patch_embedding = PatchEmbedding(3, tuple(config.patch_hidden_sizes), embedding_size)
        self.position_embedding = PositionEmbedding(config.position_hidden_size, config.hidden_size)
        self.class_token = ClassToken(config.hidden_size) if use_class_token else None
        self.encoder = PointTransformerEncoder(
            config, config.hidden_size, config.num_attention_heads, config.num_hidden_layers, config.group_size
        )
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def embed_groups(self, neighborhoods: torch.Tensor) -> torch.Tensor:
        """Embed groups.

        Args:
            neighborhoods: Points relative to the centre of their group, of shape
                `(batch_size, num_groups, group_size, 3)`, in the unit of the cloud.

        Returns:
            Tokens of shape `(batch_size, num_groups, hidden_size)`.
        """
        return self.patch_embedding(neighborhoods)

    def group(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Check and group the clouds.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`.

        Returns:
            Groups relative to their centre, of shape `(batch_size, num_groups, group_size, 3)`, and the centres.

        Raises:
            ValueError: If the clouds are no float tensor of that shape, not finite or too small.
        """
        config = self.config
        points = self._check_points(points, config.num_groups, config.group_size)
        return group_points(points, config.num_groups, config.group_size, skip_near_origin=config.skip_near_origin)

    def forward(
        self,
        points: torch.Tensor,
        query_features: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> PointModelOutput | tuple:
        """Encode clouds.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`, with at least `num_groups` and `group_size` points.
            query_features: Features that a point-prior bank is asked with, of shape `(batch_size, hidden_size)`, as
                `extract_prior_features` returns them. Computed here when an adapter needs them and none are given;
                pass them to save that pass where the clouds are not augmented.
            output_hidden_states: Whether to return the tokens at every block; default: as in the configuration.
            output_attentions: Whether to return the attention weights; needs `attn_implementation="eager"`.
            return_dict: Whether to return a [`PointModelOutput`] instead of a tuple; default: as in the configuration.
            **kwargs: Ignored; keys that trainers pass along.

        Returns:
            The tokens after the final norm (class token first), the pooled features
            `(batch_size, 2 * hidden_size)` = [class token, maximum over the patch tokens], and the centres.

        Raises:
            ValueError: If the clouds are no float tensor of that shape, not finite or too small.
        """
        neighborhoods, group_centers = self.group(points)
        tokens = self.embed_groups(neighborhoods)
        if query_features is None and self.encoder.needs_query_features:
            shared = tokens.detach() if self._embeds_as_pretrained else None
            query_features = self._prior_features(neighborhoods, group_centers, shared)
        context = BlockContext(group_centers, 0, query_features)
        embeddings, positions = self._sequence(tokens, context, self.class_token)
        hidden_states, all_hidden_states, attentions = self.encoder(embeddings, positions, context)
        hidden_states = self.layernorm(hidden_states)

        pooled = hidden_states[:, context.num_prefix_tokens :].amax(dim=1)
        if self.class_token is not None:
            pooled = torch.cat([hidden_states[:, 0], pooled], dim=-1)
        wants_hidden_states = self._wants("output_hidden_states", output_hidden_states)
        output = PointModelOutput(
            last_hidden_state=hidden_states,
            pooler_output=pooled,
            hidden_states=(embeddings, *all_hidden_states) if wants_hidden_states else None,
            attentions=tuple(attentions) if self._wants("output_attentions", output_attentions) else None,
            group_centers=group_centers,
        )
        return output if self._wants("return_dict", return_dict) else output.to_tuple()

    def _sequence(
        self, tokens: torch.Tensor, context: BlockContext, class_token: ClassToken | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and their position embeddings, with the class token in front if there is one."""
        positions = self.position_embedding(context.group_centers)
        if class_token is None:
            return tokens, positions
        context.num_prefix_tokens = 1
        token, position = class_token(len(tokens))
        return torch.cat([token, tokens], dim=1), torch.cat([position, positions], dim=1)

    @torch.no_grad()
    def extract_prior_features(self, points: torch.Tensor) -> torch.Tensor:
        """Features of the pre-trained encoder, untouched by any adapter: the maximum over the patch tokens at its end.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`.

        Returns:
            Features of shape `(batch_size, hidden_size)`, without gradient.
        """
        return self._prior_features(*self.group(points))

    @property
    def _embeds_as_pretrained(self) -> bool:
        return all(is_pretrained(module) for module in self._embedding_modules())

    def _embedding_modules(self) -> tuple[nn.Module, ...]:
        return (self.patch_embedding,)

    def _prior_features(
        self, neighborhoods: torch.Tensor, group_centers: torch.Tensor, tokens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The maximum over the patch tokens after the final norm; `tokens` are the embedded groups, if known."""
        with pretrained_behavior(self):
            tokens = self.embed_groups(neighborhoods) if tokens is None else tokens
            context = BlockContext(group_centers)
            class_token = self.class_token if self.is_pretrained_with_class_token else None
            hidden_states, _, _ = self.encoder(*self._sequence(tokens, context, class_token), context)
            return self.layernorm(hidden_states)[:, context.num_prefix_tokens :].amax(dim=1)
