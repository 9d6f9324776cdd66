"""What the choices of the bank cost in time and bytes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from point_peft_hf import PointPriorBank, set_point_prior_bank
from point_peft_hf.pretrained import DEFAULT_BACKBONE
from point_peft_hf.training import load_backbone, prepare_method

from . import models
from .measuring import alternate

EXPERIMENTS = Path(__file__).parents[2] / "method_comparison" / "ablation" / "experiments" / "point_peft"
REFERENCE = "default"
_CLASSES = 40
_ENTRIES, _BATCH_SIZE = 800, 16


def bank(run) -> None:
    """A training step and a forward pass for the ablations that change the bank, with the backbone that ships."""
    configs = {path.parent.name: json.loads(path.read_text()) for path in EXPERIMENTS.glob("*/adapter_config.json")}
    changed = {name for name, config in configs.items() if any("bank" in field for field in config)}
    further = {"own_entry_left_out", "query_encoder", "bank_softmax"}
    names = [REFERENCE, *sorted(changed | further)]
    steps, predictions, sizes = {}, {}, {}
    sample_ids = torch.arange(_BATCH_SIZE, device=run.setting.device)
    points = run.setting.clouds(_BATCH_SIZE, 1024)
    for name in names:
        config = {field: value for field, value in configs[name].items() if field != "peft_type"}
        # Two models, since what is timed puts its model in train or eval mode.
        trained, asked = (_model(run, config, _ENTRIES) for _ in range(2))
        steps[name] = models.training_step(run.setting, _Forward(trained, sample_ids), points)
        predictions[name] = models.prediction(run.setting, asked, points)
        sizes[name] = sum(tensor.nbytes for key, tensor in trained.state_dict().items() if "_bank." in key)
    times = {
        "step": alternate(steps, run.clock, run.rounds),
        "inference": alternate(predictions, run.clock, run.rounds),
    }
    for name in names:
        values = {f"{what}_ms": times[what][name] for what in times}
        ratios = {f"{what}_ratio": times[what][name] / times[what][REFERENCE] for what in times}
        run.report.add("bank", f"x{_BATCH_SIZE}", name, **values, **ratios, bank_KiB=sizes[name] / 1024)


def _model(run, config: dict, entries: int) -> nn.Module:
    backbone = load_backbone(DEFAULT_BACKBONE, [f"class {i}" for i in range(_CLASSES)])
    model = prepare_method("point_peft", backbone, **config)
    adapter = model.active_peft_config
    if adapter.use_bank:
        numbers = torch.arange(entries)
        features = models.random_bank(entries, backbone.config.hidden_size)
        set_point_prior_bank(model, PointPriorBank(features, numbers % _CLASSES, numbers, query=adapter.query))
    return model.train().to(run.setting.device)


class _Forward(nn.Module):
    """A model that is told which clouds it sees."""

    def __init__(self, model: nn.Module, sample_ids: torch.Tensor):
        super().__init__()
        self.model = model
        self.sample_ids = sample_ids

    def forward(self, points: torch.Tensor, labels: torch.Tensor):
        return self.model(points, labels=labels, sample_ids=self.sample_ids)
