"""The part segmentation head of the research repositories of Point-MAE and PointGPT -> the one of this package.

Both compute the same function in evaluation mode. The published layers have biases in front of their BatchNorms, which
here go into the running means, and a small network on the category, of which only its value for each category matters.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from typing import Any

import torch
from torch.nn import functional as F

from .convert_checks import size_of

# Hidden layers after the propagation, with their BatchNorms; then the output.
_HIDDEN = (("convs1", "bns1"), ("convs2", "bns2"))
_OUTPUT = "convs3"
_MARKS = ("propagation_0.mlp_convs.0.weight", "label_conv.1.running_var", f"{_OUTPUT}.bias")
# Of the network on the category, and of all BatchNorms.
_NEGATIVE_SLOPE, _EPS = 0.2, 1e-5
_NORM_PARTS = ("running_mean", "running_var", "weight", "bias")


def has_segmentation_head(names: Container[str]) -> bool:
    """Whether there is a published segmentation head among tensors, by research name."""
    return all(mark in names for mark in _MARKS)


def segmentation_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Read the sizes of a published segmentation head from the shapes of its tensors.

    Args:
        shapes: Shapes by research name.

    Returns:
        Fields of the configuration; none if there is no such head.
    """
    if not has_segmentation_head(shapes):
        return {}
    return {
        "num_labels": size_of(shapes, f"{_OUTPUT}.weight"),
        "num_categories": size_of(shapes, "label_conv.0.weight", 1),
        "segmentation_token_size": 0,
        "segmentation_propagation_sizes": [size_of(shapes, f"{linear}.weight") for linear, _ in _propagation(shapes)],
        "segmentation_hidden_sizes": [size_of(shapes, f"{linear}.weight") for linear, _ in _HIDDEN],
    }


def convert_segmentation_head(
    tensors: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, tuple[str, ...]]]:
    """Convert a published segmentation head.

    Returns:
        Tensors by name here, and by name here the research names that they were made of; none if there is no such
        head.
    """
    if not has_segmentation_head(tensors):
        return {}, {}
    tensors = {name: tensor.squeeze(-1) if tensor.ndim == 3 else tensor for name, tensor in tensors.items()}
    _check_head({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    converted, sources = {}, {}

    def put(target: str, tensor: torch.Tensor, *names: str) -> None:
        converted[f"segmentation_head.{target}"], sources[f"segmentation_head.{target}"] = tensor, names

    propagation = _propagation(tensors)
    layers = (*propagation, *_HIDDEN)
    for index, (linear, norm) in enumerate(layers):
        for part in ("weight", "bias", "running_var", "num_batches_tracked"):
            if f"{norm}.{part}" in tensors:
                put(f"activations.{index}.norm.{part}", tensors[f"{norm}.{part}"], f"{norm}.{part}")
        mean, bias = f"{norm}.running_mean", f"{linear}.bias"
        put(f"activations.{index}.norm.running_mean", tensors[mean] - tensors[bias], mean, bias)
    first, joined = f"{propagation[0][0]}.weight", f"{_HIDDEN[0][0]}.weight"
    # The coordinates of the point come before the features of the tokens.
    put("point_linear.weight", tensors[first][:, :3], first)
    put("token_linear.weight", tensors[first][:, 3:], first)
    width = tensors[f"{propagation[-1][0]}.weight"].shape[0]
    for index, (linear, _) in enumerate(layers[1:]):
        weight = tensors[f"{linear}.weight"]
        put(f"linears.{index}.weight", weight[:, :width] if linear == _HIDDEN[0][0] else weight, f"{linear}.weight")
    # Behind the features of the point come maximum and mean over the tokens, then the category.
    features, names = _category_features(tensors)
    of_tokens, of_category = tensors[joined][:, width:].tensor_split([-features.shape[1]], dim=1)
    put("cloud_linear.weight", torch.cat([of_tokens, of_category @ features.T], dim=1), joined, *names)
    for part in ("weight", "bias"):
        put(f"output.{part}", tensors[f"{_OUTPUT}.{part}"], f"{_OUTPUT}.{part}")
    return converted, sources


def _check_head(shapes: Mapping[str, tuple[int, ...]]) -> None:
    propagation = _propagation(shapes)
    label = ("label_conv.0", "label_conv.1")
    layers = (*propagation, *_HIDDEN, label, (_OUTPUT, ""))
    wanted = {}
    for linear, norm in layers:
        weight = f"{linear}.weight"
        # One output a row; how many inputs is checked with the model.
        size = size_of(shapes, weight) if weight in shapes else 0
        wanted[weight] = (size, size_of(shapes, weight, 1)) if size else ()
        if linear != label[0]:
            wanted[f"{linear}.bias"] = (size,)
        if norm:
            wanted.update((f"{norm}.{part}", (size,)) for part in _NORM_PARTS)
    for name, shape in wanted.items():
        if shapes.get(name) != shape:
            found = f"has shape {shapes[name]}, not {shape}" if name in shapes else "is missing"
            raise ValueError(f"The segmentation head of the checkpoint is not whole: {name!r} {found}.")
    if shapes["convs1.weight"][1] <= wanted[f"{propagation[-1][0]}.weight"][0] + wanted[f"{label[0]}.weight"][0]:
        raise ValueError(
            f"'convs1.weight' of the segmentation head has shape {shapes['convs1.weight']}: too few columns for the "
            "features of points, cloud and category."
        )
    counters = {f"{norm}.num_batches_tracked" for _, norm in layers}
    for name in shapes:
        if re.match(r"(propagation_\d+|convs\d+|bns\d+|label_conv)\.", name) and name not in counters | wanted.keys():
            raise ValueError(f"The segmentation head of the checkpoint has {name!r}, which Point-MAE's does not have.")


def _propagation(names: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The layers of the propagation and their BatchNorms."""
    count = len([name for name in names if re.fullmatch(r"propagation_0\.mlp_convs\.\d+\.weight", name)])
    return [(f"propagation_0.mlp_convs.{index}", f"propagation_0.mlp_bns.{index}") for index in range(count)]


def _category_features(tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, list[str]]:
    """What the head knows of each category, of shape `(num_categories, size)`, and the names it is made of."""
    norm = [f"label_conv.1.{part}" for part in _NORM_PARTS]
    linear = "label_conv.0.weight"
    normed = F.batch_norm(tensors[linear].T, *(tensors[name] for name in norm), training=False, eps=_EPS)
    return F.leaky_relu(normed, _NEGATIVE_SLOPE), [linear, *norm]
