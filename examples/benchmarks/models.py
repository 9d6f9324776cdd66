"""The models that are compared, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from point_peft_hf import (
    PointMAEConfig,
    PointMAEForClassification,
    PointPriorBank,
    set_point_prior_bank,
)
from point_peft_hf.training import prepare_method

from .published import PublishedFullFinetuning, PublishedPointPeft

NUM_LABELS = 15
# The head's batch normalisation cannot be trained on one cloud.
SMALLEST_TRAINED = 2
METHODS = ("full", "linear", "lora", "geometry", "prompt", "point_peft")
# Point-PEFT as published: a pass of the frozen encoder gives what its bank is asked with.
TWO_PASSES = "point_peft, two passes"
PUBLISHED = "published way"
# Full fine-tuning as the published code computes the backbone; "full" is that of the fast backbone of all others.
PUBLISHED_FULL = "full, published way"
FROZEN = "frozen backbone"


@dataclass(frozen=True)
class Shape:
    """Sizes of a data set, with the paper's settings for it.

    Attributes:
        name: The data set.
        num_points: Points of a cloud.
        num_groups: Groups of a cloud, of 32 points each.
        bank_size: Training clouds.
        num_prompts: Prompt tokens of a block.
        prompt_depth: Blocks with prompts; `None`: all.
    """

    name: str
    num_points: int
    num_groups: int
    bank_size: int
    num_prompts: int
    prompt_depth: int | None
    group_size: int = 32


SHAPES = {
    "modelnet": Shape("modelnet", 1024, 64, 9843, 16, None),
    "scanobjectnn": Shape("scanobjectnn", 2048, 128, 11416, 10, 6),
}


@dataclass(frozen=True)
class Setting:
    """What all measurements share.

    Attributes:
        hidden_size: Width of the tokens.
        num_layers: Blocks of the backbone.
        device: Where it runs.
        bf16: Whether forward passes run under autocast in bfloat16.
        compile: Whether models are compiled.
    """

    hidden_size: int
    num_layers: int
    device: torch.device
    bf16: bool
    compile: bool

    @property
    def num_heads(self) -> int:
        """Attention heads of 64 numbers each, as published."""
        return max(self.hidden_size // 64, 1)

    def clouds(self, batch_size: int, num_points: int) -> torch.Tensor:
        """Random clouds in the unit sphere."""
        points = torch.randn(batch_size, num_points, 3, device=self.device)
        return points / points.norm(dim=-1, keepdim=True).amax(dim=1, keepdim=True)

    def autocast(self) -> torch.autocast:
        """The precision of forward passes."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


def random_bank(bank_size: int, hidden_size: int) -> torch.Tensor:
    """Normalised features of shape `(bank_size, hidden_size)`."""
    return F.normalize(torch.randn(bank_size, hidden_size), dim=-1)


def make_backbone(setting: Setting, shape: Shape) -> PointMAEForClassification:
    """Make a frozen Point-MAE in train mode."""
    config = PointMAEConfig(
        hidden_size=setting.hidden_size,
        num_hidden_layers=setting.num_layers,
        num_attention_heads=setting.num_heads,
        num_groups=shape.num_groups,
        group_size=shape.group_size,
        num_labels=NUM_LABELS,
    )
    return PointMAEForClassification(config).requires_grad_(False).train()


def make_model(setting: Setting, shape: Shape, method: str, **options) -> nn.Module:
    """Make a model in train mode.

    Args:
        setting: What all share.
        shape: Sizes of the clouds.
        method: One of `METHODS`, `TWO_PASSES`, `PUBLISHED`, `PUBLISHED_FULL` or `FROZEN`.
        **options: Fields of the adapter's configuration.
    """
    torch.manual_seed(0)
    depth = setting.num_layers if shape.prompt_depth is None else min(shape.prompt_depth, setting.num_layers)
    if method in (PUBLISHED, PUBLISHED_FULL):
        make = PublishedPointPeft if method == PUBLISHED else PublishedFullFinetuning
        model = make(
            *(setting.hidden_size, setting.num_layers, setting.num_heads, shape.num_groups, shape.group_size),
            *(shape.num_prompts, depth, random_bank(shape.bank_size, setting.hidden_size), NUM_LABELS),
        )
        return model.train().to(setting.device)
    backbone = make_backbone(setting, shape)
    if method == FROZEN:
        return backbone.to(setting.device)
    name = "point_peft" if method == TWO_PASSES else method
    if name in ("prompt", "point_peft"):
        # The whole bank, as published, not the part that is kept of a large one.
        sizes = {"num_prompt_tokens": shape.num_prompts, "prompt_depth": depth, "max_bank_size": None}
        options = sizes | options
    if method == TWO_PASSES:
        options["query"] = "encoder"
    model = prepare_method(name, backbone, **options)
    if name in ("prompt", "point_peft"):
        set_bank(model, shape.bank_size, setting.hidden_size)
    model = model.train().to(setting.device)
    return torch.compile(model) if setting.compile else model


def set_bank(model: nn.Module, bank_size: int, hidden_size: int) -> None:
    """Give a prompt adapter a bank of random entries."""
    unknown = torch.full((bank_size,), -1)
    query = model.active_peft_config.query
    set_point_prior_bank(model, PointPriorBank(random_bank(bank_size, hidden_size), unknown, unknown, query=query))


def compared_methods() -> list[str]:
    """All that is compared at a shape."""
    return [*METHODS, TWO_PASSES, PUBLISHED, PUBLISHED_FULL]


def loss_of(model: nn.Module, points: torch.Tensor, labels: torch.Tensor, **known: torch.Tensor) -> torch.Tensor:
    """The training loss of any of the models."""
    loss = model(points, labels=labels, **known)
    return loss if isinstance(loss, torch.Tensor) else loss.loss


def training_step(
    setting: Setting, model: nn.Module, points: torch.Tensor, is_known: bool = False
) -> Callable[[], None]:
    """Forward, backward, and a step of the optimizer.

    Args:
        setting: What all share.
        model: The model.
        points: The clouds.
        is_known: Whether what depends on each cloud alone is known from an earlier step.
    """
    known = {"precomputed": {}} if is_known else {}
    labels = torch.arange(len(points), device=points.device) % NUM_LABELS
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with setting.autocast():
            loss = loss_of(model, points, labels, **known)
        loss.backward()
        optimizer.step()

    return step


def prediction(setting: Setting, model: nn.Module, points: torch.Tensor) -> Callable[[], None]:
    """One forward pass; puts the model in eval mode."""
    model.eval()

    def predict() -> None:
        with torch.no_grad(), setting.autocast():
            model(points)

    return predict
