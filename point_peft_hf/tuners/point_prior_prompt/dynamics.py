"""A bank that changes in training: entries follow the features of the model that is being trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import distributed
from torch.nn import functional as F

from .quantization import dequantize, quantize

if TYPE_CHECKING:
    from .bank import BankBuffers


@torch.no_grad()
@torch.compiler.disable
def update_entries(
    bank: BankBuffers, features: torch.Tensor, sample_ids: torch.Tensor, update: str, momentum: float
) -> None:
    """Refresh a bank with the clouds of a training step, those of all processes.

    Small steps would be lost by rounding to the dtype of a bank, so what its entries were rounded from is kept while
    they change; a training that is resumed starts from the rounded ones.

    Args:
        bank: The bank.
        features: Features of the clouds in the adapted model, of shape `(batch_size, hidden_size)`, not normalised.
        sample_ids: Numbers of the clouds, of shape `(batch_size,)`, -1 where unknown.
        update: "ema": the entries of each cloud become `momentum * entry + (1 - momentum) * feature`, normalised.
            "queue": the features become new entries in the place of the oldest.
        momentum: What remains of an entry.
    """
    if len(bank) == 0:
        return
    features, sample_ids = _of_all_processes(F.normalize(features.float(), dim=-1), sample_ids)
    if update == "ema":
        rows, values = _moved(bank, features, sample_ids, momentum)
    else:
        rows, values = _enqueue(bank, features, sample_ids)
    _exact_features(bank)[rows] = values
    stored, scales = quantize(values, bank.feature_dtype)
    # In place, so that whoever holds the buffers (DistributedDataParallel) holds the right ones.
    bank.features[rows] = stored
    if scales is not None:
        bank.scales[rows] = scales


def _exact_features(bank: BankBuffers) -> torch.Tensor:
    if bank.feature_dtype == torch.float32:
        return bank.features
    if bank.exact_features is None or bank.exact_features.device != bank.features.device:
        bank.exact_features = dequantize(bank.features, bank.scales, torch.float32)
    return bank.exact_features


def _moved(
    bank: BankBuffers, features: torch.Tensor, sample_ids: torch.Tensor, momentum: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The entries of the clouds, moved towards their features (the mean, if a cloud is there more than once)."""
    is_own = (sample_ids[:, None] == bank.sample_ids) & (sample_ids >= 0)[:, None]
    rows = is_own.any(dim=0).nonzero().squeeze(1)
    shares = is_own[:, rows].T.float()
    targets = shares @ features / shares.sum(dim=1, keepdim=True)
    return rows, F.normalize(momentum * _exact_features(bank)[rows] + (1 - momentum) * targets, dim=-1)


def _enqueue(bank: BankBuffers, features: torch.Tensor, sample_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Replace the oldest entries. The label of a cloud is that of another entry of it, if there is any."""
    features, sample_ids = features[-len(bank) :], sample_ids[-len(bank) :].to(bank.sample_ids.dtype)
    is_own = (sample_ids[:, None] == bank.sample_ids) & (sample_ids >= 0)[:, None]
    labels = torch.where(is_own.any(dim=1), bank.labels[is_own.int().argmax(dim=1)], -1)
    rows = (bank.oldest + torch.arange(len(features), device=features.device)) % len(bank)
    bank.labels[rows], bank.sample_ids[rows] = labels.to(bank.labels.dtype), sample_ids
    bank.oldest.copy_((bank.oldest + len(features)) % len(bank))
    return rows, features


def _of_all_processes(features: torch.Tensor, sample_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather, in the order of the processes, whose batches may differ in size."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return features, sample_ids
    world_size, device = distributed.get_world_size(), features.device
    sizes = [torch.zeros((), dtype=torch.int64, device=device) for _ in range(world_size)]
    distributed.all_gather(sizes, torch.tensor(len(features), device=device))
    sizes = [int(size) for size in sizes]
    missing = max(sizes) - len(features)
    gathered = []
    for tensor in (features, sample_ids.long()[:, None]):
        padded = F.pad(tensor, (0, 0, 0, missing)).contiguous()
        parts = [torch.empty_like(padded) for _ in range(world_size)]
        distributed.all_gather(parts, padded)
        gathered.append(torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]))
    return gathered[0], gathered[1].squeeze(1)
