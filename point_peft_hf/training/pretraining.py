"""What the pre-training scripts share: arguments of the Trainer, and a loss that is checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from .base_trainer import BaseTrainer
from .interruption import TrainingDiverged


@dataclass
class PretrainingArguments(TrainingArguments):
    """The arguments of the Trainer with what all pre-training here has as its defaults."""

    lr_scheduler_type: str = "cosine_warmup_with_min_lr"
    lr_scheduler_kwargs: dict | str | None = field(default_factory=lambda: {"min_lr_rate": 1e-3})
    optim: str = "adamw_torch"
    dataloader_num_workers: int = 1
    logging_nan_inf_filter: bool = False
    remove_unused_columns: bool | None = False
    seed: int = 0


class PretrainingTrainer(BaseTrainer):
    """A Trainer of a model that gives its own loss."""

    def loss_of(self, model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The loss of a batch, a scalar."""
        return model(**inputs).loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The loss of a batch.

        Raises:
            TrainingDiverged: If it is not finite.
        """
        loss = self.loss_of(model, inputs)
        if not torch.isfinite(loss):
            step = self.state.global_step + 1
            raise TrainingDiverged(f"The loss is {loss.item()} at step {step}; try a lower --learning_rate.")
        return loss

    def pretrain(self, resume: str | None) -> float:
        """Train to the end.

        Args:
            resume: The folder of a checkpoint, "latest", or `None` to start anew.

        Returns:
            The mean loss of the last steps that were logged.
        """
        result = self.train(resume_from_checkpoint=True if resume == "latest" else resume)
        losses: list[Any] = [row["loss"] for row in self.state.log_history if "loss" in row]
        return losses[-1] if losses else result.training_loss
