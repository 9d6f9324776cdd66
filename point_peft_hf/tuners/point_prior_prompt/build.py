"""Building the memory bank: every training cloud once, on one process or several, to be continued when interrupted."""

from __future__ import annotations

import hashlib
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderDispatcher
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler
from tqdm.auto import tqdm

from ...slots import ReadoutSlot
from ...tokens import Cloud
from ..base import slots_by_name
from .bank import PointPriorBank, adapters_with_bank, backbone_fingerprint, check_same_backbone, set_point_prior_bank
from .config import PromptOptions
from .partial import Collected, PartialBank, digest_of_clouds

# Number of batches between two partial files.
BATCHES_BETWEEN_FILES = 20
# For loaders that have no batch size.
_BATCH_SIZE = 32


def build_point_prior_bank(
    model: nn.Module,
    dataloader: Iterable[Mapping[str, Any]],
    *,
    adapter_name: str | None = None,
    query: str | None = None,
    num_passes: int = 1,
    augment: Callable[[torch.Tensor], torch.Tensor] | None = None,
    accelerator: Accelerator | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    seed: int = 0,
) -> PointPriorBank:
    """Build the memory bank of the training clouds, and give it to the prompt adapter if `model` carries one.

    The features come from the frozen pre-trained encoder, whatever adapters are attached. Nothing is trained. The bank
    has each cloud of the loader's data set once, in the order of the data set, whatever the loader shuffles, drops or
    repeats (a sampler of another kind than random or sequential says which clouds there are). It is the same to the
    bit whatever the number of processes; with another batch size features differ by the rounding of matrix products,
    about 1e-7.

    Args:
        model: A backbone of point_peft_hf, or a `PeftModel` around one.
        dataloader: Batches with "points" of shape `(batch_size, num_points, 3)` and, if known, "labels" and
            "sample_ids" of shape `(batch_size,)`. Not augmented, and of the training clouds only. A `DataLoader`
            around a data set with a length is shared out between processes; any other iterable must give the same
            batches to each process.
        adapter_name: The adapter that gets the bank; default: all active ones that use a bank.
        query: Where in the encoder the features are read, "tokens" or "encoder"; default: where the adapter does, or
            "tokens".
        num_passes: Number of augmented versions of each cloud whose features are averaged; needs `augment`.
        augment: What gives another version of clouds of shape `(batch_size, num_points, 3)`; it is called with one
            cloud at a time, and torch's random generator seeded for it.
        accelerator: Accelerate's, to work on all of its processes; each of them gets the whole bank.
        checkpoint: A file that the state is saved to every few batches (with the number of the process behind its
            name), so that a second call goes on where the first was interrupted. Deleted at the end.
        progress: Whether to show a progress bar.
        seed: Seed of the augmentation.

    Returns:
        The bank with all clouds, on the CPU. What an adapter keeps of it is a matter of its configuration.

    Raises:
        ValueError: If the data loader is empty or lacks the points, if a feature is not finite, if the bank does not
            fit the adapter, or if the state in `checkpoint` is of another backbone, data set or setting.
    """
    model = model if accelerator is None else accelerator.unwrap_model(model)
    _check_arguments(model, num_passes, augment)
    config = _adapter_config(model, adapter_name, query)
    query = query or (config or PromptOptions).query
    extract = query_features(model, query)
    backbone = backbone_fingerprint(model, config)
    attached_to = getattr(config, "_attached_to", None) or {}
    check_same_backbone(attached_to.get("weights"), backbone, "The adapter")

    source = _Batches(dataloader, accelerator)
    settings = {"query": query, "num_passes": num_passes, "seed": seed}
    partial = PartialBank(checkpoint, source.rank, {**settings, "backbone": backbone})
    collected = Collected()
    if checkpoint is not None:
        partial.settings["data"] = {"num_clouds": source.num_clouds, "clouds": digest_of_clouds(source.samples())}
        collected = partial.load()
    bar = tqdm(
        total=source.num_batches,
        desc="Building the point-prior bank",
        # None: where there is no terminal.
        disable=None if progress and source.rank == 0 else True,
        leave=False,
    )
    device = next(model.parameters()).device
    done = frozenset(collected.positions.tolist())
    for number, (positions, batch) in enumerate(source.batches(done), start=1):
        points = _points_of(batch)
        features = _average(extract, points, positions, num_passes, augment, seed, device)
        collected.add(positions, features, batch)
        if checkpoint is not None and number % BATCHES_BETWEEN_FILES == 0:
            partial.save(collected)
        bar.update()
    bar.close()
    collected = Collected.merge(gather_object([collected.state()]) if source.world_size > 1 else [collected.state()])
    if not len(collected.positions):
        raise ValueError("The data loader for the bank has no batches: check the folder and `drop_last`.")
    bank = PointPriorBank(*collected.in_order(), backbone=backbone or None, query=query)
    if config is not None:
        set_point_prior_bank(model, bank, adapter_name)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    partial.delete()
    return bank


