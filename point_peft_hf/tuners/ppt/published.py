"""Published files of PPT (github.com/zsc000722/PPT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..published import PublishedAdapter, head_parts, module_names, read_size, size_in, split_published
from .config import PPTConfig

_NETWORKS = {"prompt_mlp": "patch", "prompt_pos_mlp": "prompt", "prompt_all_mlp": "token"}
_LAYERS = {"0": "down", "2": "up"}
_RULES = {
    rf"blocks\.({'|'.join(_NETWORKS)})\.([02])\.(weight|bias)": lambda m: (
        f"encoder.token_slot.ppt_{_NETWORKS[m[1]]}_network.{_LAYERS[m[2]]}_{m[3]}"
    ),
}
_EMBEDDINGS = (
    "position_embedding",
    "patch_embedding.first_linear1",
    "patch_embedding.first_norm1",
    "patch_embedding.first_linear2",
)
# Class token, patch tokens, second set.
_HEAD_PARTS = 3


def read_published(
    tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], model_type: str
) -> PublishedAdapter:
    """Read the adapter out of a published file, of classification or of part segmentation.

    The options in `settings`: `prompt_num_group`, `prompt_group_size`, `mlp_hidden`.
    """
    weights, base = split_published(tensors, _RULES, model_type)
    width = size_in(weights, "ppt_patch_network.down_weight", "PPT", "blocks.prompt_mlp.0.weight")
    parts = head_parts(base)
    if parts not in (None, _HEAD_PARTS):
        raise ValueError(
            f"The head of the file reads {parts} features of the width of a token, that of PPT {_HEAD_PARTS}: class "
            "token and the means over both sets of tokens. Is the file of another method?"
        )
    has_parts = parts is None
    task = ["segmentation_head"] if has_parts else module_names(base)
    config = PPTConfig(
        num_prompt_groups=settings.get("prompt_num_group"),
        prompt_group_size=settings.get("prompt_group_size"),
        bottleneck_size=read_size(settings, "mlp_hidden", width),
        shifted_rows=has_parts,
        modules_to_save=[*task, *_EMBEDDINGS],
    )
    shifted = ("shifted_rows=True: two of the networks act one row further on than they should",)
    return PublishedAdapter(config, weights, base, shifted if has_parts else ())
