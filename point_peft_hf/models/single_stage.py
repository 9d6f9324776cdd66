"""What Point-BERT and Point-MAE share: one set of groups, one stack of blocks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import nn

from ..ops import group_points
from ..slots import BlockContext, pool_tokens
from .configuration import SingleStageConfig
from .layers import (
    ClassToken,
    PatchEmbedding,
    PointTransformerEncoder,
    PositionEmbedding,
    check_frozen,
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

    def encode_groups(self, neighborhoods: torch.Tensor, group_centers: torch.Tensor) -> torch.Tensor:
        """Encode groups without the others of their cloud, as masked autoencoding does with the visible ones.

        Args:
            neighborhoods: As for `embed_groups`.
            group_centers: Their centres, of shape `(batch_size, num_groups, 3)`.

        Returns:
            Their tokens after the final norm, of shape `(batch_size, num_groups, hidden_size)`; a class token takes
            part in the attention and is left out here.
        """
        context = BlockContext(group_centers)
        embeddings, positions = self._sequence(self.embed_groups(neighborhoods), context, self.class_token)
        hidden_states, _, _ = self.encoder(embeddings, positions, context)
        return self.layernorm(hidden_states)[:, context.num_prefix_tokens :]

    def forward(
        self,
        points: torch.Tensor,
        query_features: torch.Tensor | None = None,
        sample_ids: torch.Tensor | None = None,
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
            sample_ids: Numbers of the clouds in their data set, of shape `(batch_size,)`, -1 where unknown. Only
                adapters need them that leave a cloud's own entry out of its bank or update it, and only in training.
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
        prior_slot = self.encoder.prior_slot
        if self._is_trained_with(prior_slot):
            check_frozen(self, () if self.is_pretrained_with_class_token else ("class_token",))
        shared = tokens.detach() if self._embeds_as_pretrained else None
        if query_features is None and prior_slot.needs_query_features:
            query_features = self._prior_features(neighborhoods, group_centers, shared)
        context = BlockContext(group_centers, 0, query_features, sample_ids=sample_ids)
        embeddings, positions = self._sequence(tokens, context, self.class_token)
        shared_depths = {depth for depth in prior_slot.query_depths if self._tokens_are_pretrained(depth)}
        if other_depths := prior_slot.query_depths - shared_depths:
            context.token_features = self._token_features(neighborhoods, group_centers, other_depths, shared)
        hidden_states, all_hidden_states, attentions = self.encoder(embeddings, positions, context, shared_depths)
        hidden_states = self.layernorm(hidden_states)

        pooled = hidden_states[:, context.num_prefix_tokens :].amax(dim=1)
        if prior_slot.updates_bank:
            by_depth = (embeddings, *all_hidden_states)
            prefix, depths = context.num_prefix_tokens, prior_slot.query_depths
            adapted = {depth: pool_tokens(by_depth[depth], prefix) for depth in depths}
            prior_slot.update_banks(replace(context, query_features=pooled.detach(), token_features=adapted))
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
    def extract_prior_features(self, points: torch.Tensor, query_depth: int | None = None) -> torch.Tensor:
        """Features of the pre-trained encoder, untouched by any adapter: the maximum over the patch tokens at its end.

        Args:
            points: Clouds of shape `(batch_size, num_points, 3)`.
            query_depth: Return the mean over the patch tokens behind so many blocks instead, as adapters with
                `query="tokens"` ask their bank with.

        Returns:
            Features of shape `(batch_size, hidden_size)`, without gradient.
        """
        if query_depth is None:
            return self._prior_features(*self.group(points))
        return self._token_features(*self.group(points), (query_depth,))[query_depth]

    @property
    def _embeds_as_pretrained(self) -> bool:
        return all(is_pretrained(module) for module in self._embedding_modules())

    def _tokens_are_pretrained(self, depth: int) -> bool:
        """Whether the tokens of this pass are those of the pre-trained encoder up to a block."""
        if depth == 0:
            return self._embeds_as_pretrained
        first_layers = (self.position_embedding, *self.encoder.layers[:depth])
        if self.class_token is not None:
            # Patch tokens see the class token in every block, so it has to be the pre-trained one, if any.
            if not self.is_pretrained_with_class_token:
                return False
            first_layers = (self.class_token, *first_layers)
        is_noisy = self.training and (self.config.drop_path_rate > 0 or self.config.attention_dropout > 0)
        return self._embeds_as_pretrained and not is_noisy and all(map(is_pretrained, first_layers))

    def _embedding_modules(self) -> tuple[nn.Module, ...]:
        return (self.patch_embedding,)

    def _prior_features(
        self, neighborhoods: torch.Tensor, group_centers: torch.Tensor, tokens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The maximum over the patch tokens after the final norm; `tokens` are the embedded groups, if known."""
        with pretrained_behavior(self):
            embeddings, positions, context = self._pretrained_sequence(neighborhoods, group_centers, tokens)
            hidden_states, _, _ = self.encoder(embeddings, positions, context)
            return self.layernorm(hidden_states)[:, context.num_prefix_tokens :].amax(dim=1)

    def _token_features(
        self,
        neighborhoods: torch.Tensor,
        group_centers: torch.Tensor,
        depths: Collection[int],
        tokens: torch.Tensor | None = None,
    ) -> dict[int, torch.Tensor]:
        """The mean over the patch tokens of the pre-trained encoder, by the number of blocks they have passed."""
        with pretrained_behavior(self):
            return self.encoder.token_features(
                *self._pretrained_sequence(neighborhoods, group_centers, tokens), depths
            )

    def _pretrained_sequence(
        self, neighborhoods: torch.Tensor, group_centers: torch.Tensor, tokens: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, BlockContext]:
        """What the blocks were fed with in pre-training: tokens, position embeddings, context."""
        tokens = self.embed_groups(neighborhoods) if tokens is None else tokens
        context = BlockContext(group_centers)
        class_token = self.class_token if self.is_pretrained_with_class_token else None
        return *self._sequence(tokens, context, class_token), context