def _check_arguments(model: nn.Module, num_passes: int, augment: Callable | None) -> None:
    if not hasattr(model, "frozen_features"):
        raise ValueError(
            f"{type(model).__name__} has no method `frozen_features(points)`, which returns the features of the "
            "frozen encoder, of shape (batch_size, hidden_size). The backbones of point_peft_hf have it; define "
            "it on your own backbone."
        )
    if isinstance(num_passes, bool) or not isinstance(num_passes, int) or num_passes < 1:
        raise ValueError(f"`num_passes` must be a number of at least 1, got {num_passes!r}.")
    if num_passes > 1 and augment is None:
        raise ValueError(f"`num_passes`={num_passes} would give the same features each time. Pass `augment` as well.")


def _adapter_config(model: nn.Module, adapter_name: str | None, query: str | None) -> PromptOptions | None:
    """The configuration of the adapter that gets the bank; `None` if there is none."""
    configs = [layer.configs[name] for layer, name in adapters_with_bank(model, adapter_name)]
    if not configs and adapter_name is not None:
        raise ValueError(f"Adapter {adapter_name!r} of this model uses no bank, or there is no such adapter.")
    wanted = {config.query for config in configs}
    if len(wanted) > 1:
        raise ValueError(
            f"The active adapters ask their banks in different places, `query` = {sorted(wanted)}. Build a bank for "
            "each: pass `adapter_name`."
        )
    if configs and query is not None and query != configs[0].query:
        raise ValueError(
            f"`query`={query!r}, but the adapter that gets the bank has query={configs[0].query!r}. Leave `query` out."
        )
    return configs[0] if configs else None


