"""Published files of STAG (github.com/takahikof/STAG)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from ...slots import Stage
from ..published import PublishedAdapter, module_names, read_size
from .config import STAGConfig

# By the name in a published file, the linear layer of the side network.
_NAMES = {"downproj": "down", "graphconv1": "center", "graphconv2": "neighbor", "fc": "mix", "upproj": "up"}
_PUBLISHED = re.compile(rf"blocks\.addparam_({'|'.join(_NAMES)})_dict\.(\d+)\.0\.(weight|bias)")
_BLOCK = re.compile(r"blocks\.blocks\.(\d+)\.")
# By the name of a field, that of the published option.
_OPTIONS = {
    "num_neighbors": "graph_k",
    "accumulation_layers": "token_accumulation_blocks",
    "graph_layers": "graph_convolution_blocks",
    "accumulation_sharing": "share_accumulation",
    "graph_sharing": "share_graph",
}


def read_published(
    tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], model_type: str
) -> PublishedAdapter:
    """Read the adapter out of a published file.

    The options in `settings`: `rank`, `graph_k`, `token_accumulation_blocks`, `graph_convolution_blocks`,
    `share_accumulation`, `share_graph`.
    """
    own: dict[tuple[str, str], dict[int, torch.Tensor]] = {}
    names: dict[tuple[str, int], list[str]] = {}
    base = {}
    for name, tensor in tensors.items():
        match = _PUBLISHED.fullmatch(name)
        if match is None:
            base[name] = tensor
            continue
        layer, number, kind = _NAMES[match[1]], int(match[2]), match[3]
        own.setdefault((layer, kind), {})[number] = tensor.squeeze(-1) if kind == "weight" else tensor
        names.setdefault((layer, number), []).append(name)
    if ("down", "weight") not in own:
        raise ValueError("A file of STAG has 'blocks.addparam_downproj_dict.0.0.weight'; this one does not.")
    down = own["down", "weight"]
    rank, hidden_size = next(iter(down.values())).shape
    config = STAGConfig(
        variant="sl" if len(down) > 1 else "std",
        rank=read_size(settings, "rank", rank),
        modules_to_save=module_names(base),
        **{field: settings[name] for field, name in _OPTIONS.items() if name in settings},
    )
    depth = len({match[1] for name in base if (match := _BLOCK.match(name))})
    plan = config.plan(Stage(hidden_size, 1, depth))
    # The published numbers of the graph convolutions start at that of the first block that has one.
    start = min(plan.graph)
    used = {"down": sorted(set(plan.accumulation.values()))}
    used |= dict.fromkeys(("center", "neighbor", "mix", "up"), [start + n for n in sorted(set(plan.graph.values()))])
    _check_numbers(own, used)
    prefix = f"base_model.model.{model_type}.encoder.token_slot.stag_side_network"
    weights = {
        f"{prefix}.{layer}_{kind}": torch.stack([by_number[number] for number in used[layer]])
        for (layer, kind), by_number in own.items()
    }
    late = [name for (layer, number), listed in names.items() if number not in used[layer] for name in listed]
    unused = dict.fromkeys(late, "no graph convolution follows the blocks that use them")
    return PublishedAdapter(config, weights, base, (), unused)


def _check_numbers(own: Mapping[tuple[str, str], Mapping[int, Any]], used: Mapping[str, list[int]]) -> None:
    for (layer, _), by_number in own.items():
        extra = set(by_number) - set(used[layer])
        # A projection may be declared and come too late.
        is_late = layer == "down" and all(number > max(used[layer]) for number in extra)
        if set(used[layer]) - set(by_number) or (extra and not is_late):
            published = next(name for name, short in _NAMES.items() if short == layer)
            raise ValueError(
                f"the file has the numbers {sorted(by_number)} of {published!r}, but the options (the published ones "
                f"where none are given) make them {used[layer]}. Pass {', '.join(list(_OPTIONS.values())[1:])} as the "
                "file was trained."
            )
