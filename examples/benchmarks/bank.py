"""What the choices of the bank study cost in time and bytes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from point_peft_hf import PointPriorBank, set_point_prior_bank
from point_peft_hf.pretrained import DEFAULT_BACKBONE
from point_peft_hf.studies import Study
from point_peft_hf.training import load_backbone, prepare_method

from . import models
from .measuring import alternate

STUDY = Path(__file__).parents[1] / "studies" / "bank.yaml"
_CLASSES = 40
# Of the clouds of the study this share is trained on, and fills the bank.
_TRAINED_SHARE = 0.8


def bank(run) -> None:
    """A training step and a forward pass for each line of the bank study, with the backbone that ships."""
    study = Study.from_yaml(STUDY)
    steps, predictions, sizes = {}, {}, {}
    for name, row in study.rows.items():
        batch_size = row.arguments["batch_size"]
        points = run.setting.clouds(batch_size, 1024)
        entries = round(_TRAINED_SHARE * row.arguments["max_train_clouds"])
        sample_ids = torch.arange(batch_size, device=run.setting.device)
        # Two models, since what is timed puts its model in train or eval mode.
        trained, asked = (_model(run, row.arguments.get("config", {}), entries) for _ in range(2))
        steps[name] = models.training_step(run.setting, _Forward(trained, sample_ids), points)
        predictions[name] = models.prediction(run.setting, asked, points)
        sizes[name] = sum(tensor.nbytes for key, tensor in trained.state_dict().items() if "_bank." in key)
    times = {
        "step": alternate(steps, run.clock, run.rounds),
        "inference": alternate(predictions, run.clock, run.rounds),
    }
    reference = study.reference
    for name in study.rows:
        values = {f"{what}_ms": times[what][name] for what in times}
        ratios = {f"{what}_ratio": times[what][name] / times[what][reference] for what in times}
        run.report.add("bank", f"x{batch_size}", name, **values, **ratios, bank_KiB=sizes[name] / 1024)


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
