"""What a model makes of one cloud: groups, attention, and what its adapters have to show."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..models.modeling import PointClassificationMixin
from ..models.segmentation import PointSegmentationMixin, leave_out_other_parts
from ..slots import OutputSlot
from ..tuners.base import SlotLayer
from ..tuners.explain import Picture, References
from .scene import check_points
from .twin import make_twin


@dataclass
class CloudInspection:
    """What a model makes of one cloud; of a model with stages, in the last one.

    Attributes:
        points: The cloud, of shape `(num_points, 3)`.
        logits: Scores of shape `(num_labels,)`, or `(num_points, num_labels)` from a part segmentation; minus infinity
            for parts that the category of the object does not have.
        group_centers: Centres of the patch tokens, of shape `(num_groups, 3)`.
        attention: How much attention of the last block each patch token gets, mean over the heads, of shape
            `(num_groups,)`.
        attention_from: Whose attention: "the class token", or "all tokens" (their mean) in a model that has none.
        pictures: What the adapters have to show in the cloud.
        references: Training clouds that the adapters draw from.
    """

    points: np.ndarray
    logits: np.ndarray
    group_centers: np.ndarray
    attention: np.ndarray
    attention_from: str
    pictures: list[Picture] = field(default_factory=list)
    references: list[References] = field(default_factory=list)


@torch.no_grad()
def inspect_cloud(model: nn.Module, points: np.ndarray, category: int | None = None) -> CloudInspection:
    """Run a model on one cloud and keep what it did on the way.

    It runs a twin of the model, so other threads may go on using it.

    Args:
        model: A classifier or part segmentation of this package, with or without adapters.
        points: The cloud, of shape `(num_points, 3)`, as the model's processor prepared it.
        category: Number of the object's category, for a part segmentation that is told.

    Returns:
        What it did.

    Raises:
        ValueError: If the cloud does not fit the model, or the model is none of this package.
    """
    points = check_points(points)
    twin = make_twin(model).eval()
    backbone = twin.get_base_model() if hasattr(twin, "get_base_model") else twin
    if not isinstance(backbone, PointClassificationMixin | PointSegmentationMixin):
        raise ValueError(
            f"Cannot look into a {type(backbone).__name__}: only classifiers and part segmentations of point_peft_hf, "
            "with or without adapters."
        )
    _write_attention_out(twin, backbone.config)
    watch = _Watch(twin)
    batch = torch.from_numpy(points)[None].to(next(model.parameters()).device)
    category_ids = None if category is None else torch.tensor([category], device=batch.device)
    inputs = {} if category_ids is None else {"category_ids": category_ids}
    outputs = twin(points=batch, **inputs, output_attentions=True, return_dict=True)
    logits = leave_out_other_parts(outputs.logits, category_ids, backbone.config.category_parts)
    tokens, attention = watch.tokens, outputs.attentions[-1][0].float().mean(dim=0)
    # Class token and inserted tokens come before the patch tokens.
    rows = attention[0] if tokens.num_prefix else attention[-tokens.num_patches :].mean(dim=0)
    return CloudInspection(
        points=points,
        logits=_numpy(logits[0]),
        group_centers=_numpy(tokens.centers[0]),
        attention=_numpy(rows[-tokens.num_patches :]),
        attention_from="the class token" if tokens.num_prefix else "all tokens",
        pictures=watch.shown(Picture),
        references=watch.shown(References),
    )


def _write_attention_out(twin: nn.Module, config: Any) -> None:
    """Let a twin compute attention weights, which the fast implementations do not return."""
    eager = copy.copy(config)
    eager._attn_implementation = "eager"
    for module in twin.modules():
        if vars(module).get("config") is config:
            module.config = eager


class _Watch:
    """What happens in a twin: the tokens of the last block, and what the layers of adapters have to show."""

    def __init__(self, twin: nn.Module):
        self.tokens = None
        # A layer in each block shows the same: the last one counts.
        self._shown: dict[tuple[str, str], tuple[str, Any]] = {}
        for module in twin.modules():
            if isinstance(module, OutputSlot):
                module.register_forward_hook(self._keep_tokens)
            elif isinstance(module, SlotLayer):
                module.register_forward_hook(self._ask)

    def shown(self, kind: type) -> list[Any]:
        """All of a kind; where several adapters show the same, with their names."""
        found = [(adapter, record) for adapter, record in self._shown.values() if isinstance(record, kind)]
        count = Counter(record.name for _, record in found)
        return [
            replace(record, name=f"{record.name} of {adapter}") if count[record.name] > 1 else record
            for adapter, record in found
        ]

    def _keep_tokens(self, slot: nn.Module, inputs: tuple, tokens: Any) -> None:
        self.tokens = tokens

    def _ask(self, layer: SlotLayer, inputs: tuple, result: Any) -> None:
        for adapter in layer.working_adapters():
            for record in _checked(layer, layer.explain(adapter, result, *inputs)):
                key = layer.key(adapter), record.name
                # The order is that of the last ones.
                self._shown.pop(key, None)
                self._shown[key] = adapter, record


def _checked(layer: SlotLayer, records: Iterable[Any]) -> Iterable[Picture | References]:
    for record in records:
        if not isinstance(record, Picture | References):
            raise ValueError(
                f"`explain` of {type(layer).__name__} must return `Picture` and `References` of "
                f"point_peft_hf.tuners.explain, got a {type(record).__name__}."
            )
        yield record


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()
