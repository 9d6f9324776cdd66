"""Trainable parameters at the published sizes, component by component (Point-PEFT, arXiv 2310.03059).

The published models declare more than they train: prompts and prompt bottlenecks of blocks without prompts, and a
gate in every block, which Point-MAE does not use. Those do not exist here.
"""

from collections import Counter

import pytest
import torch
from peft import get_peft_model

import point_peft_hf as pp

# By the name of the part.
COMPONENTS = {
    "classifier": "head",
    "ffn_bottleneck": "bottleneck behind the FFN",
    "output_bottleneck": "bottleneck at the end",
    "prompt_bottleneck": "prompt bottlenecks",
    "prompt_embedding": "prompt embeddings",
    "point_peft_bias": "biases",
    "local_attention": "local attention",
    "pooled_bn": "batch norm",
    "layernorm": "final norm",
    "class_token": "class token",
    "prompt_coordinates": "prompt coordinates",
}
POINT_MAE = {
    "bottleneck behind the FFN": 152_256,
    "bottleneck at the end": 152_256,
    "biases": 36_864,
    # The published shared norm, 768, is a part of the local attention here.
    "local attention": 28_032 + 768,
    "batch norm": 9_216,
    "final norm": 768,
    "class token": 768,
}
SCAN_OBJECT_NN = POINT_MAE | {
    "head": 267_535,
    "prompt bottlenecks": 39_216,
    "prompt embeddings": 23_040,
    "prompt coordinates": 30,
}
MODEL_NET = POINT_MAE | {
    "head": 273_960,
    "prompt bottlenecks": 78_432,
    "prompt embeddings": 73_728,
    "prompt coordinates": 48,
}


def trainable_by_component(model) -> Counter:
    counts = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (component,) = {label for part, label in COMPONENTS.items() if part in name}
            counts[component] += parameter.numel()
    return counts


@pytest.mark.parametrize(
    ("num_labels", "num_groups", "fields", "expected", "total"),
    [
        (15, 128, {}, SCAN_OBJECT_NN, 710_749),
        (40, 64, {"num_prompt_tokens": 16, "prompt_depth": None}, MODEL_NET, 807_096),
    ],
    ids=["ScanObjectNN", "ModelNet40"],
)
def test_point_mae(num_labels, num_groups, fields, expected, total):
    backbone = pp.PointMAEForClassification(pp.PointMAEConfig(num_labels=num_labels, num_groups=num_groups))
    model = get_peft_model(backbone, pp.PointPeftConfig(**fields))
    assert trainable_by_component(model) == expected
    assert sum(expected.values()) == total
    assert model.get_nb_trainable_parameters()[0] == total


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            pp.GeometryAdapterConfig(modules_to_save=[]),
            {part: POINT_MAE[part] for part in ("bottleneck behind the FFN", "bottleneck at the end", "batch norm")}
            | {"local attention": 28_800},
        ),
        (pp.PointPriorPromptConfig(modules_to_save=[]), {"prompt bottlenecks": 39_216, "prompt embeddings": 23_040}),
        (
            pp.PointPeftConfig(use_geometry=False, use_prompts=False),
            {"biases": 36_864, "class token": 768, "head": 267_535},
        ),
    ],
    ids=["geometry", "prompt", "bias"],
)
def test_single_parts(config, expected):
    with torch.device("meta"):
        backbone = pp.PointMAEForClassification(pp.PointMAEConfig(num_labels=15))
    assert trainable_by_component(get_peft_model(backbone, config)) == expected
