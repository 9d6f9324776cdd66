"""ReCon: contrast with reconstruct (arXiv 2302.02318).

A Point-MAE whose patch tokens three more tokens look at: one each for the class, for images and for text, which
pre-training aligned with encoders of those. The patch tokens never see them.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from ...slots import Stage
from ...tokens import Cloud, Tokens, start_tokens
from ..layers import (
    ClassToken,
    PointTransformerEncoder,
    PointTransformerLayer,
    original,
)
from ..modeling import PointClassificationMixin, PointPreTrainedModel
from ..point_mae.modeling_point_mae import SingleStageEncoder, SingleStageSegmentation
from .configuration_recon import ReConConfig

TOKENS = ("class_token", "image_token", "text_token")


class ReConPreTrainedModel(PointPreTrainedModel):
    """Base of the ReCon models."""

    config_class = ReConConfig
    config: ReConConfig
    base_model_prefix = "recon"
    _no_split_modules = ["ReConLayer"]


class ContrastAttention(nn.Module):
    """Multi-head attention of the three tokens to the patch tokens.

    Shapes:
        - queries: `(batch_size, 3, hidden_size)`
        - patches: `(batch_size, sequence_length, hidden_size)`
        - output: as the queries
    """

    def __init__(self, config: ReConConfig, hidden_size: int, num_heads: int):
        super().__init__()
        self.head_dim = hidden_size // num_heads
        for name in ("q_proj", "k_proj", "v_proj"):
            self.add_module(name, nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias))
        self.out_proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, queries: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """Attend."""
        heads = [  # (batch_size, num_heads, length, head_dim)
            projection(inputs).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection, inputs in ((self.q_proj, queries), (self.k_proj, patches), (self.v_proj, patches))
        ]
        return self.out_proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class ContrastMLP(nn.Module):
    """Feed-forward network of the three tokens."""

    def __init__(self, config: ReConConfig, hidden_size: int):
        super().__init__()
        intermediate_size = int(hidden_size * config.mlp_ratio)
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map tokens of shape `(batch_size, 3, hidden_size)` to the same shape."""
        return self.fc2(self.activation(self.fc1(hidden_states)))


class ReConLayer(PointTransformerLayer):
    """A block of two branches: of the patch tokens, and of the three tokens, which look at them.

    All residuals start after their norms. Tokens that adapters insert are in the branch of the patch tokens; slots of
    single layers (`norm1`, `fc1`, ...) are in that branch, those of whole branches of a block see all tokens.
    """

    def __init__(self, config: ReConConfig, stage: Stage, num_heads: int, drop_path_rate: float, layer_index: int):
        super().__init__(config, stage, num_heads, drop_path_rate, layer_index)
        size = stage.hidden_size
        self.contrast_norm1 = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.contrast_attention = ContrastAttention(config, size, num_heads)
        self.contrast_norm2 = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.contrast_mlp = ContrastMLP(config, size)

    def forward(self, tokens: Tokens, frozen: bool = False) -> Tokens:
        """Run the block; see [`~point_peft_hf.models.layers.PointTransformerLayer`]."""
        if frozen:
            return self._run_frozen(tokens)
        tokens = self.entry_slot(tokens)
        prefix = tokens.num_prefix
        hidden_states = tokens.embedded()
        three, patches = hidden_states[:, :prefix], hidden_states[:, prefix:]
        three = self.contrast_norm1(three)
        patches = self.run_layer("norm1", patches)
        mask = None if tokens.mask is None else tokens.mask[..., prefix:, prefix:]
        attended, _ = self.attention(patches, mask)
        output = torch.cat([self.contrast_attention(three, patches), attended], dim=1)
        inputs = torch.cat([three, patches], dim=1)
        update, tokens = self.attention_slot(output, inputs, tokens.with_features(inputs), self.drop_path)
        hidden_states = inputs + update
        three, patches = hidden_states[:, :prefix], hidden_states[:, prefix:]
        three = self.contrast_norm2(three)
        patches = self.run_layer("norm2", patches)
        inputs = torch.cat([three, patches], dim=1)
        output = torch.cat([self.contrast_mlp(three), self.mlp(patches)], dim=1)
        update, tokens = self.ffn_slot(output, inputs, tokens.with_features(inputs), self.drop_path)
        return self.output_slot(tokens.with_features(inputs + update)).drop_passing()

    def _run_frozen(self, tokens: Tokens) -> Tokens:
        """Run the branch of the patch tokens, which does not depend on the other one."""
        hidden_states = original(self.norm1)(tokens.embedded())
        hidden_states = hidden_states + self.attention.run_frozen(hidden_states, tokens.mask, tokens.is_causal)
        hidden_states = original(self.norm2)(hidden_states)
        return tokens.with_features(hidden_states + self.mlp.run_frozen(hidden_states))


class ReConBlocks(PointTransformerEncoder):
    """The blocks of ReCon."""

    layer_class = ReConLayer


class ReConModel(SingleStageEncoder, ReConPreTrainedModel):
    """The encoder: points -> groups -> tokens, three more in front -> blocks.

    Features of the pre-trained encoder are those of its patch tokens, which do not depend on the three tokens.

    Args:
        config: Configuration.
    """

    encoder_class = ReConBlocks
    is_pretrained_with_class_token = True
    num_class_tokens = len(TOKENS)
    prefix_names = TOKENS

    def __init__(self, config: ReConConfig):
        super().__init__(config)
        self._build(config, use_class_token=True)
        self.image_token, self.text_token = (ClassToken(config.hidden_size) for _ in range(2))
        self.post_init()

    def _with_prefix(
        self, features: torch.Tensor, centers: torch.Tensor, cloud: Cloud, frozen: bool = False
    ) -> Tokens:
        if frozen:
            return start_tokens(features, centers, cloud, original(self.position_embedding)(centers, True))
        rows, positions = zip(*(getattr(self, name)(features.shape[0]) for name in TOKENS), strict=True)
        features = torch.cat([*rows, features], dim=1)
        positions = torch.cat([*positions, self.position_embedding(centers)], dim=1)
        return start_tokens(features, centers, cloud, positions, num_class=len(TOKENS))


class ReConForClassification(PointClassificationMixin, ReConPreTrainedModel):
    """ReCon with a classification head on [class, image and text token, maximum over the patch tokens].

    Args:
        config: Configuration; `num_labels` is the number of classes.
    """

    encoder_class = ReConModel
    task_module_names = ("classifier", *TOKENS)
    _keys_to_ignore_on_load_unexpected = [r"^segmentation_head"]


class ReConForSegmentation(SingleStageSegmentation, ReConPreTrainedModel):
    """ReCon with a part segmentation head on the patch tokens of several depths.

    Args:
        config: Configuration; `num_labels` is the number of parts.
    """

    encoder_class = ReConModel
    task_module_names = ("segmentation_head",)
    _keys_to_ignore_on_load_unexpected = [r"^classifier"]
