"""PointGPT: auto-regressively generative pre-training of point-cloud transformers (arXiv 2305.11487).

From the top: points -> groups in the order of a path -> tokens -> blocks in which a token sees itself and those in
front of it -> read-out, and the heads on it. Where the released code differs from the paper, the models here follow
the code, which the released weights belong to.
"""

from __future__ import annotations

import torch
from torch import nn

from ...ops import gather_points, greedy_path
from ...slots import Backbone
from ...tokens import Cloud, Tokens, start_tokens
from ..layers import ClassToken, original
from ..modeling import Encoded, PointClassificationMixin, PointPreTrainedModel
from ..point_mae.modeling_point_mae import SingleStageEncoder, SingleStageSegmentation
from .configuration_point_gpt import PointGPTConfig
from .layers import (
    PointGPTBlocks,
    PointGPTGenerator,
    PointGPTPositionEmbedding,
    generation_loss,
)


class PointGPTPreTrainedModel(PointPreTrainedModel):
    """Base of the PointGPT models."""

    config_class = PointGPTConfig
    config: PointGPTConfig
    base_model_prefix = "point_gpt"
    _no_split_modules = ["PointGPTLayer"]
    # Files hold the generator and the heads of what they were made for.
    _keys_to_ignore_on_load_unexpected = [r"^generator", r"^classifier", r"^segmentation_head", r"level_norm"]


class PointGPTModel(SingleStageEncoder, PointGPTPreTrainedModel):
    """The encoder: points -> groups in the order of a path -> tokens -> causal blocks.

    Patch tokens see the start token, the class token, what adapters inserted, and the patch tokens in front of them.
    The class token sees only the start token, so its half of the pooled features is the same for every cloud.

    Args:
        config: Configuration.
        use_class_token: Whether a class token follows the start token; pre-training has none.
        reads: "cloud": a head reads the tokens after the final norm and one more norm. "levels": it reads those that
            leave some of the blocks, after a norm of their own. `None`: those after the final norm.
    """

    encoder_class = PointGPTBlocks
    task_module_names = ("class_token", "readout_norm", "level_norm")
    prefix_names = ("start_token", "class_token")

    def __init__(self, config: PointGPTConfig, use_class_token: bool = True, reads: str | None = "cloud"):
        super().__init__(config)
        self._build(config, use_class_token)
        self.start_token = ClassToken(config.hidden_size)
        # New in fine-tuning, like the class token.
        self.readout_norm = self._build_norm() if reads == "cloud" else None
        self.level_norm = self._build_norm() if reads == "levels" else None
        self.post_init()

    def _build_norm(self) -> nn.LayerNorm:
        return nn.LayerNorm(self.config.hidden_size, eps=self.config.layer_norm_eps)

    def _build_position_embedding(self, config: PointGPTConfig) -> PointGPTPositionEmbedding:
        return PointGPTPositionEmbedding(config.hidden_size)

    def group(
        self, points: torch.Tensor, num_groups: int | None = None, group_size: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Group the clouds as Point-MAE does, and order the groups along a path from centre to centre."""
        neighborhoods, centers = super().group(points, num_groups, group_size)
        order = greedy_path(centers)
        return gather_points(neighborhoods.flatten(2), order).unflatten(2, (-1, 3)), gather_points(centers, order)

    def _with_prefix(
        self,
        features: torch.Tensor,
        centers: torch.Tensor,
        cloud: Cloud,
        frozen: bool = False,
        mask: torch.Tensor | None = None,
    ) -> Tokens:
        """The tokens that enter the blocks; `mask` takes the place of seeing all in front."""
        batch_size, is_causal = features.shape[0], mask is None
        start, class_token = self.start_token, None if frozen else self.class_token
        token, position = (original(start) if frozen else start)(batch_size)
        rows = [token, features]
        # Computed in the dtype of the coordinates.
        positions = [position, self.position_embedding(centers).to(features.dtype)]
        if class_token is not None:
            token, position = class_token(batch_size)
            rows.insert(1, token)
            # Crossed, as in the released models: the start token has the position of the class token.
            positions.insert(0, position)
        features, positions = torch.cat(rows, dim=1), torch.cat(positions, dim=1)
        return start_tokens(features, centers, cloud, positions, len(rows) - 2, 1, mask, is_causal)

    def _norm_for_readout(self, tokens: Tokens) -> Tokens:
        normed = self.final_norm(tokens)
        if self.readout_norm is None:
            return normed
        return normed.with_features(self.readout_norm(normed.features))

    def _norm_level(self, tokens: Tokens) -> Tokens:
        return tokens.with_features(self.level_norm(tokens.features))

    def encode_groups(
        self, neighborhoods: torch.Tensor, centers: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Encode groups without the others of their cloud.

        Args:
            neighborhoods: Points of the groups relative to their centres, of shape
                `(batch_size, num_groups, group_size, 3)`, in the order of the path.
            centers: Their centres, of shape `(batch_size, num_groups, 3)`.
            mask: Additive attention mask for the whole sequence; default: a token sees itself and those in front.

        Returns:
            All tokens after the final norm, the start token first.
        """
        tokens = self._with_prefix(self.embed_groups(neighborhoods), centers, Cloud(centers, centers), mask=mask)
        tokens, _ = self.encoder(tokens, Backbone(self))
        return self.final_norm(tokens).features


class PointGPTForClassification(PointClassificationMixin, PointGPTPreTrainedModel):
    """PointGPT with a classification head on [class token, maximum over the patch tokens].

    With `generation_loss_weight`, a generator predicts the points of each group from those in front of it, which helps
    fine-tuning; it runs only where a loss is asked for.

    Args:
        config: Configuration; `num_labels` is the number of classes.
    """

    encoder_class = PointGPTModel
    task_module_names = ("classifier", "class_token", "readout_norm")
    _keys_to_ignore_on_load_unexpected = [r"^generator", r"^segmentation_head", r"level_norm"]

    def _build_more(self, config: PointGPTConfig) -> None:
        self.generator = PointGPTGenerator(config) if config.generation_loss_weight else None

    def further_losses(self, encoded: Encoded) -> tuple[torch.Tensor, ...]:
        """The weighted generation loss, if it has a weight."""
        if self.generator is None:
            return ()
        return (self.config.generation_loss_weight * self.generation_loss(encoded),)

    def generation_loss(self, encoded: Encoded) -> torch.Tensor:
        """How well each group is predicted from those in front of it; in fine-tuning, where it is in the cloud.

        Args:
            encoded: The encoded clouds.

        Returns:
            The loss, a scalar.
        """
        neighborhoods, centers = encoded.tokens.cloud.memo.values["backbone.groups"], encoded.tokens.centers
        # Without the class token, and without the last group, which predicts nothing.
        states = self.point_gpt.final_norm(encoded.tokens)
        predicted = self.generator(torch.cat([states.features[:, :1], states.patches[:, :-1]], dim=1), centers)
        return generation_loss(predicted, neighborhoods + centers.unsqueeze(2))


class PointGPTForSegmentation(SingleStageSegmentation, PointGPTPreTrainedModel):
    """PointGPT with a part segmentation head on the tokens of several depths.

    Args:
        config: Configuration; `num_labels` is the number of parts. Published with 128 groups of 32 for 2048 points.
    """

    encoder_class = PointGPTModel
    encoder_options = {"reads": "levels"}
    task_module_names = ("segmentation_head", "class_token", "level_norm")
    _keys_to_ignore_on_load_unexpected = [r"^generator", r"^classifier", r"readout_norm"]
