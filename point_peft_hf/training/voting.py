"""Voting: the mean prediction over several views of each test cloud."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from ..data import PointCloudProcessor, get_augmentation
from .arguments import FinetuneArguments
from .batches import EpochSampler, TrainingCollator
from .task import ClassificationTask


@torch.no_grad()
def judge_by_votes(
    model: nn.Module,
    task: ClassificationTask,
    processor: PointCloudProcessor,
    args: FinetuneArguments,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Judge a model on the test split by its mean class probabilities over `args.test_votes` views of each cloud.

    Each view has other points of the cloud (if it has more than the model takes) and is augmented as in training. The
    number of views is fixed beforehand and all of them count, so there is nothing to pick the best of.

    Args:
        model: The model, on the device of the accelerator.
        task: The task.
        processor: Prepares the clouds; its own seed is not used.
        args: Arguments of the run; the views depend on its `seed`.
        accelerator: Its accelerator.

    Returns:
        The measures of the task.
    """
    model.eval()
    total: torch.Tensor | None = None
    for vote in range(args.test_votes):
        probabilities, labels = [], []
        for batch in accelerator.prepare(_view(task, processor, args, vote)):
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


def _view(task: ClassificationTask, processor: PointCloudProcessor, args: FinetuneArguments, vote: int) -> DataLoader:
    """A loader of one view of the test clouds, in their order."""
    source = EpochSampler(len(task.test), args.seed)
    source.set_epoch(vote)
    return DataLoader(
        task.test,
        batch_size=args.batch_size,
        collate_fn=TrainingCollator(processor, get_augmentation(args.augmentation), source),
        num_workers=args.num_workers,
        generator=torch.Generator(),
    )