def query_features(model: nn.Module, query: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """What gives the features that a bank holds and is asked with.

    Returns:
        A function from clouds of shape `(batch_size, num_points, 3)` to features of shape `(batch_size, hidden_size)`,
        without gradient.
    """
    if query == "encoder":
        return model.frozen_features
    if query != "tokens":
        raise ValueError(f"`query` must be 'encoder' or 'tokens', got {query!r}.")
    encoder = getattr(model.get_base_model() if hasattr(model, "get_base_model") else model, "base_model", model)
    if not hasattr(encoder, "frozen_tokens"):
        raise ValueError(
            f"{type(encoder).__name__} has no method `frozen_tokens(cloud, depth)`, which `query='tokens'` needs. Use "
            "'encoder'."
        )
    depth = next(slot.stage for slot in slots_by_name(encoder).values() if isinstance(slot, ReadoutSlot)).first_layer
    return lambda points: encoder.frozen_tokens(Cloud(points, points), depth).patches.mean(dim=1)


def _points_of(batch: Mapping[str, Any]) -> torch.Tensor:
    if "points" not in batch:
        raise ValueError(f"A batch for the bank must have the key 'points', got the keys {sorted(batch)}.")
    return batch["points"]


def _average(
    extract: Callable[[torch.Tensor], torch.Tensor],
    points: torch.Tensor,
    positions: list[int],
    num_passes: int,
    augment: Callable | None,
    seed: int,
    device: torch.device,
) -> torch.Tensor:
    """The normalised average of the normalised features of all versions of the clouds, on the CPU."""
    total = 0
    for number in range(num_passes):
        version = points if augment is None else _augmented(points, positions, augment, (seed, number))
        features = F.normalize(extract(version.to(device)).float(), dim=-1).cpu()
        broken = [positions[row] for row in (~torch.isfinite(features).all(dim=1)).nonzero().flatten().tolist()]
        if broken:
            raise ValueError(
                f"The clouds {broken[:5]} give features that are not finite: the weights of the backbone are broken, "
                "or its dtype overflows. Check the checkpoint, or load it in float32."
            )
        total = total + features
    return total if num_passes == 1 else F.normalize(total, dim=-1)


def _augmented(points: torch.Tensor, positions: list[int], augment: Callable, seeds: tuple[int, int]) -> torch.Tensor:
    """Another version of each cloud, which depends on the cloud and the seeds alone."""
    clouds = []
    # On the CPU, where the same seed means the same numbers everywhere.
    with torch.random.fork_rng(devices=[]):
        for cloud, position in zip(points.cpu(), positions, strict=True):
            digest = hashlib.sha256(repr((*seeds, position)).encode()).digest()
            torch.default_generator.manual_seed(int.from_bytes(digest[:8], "big", signed=True))
            clouds.append(augment(cloud[None]))
    return torch.cat(clouds)


class _Batches:
    """Batches of clouds with their positions in the data set, each cloud once, shared out between processes.

    The clouds of a batch do not depend on the number of processes, so neither do their features.
    """

    def __init__(self, dataloader: Iterable[Mapping[str, Any]], accelerator: Accelerator | None):
        self.rank, self.world_size = 0, 1
        if accelerator is not None:
            self.rank, self.world_size = accelerator.process_index, accelerator.num_processes
        if isinstance(dataloader, DataLoaderDispatcher):
            raise ValueError(
                "The data loader for the bank was prepared by Accelerate, which gives each process only a part of it. "
                "Pass it as it was before `accelerator.prepare`."
            )
        self.dataloader = dataloader
        self.indices = self._indices()

    def _indices(self) -> list[int] | None:
        """Which clouds of the data set there are; `None` if they cannot be asked for one by one."""
        loader = self.dataloader
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            return None
        if loader.batch_sampler is None:
            return None
        batch_sampler = loader.batch_sampler
        while hasattr(batch_sampler, "batch_sampler"):
            # What Accelerate put around it gives only the share of a process.
            batch_sampler = batch_sampler.batch_sampler
        sampler = getattr(batch_sampler, "sampler", None)
        if isinstance(sampler, SequentialSampler | RandomSampler):
            return list(range(len(loader.dataset)))
        indices = sorted({index for batch in batch_sampler for index in batch})
        if self.world_size > 1:
            [indices] = broadcast_object_list([indices])
        return indices

    @property
    def num_clouds(self) -> int | None:
        """Number of clouds, if known."""
        return None if self.indices is None else len(self.indices)

    @property
    def num_batches(self) -> int | None:
        """Number of batches of this process, if known."""
        if self.indices is None:
            return (operator.length_hint(self.dataloader) or None) if self.world_size == 1 else None
        return len(range(self.rank, -(-len(self.indices) // self._batch_size), self.world_size))

    @property
    def _batch_size(self) -> int:
        size = self.dataloader.batch_size or getattr(self.dataloader.batch_sampler, "batch_size", None)
        return size or _BATCH_SIZE

    def samples(self) -> list[torch.Tensor]:
        """The first and the last cloud, to know the data set by."""
        if self.indices is None:
            if iter(self.dataloader) is self.dataloader:
                raise ValueError(
                    "`checkpoint` needs batches that can be gone through again, got an iterator. Pass a list of "
                    "batches or a DataLoader."
                )
            return [_points_of(batch)[0] for batch in itertools.islice(self.dataloader, 1)]
        ends = [self.indices[0], self.indices[-1]] if self.indices else []
        return [_points_of(self.dataloader.collate_fn([self.dataloader.dataset[index]]))[0] for index in ends]

    def batches(self, done: frozenset[int]) -> Iterator[tuple[list[int], Mapping[str, Any]]]:
        """The batches of this process that are not done yet."""
        if self.indices is None:
            yield from self._of_iterable(done)
            return
        size, loader = self._batch_size, self.dataloader
        mine = [
            list(range(start, min(start + size, len(self.indices))))
            for start in range(self.rank * size, len(self.indices), size * self.world_size)
        ]
        mine = [positions for positions in mine if not done.issuperset(positions)]
        again = DataLoader(
            loader.dataset,
            batch_sampler=[[self.indices[position] for position in positions] for positions in mine],
            collate_fn=loader.collate_fn,
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
        )
        yield from zip(mine, again, strict=True)

    def _of_iterable(self, done: frozenset[int]) -> Iterator[tuple[list[int], Mapping[str, Any]]]:
        start = 0
        for number, batch in enumerate(self.dataloader):
            positions = list(range(start, start + len(_points_of(batch))))
            start += len(positions)
            if number % self.world_size == self.rank and not done.issuperset(positions):
                yield positions, batch
