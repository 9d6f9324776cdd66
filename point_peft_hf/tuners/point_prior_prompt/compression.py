"""Smaller banks: a subset of the entries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .bank import PointPriorBank

METHODS = ("herding", "random")


@torch.no_grad()
def compress_bank(bank: PointPriorBank, size: int, method: str = "herding", seed: int = 0) -> PointPriorBank:
    """Make a bank smaller. It does not depend on the process or the state of any random generator.

    Args:
        bank: The bank.
        size: Number of entries to keep; a bank that has no more is returned as it is.
        method: "herding": as many of each class, chosen one after the other so that their mean comes closest to that
            of the class (iCaRL, arXiv 1611.07725, section 2). "random": a random choice, equally many of each class,
            and all of a class that has fewer. Entries without a label count as one class.
        seed: Seed of the random choice.

    Returns:
        A bank of `size` entries; those that are kept are in their old order.

    Raises:
        ValueError: If there is no such method, or `size` is not a number above 0.
    """
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(map(repr, METHODS))}, got {method!r}.")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"`size` must be a number of at least 1, got {size!r}.")
    if len(bank) <= size:
        return bank
    generator = torch.Generator().manual_seed(seed)
    choose = _random_choice if method == "random" else _herd
    kept = [
        members[choose(bank.features[members.to(bank.features.device)].cpu(), quota, generator)]
        for members, quota in _quotas(bank.labels.cpu(), size)
    ]
    index = torch.cat(kept).sort().values
    parts = {name: getattr(bank, name) for name in ("features", "labels", "sample_ids")}
    return replace(bank, **{name: part[index.to(part.device)] for name, part in parts.items()})


def _quotas(labels: torch.Tensor, size: int) -> Iterator[tuple[torch.Tensor, int]]:
    """For each class its entries, and how many of them to keep: equally many, as far as there are."""
    members = [(labels == label).nonzero().squeeze(1) for label in labels.unique()]
    # From the smallest class up; what it does not use is shared by the others.
    members.sort(key=len)
    for position, entries in enumerate(members):
        quota = min(len(entries), size // (len(members) - position))
        size -= quota
        yield entries, quota


def _random_choice(features: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randperm(len(features), generator=generator)[:count]


def _herd(features: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    features = features.double()
    target = features.mean(dim=0)
    left = torch.ones(len(features), dtype=torch.bool)
    chosen, total, norms = [], torch.zeros_like(target), features.square().sum(dim=1)
    for step in range(1, count + 1):
        # |step * target - total - feature| is smallest; the part without the feature is the same for all.
        wanted = step * target - total
        distances = norms - 2 * (features @ wanted)
        best = int(distances.masked_fill(~left, torch.inf).argmin())
        chosen.append(best)
        left[best] = False
        total += features[best]
    return torch.tensor(chosen, dtype=torch.long)
