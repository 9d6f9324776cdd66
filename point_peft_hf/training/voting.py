"""Voting: the mean prediction over several views of each test cloud."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader

from ..data import get_augmentation
from .batches import EpochSampler, TrainingCollator

if TYPE_CHECKING:
    from .trainer import PointCloudTrainer


@torch.no_grad()
def judge_by_votes(trainer: PointCloudTrainer, num_votes: int) -> dict[str, float]:
    """Judge a model on the test split by its mean class probabilities over several views of each cloud.

    Each view has other points of the cloud (if it has more than the model takes) and is augmented as in training. The
    number of views is fixed beforehand and all of them count, so there is no best one to pick.
    """
    model, task, accelerator = trainer.model_wrapped.eval(), trainer.task, trainer.accelerator
    total: torch.Tensor | None = None
    for vote in range(num_votes):
        probabilities, labels = [], []
        for batch in accelerator.prepare(_view(trainer, vote)):
            predicted = model(**task.inputs(batch)).logits.float().softmax(dim=-1)
            # What fills up a last batch for the sake of other processes is cut off again.
            predicted, known = accelerator.gather_for_metrics((predicted, batch["labels"]))
            probabilities.append(predicted)
            labels.append(known)
        votes = torch.cat(probabilities)
        total = votes if total is None else total + votes
    metrics = task.metrics()
    metrics.update(total.argmax(dim=-1), torch.cat(labels))
    return metrics.compute()


def _view(trainer: PointCloudTrainer, vote: int) -> DataLoader:
    """A loader of one view of the test clouds, in their order."""
    args = trainer.args
    source = EpochSampler(len(trainer.task.test), args.seed)
    source.set_epoch(vote)
    return DataLoader(
        trainer.task.test,
        batch_size=args.per_device_eval_batch_size,
        collate_fn=TrainingCollator(trainer.processor, get_augmentation(trainer.what.augmentation), source),
        num_workers=args.dataloader_num_workers,
        generator=torch.Generator(),
    )
