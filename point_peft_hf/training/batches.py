"""Batches that depend on the seed, the epoch and the numbers of their clouds alone.

Where a run was stopped, how many workers load the clouds and how many processes share them changes neither the order
of the clouds nor their points.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data import PointCloudCollator, PointCloudProcessor
from ..data.augmentation import Compose


class EpochSampler(Sampler[int]):
    """A random order of the clouds, another in each epoch.

    Args:
        num_clouds: Number of clouds.
        seed: Seed of the order.
        num_views: If given, what is drawn for the clouds repeats after so many epochs.

    Attributes:
        epoch: The epoch under way, from 0.
    """

    def __init__(self, num_clouds: int, seed: int, num_views: int | None = None):
        self.num_clouds = num_clouds
        self.seed = seed
        self.num_views = num_views
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins, from 0."""
        self.epoch = epoch

    @property
    def view(self) -> int:
        """What the draws for a cloud depend on besides the seed and its number."""
        return self.epoch if self.num_views is None else self.epoch % self.num_views

    def __len__(self) -> int:
        return self.num_clouds

    def __iter__(self) -> Iterator[int]:
        yield from np.random.default_rng([self.seed, self.epoch]).permutation(self.num_clouds).tolist()


class TrainingCollator:
    """Draw the points of each cloud anew in each epoch, augment them, and make a batch.

    What is drawn for a cloud depends on the seed, the view (of its sampler), which comes along as "views" of shape
    `(batch_size,)`, and its number.

    Args:
        processor: Prepares the clouds; its own seed is not used.
        augmentation: What `get_augmentation` gives.
        sampler: Tells the epoch and the seed.
        segmentation: As for `PointCloudCollator`.
    """

    def __init__(
        self,
        processor: PointCloudProcessor,
        augmentation: Compose,
        sampler: EpochSampler,
        segmentation: bool = False,
    ):
        self.generator = torch.Generator()
        processor = PointCloudProcessor.from_dict({**processor.to_dict(), "seed": None})
        self.collate = PointCloudCollator(processor, augmentation, segmentation=segmentation, generator=self.generator)
        self.sampler = sampler

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch of the items of a data set, as `PointCloudCollator` does."""
        batches = []
        for item in items:
            seeds = np.random.SeedSequence([self.sampler.seed, self.sampler.view, item["sample_ids"]])
            self.generator.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
            batches.append(self.collate([item]))
        batch = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        return batch | {"views": torch.full_like(batch["sample_ids"], self.sampler.view)}


def training_loader(
    dataset: Dataset,
    make_collator: Callable[[EpochSampler], Callable[[list], dict[str, torch.Tensor]]],
    *,
    batch_size: int,
    seed: int,
    num_workers: int = 0,
    num_processes: int = 1,
    num_views: int | None = None,
) -> DataLoader:
    """Make the loader of the training clouds; its sampler and collator go by `loader.sampler.set_epoch`.

    A last batch that is too small is left out: one of a single cloud could not be normalised over the batch.

    Args:
        dataset: The clouds.
        make_collator: Gives what makes batches, from the sampler, whose seed and epoch its draws depend on.
        batch_size: Clouds of a batch and process; lowered where there are fewer clouds.
        seed: Seed of order, points and augmentation.
        num_workers: Worker processes.
        num_processes: Number of processes that Accelerate will share the batches between.
        num_views: If given, points and augmentation repeat after so many epochs.

    Returns:
        The loader, not yet prepared by Accelerate.

    Raises:
        ValueError: If there are fewer clouds than processes.
    """
    if len(dataset) < num_processes:
        raise ValueError(
            f"{len(dataset)} training clouds cannot be shared by {num_processes} processes. Start fewer of them."
        )
    sampler = EpochSampler(len(dataset), seed, num_views)
    return DataLoader(
        dataset,
        batch_size=min(batch_size, len(dataset) // num_processes),
        sampler=sampler,
        drop_last=True,
        collate_fn=make_collator(sampler),
        **_loading(num_workers),
    )


def evaluation_loader(
    dataset: Dataset,
    collator: Callable[[list], dict[str, torch.Tensor]],
    *,
    batch_size: int,
    num_workers: int = 0,
) -> DataLoader:
    """Make a loader of clouds in their order, as they are.

    Args:
        dataset: The clouds.
        collator: Makes batches.
        batch_size: Clouds of a batch.
        num_workers: Worker processes.

    Returns:
        The loader.
    """
    return DataLoader(dataset, batch_size=batch_size, collate_fn=collator, **_loading(num_workers))


def _loading(num_workers: int) -> dict[str, Any]:
    # A generator of its own: a loader that is started once more would else take a number from the one of dropout.
    return {
        "num_workers": num_workers,
        "generator": torch.Generator(),
        "worker_init_fn": _ignore_interrupt if num_workers else None,
    }


def _ignore_interrupt(worker: int) -> None:
    # Ctrl-C reaches all processes of a terminal; the main one finishes its step, for which it needs its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
