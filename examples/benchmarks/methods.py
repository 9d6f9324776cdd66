"""Every published method side by side: the time of steps and predictions, products, and what is kept."""

from __future__ import annotations

from collections.abc import Callable
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
from point_peft_hf.training import SharedValues, share_weights

from . import models
from .measuring import alternate, peak_memory, saved_for_backward
from .models import Setting, Shape

# Adapters in the last half of the blocks only.
_UPPER_HALF = "point_peft, upper half"
# What the published methods are compared with; the first is what ratios are to.
_OTHERS = ("full", "head", "linear", "lora", "point_peft", _UPPER_HALF, models.TWO_PASSES)
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
    """Training steps and predictions of all published methods beside full fine-tuning, LoRA and linear probing."""
    plain = replace(run.setting, compile=False)
    for shape, batch_size, case in run.cases():
        points = run.setting.clouds(batch_size, shape.num_points)
        product, gflop = _matrix_product(run.setting, shape, batch_size)
        rows, steps, predictions = {}, {"matrix product": product}, {}
        for name in (*_OTHERS, *_PUBLISHED):
            if batch_size >= models.SMALLEST_TRAINED:
                rows[name] = _cost(plain, _model(plain, shape, name), points)
                steps[name] = models.training_step(run.setting, _model(run.setting, shape, name), points)
            predictions[name] = models.prediction(run.setting, _model(run.setting, shape, name), points)
        times, predicted = (alternate(functions, run.clock, run.rounds) for functions in (steps, predictions))
        for name in predictions:
            values = {}
            if row := rows.get(name):
                row["step_ms"] = times[name]
                for column in ("step_ms", "GFLOP", "kept_MiB", "peak_MiB"):
                    values[column] = row[column]
                    values[f"{column.partition('_')[0]}_ratio"] = row[column] / rows[_OTHERS[0]][column]
                # What the step would take if it were its products alone, at the rate of a large one.
                values["in_products"] = row["GFLOP"] / gflop * times["matrix product"] / times[name]
                values["trainable_M"] = row["trainable_M"]
            values["predict_ms"] = predicted[name]
            values["predict_ratio"] = predicted[name] / predicted[_OTHERS[0]]
            run.report.add("methods", case, name, **values)


def known(run) -> None:
    """Training steps on clouds that came before with the same points, to those on new ones."""
    for shape, batch_size, case in run.cases(models.SMALLEST_TRAINED):
        points = run.setting.clouds(batch_size, shape.num_points)
        steps = {}
        for name in (*_OTHERS, *_PUBLISHED):
            # Blocks that are dropped at random are not known.
            for is_known in (False, True):
                model = _without_drop_path(_model(run.setting, shape, name))
                steps[name, is_known] = models.training_step(run.setting, model, points, is_known=is_known)
        times = alternate(steps, run.clock, run.rounds)
        for name in (*_OTHERS, *_PUBLISHED):
            new, again = times[name, False], times[name, True]
            full = times[_OTHERS[0], False]
            run.report.add("known", case, name, new_ms=new, known_ms=again, ratio=again / new, to_full=again / full)


def sharing(run) -> None:
    """Several adapters that answer on the same clouds, each alone and with what they have in common computed once."""
    setting = replace(run.setting, compile=False)
    for shape, batch_size, case in run.cases():
        points, answering = setting.clouds(batch_size, shape.num_points), []
        for name in ("linear", "lora", "geometry", "point_peft"):
            answering.append(models.make_model(setting, shape, name).eval().requires_grad_(False))
            share_weights(answering)
            run.time("sharing", f"{case}, {len(answering)} adapters", _answers(setting, list(answering), points))


def _answers(setting: Setting, answering: list[nn.Module], points: torch.Tensor) -> dict[str, Callable[[], None]]:
    def alone() -> None:
        with torch.no_grad(), setting.autocast():
            for model in answering:
                model(points)

    def shared() -> None:
        values = SharedValues()
        with torch.no_grad(), setting.autocast():
            for model in answering:
                values.run(model, points)

    return {"each alone": alone, "sharing": shared}


def _matrix_product(setting: Setting, shape: Shape, batch_size: int) -> tuple[Callable[[], torch.Tensor], float]:
    """The largest product of a block, and its GFLOP."""
    rows, size = batch_size * (shape.num_groups + 1), setting.hidden_size
    left = torch.randn(rows, size, device=setting.device)
    right = torch.randn(size, 4 * size, device=setting.device)

    def product() -> torch.Tensor:
        with setting.autocast():
            return left @ right

    return product, 2 * rows * size * 4 * size / 1e9


def _model(setting: Setting, shape: Shape, name: str) -> nn.Module:
    if name == _UPPER_HALF:
        # Prompts as well, which as published are in the first blocks.
        depth = setting.num_layers
        fields = {"layers_to_transform": list(range(depth // 2, depth)), "prompt_depth": depth}
        return models.make_model(setting, shape, "point_peft", **fields)
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
