"""A training step of every published method side by side: its time, its products, and what it keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from peft import get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from point_peft_hf import (
    DAPTConfig,
    GAPromptConfig,
    IDPTConfig,
    PointGSTConfig,
    PointLoRAConfig,
    PPTConfig,
    STAGConfig,
)
from point_peft_hf.layers import DropPath

from . import models
from .measuring import alternate, peak_memory, saved_for_backward
from .models import Setting, Shape

# What the published methods are compared with; the first is what ratios are to.
_OTHERS = ("full", "head", "linear", "lora", "point_peft", models.TWO_PASSES)
# Configuration and the fields of it that differ from the published ones for ScanObjectNN.
_PUBLISHED: dict[str, tuple[type, dict[str, Any]]] = {
    "dapt": (DAPTConfig, {}),
    "gaprompt": (GAPromptConfig, {}),
    "idpt": (IDPTConfig, {}),
    "pointgst": (PointGSTConfig, {}),
    "pointlora": (PointLoRAConfig, {}),
    "ppt": (PPTConfig, {}),
    "stag": (STAGConfig, {}),
    "stag, sl": (STAGConfig, {"variant": "sl"}),
}


def methods(run) -> None:
    """Training steps of all published methods beside full fine-tuning, LoRA and linear probing."""
    plain = replace(run.setting, compile=False)
    for shape, batch_size, case in run.cases(models.SMALLEST_TRAINED):
        points = run.setting.clouds(batch_size, shape.num_points)
        rows, steps = {}, {}
        for name in (*_OTHERS, *_PUBLISHED):
            rows[name] = _cost(plain, _model(plain, shape, name), points)
            steps[name] = models.training_step(run.setting, _model(run.setting, shape, name), points)
            # Blocks that are dropped at random are not known.
            known = _without_drop_path(_model(run.setting, shape, name))
            steps[f"{name}, known"] = models.training_step(run.setting, known, points, is_known=True)
        times = alternate(steps, run.clock, run.rounds)
        for name, row in rows.items():
            row["step_ms"] = times[name]
        full = rows[_OTHERS[0]]
        for name, row in rows.items():
            values = {}
            for column in ("step_ms", "GFLOP", "kept_MiB", "peak_MiB"):
                values[column] = row[column]
                values[f"{column.partition('_')[0]}_ratio"] = row[column] / full[column]
            # A step on clouds that came before with the same points, to one on new ones.
            values["known_ratio"] = times[f"{name}, known"] / row["step_ms"]
            run.report.add("methods", case, name, **values, trainable_M=row["trainable_M"])


def _model(setting: Setting, shape: Shape, name: str) -> nn.Module:
    if name in _OTHERS:
        return models.make_model(setting, shape, name)
    torch.manual_seed(0)
    config_class, fields = _PUBLISHED[name]
    # Some were published with other values for ModelNet40.
    make = getattr(config_class, "for_modelnet40", config_class) if shape.name == "modelnet" else config_class
    model = get_peft_model(models.make_backbone(setting, shape), make(**fields)).train().to(setting.device)
    return torch.compile(model) if setting.compile else model


def _without_drop_path(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, DropPath):
            module.rate = 0.0
    model.config.drop_path_rate = 0.0
    return model


def _cost(setting: Setting, model: nn.Module, points: torch.Tensor) -> dict[str, float]:
    """What does not depend on how fast the machine is: operations in products of matrices, memory, parameters."""
    labels = torch.zeros(len(points), dtype=torch.long, device=points.device)

    def forward() -> torch.Tensor:
        with setting.autocast():
            return models.loss_of(model, points, labels)

    kept = saved_for_backward(model, forward)
    step = models.training_step(setting, model, points)
    # The first step, which also creates the state of the optimizer.
    peak = peak_memory(setting.device, step)
    with FlopCounterMode(display=False) as counter:
        step()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "GFLOP": counter.get_total_flops() / 1e9,
        "kept_MiB": kept,
        "peak_MiB": peak,
        "trainable_M": trainable / 1e6,
    }
