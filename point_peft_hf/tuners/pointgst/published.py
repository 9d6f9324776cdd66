"""Published files of PointGST (github.com/jerryfeng2003/PointGST)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..published import PublishedAdapter, module_names, read_size, split_published
from .config import PointGSTConfig

# By the names in a published file, those of the adapter's own part.
_NAMES = {
    "down": "down",
    "norm_ly1": "global_norm",
    "norm_ly2": "local_norm",
    "adapt1": "filter",
    "up": "up",
}
_RULES = {
    rf"blocks\.blocks\.(\d+)\.gft_adapter\.({'|'.join(_NAMES)})\.(weight|bias)": lambda m: (
        f"encoder.layers.{m[1]}.ffn_slot.pointgst_spectral_filter.{_NAMES[m[2]]}_{m[3]}"
    ),
}


def read_published(
    tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], model_type: str
) -> PublishedAdapter:
    """Read the adapter out of a published file.

    The options in `settings`: `rank`, `local`.
    """
    weights, base = split_published(tensors, _RULES, model_type)
    ranks = {len(tensor) for name, tensor in weights.items() if name.endswith("down_bias")}
    if len(ranks) != 1:
        found = f"of the ranks {sorted(ranks)}" if ranks else "no `blocks.blocks.0.gft_adapter.down.bias`"
        raise ValueError(f"A file of PointGST has adapters of one rank in its blocks; this one has {found}.")
    config = PointGSTConfig(
        bottleneck_size=read_size(settings, "rank", ranks.pop()),
        local_size=settings.get("local", PointGSTConfig.local_size),
        transpose=False,
        basis="published",
        modules_to_save=module_names(base),
    )
    switches = (
        "transpose=False: tokens are multiplied by the eigenvectors, not by their transpose",
        "basis='published': the eigenvectors depend on the other clouds of a batch, so results hold for single clouds "
        "only, and on other hardware they may have other signs",
    )
    return PublishedAdapter(config, weights, base, switches)
